"""Preprocessing and augmentation of whole batches.

A transform is called as `transform(images, rng)`: images (N, C, H, W), rng a NumPy Generator,
which only random ones need. It returns new images in channels-last memory and changes nothing in
place. Names, arguments and defaults are torchvision's where it has them; random ones draw anew for
each image of the batch. Crops, flips and resizing take uint8 or float32 and keep it; arithmetic
(`Normalize`, `SubtractMean`, `ColorPCA`) takes float32.

The recipe of "Deep Residual Learning" (He 2015) for CIFAR-10, section 4.2, is

    Compose([ToFloat(), SubtractMean(per_pixel_mean(train)), RandomCrop(32, padding=4),
             RandomHorizontalFlip()])

and the first two alone for testing. Padding after the subtraction adds mean pixels, padding before
it black ones; cropping uint8 first is faster and common too. For ImageNet, section 3.4:

    Compose([RandomScaleCrop(224), RandomHorizontalFlip(), ToFloat(), Normalize(mean, 1),
             ColorPCA.from_dataset(train)])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from minires.data._layout import to_nchw, to_nhwc
from minires.data._resample import resize_nhwc
from minires.data.dataset import Dataset, channel_moments

Array = NDArray[Any]
Size = int | tuple[int, int]


class Transform(Protocol):
    """What a Loader calls on each batch."""

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array: ...


class Compose:
    """Several transforms, one after the other."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        for transform in self.transforms:
            images = transform(images, rng)
        return images

    def __repr__(self) -> str:
        return f"Compose([{', '.join(map(repr, self.transforms))}])"


class ToFloat:
    """uint8 0..255 to float32 0..1."""

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        if images.dtype != np.uint8:
            raise TypeError(f"ToFloat: expected uint8 images, got {images.dtype}")
        scaled = np.empty(to_nhwc(images).shape, np.float32)
        return to_nchw(np.divide(to_nhwc(images), np.float32(255), out=scaled))

    def __repr__(self) -> str:
        return "ToFloat()"


class Normalize:
    """(images - mean) / std, per channel; `dataset.channel_stats` gives both.

    mean, std: C numbers, or one for all channels, on the scale of the images (0..1 after ToFloat).

    Raises ValueError if a std is not positive.
    """

    def __init__(self, mean: ArrayLike, std: ArrayLike) -> None:
        self.mean, self.std = (np.atleast_1d(np.asarray(v, np.float32)) for v in (mean, std))
        if self.mean.ndim != 1 or self.std.ndim != 1:
            raise ValueError(
                f"Normalize: expected one number per channel, got shapes {self.mean.shape} and "
                f"{self.std.shape}"
            )
        if not (self.std > 0).all():
            raise ValueError(f"Normalize: every std must be positive, got {self.std.tolist()}")

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        rows = _float_rows(self, images)
        _, C, _, W = images.shape
        for values in (self.mean, self.std):
            if len(values) not in (1, C):
                raise ValueError(f"Normalize: made for {len(values)} channels, images have {C}")
        # Along a row of W pixels at once: NumPy is slow where the last axis is only C long.
        out = rows - np.tile(np.broadcast_to(self.mean, C), W)
        out /= np.tile(np.broadcast_to(self.std, C), W)
        return _from_rows(out, images)

    def __repr__(self) -> str:
        return f"Normalize(mean={_numbers(self.mean)}, std={_numbers(self.std)})"


class SubtractMean:
    """Subtract a mean image (C, H, W), as He 2015 do on CIFAR-10 (section 4.2).

    mean_image: float, on the scale of the images; `per_pixel_mean(dataset)` for 0..1.
    """

    def __init__(self, mean_image: ArrayLike) -> None:
        self.mean_image = np.asarray(mean_image, np.float32)
        if self.mean_image.ndim != 3:
            raise ValueError(
                f"SubtractMean: expected a mean image (C, H, W), got {self.mean_image.shape}; "
                "for means per channel use Normalize"
            )

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        rows = _float_rows(self, images)
        if images.shape[1:] != self.mean_image.shape:
            raise ValueError(
                f"SubtractMean: the mean image is {_x(self.mean_image.shape)}, the images are "
                f"{_x(images.shape[1:])}. Put it before a crop that changes the size"
            )
        mean_rows = self.mean_image.transpose(1, 2, 0).reshape(rows.shape[1:])
        return _from_rows(rows - mean_rows, images)

    def __repr__(self) -> str:
        return f"SubtractMean({_x(self.mean_image.shape)})"


class ColorPCA:
    """Shift the colour of each image along the principal components of the set's RGB values.

    The colour augmentation of AlexNet (Krizhevsky 2012, section 4.1), which He 2015 use on
    ImageNet (section 3.4): every pixel of an image gets the same sum_k a_k d_k p_k, with a_k drawn
    from N(0, std²). Here d_k is the standard deviation along component k, so that a is a share of
    the natural variation whatever the pixels' scale; AlexNet's text names the eigenvalue, d_k².

    components: (3, 3), column k is p_k. deviations: (3,), d_k. Both on the scale of the images;
    see `from_dataset`.
    """

    def __init__(self, components: ArrayLike, deviations: ArrayLike, std: float = 0.1) -> None:
        self.components = np.asarray(components, np.float32)
        self.deviations = np.asarray(deviations, np.float32)
        self.std = std
        if self.components.shape != (3, 3) or self.deviations.shape != (3,):
            raise ValueError(
                "ColorPCA: expected components (3, 3) and deviations (3,), got "
                f"{self.components.shape} and {self.deviations.shape}"
            )

    @classmethod
    def from_dataset(cls, dataset: Dataset, std: float = 0.1) -> ColorPCA:
        """Components of all pixels of an RGB set, on the scale 0..1, largest first."""
        if dataset.images.shape[1] != 3:
            raise ValueError(f"ColorPCA: expected RGB images, got {dataset!r}")
        variances, components = np.linalg.eigh(channel_moments(dataset)[1])
        return cls(components[:, ::-1], np.sqrt(variances.clip(min=0))[::-1], std)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        rows, rng = _float_rows(self, images), _generator(self, rng)
        N, C, _, W = images.shape
        if C != 3:
            raise ValueError(f"ColorPCA: expected 3 channels, got images {_x(images.shape)}")
        a = rng.normal(0.0, self.std, (N, 3)).astype(np.float32)
        # A sum of three terms written out: its rounding does not depend on a BLAS.
        shift = (self.components * (a * self.deviations)[:, np.newaxis, :]).sum(axis=2)
        return _from_rows(rows + np.tile(shift, W)[:, np.newaxis, :], images)

    def __repr__(self) -> str:
        return f"ColorPCA(deviations={_numbers(self.deviations)}, std={self.std:g})"


class RandomHorizontalFlip:
    """Mirror each image left to right with probability p."""

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be in 0..1, got {p}")
        self.p = p

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """Which of n images are mirrored: bool (n,)."""
        return np.asarray(rng.random(n) < self.p)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        flip = self.draw(len(images), _generator(self, rng))
        nhwc = to_nhwc(images)
        out = np.array(nhwc, order="C")
        out[flip] = nhwc[flip, :, ::-1]
        return to_nchw(out)

    def __repr__(self) -> str:
        return f"RandomHorizontalFlip(p={self.p:g})"


class CenterCrop:
    """Cut the middle out of each image. size: side of a square, or (height, width)."""

    def __init__(self, size: Size) -> None:
        self.size = _pair(self, size)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        (h, w), (H, W) = self.size, images.shape[2:]
        _fits(self, self.size, (H, W))
        top, left = round((H - h) / 2), round((W - w) / 2)
        return _copy(images[:, :, top : top + h, left : left + w])

    def __repr__(self) -> str:
        return f"CenterCrop({_size(self.size)})"


class RandomCrop:
    """Cut a window out of each image, at a place drawn evenly, after padding with zeros.

    size: side of a square, or (height, width). padding: zeros added on each of the four sides.

    With (32, padding=4) this is the augmentation of He 2015 on CIFAR-10 (section 4.2).
    """

    def __init__(self, size: Size, padding: int = 0) -> None:
        self.size = _pair(self, size)
        if padding < 0:
            raise ValueError(f"RandomCrop: padding must not be negative, got {padding}")
        self.padding = padding

    def draw(
        self, n: int, image: tuple[int, int], rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """(top, left) of the windows in n padded images of (height, width): integers (n,) each."""
        (h, w), (H, W), p = self.size, image, self.padding
        return rng.integers(0, H + 2 * p - h + 1, n), rng.integers(0, W + 2 * p - w + 1, n)

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        rng = _generator(self, rng)
        N, C, H, W = images.shape
        (h, w), p = self.size, self.padding
        _fits(self, self.size, (H + 2 * p, W + 2 * p))
        padded = np.zeros((N, H + 2 * p, W + 2 * p, C), images.dtype)
        padded[:, p : p + H, p : p + W] = to_nhwc(images)
        top, left = self.draw(N, (H, W), rng)
        windows = sliding_window_view(padded, (h, w), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
        return to_nchw(windows[np.arange(N), top, left])

    def __repr__(self) -> str:
        return f"RandomCrop({_size(self.size)}, padding={self.padding})"


class Resize:
    """Resize by bilinear interpolation with antialiasing.

    size: (height, width), or the new length of the shorter side, the longer one in proportion.
    The paper's test images have a shorter side of 256, and of {224, 256, 384, 480, 640} for its
    best results (section 3.4).
    """

    def __init__(self, size: Size) -> None:
        _pair(self, size)
        self.size = size

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        H, W = images.shape[2:]
        if isinstance(self.size, tuple):
            height, width = self.size
        else:
            height, width = (self.size * side // min(H, W) for side in (H, W))
        return to_nchw(resize_nhwc(to_nhwc(images), height, width))

    def __repr__(self) -> str:
        return f"Resize({self.size})"


class RandomResizedCrop:
    """Cut a window of random area and shape out of each image and resize it.

    size: of the result: side of a square, or (height, width).
    scale: bounds of the window's share of the image's area, drawn evenly.
    ratio: bounds of its width / height, drawn evenly in the logarithm.

    Windows that do not fit are drawn again, ten times; then the largest centred one within `ratio`
    is taken. From GoogLeNet (Szegedy 2014, section 6), the common augmentation on ImageNet since.
    """

    ATTEMPTS = 10

    def __init__(
        self,
        size: Size,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        self.size = _pair(self, size)
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high:
                raise ValueError(
                    f"RandomResizedCrop: {name} must rise from above 0, got {low, high}"
                )
        self.scale, self.ratio = scale, ratio

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        rng = _generator(self, rng)
        N, _, H, W = images.shape
        drawn = (N, self.ATTEMPTS)
        area = H * W * rng.uniform(*self.scale, drawn)
        ratio = np.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), drawn))
        w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
        h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = (w > 0) & (w <= W) & (h > 0) & (h <= H)
        first = np.arange(N), fits.argmax(axis=1)
        found = fits.any(axis=1)
        fallback_h, fallback_w = self._centred(H, W)
        h, w = np.where(found, h[first], fallback_h), np.where(found, w[first], fallback_w)
        top = np.where(found, rng.integers(0, H - h + 1), (H - h) // 2)
        left = np.where(found, rng.integers(0, W - w + 1), (W - w) // 2)
        return _crop_and_resize(images, top, left, h, w, self.size)

    def _centred(self, H: int, W: int) -> tuple[int, int]:
        """The largest height and width in H x W whose ratio is within bounds."""
        low, high = self.ratio
        ratio = W / H
        if ratio < low:
            return round(W / low), W
        if ratio > high:
            return H, round(H * high)
        return H, W

    def __repr__(self) -> str:
        scale, ratio = (_numbers(np.array(v)) for v in (self.scale, self.ratio))
        return f"RandomResizedCrop({_size(self.size)}, scale={scale}, ratio={ratio})"


class RandomScaleCrop:
    """Resize each image to a random shorter side and cut a random square out of it.

    size: side of the square. shorter_side: bounds of the shorter side, drawn evenly.

    The scale augmentation of He 2015 on ImageNet (section 3.4, after VGG). Equivalently, and done
    so: cut a random square of size / shorter_side of the image's shorter side, and resize it.
    """

    def __init__(self, size: int, shorter_side: tuple[int, int] = (256, 480)) -> None:
        if not 1 <= size <= shorter_side[0] <= shorter_side[1]:
            raise ValueError(
                f"RandomScaleCrop: expected size <= shorter_side, got {size} and {shorter_side}"
            )
        self.size, self.shorter_side = size, shorter_side

    def __call__(self, images: Array, rng: np.random.Generator | None = None) -> Array:
        _check(self, images)
        rng = _generator(self, rng)
        N, _, H, W = images.shape
        scaled = rng.integers(self.shorter_side[0], self.shorter_side[1] + 1, N)
        side = np.rint(min(H, W) * self.size / scaled).astype(np.int64).clip(min=1)
        top, left = rng.integers(0, H - side + 1), rng.integers(0, W - side + 1)
        return _crop_and_resize(images, top, left, side, side, (self.size, self.size))

    def __repr__(self) -> str:
        return f"RandomScaleCrop({self.size}, shorter_side={self.shorter_side})"


def ten_crop(images: Array, size: Size) -> Array:
    """(10, N, C, height, width): the corners and the centre, then the same mirrored.

    The standard 10-crop test (Krizhevsky 2012; He 2015, section 3.4): the scores of the ten are
    averaged. Order as torchvision's TenCrop: top left, top right, bottom left, bottom right,
    centre.
    """
    crop = CenterCrop(size)
    _check(crop, images)
    (h, w), (H, W) = crop.size, images.shape[2:]
    centre = crop(images)
    corners = [images[:, :, y : y + h, x : x + w] for y in (0, H - h) for x in (0, W - w)]
    five = np.stack([to_nhwc(view) for view in (*corners, centre)])
    return np.concatenate([five, five[:, :, :, ::-1]]).transpose(0, 1, 4, 2, 3)


def _crop_and_resize(
    images: Array, top: Array, left: Array, h: Array, w: Array, size: tuple[int, int]
) -> Array:
    """Window (top, left, h, w) of each image, resized. One at a time: their sizes differ."""
    nhwc = to_nhwc(images)
    out = np.empty((len(images), *size, images.shape[1]), images.dtype)
    windows = zip(top.tolist(), left.tolist(), h.tolist(), w.tolist(), strict=True)
    for i, (y, x, height, width) in enumerate(windows):
        out[i] = resize_nhwc(nhwc[i : i + 1, y : y + height, x : x + width], *size)[0]
    return to_nchw(out)


def _check(transform: object, images: Array) -> None:
    name = type(transform).__name__
    if images.ndim != 4:
        raise ValueError(f"{name}: expected images (N, C, H, W), got shape {images.shape}")
    if images.dtype not in (np.uint8, np.float32):
        raise TypeError(f"{name}: expected uint8 or float32 images, got {images.dtype}")


def _float_rows(transform: object, images: Array) -> Array:
    """Float images as C-ordered (N, H, W * C)."""
    _check(transform, images)
    if images.dtype != np.float32:
        raise TypeError(
            f"{type(transform).__name__}: expected float32 images, got {images.dtype}. "
            "Put ToFloat() before it"
        )
    N, C, H, W = images.shape
    return to_nhwc(images).reshape(N, H, W * C)


def _from_rows(rows: Array, images: Array) -> Array:
    N, C, H, W = images.shape
    return to_nchw(rows.reshape(N, H, W, C))


def _generator(transform: object, rng: np.random.Generator | None) -> np.random.Generator:
    if not isinstance(rng, np.random.Generator):
        raise TypeError(
            f"{type(transform).__name__}: needs a random generator, got {rng!r}: call it as "
            "transform(images, np.random.default_rng(seed))"
        )
    return rng


def _copy(images: Array) -> Array:
    return to_nchw(np.array(to_nhwc(images), order="C"))


def _pair(transform: object, size: Size) -> tuple[int, int]:
    height, width = size if isinstance(size, tuple) else (size, size)
    if height < 1 or width < 1:
        raise ValueError(f"{type(transform).__name__}: size must be at least 1, got {size}")
    return height, width


def _fits(transform: object, size: tuple[int, int], image: tuple[int, int]) -> None:
    if size[0] > image[0] or size[1] > image[1]:
        raise ValueError(
            f"{type(transform).__name__}: a crop of {_x(size)} does not fit into {_x(image)}"
        )


def _x(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _size(size: tuple[int, int]) -> str:
    return str(size[0] if size[0] == size[1] else size)


def _numbers(values: Array) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values.tolist()) + ")"
