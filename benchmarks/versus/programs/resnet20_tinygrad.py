"""ResNet-20 training steps in tinygrad: one compiled step on the CPU."""

import os
from importlib.metadata import version

os.environ.setdefault("DEV", "CPU")  # read when it is imported

import protocol
from tinygrad import Context, Device, Tensor, TinyJit, nn


class Block:
    def __init__(self, inside, width, stride):
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm(width)
        self.stride = stride

    def __call__(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride == 2:
            x = x[:, :, ::2, ::2].pad((None, (0, x.shape[1]), None, None))
        return (y + x).relu()


class ResNet20:
    def __init__(self):
        self.conv, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm(16)
        self.blocks, inside = [], 16
        for width, stride in protocol.STAGES:
            for i in range(3):
                self.blocks.append(Block(inside, width, stride if i == 0 else 1))
                inside = width
        self.fc = nn.Linear(64, 10)

    def __call__(self, x):
        x = self.bn(self.conv(x)).relu()
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean((2, 3)))


def build(images, labels):
    if Device.DEFAULT != "CPU":
        raise SystemExit(f"tinygrad runs on {Device.DEFAULT}, expected CPU")
    model = ResNet20()
    weights, classifier = protocol.initial_weights()
    convolutions = [model.conv]
    for block in model.blocks:
        convolutions += [block.conv1, block.conv2]
    for conv, weight in zip(convolutions, weights, strict=True):
        conv.weight.assign(Tensor(weight))
    model.fc.weight.assign(Tensor(classifier))
    model.fc.bias.assign(Tensor.zeros(10))
    Tensor.realize(*nn.state.get_parameters(model))
    optimizer = nn.optim.SGD(nn.state.get_parameters(model), protocol.LR, protocol.MOMENTUM,
                             weight_decay=protocol.DECAY)  # fmt: skip
    x, target = Tensor(images).realize(), Tensor(labels).realize()

    @TinyJit
    def compiled():
        optimizer.zero_grad()
        loss = model(x).sparse_categorical_crossentropy(target).backward()
        return loss.realize(*optimizer.schedule_step())

    names = ("running_mean", "running_var", "num_batches_tracked")
    state = nn.state.get_state_dict(model)
    parameters = sum(t.numel() for key, t in state.items() if not key.endswith(names))

    def step():
        with Context(TRAINING=1):
            return compiled().item()

    return step, parameters


if __name__ == "__main__":
    protocol.main("tinygrad", version("tinygrad"), build)
