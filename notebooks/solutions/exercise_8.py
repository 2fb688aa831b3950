"""Solutions to notebook 8, where the time goes."""


def cost(N, C, H, W, O, KH, KW):
    """Multiply-adds by definition; every array once through memory."""
    return N * O * H * W * C * KH * KW, 4 * (N * C * H * W + O * C * KH * KW + N * O * H * W)


def seconds(multiply_adds, bytes_moved, peak, bandwidth):
    """The slower of the two: arithmetic and traffic overlap."""
    return max(2 * multiply_adds / peak, bytes_moved / bandwidth)
