"""ResNet-20 training steps in PyTorch: eager, channels_last."""

import os

import protocol
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, inside, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.wider = stride == 2

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        if self.wider:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))
        return F.relu(y + x, inplace=True)


def build(images, labels):
    if "MINIRES_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["MINIRES_THREADS"]))
    layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inside = 16
    for width, stride in protocol.STAGES:
        for i in range(3):
            layers.append(Block(inside, width, stride if i == 0 else 1))
            inside = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    model = nn.Sequential(*layers, *head)
    weights, classifier = protocol.initial_weights()
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for conv, weight in zip(convolutions, weights, strict=True):
            conv.weight.copy_(torch.tensor(weight))
        head[-1].weight.copy_(torch.tensor(classifier))
        head[-1].bias.zero_()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), protocol.LR, protocol.MOMENTUM,
                                weight_decay=protocol.DECAY)  # fmt: skip
    x = torch.tensor(images).contiguous(memory_format=torch.channels_last)
    target = torch.tensor(labels)

    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(p.numel() for p in model.parameters())


if __name__ == "__main__":
    protocol.main("PyTorch eager channels_last", torch.__version__, build)
