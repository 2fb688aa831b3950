"""The notebooks run, are stored without outputs, and their checks tell right from wrong."""

import importlib
import inspect
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
names = [path.stem for path in NOTEBOOKS]


def cells(path, kind):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def test_all_eight_are_there():
    assert [name.partition("_")[0] for name in names] == list("12345678")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_stored_without_outputs(path):
    for cell in cells(path, "code"):
        assert cell["outputs"] == [], "jupyter nbconvert --clear-output --inplace " + path.name
        assert cell["execution_count"] is None
    ids = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("path", [*NOTEBOOKS, FOLDER / "README.md"], ids=[*names, "README"])
def test_links_lead_somewhere(path):
    linked = set(re.findall(r"\]\(([\w./]+)\)", path.read_text()))
    assert linked or path is NOTEBOOKS[-1]
    for link in linked:
        assert (FOLDER / link).exists(), link


# Jupyter's own warnings are not ours to fix.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_runs(path, capsys):
    nbformat = pytest.importorskip("nbformat", reason='pip install -e ".[notebooks]"')
    nbclient = pytest.importorskip("nbclient", reason='pip install -e ".[notebooks]"')
    pytest.importorskip("ipykernel", reason='pip install -e ".[notebooks]"')
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    start = time.perf_counter()
    nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    with capsys.disabled():
        print(f"\n{path.name}: {time.perf_counter() - start:.1f} s")
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = "".join(str(output.get("data", {}).get("text/plain", "")) for output in outputs)
    assert "Nothing to check yet" in texts  # exercises come unsolved
    assert "Not yet" not in texts
    assert any("image/png" in output.get("data", {}) for output in outputs)


# -- the exercises --------------------------------------------------------------------------------

SOLUTIONS = {
    "1a": "tanh_backward", "1b": "cross_entropy_grad", "2a": "im2col", "2b": "conv2d_grad_weight",
    "3a": "batch_norm_backward", "3b": "upstream", "4a": "split", "4b": "by_length",
    "5a": "identity_kernel", "5b": "diagnose", "6a": "conv2d", "6b": "conv2d_grad_input",
    "7a": "place", "7b": "tile_bytes", "8a": "cost", "8b": "seconds",
}  # fmt: skip


@pytest.fixture
def check(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module("check").__dict__
    for name in [n for n in sys.modules if n.partition(".")[0] in ("check", "solutions")]:
        del sys.modules[name]


def solution(exercise):
    module = importlib.import_module(f"solutions.exercise_{exercise[0]}")
    return getattr(module, SOLUTIONS[exercise])


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_the_solution_is_right(check, exercise):
    verdict = check[f"exercise_{exercise}"](solution(exercise))
    assert verdict, verdict
    assert str(verdict).startswith("Right. ")


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_nothing_written_yet(check, exercise):
    verdict = check[f"exercise_{exercise}"](lambda *arguments: None)
    assert not verdict
    assert str(verdict) == "Nothing to check yet: it is your turn."


@pytest.mark.parametrize("exercise", SOLUTIONS)
def test_an_answer_that_fails(check, exercise):
    def answer(*arguments):
        raise KeyError("oops")

    verdict = check[f"exercise_{exercise}"](answer)
    line = inspect.getsourcelines(answer)[1] + 1
    assert not verdict
    assert "KeyError: 'oops'" in str(verdict)
    assert f"(line {line} of the cell)" in str(verdict)


def test_every_exercise_is_in_its_notebook(check):
    asked = []
    for path in NOTEBOOKS:
        source = "".join("".join(cell["source"]) for cell in cells(path, "code"))
        found = sorted(set(re.findall(r"check\.exercise_(\d\w)\((\w+)\)", source)))
        assert all(name == SOLUTIONS[exercise] for exercise, name in found)
        assert [exercise for exercise, _ in found] == [f"{path.name[0]}a", f"{path.name[0]}b"]
        asked += [f"exercise_{exercise}" for exercise, _ in found]
    assert asked == sorted(name for name in check if name.startswith("exercise_"))


def parts(right, change):
    """The solution, with its result changed."""
    return lambda *arguments: change(*right(*arguments))


def whole(right, change):
    return lambda *arguments: change(right(*arguments))


OVER = (0, 2, 3)


def normalised(x, eps):
    inv_std = 1 / np.sqrt(x.var(OVER, keepdims=True) + eps)
    return (x - x.mean(OVER, keepdims=True)) * inv_std, inv_std


def without_mean_term(gy, x, gamma, eps):
    xhat, inv_std = normalised(x, eps)
    gx = gamma.reshape(1, -1, 1, 1) * inv_std
    gx = gx * (gy - xhat * (gy * xhat).mean(OVER, keepdims=True))
    return gx, (gy * xhat).sum(OVER), gy.sum(OVER)


def constants(gy, x, gamma, eps):
    xhat, inv_std = normalised(x, eps)
    return gamma.reshape(1, -1, 1, 1) * inv_std * gy, (gy * xhat).sum(OVER), gy.sum(OVER)


def unshifted(logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return (p - np.eye(logits.shape[1])[labels]) / len(labels)


def every_path(blocks, g):
    """Right, one path at a time."""
    if not blocks:
        return [g]
    shortcut, branch = blocks[-1]
    passed, taken = every_path(blocks[:-1], shortcut(g)), every_path(blocks[:-1], branch(g))
    middle = [a + b for a, b in zip(passed[1:], taken[:-1], strict=True)]
    return [passed[0], *middle, taken[-1]]


WRONG = [
    ("1a", lambda s: lambda gy, y: 1 - y**2, "whatever reaches the output"),
    ("1a", lambda s: lambda gy, y: gy * (1 - y), "which power"),
    ("1a", lambda s: lambda gy, y: gy * y, "finite differences"),
    ("1b", lambda s: lambda z, t: s(z, t) * len(z), "the mean over N"),
    ("1b", lambda s: lambda z, t: -s(z, t), "the sign"),
    ("1b", lambda s: lambda z, t: np.zeros(3), "shape"),
    ("1b", lambda s: unshifted, "overflow"),
    ("2a", lambda s: lambda *a: s(*a)[:, ::-1], "some numbers are wrong"),
    ("2a", lambda s: lambda x, KH, KW, stride, padding: s(x, KH, KW, stride, 0), "shape"),
    ("2a", lambda s: lambda x, KH, KW, *a: s(x, KH, KW, *a).reshape(-1, x.shape[1], KH * KW)
     .transpose(0, 2, 1).reshape(-1, x.shape[1] * KH * KW), "wrong columns"),
    ("2b", lambda s: lambda x, *a: s(x, *a) / len(x), "mean over the batch"),
    ("2b", lambda s: lambda *a: s(*a)[:, :, ::-1, ::-1], "upside down"),
    ("3a", lambda s: without_mean_term, "misses the term of the mean"),
    ("3a", lambda s: constants, "as constants"),
    ("3a", lambda s: parts(s, lambda gx, ggamma, gbeta: (gx, ggamma, gbeta / 18)), "gbeta"),
    ("3a", lambda s: parts(s, lambda gx, ggamma, gbeta: (gx, 2 * ggamma, gbeta)), "ggamma"),
    ("3a", lambda s: parts(s, lambda gx, ggamma, gbeta: (2 * gx, ggamma, gbeta)), "gx is wrong"),
    ("3a", lambda s: parts(s, lambda gx, ggamma, gbeta: gx), "three gradients"),
    ("3b", lambda s: np.ones_like, "constant in a channel"),
    ("3b", lambda s: np.zeros_like, "proves nothing"),
    ("3b", lambda s: lambda x: x**2, "does get through"),
    ("4a", lambda s: lambda gy, y, A: (gy, A.T @ (gy * (y > 0))), "the join's relu first"),
    ("4a", lambda s: parts(s, lambda a, b: (a / 2, b)), "not half"),
    ("4a", lambda s: lambda gy, y, A: (gy * (y > 0), A @ (gy * (y > 0))), "transposed"),
    ("4a", lambda s: parts(s, lambda a, b: (a, a + b)), "keep the two apart"),
    ("4b", lambda s: whole(s, lambda found: found[::-1]), "the order"),
    ("4b", lambda s: lambda blocks, g: s(blocks[::-1], g), "last block to the first"),
    ("4b", lambda s: whole(s, lambda f: [f[0] + f[1], 0 * f[1], *f[2:]]), "no path is lost"),
    ("4b", lambda s: whole(s, lambda f: f[:-1]), "return 6 gradients"),
    ("4b", lambda s: every_path, "follows every path alone"),
    ("5a", lambda s: lambda C: np.roll(s(C), 1, axis=(2, 3)), "not the input"),
    ("5a", lambda s: lambda C: s(1) * np.ones((C, C, 1, 1)), "sums all the input channels"),
    ("5b", lambda s: lambda a, b, c, d: "overfitting" if d > c else "better", "training error"),
    ("5b", lambda s: lambda *errors: "worse", "the answers are"),
    ("6a", lambda s: lambda x, weight, g: s(x, weight[:, :, ::-1], g), "the reference disagrees"),
    ("6b", lambda s: lambda gy, weight, g: 2 * s(gy, weight, g), "the reference disagrees"),
    ("7a", lambda s: lambda t, N, O, OH, OW: s(t, N, O, OW, OH), "neighbouring j"),
    ("7b", lambda s: lambda C, TH, TW, KH, KW, stride: 4 * C * TH * TW * stride**2, "halo"),
    ("7b", lambda s: whole(s, lambda size: size // 4), "4 bytes"),
    ("8a", lambda s: parts(s, lambda adds, moved: (2 * adds, moved)), "count as one"),
    ("8a", lambda s: parts(s, lambda adds, moved: (adds, moved // 4)), "4 bytes a"),
    ("8b", lambda s: lambda adds, moved, peak, band: 2 * adds / peak + moved / band, "same time"),
    ("8b", lambda s: lambda adds, moved, peak, band: min(2 * adds / peak, moved / band), "slower"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("exercise", "make", "hint"), WRONG, ids=[f"{e}-{hint}" for e, _, hint in WRONG]
)
def test_a_mistake_gets_its_hint(check, exercise, make, hint):
    with np.errstate(all="ignore"):
        verdict = check[f"exercise_{exercise}"](make(solution(exercise)))
    assert not verdict
    assert str(verdict).startswith("Not yet: ")
    assert hint.lower() in str(verdict).lower()


def test_each_exercise_has_a_mistake_planted():
    assert {exercise for exercise, _, _ in WRONG} == set(SOLUTIONS)


def test_a_kernel_under_check_leaves_the_table_as_it_was(check):
    import minires as mr

    before = mr.kernels.available()
    check["exercise_6a"](solution("6a"))
    check["exercise_6b"](lambda *arguments: 0)
    assert mr.kernels.available() == before
