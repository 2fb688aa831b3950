"""Batch transforms, against loops, Pillow and arithmetic done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from minires.data import Dataset, channel_stats, per_pixel_mean
from minires.data import transforms as T

RNG = np.random.default_rng(0)


def batch(n: int = 6, c: int = 3, h: int = 7, w: int = 5, dtype: type = np.uint8) -> np.ndarray:
    """Random images; no pixel is 0, so that padding can be told from them."""
    images = RNG.integers(1, 256, (n, c, h, w), dtype=np.uint8)
    return images if dtype is np.uint8 else (images / 255).astype(dtype)


def strided(images: np.ndarray) -> np.ndarray:
    """The same images as a view of a larger array, mirrored and in another memory order."""
    n, c, h, w = images.shape
    memory = np.zeros((w, n, h, 2 * c), images.dtype)
    view = memory[::-1, :, :, ::2].transpose(1, 3, 2, 0)
    view[:] = images
    return view


def ramps(n: int, h: int, w: int) -> np.ndarray:
    """float32 images whose channels are the row, the column and a constant."""
    y, x = np.mgrid[:h, :w]
    image = np.stack([y, x, np.ones((h, w))]).astype(np.float32)
    return np.broadcast_to(image, (n, 3, h, w))


EVERY = [
    T.ToFloat(),
    T.Normalize((0.1, 0.2, 0.3), (0.5, 0.6, 0.7)),
    T.Normalize(0.5, 0.25),
    T.SubtractMean(RNG.random((3, 7, 5))),
    T.ColorPCA(np.eye(3), (0.3, 0.2, 0.1)),
    T.RandomHorizontalFlip(),
    T.CenterCrop((4, 3)),
    T.CenterCrop((7, 5)),
    T.RandomCrop(5, padding=1),
    T.RandomCrop((7, 5)),
    T.Resize(4),
    T.Resize((9, 5)),
    T.Resize((7, 5)),
    T.RandomResizedCrop(4),
    T.RandomScaleCrop(4, shorter_side=(5, 8)),
    T.Compose([T.RandomHorizontalFlip(), T.RandomCrop((7, 5), padding=2)]),
]
FLOAT_ONLY = (T.Normalize, T.SubtractMean, T.ColorPCA)


@pytest.mark.parametrize("transform", EVERY, ids=repr)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
class TestContract:
    def test_memory_dtype_and_inputs(self, transform: T.Transform, dtype: type) -> None:
        if isinstance(transform, FLOAT_ONLY) and dtype is np.uint8:
            with pytest.raises(TypeError, match=r"expected float32 images, got uint8.*ToFloat"):
                transform(batch(), RNG)
            return
        if isinstance(transform, T.ToFloat) and dtype is np.float32:
            with pytest.raises(TypeError, match="expected uint8 images, got float32"):
                transform(batch(dtype=dtype))
            return
        for n in (6, 1):
            images = batch(n, dtype=dtype)
            kept = images.copy()
            out = transform(images, np.random.default_rng(1))
            assert np.array_equal(images, kept)
            assert not np.shares_memory(images, out)
            assert len(out) == n
            assert out.transpose(0, 2, 3, 1).flags.c_contiguous
            assert out.dtype == (np.float32 if isinstance(transform, T.ToFloat) else dtype)
            # The same generator gives the same images, whatever the strides of the input.
            for same in (images, strided(images), np.asfortranarray(images)):
                again = transform(same, np.random.default_rng(1))
                assert np.array_equal(out, again)

    def test_bad_images(self, transform: T.Transform, dtype: type) -> None:
        with pytest.raises(ValueError, match=r"expected images \(N, C, H, W\), got shape"):
            transform(batch(dtype=dtype)[0], RNG)
        with pytest.raises(TypeError, match="uint8 or float32 images, got float64"):
            transform(batch().astype(np.float64), RNG)


@pytest.mark.parametrize(
    "transform",
    [
        T.ColorPCA(np.eye(3), (1, 1, 1)),
        T.RandomHorizontalFlip(),
        T.RandomCrop(2),
        T.RandomResizedCrop(2),
        T.RandomScaleCrop(2, (2, 3)),
    ],
    ids=repr,
)
@pytest.mark.parametrize("rng", [None, 0, np.random])
def test_random_ones_need_a_generator(transform: T.Transform, rng: object) -> None:
    with pytest.raises(TypeError, match="needs a random generator, got"):
        transform(batch(dtype=np.float32), rng)


class TestArithmetic:
    def test_to_float_of_every_level(self) -> None:
        images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
        expected = (np.arange(256) / 255).astype(np.float32).reshape(images.shape)
        out = T.ToFloat()(images)
        np.testing.assert_allclose(out, expected, rtol=1e-7)
        assert out.min() == 0
        assert out.max() == 1

    def test_normalize(self) -> None:
        images = batch(dtype=np.float32)
        mean, std = np.array([0.1, 0.5, 0.9]), np.array([0.2, 1, 3])
        expected = (images - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(T.Normalize(mean, std)(images), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(T.Normalize(0.5, 2)(images), (images - 0.5) / 2, atol=1e-6)

    def test_normalize_by_the_set_s_own_statistics(self) -> None:
        data = Dataset(batch(50), np.zeros(50, int), ["a"])
        out = T.Normalize(*channel_stats(data))(T.ToFloat()(data.images))
        np.testing.assert_allclose(out.mean(axis=(0, 2, 3)), 0, atol=1e-5)
        np.testing.assert_allclose(out.std(axis=(0, 2, 3)), 1, rtol=1e-5)

    def test_subtract_mean(self) -> None:
        data = Dataset(batch(50), np.zeros(50, int), ["a"])
        images = T.ToFloat()(data.images)
        out = T.SubtractMean(per_pixel_mean(data))(images)
        np.testing.assert_allclose(out, images - images.mean(axis=0, dtype=float), atol=1e-6)
        np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-6)

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match=r"std must be positive, got \[1.0, 0.0\]"):
            T.Normalize((0, 0), (1, 0))
        with pytest.raises(ValueError, match="one number per channel"):
            T.Normalize(np.zeros((3, 2, 2)), 1)
        with pytest.raises(ValueError, match="made for 2 channels, images have 3"):
            T.Normalize((0, 0), (1, 1))(batch(dtype=np.float32))
        with pytest.raises(ValueError, match=r"expected a mean image \(C, H, W\)"):
            T.SubtractMean((0.1, 0.2, 0.3))
        with pytest.raises(ValueError, match="mean image is 3x8x5, the images are 3x7x5"):
            T.SubtractMean(np.zeros((3, 8, 5)))(batch(dtype=np.float32))


class TestColorPCA:
    def test_one_shift_for_each_image_along_the_components(self) -> None:
        components, _ = np.linalg.qr(RNG.normal(size=(3, 3)))
        deviations = np.array([0.5, 0.2, 0.05])
        images = batch(20_000, 3, 1, 2, np.float32)
        out = T.ColorPCA(components, deviations, std=0.1)(images, np.random.default_rng(3))
        shift = out - images
        assert np.ptp(shift, axis=(2, 3)).max() < 1e-6
        along = shift[:, :, 0, 0].astype(float) @ components
        # Statistical bounds at over 4 standard errors (1 / sqrt(2 N) = 0.5 %).
        np.testing.assert_allclose(along.std(axis=0), 0.1 * deviations, rtol=0.03)
        np.testing.assert_allclose(along.mean(axis=0) / (0.1 * deviations), 0, atol=0.03)
        np.testing.assert_allclose(np.corrcoef(along.T), np.eye(3), atol=0.03)

    def test_from_dataset(self) -> None:
        images = batch(40)
        images[:, 1] = images[:, 0] // 2 + 20  # correlated channels
        pca = T.ColorPCA.from_dataset(Dataset(images, np.zeros(40, int), ["a"]), std=0.2)
        pixels = images.transpose(1, 0, 2, 3).reshape(3, -1) / 255
        covariance = np.cov(pixels, bias=True)
        rebuilt = pca.components @ np.diag(pca.deviations**2) @ pca.components.T
        np.testing.assert_allclose(rebuilt, covariance, atol=1e-6)
        np.testing.assert_allclose(pca.components.T @ pca.components, np.eye(3), atol=1e-5)
        assert (np.diff(pca.deviations) <= 0).all()
        assert pca.std == 0.2

    def test_errors(self) -> None:
        gray = Dataset(batch(2, 1), np.zeros(2, int), ["a"])
        with pytest.raises(ValueError, match="expected RGB images"):
            T.ColorPCA.from_dataset(gray)
        with pytest.raises(ValueError, match=r"components \(3, 3\)"):
            T.ColorPCA(np.eye(2), (1, 1))
        with pytest.raises(ValueError, match="expected 3 channels"):
            T.ColorPCA(np.eye(3), (1, 1, 1))(batch(2, 1, dtype=np.float32), RNG)


class TestFlip:
    def test_each_image_is_mirrored_or_not(self) -> None:
        images = batch(4000, 2, 3, 4)
        out = T.RandomHorizontalFlip(0.3)(images, np.random.default_rng(0))
        mirrored = (out == images[:, :, :, ::-1]).all(axis=(1, 2, 3))
        kept = (out == images).all(axis=(1, 2, 3))
        assert (mirrored ^ kept).all()
        assert abs(mirrored.mean() - 0.3) < 0.03  # 4 standard errors

    def test_never_and_always(self) -> None:
        images = batch()
        assert np.array_equal(T.RandomHorizontalFlip(0)(images, RNG), images)
        assert np.array_equal(T.RandomHorizontalFlip(1)(images, RNG), images[..., ::-1])
        with pytest.raises(ValueError, match=r"p must be in 0..1, got 1.5"):
            T.RandomHorizontalFlip(1.5)


class TestCrops:
    @pytest.mark.parametrize("size", [(4, 3), (7, 5), (1, 1), (2, 4)])
    def test_center(self, size: tuple[int, int]) -> None:
        images = batch()
        h, w = size
        top, left = round((7 - h) / 2), round((5 - w) / 2)
        expected = images[:, :, top : top + h, left : left + w]
        assert np.array_equal(T.CenterCrop(size)(images), expected)

    @pytest.mark.parametrize(("size", "padding"), [((7, 5), 2), (3, 0), ((1, 1), 1), ((9, 8), 2)])
    def test_random_takes_every_window_evenly(self, size: object, padding: int) -> None:
        image = batch(1)
        h, w = size if isinstance(size, tuple) else (size, size)
        padded = np.pad(image[0], ((0, 0), (padding, padding), (padding, padding)))
        rows, columns = padded.shape[1] - h + 1, padded.shape[2] - w + 1
        windows = [
            padded[:, y : y + h, x : x + w].tobytes() for y in range(rows) for x in range(columns)
        ]
        n = 400 * len(windows)
        out = T.RandomCrop(size, padding)(np.repeat(image, n, axis=0), np.random.default_rng(1))
        counts = dict.fromkeys(windows, 0)
        for crop in out:
            counts[crop.tobytes()] += 1  # KeyError if it is no window at all
        found = np.array([counts[window] for window in windows])
        share = np.array([windows.count(window) for window in windows])  # all-zero ones coincide
        assert np.abs(found / (400 * share) - 1).max() < 0.25  # 5 standard errors

    def test_too_large(self) -> None:
        with pytest.raises(ValueError, match="CenterCrop: a crop of 8x5 does not fit into 7x5"):
            T.CenterCrop((8, 5))(batch())
        with pytest.raises(ValueError, match="RandomCrop: a crop of 10x10 does not fit into 9x7"):
            T.RandomCrop(10, padding=1)(batch(), RNG)
        for make in (T.CenterCrop, T.RandomCrop, T.RandomResizedCrop, T.Resize):
            with pytest.raises(ValueError, match="size must be at least 1, got 0"):
                make(0)
        with pytest.raises(ValueError, match="padding must not be negative"):
            T.RandomCrop(3, padding=-1)

    def test_ten_crop(self) -> None:
        images = batch()
        out = T.ten_crop(images, (4, 2))
        assert out.shape == (10, 6, 3, 4, 2)
        corners = [images[:, :, y : y + 4, x : x + 2] for y in (0, 3) for x in (0, 3)]
        five = [*corners, images[:, :, 2:6, 2:4]]  # round(1.5) is 2
        for crop, mirrored, expected in zip(out[:5], out[5:], five, strict=True):
            assert np.array_equal(crop, expected)
            assert np.array_equal(mirrored, expected[..., ::-1])
        assert out.transpose(0, 1, 3, 4, 2).flags.c_contiguous
        with pytest.raises(ValueError, match="does not fit"):
            T.ten_crop(images, 8)


class TestResize:
    @pytest.mark.parametrize("size", [(5, 9), (40, 31), (7, 64), (20, 3), (1, 1), (33, 47)])
    def test_as_pillow(self, size: tuple[int, int]) -> None:
        images = RNG.integers(0, 256, (2, 3, 33, 47), dtype=np.uint8)
        out = T.Resize(size)(images)
        for image, got in zip(images, out, strict=True):
            pil = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
            expected = np.asarray(pil.resize(size[::-1], Image.Resampling.BILINEAR))
            # Pillow rounds between the two directions as well, and works in fixed point.
            assert np.abs(got.transpose(1, 2, 0).astype(int) - expected).max() <= 1

    def test_bytes_are_rounded_to_the_nearest(self) -> None:
        images = np.array([[10, 11], [11, 11]], np.uint8).reshape(1, 1, 2, 2)
        assert T.Resize((1, 1))(images).item() == 11

    def test_float_is_not_rounded(self) -> None:
        images = ramps(2, 8, 8) + np.float32(0.25)
        out = T.Resize((4, 16))(images)
        np.testing.assert_allclose(out[0, 0, 1:-1, 0], np.arange(1, 3) * 2 + 0.75, rtol=1e-6)
        np.testing.assert_allclose(out[0, 1, 0, 1:-1], (np.arange(1, 15) - 0.5) / 2 + 0.25)

    def test_an_integer_is_the_shorter_side(self) -> None:
        assert T.Resize(10)(batch(1, 3, 7, 5)).shape == (1, 3, 14, 10)
        assert T.Resize(10)(batch(1, 3, 5, 8)).shape == (1, 3, 10, 16)
        assert T.Resize((10, 10))(batch(1, 3, 7, 5)).shape == (1, 3, 10, 10)

    def test_the_same_size_changes_nothing(self) -> None:
        images = batch()
        assert np.array_equal(T.Resize((7, 5))(images), images)


def windows(transform: T.Transform, h: int, w: int, n: int = 800) -> tuple[np.ndarray, ...]:
    """(top, left, height, width) of the windows that a transform to 80x80 took, read from ramps.

    A window of `length` from `start`, enlarged to 80, has (o + 1/2) length / 80 + start - 1/2 in
    place o: interpolation is exact on a ramp, away from the border.
    """
    out = transform(ramps(n, h, w), np.random.default_rng(5)).astype(float)
    assert out.shape == (n, 3, 80, 80)
    np.testing.assert_allclose(out[:, 2], 1, rtol=1e-5)
    found = []
    for ramp in (out[:, 0, :, 40], out[:, 1, 40, :]):
        length = (ramp[:, 40] - ramp[:, 39]) * 80
        found += [(ramp[:, 39] + ramp[:, 40]) / 2 + 0.5 - length / 2, length]
    whole = np.rint(found)
    np.testing.assert_allclose(found, whole, atol=1e-2)
    top, height, left, width = whole
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= h
    assert (left + width).max() <= w
    return top, left, height, width


class TestRandomResizedCrop:
    def test_windows(self) -> None:
        transform = T.RandomResizedCrop(80, scale=(0.2, 0.6), ratio=(0.5, 2))
        top, left, height, width = windows(transform, 60, 80)
        area, ratio = height * width / (60 * 80), width / height
        assert 0.18 < area.min() < 0.22  # sides are rounded
        assert 0.58 < area.max() < 0.62
        assert 0.48 < ratio.min() < 0.53
        assert 1.9 < ratio.max() < 2.1
        # Places are drawn evenly over what fits.
        for start, room in ((top, 60 - height), (left, 80 - width)):
            place = start[room > 5] / room[room > 5]
            assert abs(place.mean() - 0.5) < 0.05  # 4 standard errors
            assert place.min() < 0.02
            assert place.max() > 0.98

    def test_the_whole_image(self) -> None:
        images = batch(3, 3, 8, 8)
        out = T.RandomResizedCrop(8, scale=(1, 1), ratio=(1, 1))(images, RNG)
        assert np.array_equal(out, images)

    @pytest.mark.parametrize(("h", "w", "expected"), [(16, 96, (16, 32)), (96, 16, (32, 16))])
    def test_where_nothing_fits_the_largest_centred_window_is_taken(self, h, w, expected) -> None:
        # Windows of the image's whole area with ratios in 1/2..2 do not fit into 1:6.
        transform = T.RandomResizedCrop(80, scale=(1, 1), ratio=(0.5, 2))
        top, left, height, width = windows(transform, h, w, n=20)
        assert set(zip(height, width, strict=True)) == {expected}
        assert set(top) == {(h - expected[0]) // 2}
        assert set(left) == {(w - expected[1]) // 2}

    def test_as_pillow(self) -> None:
        images = RNG.integers(0, 256, (1, 3, 64, 48), dtype=np.uint8)
        out = T.RandomResizedCrop((9, 13), scale=(1, 1), ratio=(3 / 4, 3 / 4))(images, RNG)[0]
        pil = Image.fromarray(np.ascontiguousarray(images[0].transpose(1, 2, 0)))
        expected = np.asarray(pil.resize((13, 9), Image.Resampling.BILINEAR))
        assert np.abs(out.transpose(1, 2, 0).astype(int) - expected).max() <= 1

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="scale must rise from above 0"):
            T.RandomResizedCrop(8, scale=(0, 1))
        with pytest.raises(ValueError, match="ratio must rise from above 0"):
            T.RandomResizedCrop(8, ratio=(2, 1))


class TestRandomScaleCrop:
    def test_windows(self) -> None:
        # Shorter side 60: made 160..400, a crop of 80 is a window of 30..12 of the original.
        top, left, height, width = windows(T.RandomScaleCrop(80, (160, 400)), 60, 75)
        assert np.array_equal(height, width)
        assert set(height) == set(range(12, 31))
        assert abs((80 * 60 / height).mean() - 280) < 13  # 5 standard errors
        assert abs((top / (60 - height)).mean() - 0.5) < 0.05
        assert abs((left / (75 - width)).mean() - 0.5) < 0.05

    def test_both_bounds_are_drawn(self) -> None:
        # Shorter side 4 made 2, 3 or 4: windows of 4, 3 and 2 for a crop of 2.
        out = T.RandomScaleCrop(2, (2, 4))(ramps(900, 4, 4), np.random.default_rng(0))
        steps, counts = np.unique(np.diff(out[:, 0, :, 0], axis=1).round(3), return_counts=True)
        assert len(steps) == 3
        assert np.abs(counts / 300 - 1).max() < 0.2  # over 4 standard errors
        assert steps[0] == 1  # a window of 2 is left as it is

    def test_errors(self) -> None:
        for size, sides in ((8, (7, 9)), (8, (10, 9)), (0, (1, 2))):
            with pytest.raises(ValueError, match="expected size <= shorter_side"):
                T.RandomScaleCrop(size, sides)


def test_compose_goes_left_to_right_with_one_generator() -> None:
    images = batch()
    crop, flip = T.RandomCrop(4, padding=1), T.RandomHorizontalFlip()
    out = T.Compose([crop, flip, T.ToFloat()])(images, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    assert np.array_equal(out, T.ToFloat()(flip(crop(images, rng), rng)))
    assert T.Compose([])(images) is images


def test_reprs() -> None:
    recipe = T.Compose(
        [
            T.ToFloat(),
            T.SubtractMean(np.zeros((3, 32, 32))),
            T.Normalize((0.5, 0.25, 0), 1),
            T.RandomCrop(32, padding=4),
            T.RandomHorizontalFlip(),
            T.RandomResizedCrop((4, 8)),
            T.RandomScaleCrop(224),
            T.Resize(256),
            T.CenterCrop(224),
            T.ColorPCA(np.eye(3), (1, 0.5, 0.1)),
        ]
    )
    assert repr(recipe) == (
        "Compose([ToFloat(), SubtractMean(3x32x32), Normalize(mean=(0.5, 0.25, 0), std=(1)), "
        "RandomCrop(32, padding=4), RandomHorizontalFlip(p=0.5), "
        "RandomResizedCrop((4, 8), scale=(0.08, 1), ratio=(0.75, 1.333)), "
        "RandomScaleCrop(224, shorter_side=(256, 480)), Resize(256), CenterCrop(224), "
        "ColorPCA(deviations=(1, 0.5, 0.1), std=0.1)])"
    )
