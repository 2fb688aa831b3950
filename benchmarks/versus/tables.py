"""What is printed, and the Markdown for the README, from a record alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Lines = Iterator[str]
NAMES = {"resnet20": "ResNet-20", "resnet18": "ResNet-18", "resnet50": "ResNet-50",
         "resnet110": "ResNet-110"}  # fmt: skip


def text(record: Mapping[str, Any]) -> str:
    """Plain text of every section in a record."""
    parts = [
        "\n".join(_title(title) + list(show(record[key])))
        for key, title, show in (
            ("train", "Training steps", _steps),
            ("inference", "Inference, batch norm folded", _steps),
            ("share", "Share of the matrix-product rate", _share),
            ("layers", "Single convolutions", _layers),
            ("bandwidth", "Share of the copy bandwidth", _bandwidth),
            ("memory", "Memory that training steps add at their peak", _memory),
            ("threads", "Threads", _threads),
            ("imports", "Importing", _imports),
            ("startup", "From the start of a process", _startup),
            ("frameworks", "ResNet-20 training step in other frameworks", _frameworks),
        )
        if key in record
    ]
    return "\n\n".join(parts)


def _title(name: str) -> list[str]:
    return [name, "-" * len(name)]


def _steps(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        yield f"{model}, batch {found['batch']} at {found['size']}x{found['size']}"
        for name, times in found["times"].items():
            low, high = times["quartiles_ms"]
            yield (
                f"  {name:28s} {found['images_per_second'][name]:8.1f} images/s "
                f"{times['median_ms']:9.1f} ms ({low:.1f} to {high:.1f}), "
                f"first {times['first_call_ms'] / 1e3:.1f} s"
            )
        yield (
            f"  {found['ratio']:.2f} times as fast as {found['peer']}, "
            f"{best_ratio(found):.2f} by the best readings"
        )
        if "integers" in found:
            share = share_of_cores(section, model)
            yield f"  meanwhile integers ran at {100 * share:.0f} % of their best"


def best_ratio(found: Mapping[str, Any]) -> float:
    """Of the best readings, PyTorch's best over ours: the machine at its least disturbed."""
    others = (one["best_ms"] for name, one in found["times"].items() if name != "minires")
    return float(min(others) / found["times"]["minires"]["best_ms"])


def share_of_cores(section: Mapping[str, Any], model: str) -> float:
    """The best time for integers in a section over the median beside one net (`cores.py`)."""
    best = min(found["integers"]["best_ms"] for found in section.values() if "integers" in found)
    return float(best / section[model]["integers"]["median_ms"])


def _share(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        yield (
            f"{model}: {found['flops'] / 1e9:.0f} GFLOP of convolutions a step, "
            f"{found['gflops']:.0f} GFLOP/s of {found['limit_gflops']:.0f}: "
            f"{100 * found['share']:.0f} %"
        )


def _layers(section: Mapping[str, Any]) -> Lines:
    heads = "kernel    ", "      ms", "   torch", " ratio", "of limit"
    yield f"{'layer, pass':52s} {' '.join(heads)}"
    for name, found in section["layers"].items():
        mine = next(row for row in found["rows"] if row["chosen"])
        if mine["times"] is None:
            yield f"{name:52s} {found['kernel']:10s} WRONG: {mine['refused']}"
            continue
        peer = next((row for row in found["rows"] if row["kernel"] == found["peer"]), None)
        other = f"{peer['times']['median_ms']:8.2f}" if peer else f"{'-':>8s}"
        ratio = f"{found['ratio']:6.2f}" if found["ratio"] else f"{'-':>6s}"
        yield (
            f"{name:52s} {found['kernel']:10s} {mine['times']['median_ms']:8.2f} {other} {ratio} "
            f"{100 * mine['share']:6.0f} %"
        )
    if section["geometric_mean"] is not None:
        yield (
            f"geometric mean of the ratios: {section['geometric_mean']:.2f}, "
            f"least {section['least']:.2f}"
        )


def _bandwidth(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        yield f"{model}, batch {found['batch']}, of {found['copy_gbs']:.1f} GB/s"
        for name, row in found["operations"].items():
            yield (
                f"  {name:36s} {row['ms']:8.2f} ms {row['gbs']:7.1f} GB/s "
                f"{100 * row['share']:5.0f} %"
            )


def _memory(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        yield model
        for name, one in found.items():
            shown = one.get("skipped") or f"{one['added'] / 1e6:8,.0f} MB"
            yield f"  {name:28s} {shown}"
        share = memory_share(found)
        if share is not None:
            yield f"  minires: {share:.2f} of PyTorch's better"


def memory_share(found: Mapping[str, Any]) -> float | None:
    """Ours over the least of PyTorch's."""
    others = [one["added"] for name, one in found.items() if name != "minires" and "added" in one]
    if not others or "added" not in found["minires"]:
        return None
    return float(found["minires"]["added"] / min(others))


def _threads(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        yield model
        slowest: dict[str, float] = {}
        for name, speed in found["images_per_second"].items():
            who = name.partition(",")[0]
            slowest.setdefault(who, speed)
            yield f"  {name:38s} {speed:8.1f} images/s, {speed / slowest[who]:.2f} times one"


def _imports(section: Mapping[str, Any]) -> Lines:
    for package, seconds in section.items():
        yield f"import {package}: {seconds:.2f} s"


def _startup(section: Mapping[str, Any]) -> Lines:
    for model, found in section.items():
        for name, one in found.items():
            if "skipped" in one:
                yield f"{model}, {name}: {one['skipped']}"
            else:
                yield (
                    f"{model}, {name:12s}: imported after {one['imported']:.1f} s, first step done "
                    f"after {one['first']:.1f} s, the next takes {one['second']:.2f} s"
                )


def _frameworks(section: Mapping[str, Any]) -> Lines:
    for name, found in section.items():
        if "skipped" in found:
            yield f"  {name:32s} skipped: {found['skipped']}"
        else:
            yield (
                f"  {found['name'] + ' ' + found['version']:32s} {found['images_per_second']:8.1f} "
                f"images/s, batch {found['batch']}, first step {found['first']:.1f} s, "
                f"losses differ by {found['losses_differ']:.0e}"
            )


# -- Markdown ------------------------------------------------------------------------------------


def markdown(record: Mapping[str, Any]) -> str:
    """The tables of the README."""
    parts = [
        table
        for key, show in (
            ("train", _markdown_steps),
            ("inference", _markdown_steps),
            ("layers", _markdown_layers),
            ("bandwidth", _markdown_bandwidth),
            ("memory", _markdown_memory),
            ("frameworks", _markdown_frameworks),
        )
        if key in record
        for table in [show(record[key], key)]
    ]
    return "\n\n".join([*parts, _caption(record)])


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _label(model: str, found: Mapping[str, Any]) -> str:
    return f"{NAMES[model]}, {found['size']}x{found['size']}, batch {found['batch']}"


def _markdown_steps(section: Mapping[str, Any], key: str) -> str:
    what = {"train": "training step", "inference": "inference, batch norm folded"}[key]
    rows = [
        [
            _label(model, found),
            f"{found['images_per_second']['minires']:,.0f} images/s",
            f"{found['images_per_second'][found['peer']]:,.0f} images/s "
            f"({found['peer'].removeprefix('torch ')})",
            f"**{found['ratio']:.2f}**",
            f"{best_ratio(found):.2f}",
        ]
        for model, found in section.items()
    ]
    return _table([what, "minires", "PyTorch's best", "ratio", "by best readings"], rows)


def _markdown_layers(section: Mapping[str, Any], _: str) -> str:
    groups: dict[str, list[float]] = {}
    for found in section["layers"].values():
        if found["ratio"] is not None:
            groups.setdefault(found["kernel"], []).append(found["ratio"])
    rows = [
        [kernel, str(len(ratios)), f"{min(ratios):.2f}", f"{sorted(ratios)[len(ratios) // 2]:.2f}",
         f"{max(ratios):.2f}"]
        for kernel, ratios in groups.items()
    ]  # fmt: skip
    return _table(["convolutions by kernel", "layers and passes", "least ratio", "median", "most"],
                  rows)  # fmt: skip


def _markdown_bandwidth(section: Mapping[str, Any], _: str) -> str:
    names = dict.fromkeys(name for found in section.values() for name in found["operations"])
    rows = []
    for name in names:
        shares = (found["operations"].get(name) for found in section.values())
        rows.append([name, *("-" if row is None else f"{100 * row['share']:.0f} %"
                             for row in shares)])  # fmt: skip
    return _table(["share of the copy bandwidth", *map(NAMES.__getitem__, section)], rows)


def _markdown_memory(section: Mapping[str, Any], _: str) -> str:
    rows = []
    for model, found in section.items():
        share = memory_share(found)
        shown = [f"{one['added'] / 1e6:,.0f} MB" if "added" in one else "-"
                 for one in found.values()]  # fmt: skip
        rows.append([NAMES[model], *shown, "-" if share is None else f"{share:.2f}"])
    names = list(next(iter(section.values())))
    return _table(["memory added by training steps", *names, "share"], rows)


def _markdown_frameworks(section: Mapping[str, Any], _: str) -> str:
    rows = [
        [f"{found['name']} {found['version']}", str(found["batch"]),
         f"{found['images_per_second']:,.1f}"]
        for found in section.values()
        if "skipped" not in found
    ]  # fmt: skip
    return _table(["ResNet-20 training step", "batch", "images/s"], rows)


def _caption(record: Mapping[str, Any]) -> str:
    facts = record["machine"]
    return (
        f"{facts['cpu']}, {facts['threads']} threads; minires {facts['versions']['minires']} "
        f"({facts['commit'] or 'installed'}), PyTorch {facts['versions']['torch']}; allocator: "
        f"{facts['allocator']}; {facts['date'][:10]}."
    )
