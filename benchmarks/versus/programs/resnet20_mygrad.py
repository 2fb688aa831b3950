"""ResNet-20 training steps in MyGrad."""

import mygrad as mg
import numpy as np
import protocol
from mygrad.nnet.activations import relu
from mygrad.nnet.layers import batchnorm, conv_nd
from mygrad.nnet.losses import softmax_crossentropy


def with_border(x):
    """A row of zeros above and a column on the left."""
    N, C, H, W = x.shape
    x = mg.concatenate([np.zeros((N, C, 1, W), np.float32), x], axis=2)
    return mg.concatenate([np.zeros((N, C, H + 1, 1), np.float32), x], axis=3)


def build(images, labels):
    convolutions, classifier = protocol.initial_weights()
    params = []

    def parameter(array):
        params.append(mg.tensor(np.asarray(array, np.float32)))
        return params[-1]

    def conv_norm(initial):
        weight = parameter(initial)
        gamma, beta = parameter(np.ones(len(initial))), parameter(np.zeros(len(initial)))

        def apply(x, stride=1):
            if stride == 1:
                y = conv_nd(x, weight, stride=1, padding=1)
            else:  # windows must fit exactly, and the last row and column are not reached
                y = conv_nd(with_border(x), weight, stride=2)
            return batchnorm(y, gamma=gamma, beta=beta, eps=1e-5)

        return apply

    stem, *rest = map(conv_norm, convolutions)
    strides = [stride if i == 0 else 1 for _, stride in protocol.STAGES for i in range(3)]
    blocks = list(zip(rest[::2], rest[1::2], strides, strict=True))
    weight, bias = parameter(classifier.T), parameter(np.zeros(10))

    def forward(x):
        x = relu(stem(x))
        for first, second, stride in blocks:
            y = second(relu(first(x, stride)))
            if stride == 2:
                x = x[:, :, ::2, ::2]
                x = mg.concatenate([x, np.zeros_like(x.data)], axis=1)
            x = relu(x + y)
        return mg.mean(x, axis=(2, 3)) @ weight + bias

    velocity = [np.zeros_like(p.data) for p in params]

    def step():
        loss = softmax_crossentropy(forward(images), labels)
        loss.backward()
        for p, v in zip(params, velocity, strict=True):
            v *= protocol.MOMENTUM
            v += p.grad + protocol.DECAY * p.data
            p.data -= protocol.LR * v
        return loss.item()

    return step, sum(p.data.size for p in params)


if __name__ == "__main__":
    protocol.main("MyGrad", mg.__version__, build)
