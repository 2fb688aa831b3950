"""ResNet-20 training steps in minires."""

import numpy as np
import protocol

import minires as mr
from minires.optim import SGD


def build(images, labels):
    model = mr.models.create("resnet20")
    weights, classifier = protocol.initial_weights()
    convolutions = [name for name, m in model.named_modules() if isinstance(m, mr.nn.Conv2d)]
    state = {f"{name}.weight": w for name, w in zip(convolutions, weights, strict=True)}
    state |= {"fc.weight": classifier, "fc.bias": np.zeros(10, np.float32)}
    model.load_state_dict({**model.state_dict(), **state})
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
