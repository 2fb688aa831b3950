"""Solutions to notebook 7, the GPU."""


def place(t, N, O, OH, OW):
    """Divide by the sizes from the fastest to the slowest index."""
    t, j = divmod(t, OW)
    t, i = divmod(t, OH)
    n, o = divmod(t, O)
    return n, o, i, j


def tile_bytes(C, TH, TW, KH, KW, stride):
    """The last window starts (TH - 1) * stride further than the first and is KH high."""
    return 4 * C * ((TH - 1) * stride + KH) * ((TW - 1) * stride + KW)
