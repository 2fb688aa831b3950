"""What each kernel takes of a multiprocessor: compiled for real architectures, without a GPU.

    python -m minires.kernels.cuda.resources     # writes benchmarks/results/cuda_resources.json

Registers per thread, shared memory and bytes spilled are what the compiler's assembler reports. The
compiler is NVRTC, the one that CuPy uses (`pip install minires[cuda-check]`; its library needs no
driver), or nvcc where NVRTC is not installed. A warning is an error, and so is the assembler's
notice that it makes matrix instructions wait for one another. Dynamic shared memory is the host's
choice and not listed.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from minires.kernels.cuda import source
from minires.kernels.cuda.tiles import (
    PRODUCT_TILES,
    TILES,
    WARP_TILES,
    WEIGHT_TILES,
    WEIGHT_WARP_TILES,
)
from minires.kernels.cuda.wgmma import (
    TF32_TILES,
    TF32_WEIGHT_TILES,
    WGMMA_TILES,
    WGMMA_WEIGHT_TILES,
)
from minires.kernels.cuda.window import TILES as WINDOW_TILES

ARCHITECTURES = ("sm_80", "sm_90a")
RESULTS = Path("benchmarks/results/cuda_resources.json")

_ENTRY = re.compile(
    r"entry function '(?P<name>\w+)'[^\n]*\n(?:[^\n]*\n)??[^\n]*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*Used (?P<registers>\d+) registers(?P<rest>[^\n]*)"
)
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers per thread; bytes of stack, spills, and static shared memory."""

    registers: int
    stack: int
    spilled: int
    shared: int


@dataclass(frozen=True)
class Variant:
    """A source and what it is compiled with."""

    source: str
    definitions: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return " ".join([self.source, *(f"{key}={value}" for key, value in self.definitions)])

    @property
    def architectures(self) -> tuple[str, ...]:
        """What it is compiled for: some instructions are sm_90a's alone."""
        return ARCHITECTURES[1:] if "wgmma" in self.source else ARCHITECTURES

    @property
    def digest(self) -> str:
        """Of the source less comments: whether a recorded measurement is of this one."""
        code = re.sub(r"//[^\n]*|\s+", " ", source.text(self.source))
        return hashlib.sha256(" ".join(code.split()).encode()).hexdigest()[:16]


def _variants() -> list[Variant]:
    def variant(name: str, **definitions: Any) -> Variant:
        return Variant(name, tuple((key, str(value)) for key, value in definitions.items()))

    types = list(source.TYPES.values())
    found = [variant("cast.cu", SOURCE_ELEMENT="float", ELEMENT=t) for t in types if t != "float"]
    for name in ("elementwise.cu", "softmax.cu", "sgd.cu", "step.cu", "batch.cu", "conv_direct.cu",
                 "conv_columns.cu"):  # fmt: skip
        found += [variant(name, ELEMENT=t) for t in types]
    found += [variant("pool.cu", ELEMENT=t, PACKED=1, PLACE_BYTES=1) for t in types]
    found += [variant("pool.cu", ELEMENT="float", PACKED=p, PLACE_BYTES=4) for p in (1, 0)]
    found += [variant("running.cu", ELEMENT=t) for t in ("float", "double")]
    for name in ("norm.cu", "sum_parts.cu"):
        found += [variant(name, ELEMENT=t, PACKED=1) for t in types]
        found.append(variant(name, ELEMENT="float", PACKED=0))
    for tile in dict.fromkeys(TILES + WEIGHT_TILES):
        found += [variant("conv_implicit.cu", ELEMENT="float", PACKED=p, **tile.definitions)
                  for p in (1, 0) if p or tile.BN > 4]  # fmt: skip
    found.append(variant("conv_implicit.cu", ELEMENT="double", PACKED=1, **TILES[1].definitions))
    found.append(variant("conv_implicit.cu", ELEMENT="bf16", PACKED=1, **TILES[1].definitions))
    for t in types:
        found += [variant("conv_window.cu", ELEMENT=t, PACKED=p, **tile.definitions)
                  for tile in WINDOW_TILES for p in (1, 0) if p or t == "float"]  # fmt: skip
        found.append(variant("conv_window_weight.cu", ELEMENT=t, PACKED=1, PACKED_GRADS=1))
    found.append(variant("conv_window_weight.cu", ELEMENT="float", PACKED=0, PACKED_GRADS=1))
    found += [variant("conv_winograd.cu", ELEMENT=t, TILE=m) for t in ("float", "double")
              for m in (2, 4)]  # fmt: skip
    found += [variant("product.cu", ELEMENT=t, **tile.definitions) for t in ("float", "double")
              for tile in PRODUCT_TILES if t == "float" or tile.TM * tile.TN <= 32]  # fmt: skip
    for t in ("f16", "bf16", "float"):
        found += [variant("conv_tensor.cu", ELEMENT=t, **k.definitions) for k in WARP_TILES]
        found += [variant("conv_tensor_weight.cu", ELEMENT=t, **k.definitions)
                  for k in WEIGHT_WARP_TILES]  # fmt: skip
        tiles = TF32_TILES if t == "float" else WGMMA_TILES
        found += [variant("conv_wgmma.cu", ELEMENT=t, **k.definitions) for k in tiles]
        tiles = TF32_WEIGHT_TILES if t == "float" else WGMMA_WEIGHT_TILES
        found += [variant("conv_wgmma_weight.cu", ELEMENT=t, **k.definitions) for k in tiles]
    return found


VARIANTS = _variants()


def compiler() -> str | None:
    """NVRTC with its version, or nvcc's; None if neither is installed."""
    library = _nvrtc()
    if library is not None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"nvrtc {major.value}.{minor.value}"
    if nvcc := shutil.which("nvcc"):
        told = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
        found = re.search(r"release ([\d.]+), V([\d.]+)", told)
        return f"nvcc {found[2]}" if found else "nvcc"
    return None


@cache
def _nvrtc() -> Any:
    for package in ("nvidia.cuda_nvrtc", "nvidia.cu13"):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).glob("lib/libnvrtc.so.*")):
                return ctypes.CDLL(str(path))
    return None


def compile_log(variant: Variant, architecture: str) -> str:
    """What the compiler says. Raises RuntimeError if it fails or warns, or if there is none."""
    options = ["-std=c++17", *(f"-D{key}={value}" for key, value in variant.definitions)]
    text = source.text(variant.source)
    if (library := _nvrtc()) is not None:
        status, log = _with_nvrtc(library, variant.source, text, architecture, options)
    elif shutil.which("nvcc"):
        status, log = _with_nvcc(variant.source, text, architecture, options)
    else:
        raise RuntimeError("compiling CUDA needs nvcc, or pip install minires[cuda-check]")
    if status or re.search(r"\bwarning\b|Potential Performance Loss", log):
        raise RuntimeError(f"{variant} for {architecture}:\n{log}")
    return log


def _with_nvcc(name: str, text: str, architecture: str, options: list[str]) -> tuple[int, str]:
    virtual = architecture.replace("sm", "compute")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / name
        written.write_text(text)
        done = subprocess.run(
            ["nvcc", f"-gencode=arch={virtual},code={architecture}", "-Xptxas", "-v", "-cubin",
             "-o", str(written.with_suffix(".cubin")), *options, str(written)],
            capture_output=True, text=True,
        )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def _with_nvrtc(
    library: Any, name: str, text: str, architecture: str, options: list[str]
) -> tuple[int, str]:
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    library.nvrtcCreateProgram(
        ctypes.byref(program), text.encode(), name.encode(), 0, None, None
    )  # fmt: skip
    given = [f"--gpu-architecture={architecture}", "--ptxas-options=-v", *options]
    array = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
    status = library.nvrtcCompileProgram(program, len(given), array)
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return status, log.value.decode()


def measure(variant: Variant, architecture: str) -> dict[str, Resources]:
    """The resources of every kernel of a variant. Raises RuntimeError if one is not reported."""
    log = compile_log(variant, architecture)
    found = {}
    for match in _ENTRY.finditer(log):
        shared = _SHARED.search(match["rest"])
        spilled = int(match["stores"]) + int(match["loads"])
        found[match["name"]] = Resources(
            int(match["registers"]), int(match["stack"]), spilled, int(shared[1]) if shared else 0
        )
    expected = set(source.kernels(source.text(variant.source)))
    if set(found) != expected:
        raise RuntimeError(f"{variant}: resources of {expected ^ set(found)} not found in\n{log}")
    return found


def table(before: dict[str, Any]) -> dict[str, Any]:
    """Every variant on every architecture, as it is recorded.

    What this compiler measured of the same text before is taken over.
    """
    told, rows = compiler(), {}
    for variant in VARIANTS:
        known = before.get("variants", {}).get(str(variant), {})
        if before.get("compiler") == told and known.get("digest") == variant.digest:
            rows[str(variant)] = known
            continue
        print(variant, file=sys.stderr)
        rows[str(variant)] = {"digest": variant.digest} | {
            architecture: {k: asdict(r) for k, r in measure(variant, architecture).items()}
            for architecture in variant.architectures
        }
    return {"compiler": told, "variants": rows}


if __name__ == "__main__":
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(table(recorded), indent=1) + "\n")
