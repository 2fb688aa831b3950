"""The operations and their signatures: one per operation, whatever the backend.

x, y, gx, gy are batches of images (N, C, H, W) with any strides; `g` is the geometry. Kernels
never change their inputs and return fresh arrays, preferably in channels-last memory; none of them
shares memory with another or with an input.
"""

from __future__ import annotations

from minires.kernels.registry import define

conv2d = define("conv2d", "conv2d(x, weight, g) -> y")
conv2d_grad_input = define("conv2d_grad_input", "conv2d_grad_input(gy, weight, g) -> gx")
conv2d_grad_weight = define("conv2d_grad_weight", "conv2d_grad_weight(x, gy, g) -> gweight")

linear = define("linear", "linear(x, weight, bias or None) -> y")

batch_norm_train = define(
    "batch_norm_train",
    "batch_norm_train(x, gamma or None, beta or None, eps) -> (y, mean, var, inv_std)",
)
# Its statistics alone: what is left to do with them is what `normalise` does.
batch_norm_statistics = define(
    "batch_norm_statistics", "batch_norm_statistics(x, eps) -> (mean, var, inv_std)"
)
batch_norm_eval = define(
    "batch_norm_eval", "batch_norm_eval(x, gamma or None, beta or None, mean, var, eps) -> y"
)
batch_norm_grad = define(
    "batch_norm_grad",
    "batch_norm_grad(gy, x, gamma or None, mean, inv_std) -> (gx, ggamma, gbeta)",
)
# With a ReLU behind it, in one pass: the pair that stands after most convolutions of a ResNet.
batch_norm_relu_train = define(
    "batch_norm_relu_train",
    "batch_norm_relu_train(x, gamma or None, beta or None, eps) -> (y, mean, var, inv_std)",
)
batch_norm_relu_grad = define(
    "batch_norm_relu_grad",
    "batch_norm_relu_grad(gy, x, gamma or None, beta or None, mean, inv_std)"
    " -> (gx, ggamma, gbeta)",
)
# The end of a residual block in one pass: y = relu(batch norm of x, plus the shortcut r).
batch_norm_add_relu_train = define(
    "batch_norm_add_relu_train",
    "batch_norm_add_relu_train(x, r, gamma or None, beta or None, eps) -> (y, mean, var, inv_std)",
)
batch_norm_add_relu_grad = define(
    "batch_norm_add_relu_grad",
    "batch_norm_add_relu_grad(gy, x, y, gamma or None, mean, inv_std) -> (gx, gr, ggamma, gbeta)",
)
# What inference needs, in one pass: a layer's fixed scale and shift, the shortcut, the ReLU.
normalise = define(
    "normalise",
    "normalise(x, mean or None, scale or None, shift or None, r or None, relu) -> y",
)

relu = define("relu", "relu(x) -> y")
relu_grad = define("relu_grad", "relu_grad(gy, y) -> gx")
add_relu = define("add_relu", "add_relu(a, b) -> y")
add = define("add", "add(a, b) -> y")

max_pool2d = define("max_pool2d", "max_pool2d(x, g) -> (y, indices)")
max_pool2d_grad = define("max_pool2d_grad", "max_pool2d_grad(gy, indices, g) -> gx")
max_pool2d_take = define("max_pool2d_take", "max_pool2d_take(x, indices, g) -> y")
avg_pool2d = define("avg_pool2d", "avg_pool2d(x, g) -> y")
avg_pool2d_grad = define("avg_pool2d_grad", "avg_pool2d_grad(gy, g) -> gx")
adaptive_avg_pool2d = define("adaptive_avg_pool2d", "adaptive_avg_pool2d(x, (OH, OW)) -> y")
adaptive_avg_pool2d_grad = define(
    "adaptive_avg_pool2d_grad", "adaptive_avg_pool2d_grad(gy, (H, W)) -> gx"
)

log_softmax = define("log_softmax", "log_softmax(x, axis) -> y")
log_softmax_grad = define("log_softmax_grad", "log_softmax_grad(gy, y, axis) -> gx")
# The loss of each row of x (N, K), and that loss's gradient by the row. A label of ignore_index has
# loss 0 and no gradient; any other one outside [0, K) has loss NaN.
cross_entropy = define(
    "cross_entropy", "cross_entropy(x, labels, ignore_index, label_smoothing) -> (losses, gx)"
)
