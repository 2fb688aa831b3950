"""ResNet-20 training steps in JAX: one compiled function, NHWC."""

import jax
import jax.numpy as jnp
import protocol
from jax import lax


def convolve(x, weight, stride=1):
    return lax.conv_general_dilated(
        x, weight, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normalise(x, p):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) * lax.rsqrt(var + 1e-5) * p["gamma"] + p["beta"], (mean, var)


def forward(params, x):
    """Logits, and the statistics of every batch norm."""
    statistics = []

    def conv_norm(x, p, stride=1):
        y, found = normalise(convolve(x, p["weight"], stride), p)
        statistics.append(found)
        return y

    x = jax.nn.relu(conv_norm(x, params["stem"]))
    for i, (first, second) in enumerate(params["blocks"]):
        stride = 2 if i in (3, 6) else 1
        y = conv_norm(jax.nn.relu(conv_norm(x, first, stride)), second)
        if stride == 2:
            x = x[:, ::2, ::2]
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, x.shape[3])))
        x = jax.nn.relu(x + y)
    return x.mean((1, 2)) @ params["fc"]["weight"] + params["fc"]["bias"], statistics


def loss_of(params, x, labels):
    logits, statistics = forward(params, x)
    rows = jnp.arange(len(labels))
    return -jax.nn.log_softmax(logits)[rows, labels].mean(), statistics


@jax.jit
def update(params, velocity, running, x, labels):
    (loss, statistics), grads = jax.value_and_grad(loss_of, has_aux=True)(params, x, labels)
    grads = jax.tree.map(lambda g, p: g + protocol.DECAY * p, grads, params)
    velocity = jax.tree.map(lambda v, g: protocol.MOMENTUM * v + g, velocity, grads)
    params = jax.tree.map(lambda p, v: p - protocol.LR * v, params, velocity)
    running = jax.tree.map(lambda r, s: 0.9 * r + 0.1 * s, running, statistics)
    return params, velocity, running, loss


def build(images, labels):
    convolutions, classifier = protocol.initial_weights()

    def conv_norm(weight):
        width = len(weight)
        weight = jnp.asarray(weight.transpose(2, 3, 1, 0))
        return {"weight": weight, "gamma": jnp.ones(width), "beta": jnp.zeros(width)}

    stem, *rest = map(conv_norm, convolutions)
    params = {"stem": stem, "blocks": list(zip(rest[::2], rest[1::2], strict=True))}
    params["fc"] = {"weight": jnp.asarray(classifier.T), "bias": jnp.zeros(10)}
    x, target = jnp.asarray(images.transpose(0, 2, 3, 1)), jnp.asarray(labels)
    velocity = jax.tree.map(jnp.zeros_like, params)
    _, statistics = forward(params, x[:2])
    state = [params, velocity, jax.tree.map(jnp.zeros_like, statistics)]

    def step():
        *state[:], loss = update(*state, x, target)
        return loss.block_until_ready()

    return step, sum(p.size for p in jax.tree.leaves(params))


if __name__ == "__main__":
    protocol.main("JAX", jax.__version__, build)
