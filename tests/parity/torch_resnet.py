"""ResNets in torch.nn, written from the paper and torchvision's naming, not from minires."""

from against_torch import torch

nn = torch.nn


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inside, planes, stride, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = downsample

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.downsample(x))


class Deep(nn.Module):
    expansion = 4

    def __init__(self, inside, planes, stride, downsample):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = downsample

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        return torch.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class Pad(nn.Module):
    """Option A: subsampling, and zeros concatenated behind."""

    def forward(self, x):
        small = nn.functional.avg_pool2d(x, 1, 2)
        return torch.cat([small, torch.zeros_like(small)], dim=1)


class Same(nn.Module):
    def forward(self, x):
        return x


class Nothing(nn.Module):
    """No shortcut: adds zero."""

    def forward(self, x):
        return 0.0


class Net(nn.Module):
    def __init__(self, block, counts, width, classes, cifar, option="B"):
        super().__init__()
        self.cifar = cifar
        first = (3, 1, 1) if cifar else (7, 2, 3)
        self.conv1 = nn.Conv2d(3, width, *first, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inside = width
        self.count = len(counts)
        for i, count in enumerate(counts):
            planes, blocks = width * 2**i, []
            for j in range(count):
                stride = 2 if i and not j else 1
                outside = planes * block.expansion
                if option == "none":
                    shortcut = Nothing()
                elif stride == 1 and inside == outside and option != "C":
                    shortcut = Same()
                elif option == "A":
                    shortcut = Pad()
                else:
                    convolution = nn.Conv2d(inside, outside, 1, stride, bias=False)
                    shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outside))
                blocks.append(block(inside, planes, stride, shortcut))
                inside = outside
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        if not self.cifar:
            x = nn.functional.max_pool2d(x, 3, 2, 1)
        for i in range(self.count):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))
