"""ResNet-20 training steps in minires."""

import protocol

import minires as mr
from minires.optim import SGD


def build(images, labels):
    model = mr.models.create("resnet20")
    optimizer = SGD(model.parameters(), protocol.LR, protocol.MOMENTUM,
                    weight_decay=protocol.DECAY)  # fmt: skip
    x = mr.Tensor(images.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2))

    def step():
        model.zero_grad()
        loss = mr.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    protocol.main("minires", mr.__version__, build)
