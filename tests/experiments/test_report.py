"""The report: its page, tables and numbers as a reader and as a program gets them."""

import csv
import io
import json
import math
from dataclasses import dataclass, field

import numpy as np

from minires.experiments import Report, Spread, Table
from minires.experiments.report import Figure, plain

TABLE = Table(
    "errors",
    "Errors",
    ("net", "layers", "error", "paper"),
    [("a|b", 1200, Spread.of([10, 12]), "8.75"), ("c", 56, Spread.of([9]), None)],
)


def test_table_as_markdown_and_csv_says_the_same():
    lines = TABLE.markdown().splitlines()
    assert lines[0] == "| net | layers | error | paper |"
    assert lines[1] == "|---|--:|--:|--:|"
    assert lines[2] == "| a\\|b | 1,200 | 11.0 ± 1.4 | 8.75 |"
    assert lines[3] == "| c | 56 | 9.0 | - |"
    rows = list(csv.DictReader(io.StringIO(TABLE.csv())))
    assert rows[0]["net"] == "a|b"
    assert float(rows[0]["error"]) == 11
    assert math.isclose(float(rows[0]["error, deviation"]), math.sqrt(2))
    assert [row["error, seeds"] for row in rows] == ["2", "1"]
    assert rows[1]["error, deviation"] == rows[1]["paper"] == ""


def test_page_has_every_part_in_order(tmp_path):
    drawn = []
    report = Report(
        title="T", question="Q?", paper=["P."], found=["F."], limits=["L."], tables=[TABLE],
        figures=[Figure("picture", "C", drawn.append)],
    )  # fmt: skip
    page = report.write(tmp_path / "new", {"x": 1}, ["how."]).read_text()
    parts = ["# T", "Q?", "## What the paper found", "- P.", "## What this run found", "- F.",
             "![C](picture.png)", "**Errors** ([CSV](errors.csv))", "| net |",
             "## What this run cannot show", "- L.", "## How it was run", "- how.",
             "[results.json](results.json)"]  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert drawn == [tmp_path / "new" / "picture.png"]
    assert (tmp_path / "new" / "errors.csv").read_text() == TABLE.csv()
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == {"x": 1}


@dataclass
class Result:
    net: str
    array: np.ndarray
    spread: Spread
    hidden: object = field(repr=False)


def test_plain_values_hold_everything_but_what_is_not_shown():
    result = Result("n", np.array([[1.0, np.nan], [np.inf, 2]]), Spread.of([1, 2]), object())
    assert plain(result) == {
        "net": "n",
        "array": [[1.0, None], [None, 2.0]],
        "spread": {"mean": 1.5, "deviation": math.sqrt(0.5), "values": [1.0, 2.0]},
    }
    assert plain((np.int64(3), np.bool_(True), {2: "x"})) == [3, True, {"2": "x"}]
