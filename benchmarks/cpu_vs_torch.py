"""Training steps and convolution layers on the CPU, side by side with PyTorch in one process.

    python benchmarks/cpu_vs_torch.py --steps resnet20 resnet18 --layers --out benchmarks/results

Needs `pip install -e ".[bench]"`. Every round visits each contender once, in turn, with a pause
between them so that one library's threads have stopped spinning when the next one starts; reported
are medians over rounds with the quartiles. PyTorch runs eager in both memory layouts, and compiled
if asked for (`--compile`); the best of them is the peer. A kernel that disagrees with PyTorch in
float64 on the timed shape is reported as wrong and not timed.

The stock allocator gives large arrays back to the system at once, and touching them again costs
page faults, which hits PyTorch's fresh outputs more than our reused ones. Run it a second time with
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment to see both
without that; the file name says which it was.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as TF

import minires as mr
import minires.functional as F
from minires.kernels import conv_geometry, operations
from minires.kernels.threads import num_threads
from minires.optim import SGD

PAUSE = 0.03  # seconds between contenders
STEPS = {  # model: (batch, size)
    "resnet20": (128, 32),
    "resnet110": (128, 32),
    "resnet18": (16, 224),
    "resnet50": (8, 224),
}
LAYERS = {  # name: (N, C, size, O, kernel, stride, padding)
    "resnet20 stem": (128, 3, 32, 16, 3, 1, 1),
    "resnet20 stage 1": (128, 16, 32, 16, 3, 1, 1),
    "resnet20 stage 1-2": (128, 16, 32, 32, 3, 2, 1),
    "resnet20 stage 2": (128, 32, 16, 32, 3, 1, 1),
    "resnet20 stage 2-3": (128, 32, 16, 64, 3, 2, 1),
    "resnet20 stage 3": (128, 64, 8, 64, 3, 1, 1),
    "resnet18 stem": (16, 3, 224, 64, 7, 2, 3),
    "resnet18 stage 1": (16, 64, 56, 64, 3, 1, 1),
    "resnet18 stage 1-2": (16, 64, 56, 128, 3, 2, 1),
    "resnet18 stage 2": (16, 128, 28, 128, 3, 1, 1),
    "resnet18 stage 2-3": (16, 128, 28, 256, 3, 2, 1),
    "resnet18 stage 3": (16, 256, 14, 256, 3, 1, 1),
    "resnet18 stage 3-4": (16, 256, 14, 512, 3, 2, 1),
    "resnet18 stage 4": (16, 512, 7, 512, 3, 1, 1),
    "resnet18 shortcut": (16, 64, 56, 128, 1, 2, 0),
    "resnet50 reduce": (16, 256, 56, 64, 1, 1, 0),
    "resnet50 restore": (16, 64, 56, 256, 1, 1, 0),
}
PASSES = ("forward", "grad input", "grad weight")


def interleave(contenders: dict[str, Callable[[], Any]], rounds: int, calls: int) -> dict[str, Any]:
    """Milliseconds per call of each contender: median and quartiles over all timed calls."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(PAUSE)
            call()
            for _ in range(calls):
                start = time.perf_counter()
                call()
                times[name].append((time.perf_counter() - start) * 1e3)
    summary = {}
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        summary[name] = {"median": middle, "quartiles": [low, high], "best": min(values)}
    return summary


# -- whole steps ---------------------------------------------------------------------------------


class TorchBlock(torch.nn.Module):
    """A residual block, basic or bottleneck, with option A or B at changes of shape."""

    def __init__(self, inside: int, width: int, stride: int, bottleneck: bool, pad: bool) -> None:
        super().__init__()
        out = width * 4 if bottleneck else width
        kernels = [(3, stride, 1), (3, 1, 1)]
        if bottleneck:
            kernels = [(1, 1, 0), (3, stride, 1), (1, 1, 0)]
        widths = [inside, width, width, out] if bottleneck else [inside, width, out]
        self.convs = torch.nn.ModuleList(
            torch.nn.Conv2d(a, b, k, s, p, bias=False)
            for a, b, (k, s, p) in zip(widths, widths[1:], kernels, strict=False)
        )
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(b) for b in widths[1:])
        self.stride, self.extra = stride, out - inside
        self.project = None
        if not pad and (stride != 1 or self.extra):
            self.project = torch.nn.Sequential(
                torch.nn.Conv2d(inside, out, 1, stride, bias=False), torch.nn.BatchNorm2d(out)
            )

    def forward(self, x: Any) -> Any:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(TF.relu(y) if i else y))
        if self.project is not None:
            x = self.project(x)
        elif self.extra:
            x = TF.pad(x[:, :, :: self.stride, :: self.stride],
                       (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))  # fmt: skip
        return TF.relu(x + y)


def torch_resnet(name: str) -> torch.nn.Module:
    """The same nets in PyTorch's own layers, for timing."""
    small = name in ("resnet20", "resnet110")
    counts = {"resnet20": [3] * 3, "resnet110": [18] * 3}.get(name)
    counts = counts or {"resnet18": [2] * 4, "resnet50": [3, 4, 6, 3]}[name]
    bottleneck, inside = name == "resnet50", 16 if small else 64
    if small:
        stem: list[torch.nn.Module] = [torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)]
    else:
        stem = [torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
    layers = [*stem, torch.nn.BatchNorm2d(inside), torch.nn.ReLU()]
    if not small:
        layers.append(torch.nn.MaxPool2d(3, 2, 1))
    for stage, count in enumerate(counts):
        width = (16 if small else 64) * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            layers.append(TorchBlock(inside, width, stride, bottleneck, pad=small))
            inside = width * (4 if bottleneck else 1)
    classes = 10 if small else 1000
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(inside, classes)]
    return torch.nn.Sequential(*layers, *head)


def torch_step(name: str, x: np.ndarray, labels: np.ndarray, layout: Any, compiled: bool) -> Any:
    model = torch_resnet(name).to(memory_format=layout)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.tensor(x).contiguous(memory_format=layout)
    target = torch.tensor(labels)
    network = torch.compile(model) if compiled else model

    def step() -> None:
        optimiser.zero_grad()
        TF.cross_entropy(network(images), target).backward()
        optimiser.step()

    return step


def our_step(name: str, x: np.ndarray, labels: np.ndarray) -> Callable[[], None]:
    model = mr.models.create(name)
    optimiser = SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(mr.Tensor._wrap(images)), labels).backward()
        optimiser.step()

    return step


def bench_step(name: str, rounds: int, compiled: bool) -> dict[str, Any]:
    batch, size = STEPS[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, 3, size, size), dtype=np.float32)
    labels = rng.integers(0, 10, batch)
    contenders: dict[str, Callable[[], Any]] = {"minires": our_step(name, x, labels)}
    for layout in (torch.contiguous_format, torch.channels_last):
        text = "NCHW" if layout is torch.contiguous_format else "channels_last"
        contenders[f"torch eager {text}"] = torch_step(name, x, labels, layout, compiled=False)
        if compiled:
            contenders[f"torch compiled {text}"] = torch_step(name, x, labels, layout, compiled)
    for call in contenders.values():
        call()
    result = interleave(contenders, rounds, calls=2)
    ours = result["minires"]["median"]
    peer = min((n for n in result if n != "minires"), key=lambda n: result[n]["median"])
    ratio = result[peer]["median"] / ours
    print(f"{name}, batch {batch} at {size}x{size}: training step")
    for n, r in result.items():
        low, high = r["quartiles"]
        print(f"  {n:28s} {batch / r['median'] * 1e3:8.1f} images/s   {r['median']:8.1f} ms "
              f"({low:.1f} to {high:.1f})")  # fmt: skip
    print(f"  ratio to the best peer ({peer}): {ratio:.2f}\n")
    return {"batch": batch, "size": size, "times_ms": result, "peer": peer, "ratio": ratio}


# -- single layers -------------------------------------------------------------------------------


def layer_passes(shape: tuple[int, ...], rng: Any) -> dict[str, tuple[Any, Any, Any, Any]]:
    """Per pass: (our call, PyTorch's call per layout, geometry, float64 answer on two images)."""
    N, C, size, O, k, s, p = shape
    x = channels_last(rng.standard_normal((N, C, size, size), dtype=np.float32))
    weight = rng.standard_normal((O, C, k, k), dtype=np.float32) / np.float32(math.sqrt(C * k * k))
    g = conv_geometry(x.shape, weight.shape, s, p)
    gy = channels_last(rng.standard_normal(g.y_shape, dtype=np.float32))
    ours = {
        "forward": lambda: operations.conv2d(x, weight, g),
        "grad input": lambda: operations.conv2d_grad_input(gy, weight, g),
        "grad weight": lambda: operations.conv2d_grad_weight(x, gy, g),
    }

    def torch_passes(layout: Any, dtype: Any = torch.float32) -> dict[str, Callable[[], Any]]:
        tx, tw, tg = (
            torch.tensor(np.ascontiguousarray(a)).to(dtype).contiguous(memory_format=layout)
            for a in (x, weight, gy)
        )

        def gradient(mask: list[bool]) -> Any:
            out = torch.ops.aten.convolution_backward(
                tg, tx, tw, None, [s, s], [p, p], [1, 1], False, [0, 0], 1, mask
            )
            return out[mask.index(True)]

        return {
            "forward": lambda: TF.conv2d(tx, tw, stride=s, padding=p),
            "grad input": lambda: gradient([True, False, False]),
            "grad weight": lambda: gradient([False, True, False]),
        }

    nchw, last = torch_passes(torch.contiguous_format), torch_passes(torch.channels_last)
    exact = torch_passes(torch.contiguous_format, torch.float64)
    return {name: (ours[name], (nchw[name], last[name]), g, exact[name]) for name in PASSES}


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def bench_layers(rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    ratios = []
    print(f"{'layer':22s} {'pass':12s} {'kernel':10s} {'ms':>8s} {'torch':>8s} {'ratio':>6s} "
          f"{'GFLOP/s':>8s} {'max error':>10s}")  # fmt: skip
    for layer, shape in LAYERS.items():
        for name, (ours, theirs, g, exact) in layer_passes(shape, rng).items():
            if name == "grad input" and "stem" in layer:
                continue  # a network never needs it
            reference = exact().numpy()
            error = float(np.abs(ours() - reference).max() / np.abs(reference).max())
            operation = getattr(operations, "conv2d" if name == "forward"
                                else "conv2d_" + name.replace(" ", "_"))  # fmt: skip
            kernel = operation.select("cpu", g).name
            if not error < 2e-5:
                print(f"{layer:22s} {name:12s} {kernel:10s} WRONG: relative error {error:.1e}")
                table[f"{layer}, {name}"] = {"kernel": kernel, "error": error, "wrong": True}
                continue
            result = interleave(
                {"minires": ours, "NCHW": theirs[0], "channels_last": theirs[1]}, rounds, calls=3
            )
            mine = result["minires"]["median"]
            peer = min(result["NCHW"]["median"], result["channels_last"]["median"])
            rate = 2 * g.multiply_adds / mine / 1e6
            ratios.append(peer / mine)
            table[f"{layer}, {name}"] = {
                "kernel": kernel, "times_ms": result, "ratio": peer / mine, "gflops": rate,
                "error": error,
            }  # fmt: skip
            print(f"{layer:22s} {name:12s} {kernel:10s} {mine:8.2f} {peer:8.2f} {peer / mine:6.2f} "
                  f"{rate:8.0f} {error:10.1e}")  # fmt: skip
    mean = math.exp(statistics.fmean(math.log(r) for r in ratios))
    print(f"geometric mean of the ratios: {mean:.2f}, least {min(ratios):.2f}\n")
    return {"layers": table, "geometric_mean": mean, "least": min(ratios)}


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": num_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "minires": mr.__version__,
        "commit": git.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
        "allocator": "no mmap, no trim" if "MALLOC_MMAP_THRESHOLD_" in os.environ else "stock",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", nargs="*", default=["resnet20", "resnet18"], choices=STEPS)
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="folder for the JSON record")
    options = parser.parse_args()
    torch.set_num_threads(num_threads())
    record: dict[str, Any] = {"machine": machine(), "steps": {}}
    print(json.dumps(record["machine"]))
    for name in options.steps:
        record["steps"][name] = bench_step(name, options.rounds, options.compile)
    if options.layers:
        record |= bench_layers(options.rounds)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        kind = "stock" if record["machine"]["allocator"] == "stock" else "no-mmap"
        path = options.out / f"cpu_vs_torch-{kind}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
