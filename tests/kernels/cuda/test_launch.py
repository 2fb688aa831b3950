"""The host side, on a stand-in that notes launches: grids, workspaces, choices, limits."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minires.kernels import ConvGeometry, conv_geometry
from minires.kernels.cuda import conv, elementwise, launch, norm, pool, record, tiles
from minires.kernels.geometry import pool_geometry
from minires.kernels.registry import operation


def images(*shape: int, dtype: Any = np.float32) -> Any:
    """Zeros (N, C, H, W) in channels-last memory, of which none is touched."""
    N, C, H, W = shape
    return np.zeros((N, H, W, C), dtype).transpose(0, 3, 1, 2)


def launches(function: Any, *args: Any, multiprocessors: int = 132) -> list[record.Launch]:
    with record.device(multiprocessors) as recorder:
        function(*args)
    return recorder.launches


def test_a_resnet_layer_fills_the_device() -> None:
    g = conv_geometry((128, 256, 14, 14), (256, 256, 3, 3), 1, 1)
    x, w = images(*g.x_shape), images(*g.weight_shape)
    (forward,) = launches(conv.implicit_conv2d, x, w, g)
    tile = forward.definitions
    pieces = -(-128 * 14 * 14 // int(tile["BM"])) * -(-256 // int(tile["BN"]))
    assert forward.grid == (pieces, 1, 1)
    assert pieces >= 132
    assert forward.definitions["PACKED"] == "1"
    assert forward.args[0].ctypes.data == x.ctypes.data  # nothing was copied


def test_the_stride_is_split_into_residues() -> None:
    g = conv_geometry((4, 64, 15, 15), (32, 64, 3, 3), 2, 1)
    made = launches(conv.implicit_conv2d_grad_input, images(*g.y_shape),
                    images(*g.weight_shape), g)[0]  # fmt: skip
    tile = made.definitions
    pieces = -(-4 * 8 * 8 // int(tile["BM"])) * -(-64 // int(tile["BN"]))
    assert made.grid[:2] == (pieces, 4)  # 4*8*8 pixels of the largest residue; 2x2 residues


@pytest.mark.parametrize(
    "g",
    [conv_geometry((1, 512, 7, 7), (512, 512, 3, 3), 1, 1),
     conv_geometry((8, 2048, 1, 1), (1000, 2048, 1, 1)),
     conv_geometry((1, 256, 14, 14), (256, 256, 3, 3), 2, 1)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("function", [conv.implicit_conv2d, conv.implicit_conv2d_grad_input])
def test_few_pieces_are_split_along_the_sum(function: Any, g: ConvGeometry) -> None:
    """A batch of one, or a classifier: without a split a few blocks would do everything."""
    source = images(*(g.x_shape if function is conv.implicit_conv2d else g.y_shape))
    product, total = launches(function, source, images(*g.weight_shape), g)
    assert product.grid[0] * product.grid[1] * product.grid[2] > 100
    parts, k_per_part = product.args[4], int(product.args[5])
    assert len(parts) == product.grid[2] > 1
    terms = g.kernel[0] * g.kernel[1] * source.shape[1]
    assert k_per_part % conv.STEP == 0
    assert terms <= k_per_part * product.grid[2] * g.stride[0] * g.stride[1]
    assert total.kernel == "sum_parts"
    assert total.args[0] is parts


@pytest.mark.parametrize("C", [16, 32, 64, 128, 2048])
def test_few_channels_get_narrow_tiles(C: int) -> None:
    def tile(itemsize: int) -> tiles.Tile:
        product = tiles.Product(128 * 56 * 56, C, 9 * C, 1, itemsize)
        return tiles.plan(product, tiles.TILES, 128, 132).tile

    assert tile(4).BN == tiles.warp_tile(C).BN == min(C, 128)
    assert tile(8).TM * tile(8).TN <= 32


def test_a_long_sum_over_pixels_is_split_and_joined() -> None:
    g = conv_geometry((128, 16, 32, 32), (16, 16, 3, 3), 1, 1)
    product, total = launches(conv.implicit_conv2d_grad_weight, images(*g.x_shape),
                              images(*g.y_shape), g)  # fmt: skip
    pieces, splits = product.grid[0] * product.grid[1], product.grid[2]
    assert pieces * splits >= 2 * 132
    parts, per_part = product.args[2], product.args[3]
    assert parts.shape == (splits, 16, 144)
    assert (splits - 1) * per_part < g.N * 32 * 32 <= splits * per_part
    assert total.kernel == "sum_parts"


def test_a_short_sum_is_not_split() -> None:
    g = conv_geometry((1, 16, 4, 4), (16, 16, 3, 3), 1, 1)
    given = images(*g.x_shape), images(*g.y_shape)
    (product,) = launches(conv.implicit_conv2d_grad_weight, *given, g)
    assert product.grid[2] == 1


def test_im2col_takes_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    g = conv_geometry((5, 4, 8, 8), (8, 4, 3, 3), 1, 1)
    monkeypatch.setattr(conv, "COLUMNS_BYTES", 2 * 64 * 36 * 4)
    made = launches(conv.im2col_conv2d, images(*g.x_shape), images(*g.weight_shape), g)
    assert [m.kernel for m in made] == ["im2col", "product"] * 3
    assert [int(m.args[3]) for m in made[::2]] == [2, 2, 1]


def test_more_elements_than_32_bits_count() -> None:
    """3 * 2^30 elements: the memory is reserved, not touched; sizes are 64 bits wide."""
    x = np.empty((3 << 10, 1 << 20), np.float16)
    (made,) = launches(elementwise.relu, x)
    assert made.args[2:] == (3 << 30, 3 << 27)
    assert made.grid == (132 * 8, 1, 1)


def test_more_images_than_a_grid_is_deep() -> None:
    g = pool_geometry("max_pool2d", (70000, 1, 2, 2), 2)
    (made,) = launches(pool.max_pool2d, images(*g.x_shape), g)
    assert made.grid[2] == 65535


def test_misaligned_memory_is_read_element_by_element() -> None:
    whole = np.zeros(4 * 8 * 4 * 4 + 1, np.float32)[1:].reshape(4, 4, 4, 8).transpose(0, 3, 1, 2)
    for function, args in ((norm.batch_norm_train, (None, None, 1e-5)), (elementwise.relu, ())):
        made = launches(function, whole, *args)
        assert made[0].definitions.get("PACKED", "0") == "0"
    assert made[0].args[3] == 0


def test_batch_norm_divides_its_rows_without_gaps() -> None:
    with record.device() as recorder:
        for m, C, V in ((1, 1, 1), (128 * 56 * 56, 64, 4), (100, 3, 1), (128 * 49, 2048, 8)):
            p = norm.plan(recorder, m, C, V)
            assert p.block[0] * p.block[1] == 256
            assert p.grid[0] * p.block[0] * V >= C
            assert (p.parts - 1) * p.rows_per_part < m <= p.parts * p.rows_per_part


MOVED = {
    "batch_norm_train": ("x", 3), "batch_norm_relu_train": ("x", 3), "batch_norm_eval": ("x", 2),
    "batch_norm_add_relu_train": ("xr", 4), "batch_norm_grad": ("gx", 5),
    "batch_norm_relu_grad": ("gx", 5), "batch_norm_add_relu_grad": ("gxy", 7),
}  # fmt: skip
"""The images that each takes, and how many it reads and writes: benchmarks/gpu_notes.md."""


@pytest.mark.parametrize("name", MOVED)
def test_batch_norm_moves_no_more_than_it_must(name: str) -> None:
    given, moved = MOVED[name]
    arrays = [images(8, 16, 12, 12) for _ in given]
    vectors = {"train": 2, "eval": 4, "grad": 3 + (name == "batch_norm_relu_grad")}
    values = [np.ones(16, np.float32)] * vectors[name.rpartition("_")[2]]
    eps = [] if name.endswith("grad") else [1e-5]
    made = launches(getattr(norm, name), *arrays, *values, *eps)
    sizes = [a.size for m in made for a in m.args if isinstance(a, np.ndarray)]
    # Of these, x is given twice for its first row alone, from which all else is measured.
    first_rows = 2 if name.endswith("train") else 0
    assert sizes.count(arrays[0].size) - first_rows == moved


def test_the_choice_of_convolutions() -> None:
    def chosen(g: ConvGeometry, dtype: str = "float32") -> str:
        return operation("conv2d").select("cuda", g, dtype).name

    plain = conv_geometry((8, 64, 14, 14), (64, 64, 3, 3), 1, 1, 2)
    assert chosen(plain) == "implicit"
    assert chosen(conv_geometry((8, 64, 14, 14), (64, 1, 3, 3), 1, 1, 1, 64)) == "direct"
    assert chosen(conv_geometry((8, 64, 14, 14), (64, 32, 3, 3), 1, 1, 1, 2)) == "implicit"


def test_what_cannot_be_launched_is_refused() -> None:
    with record.device() as recorder:
        module = recorder.module("elementwise.cu", ELEMENT=np.dtype(np.float32))
        relu = module.kernel("relu")
        with pytest.raises(ValueError, match="a grid of"):
            relu((1, 70000), (32,), ())
        with pytest.raises(ValueError, match="a block of"):
            relu((1,), (2048,), ())
        with pytest.raises(ValueError, match="has no kernel 'rule'"):
            module.kernel("rule")
        with pytest.raises(TypeError, match=r"float32, float64, float16, bfloat16, got int32"):
            recorder.module("elementwise.cu", ELEMENT=np.dtype(np.int32))


def test_numpy_arrays_need_a_stand_in() -> None:
    with pytest.raises(TypeError, match="CUDA kernels take CuPy arrays, got a NumPy array"):
        elementwise.relu(np.zeros(3, np.float32))


def test_without_cupy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"minires\[cuda12\] \(cupy-cuda12x\).*cupy-cuda13x"):
        launch.import_cupy()


def test_importing_minires_imports_no_cupy() -> None:
    code = (
        "import sys, minires; "
        "sys.exit(bool({'cupy', 'minires.kernels.cuda.conv'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


class FakeNvrtc:
    """As much of CuPy's NVRTC as compiling needs."""

    class NVRTCError(Exception): ...

    def __init__(self) -> None:
        self.options: list[tuple[str, ...]] = []
        self.fails = False

    def getVersion(self) -> tuple[int, int]:  # CuPy's names, here and below
        return 12, 9

    def createProgram(self, text: str, name: str, headers: Any, names: Any) -> str:
        return text

    def compileProgram(self, program: str, options: tuple[str, ...]) -> None:
        if self.fails:
            raise self.NVRTCError
        self.options.append(options)

    def getCUBIN(self, program: str) -> bytes:
        return b"machine code"  # as CuPy, without the last byte

    def getProgramLog(self, program: str) -> str:
        return "an error"

    def destroyProgram(self, program: str) -> None: ...


class FakeCupy:
    """As much of CuPy as launching needs: a module compiled, a function found and called."""

    uses: list[tuple[Any, ...]]

    def __init__(self, capability: tuple[int, int] = (8, 0)) -> None:
        self.uses = []
        self.compiler = FakeNvrtc()
        fake = self

        class Function:
            max_dynamic_shared_size_bytes = 0

            def __call__(self, grid: Any, block: Any, args: Any, shared_mem: int) -> None:
                allowed = self.max_dynamic_shared_size_bytes
                fake.uses.append((grid, block, args, shared_mem, allowed))

        class RawModule:
            def __init__(self, **given: Any) -> None:
                fake.uses.append(tuple(given.values()))

            def get_function(self, name: str) -> Any:
                return Function()

        class Runtime:
            @staticmethod
            def getDeviceProperties(number: int) -> dict[str, int]:  # CuPy's name
                major, minor = capability
                return {"multiProcessorCount": 7, "major": major, "minor": minor}

        class Cuda:
            runtime = Runtime()
            nvrtc = fake.compiler

            class Device:
                def __init__(self, number: int) -> None:
                    self.number = number

                def __enter__(self) -> None: ...
                def __exit__(self, *exc: object) -> None: ...

        self.RawModule, self.cuda = RawModule, Cuda()


def test_cupy_gets_the_whole_source_once_and_null_pointers(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCupy()
    monkeypatch.setattr(launch, "import_cupy", lambda: fake)
    device = launch.CupyDevice(0)
    assert device.multiprocessors == 7
    for _ in range(2):
        kernel = device.module("norm.cu", ELEMENT=np.dtype("float16"), PACKED=1).kernel("moments")
        kernel((3,), (32, 8), (None, 5), 100 << 10)
    (code, options), first, second = fake.uses
    assert "#include" not in code
    assert "struct f16" in code
    assert options == ("-std=c++17", "-DELEMENT=f16", "-DPACKED=1")
    assert first == second == ((3,), (32, 8), (np.uint64(0), 5), 100 << 10, 100 << 10)


def test_hoppers_own_instructions_are_compiled_for(own_cache: Any, monkeypatch: Any) -> None:
    """CuPy compiles for sm_90, which has no wgmma: the machine code is made and kept here."""
    fake = FakeCupy(capability=(9, 0))
    monkeypatch.setattr(launch, "import_cupy", lambda: fake)
    for _ in range(2):
        device = launch.CupyDevice(0)
        assert device.capability == (9, 0)
        device.module("sgd.cu", ELEMENT=np.dtype("float32"))
    assert fake.compiler.options == [("-std=c++17", "-DELEMENT=float", "-arch=sm_90a")]
    (path,), again = fake.uses
    assert again == (path,)
    assert Path(path).parent == own_cache / "cubins"
    assert Path(path).read_bytes() == b"machine code\0"

    fake.compiler.fails = True
    with pytest.raises(RuntimeError, match=r"NVRTC 12\.9 cannot compile sgd\.cu:\nan error"):
        launch.CupyDevice(0).module("sgd.cu", ELEMENT=np.dtype("float64"))
