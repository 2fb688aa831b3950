"""ResNet-20 training steps in DeZero."""

from importlib.metadata import version

import numpy as np

if not hasattr(np, "int"):  # a name that NumPy dropped and DeZero 0.0.13 still uses
    setattr(np, "int", int)  # noqa: B010 - NumPy has no such name to assign to

import dezero.functions as F
import dezero.layers as L
import protocol
from dezero import Function, Model
from dezero.optimizers import MomentumSGD, WeightDecay


class PadShortcut(Function):
    """Option A: every second pixel, and zeros for the channels that are new."""

    def forward(self, x):
        self.shape = x.shape
        small = x[:, :, ::2, ::2]
        return np.concatenate([small, np.zeros_like(small)], axis=1)

    def backward(self, gy):
        gx = np.zeros(self.shape, gy.data.dtype)
        gx[:, :, ::2, ::2] = gy.data[:, : self.shape[1]]
        return gx


class Block(Model):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = convolution(inside, width, stride)
        self.bn1 = L.BatchNorm()
        self.conv2 = convolution(width, width, 1)
        self.bn2 = L.BatchNorm()
        self.stride = stride

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.stride == 1 else PadShortcut()(x)))


def convolution(inside, width, stride):
    return L.Conv2d(width, 3, stride, 1, nobias=True, in_channels=inside)


class ResNet20(Model):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = convolution(3, 16, 1), L.BatchNorm()
        self.blocks, inside = [], 16
        for width, stride in protocol.STAGES:
            for i in range(3):
                block = Block(inside, width, stride if i == 0 else 1)
                setattr(self, f"block{len(self.blocks)}", block)
                self.blocks.append(block)
                inside = width
        self.fc = L.Linear(10, in_size=64)

    def forward(self, x):
        x = F.relu(self.bn(self.conv(x)))
        for block in self.blocks:
            x = block(x)
        x = F.average_pooling(x, 8, 8)
        return self.fc(F.reshape(x, (x.shape[0], -1)))


def build(images, labels):
    model = ResNet20()
    model(images[:2])  # batch norm learns its width from its first input
    weights, classifier = protocol.initial_weights()
    convolutions = [model.conv]
    for block in model.blocks:
        convolutions += [block.conv1, block.conv2]
    for conv, weight in zip(convolutions, weights, strict=True):
        conv.W.data = weight
    model.fc.W.data = classifier.T.copy()
    optimizer = MomentumSGD(protocol.LR, protocol.MOMENTUM).setup(model)
    optimizer.add_hook(WeightDecay(protocol.DECAY))

    def step():
        loss = F.softmax_cross_entropy(model(images), labels)
        model.cleargrads()
        loss.backward()
        optimizer.update()
        return loss.data

    statistics = {id(p) for norm in norms(model) for p in (norm.avg_mean, norm.avg_var)}
    return step, sum(p.size for p in model.params() if id(p) not in statistics)


def norms(model):
    found = [model.bn]
    for block in model.blocks:
        found += [block.bn1, block.bn2]
    return found


if __name__ == "__main__":
    protocol.main("DeZero", version("dezero"), build)
