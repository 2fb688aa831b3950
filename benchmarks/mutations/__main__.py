"""Mutation proof: plant bugs one at a time and see whether the tests notice.

    python benchmarks/mutations                          # those without a record yet
    python benchmarks/mutations --only norm --again      # all of some files once more
    python benchmarks/mutations --survivors              # those that were not caught

Each bug of the table (table.py, *.toml) is planted in a copy of the project. The tests that are
likely to catch it run first; if they pass, the whole suite does. A run can be stopped and gone on
with: the record, benchmarks/results/mutations.json, is written after every bug.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from runner import Copy
from table import Mutation, read

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
Record = dict[str, Any]


def main() -> int:
    options = _options()
    if hasattr(os, "nice"):
        os.nice(19)
    mutations = read()
    record_file = options.out / "mutations.json"
    known = _known(record_file)
    chosen = [m for m in mutations if any(word in m.path for word in options.only)]
    if options.survivors:
        chosen = [m for m in chosen if known.get(m.key, {}).get("verdict") == "survived"]
    elif not options.again:
        chosen = [m for m in chosen if m.key not in known]
    with tempfile.TemporaryDirectory(prefix="mutations-") as scratch:
        copy = Copy(options.source, options.work or Path(scratch))
        for mutation in mutations:
            copy.check(mutation)
        print(f"{len(chosen)} of {len(mutations)} bugs to plant", flush=True)
        _plant(copy, chosen, mutations, known, record_file, options)
    _write(record_file, mutations, known)
    survivors = [m for m in mutations if known.get(m.key, {}).get("verdict") == "survived"]
    for mutation in survivors:
        print(f"survived: {mutation}")
    return 1 if survivors else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", nargs="+", default=[""], metavar="WORD", help="files whose path has this in it")
    add("--again", action="store_true", help="also those that have a record")
    add("--survivors", action="store_true", help="only those that were not caught")
    add("--source", type=Path, default=ROOT, help="the project to copy (default: this one)")
    add("--work", type=Path, help="a folder for the copy and its caches, kept afterwards")
    add("--out", type=Path, default=RESULTS, help="where the record goes")
    add("--timeout", type=float, default=600.0, help="seconds for the likely tests")
    add("--broad-timeout", type=float, default=3600.0, help="seconds for the whole suite")
    add("--no-broad", action="store_true", help="leave out the whole suite")
    return parser.parse_args()


def _known(file: Path) -> dict[tuple[str, ...], Record]:
    if not file.exists():
        return {}
    entries = json.loads(file.read_text(encoding="utf-8"))["mutations"]
    return {(e["path"], e["within"], e["old"], e["new"]): e for e in entries}


def _plant(
    copy: Copy,
    chosen: list[Mutation],
    mutations: list[Mutation],
    known: dict[tuple[str, ...], Record],
    record_file: Path,
    options: argparse.Namespace,
) -> None:
    sound: set[tuple[str, ...]] = set()
    whole_suite_known = False
    for number, mutation in enumerate(chosen, 1):
        if mutation.tests not in sound:
            copy.baseline(mutation.tests, options.timeout)
            sound.add(mutation.tests)
        outcome = copy.run(mutation, mutation.tests, options.timeout)
        seconds, stage = outcome.seconds, "likely tests"
        if outcome.passed and not options.no_broad and not mutation.survives:
            if not whole_suite_known:
                copy.everything(options.broad_timeout)
                whole_suite_known = True
                print(f"failing without any bug, left out: {copy.broken or 'none'}", flush=True)
            outcome = copy.run(mutation, ("tests",), options.broad_timeout)
            seconds, stage = seconds + outcome.seconds, "whole suite"
        verdict = "caught" if not outcome.passed else "survived"
        if outcome.passed and mutation.survives:
            verdict = "explained"
        known[mutation.key] = {
            "path": mutation.path, "within": mutation.within, "kind": mutation.kind,
            "old": mutation.old, "new": mutation.new, "verdict": verdict, "stage": stage,
            "by": outcome.by, "seconds": round(seconds, 1),
        }  # fmt: skip
        _write(record_file, mutations, known)
        print(f"{number}/{len(chosen)} {verdict} in {seconds:.0f} s: {mutation}", flush=True)


def _write(
    file: Path, mutations: list[Mutation], known: dict[tuple[str, ...], Record]
) -> None:
    """The record of the entries that are still in the table, and the same as a page to read."""
    entries = [known[m.key] for m in mutations if m.key in known]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {"commit": commit, "python": sys.version.split()[0], "mutations": entries}
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    reasons = {m.key: m.survives for m in mutations}
    file.with_suffix(".md").write_text(_page(entries, reasons, len(mutations)), encoding="utf-8")


def _page(entries: list[Record], reasons: dict[tuple[str, ...], str], total: int) -> str:
    verdicts = Counter(e["verdict"] for e in entries)
    lines = [
        "# Planted bugs and what caught them",
        "",
        f"{total} bugs of one line each, planted one at a time by `python benchmarks/mutations`: "
        f"{verdicts['caught']} caught, {verdicts['explained']} explained, "
        f"{verdicts['survived']} survived, {total - len(entries)} not run.",
        "",
        "| kind | bugs | caught |",
        "|---|---|---|",
    ]
    for kind, count in Counter(e["kind"] for e in entries).most_common():
        caught = sum(e["kind"] == kind and e["verdict"] == "caught" for e in entries)
        lines.append(f"| {kind} | {count} | {caught} |")
    path = ""
    for entry in entries:
        if entry["path"] != path:
            path = entry["path"]
            lines += ["", f"## {path}", "", "| kind | line | became | caught by | s |",
                      "|---|---|---|---|---|"]  # fmt: skip
        key = (entry["path"], entry["within"], entry["old"], entry["new"])
        by = entry["by"].replace("tests/", "", 1)
        told = f"`{_cell(by)}`" if entry["verdict"] == "caught" else f"**{entry['verdict']}**"
        if entry["verdict"] == "explained":
            told += f": {reasons[key]}"
        lines.append(
            f"| {entry['kind']} | `{_cell(entry['old'])}` | `{_cell(entry['new'])}` | {told} | "
            f"{entry['seconds']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Code as it may stand in a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
