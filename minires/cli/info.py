"""`minires info`."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import platform
from pathlib import Path
from typing import Annotated, Any

import typer


def info(
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Show what computes each convolution, and why.")
    ] = False,
    model: Annotated[
        str, typer.Option(help="With --kernels: the network whose layers are shown.")
    ] = "resnet20",
    batch: Annotated[
        int | None, typer.Option(min=1, help="With --kernels: images per batch. [128, or 16 large]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, help="With --kernels: side of the images.")
    ] = None,
    device: Annotated[str, typer.Option(help="With --kernels: cpu or cuda.")] = "cpu",
) -> None:
    """Show versions, the processor, BLAS and its threads, the GPU, and where caches are.

    Example: `minires info`, to go with a bug report; `minires info --kernels --model resnet50`.
    """
    from rich.markup import escape

    from minires.cli.console import facts, output

    console = output()
    if kernels:
        for part in _choices(model, batch, size, device):
            console.print(part, soft_wrap=isinstance(part, str))
        return
    for title, rows in (
        ("Versions", _versions()),
        ("Processor", _processor()),
        ("GPU", _gpu()),
        ("Folders", _folders()),
    ):
        made = facts(title)
        for name, value in rows:
            made.add_row(name, escape(value))
        console.print(made)
        console.print()


def _choices(model: str, batch: int | None, size: int | None, backend: str) -> list[Any]:
    """The kernel of each pass of each convolution, and what decided: equal runs choose equally."""
    from minires._names import unknown
    from minires.bench.layers import conv_layers
    from minires.cli.console import table
    from minires.kernels import environment, operation, selection
    from minires.kernels.registry import BACKENDS, BY_NAME, BY_TABLE, Choice

    if backend not in BACKENDS:
        raise ValueError(f"--device: {unknown('device', backend, BACKENDS)}")

    def shown(choice: Choice) -> str:
        if choice.why == BY_NAME:
            return f"{choice.kernel.name}, by name"
        if choice.why != BY_TABLE:
            return choice.kernel.name
        times = {name: f"{1e3 * seconds:.3g}" for name, seconds in choice.measured.items()}
        own = times.pop(choice.kernel.name)
        others = ", ".join(f"{name} {ms}" for name, ms in times.items())
        return f"{choice.kernel.name}, measured\n[dim]{own} ms{others and '; '}{others}[/]"

    passes = ("conv2d", "conv2d_grad_input", "conv2d_grad_weight")
    rows = table("layer", "geometry", "forward", "input gradient", "weight gradient")
    for layer in conv_layers(model, batch, size):
        cells = [shown(operation(name).decide(backend, layer.geometry)) for name in passes]
        if not layer.needs_grad_input:
            cells[1] = "not needed"
        rows.add_row(layer.label, str(layer.geometry), *cells)
    found = selection.table(backend)
    source = "no table of measurements: `minires kernels tune` makes one"
    if environment.tuning() is False:
        source = f"no table of measurements: {environment.TUNING}=off"
    elif found is not None:
        source = f"measured: {found.path}, {len(found.entries)} entries, hash {found.digest}"
    return [rows, f"without a remark: by the conditions of `minires kernels list`\n{source}"]


def _versions() -> list[tuple[str, str]]:
    import minires
    from minires.bench.machine import package_version

    packages = ("numpy", "numba", "llvmlite", "safetensors", "matplotlib", "pillow")
    return [
        ("minires", minires.__version__),
        ("python", f"{platform.python_version()} ({platform.python_implementation()})"),
        ("system", platform.platform()),
        *((name, package_version(name) or "not installed") for name in packages),
    ]


def _processor() -> list[tuple[str, str]]:
    import threadpoolctl

    from minires.bench.machine import processor_name, vector_extensions
    from minires.kernels.cpu import simd
    from minires.kernels.threads import VARIABLE, available_cores, num_threads

    try:
        threads = f"{num_threads()} threads"
    except ValueError as error:  # who reports a bug wants to see the rest, too
        threads = f"no threads: {error}"
    rows = [
        ("name", processor_name()),
        ("cores", f"{available_cores()} available of {os.cpu_count()}"),
        ("vector extensions", ", ".join(vector_extensions()) or "none known"),
        ("kernels compute on", f"vectors of {simd.lanes('float32')} floats, {threads}"),
    ]
    for pool in threadpoolctl.threadpool_info():
        if pool["user_api"] == "blas":
            name = f"{pool['internal_api']} {pool['version']}"
            details = f" ({pool['architecture']})" if pool.get("architecture") else ""
            rows.append(("BLAS", f"{name}{details}, {pool['num_threads']} threads"))
    rows.append((VARIABLE, os.environ.get(VARIABLE) or "not set"))
    return rows


def _gpu() -> list[tuple[str, str]]:
    from minires.bench.machine import package_version

    driver, devices = _cuda_driver()
    cupy = next(
        (f"{name} {package_version(name)}" for name in ("cupy-cuda13x", "cupy-cuda12x", "cupy")
         if package_version(name)), None,
    )  # fmt: skip
    rows = [("device", device) for device in devices] or [("device", "no NVIDIA GPU found")]
    if driver is None:
        return [*rows, ("note", "without a GPU everything runs on the processor")]
    rows.append(("driver", f"for CUDA {driver[0]}.{driver[1]}"))
    package = "cupy-cuda13x" if driver[0] >= 13 else "cupy-cuda12x"
    if cupy is None:
        extra = package.removeprefix("cupy-cuda").removesuffix("x")
        how = f"not installed: pip install 'minires[cuda{extra}]', or {package} and ml-dtypes"
        return [*rows, ("CuPy", how)]
    return [*rows, ("CuPy", cupy), ("usable", _usable(len(devices)))]


def _usable(devices: int) -> str:
    """Whether minires can compute there, which takes CuPy, a driver for its CUDA, and a GPU."""
    from minires.kernels.cuda.launch import numbered

    try:
        numbered(0)
    except (ImportError, RuntimeError) as error:
        return f"no: {error}"
    return "yes: --device cuda" + (f", cuda:0 to cuda:{devices - 1}" if devices > 1 else "")


def _cuda_driver() -> tuple[tuple[int, int] | None, list[str]]:
    """(major, minor) of the CUDA version that the driver supports or None, and device names."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError:
        return None, []
    number, count = ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDriverGetVersion(ctypes.byref(number)):
        return None, []
    cuda.cuDeviceGetCount(ctypes.byref(count))
    devices = []
    for index in range(count.value):
        text = ctypes.create_string_buffer(256)
        cuda.cuDeviceGetName(text, len(text), index)
        devices.append(text.value.decode())
    return (number.value // 1000, number.value % 1000 // 10), devices


def _folders() -> list[tuple[str, str]]:
    import minires

    package = Path(minires.__file__).parent
    from minires.kernels.environment import cache_folder

    return [
        ("minires", str(package)),
        ("compiled kernels", _compiled(package)),
        ("measurements", str(cache_folder())),
        ("runs", str(Path("runs").absolute())),
    ]


def _compiled(package: Path) -> str:
    """Where Numba keeps what it compiles: see `kernels/cpu/compiling.py`."""
    from numba.misc.appdirs import AppDirs

    given = os.environ.get("NUMBA_CACHE_DIR")
    if given or not os.access(package, os.W_OK):
        return given or str(AppDirs("numba", appauthor=False).user_cache_dir)
    return f"{package}{os.sep}**{os.sep}__pycache__"
