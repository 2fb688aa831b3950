"""Checks for the exercises of the notebooks: right, or not yet and a hint; never the solution.

    import check
    check.exercise_2a(im2col)

Each check compares with an answer found in another way, on small drawn cases, and recognises usual
slips. A teacher can call the checks in a marking script: a `Verdict` is true if the answer is
right. Solutions are in the folder `solutions`.
"""

from check.gradients import (
    exercise_1a,
    exercise_1b,
    exercise_2a,
    exercise_2b,
    exercise_3a,
    exercise_3b,
    exercise_4a,
    exercise_4b,
)
from check.nets import (
    exercise_5a,
    exercise_5b,
    exercise_6a,
    exercise_6b,
    exercise_7a,
    exercise_7b,
    exercise_8a,
    exercise_8b,
)
from check.verdict import Verdict

__all__ = [
    "Verdict",
    "exercise_1a",
    "exercise_1b",
    "exercise_2a",
    "exercise_2b",
    "exercise_3a",
    "exercise_3b",
    "exercise_4a",
    "exercise_4b",
    "exercise_5a",
    "exercise_5b",
    "exercise_6a",
    "exercise_6b",
    "exercise_7a",
    "exercise_7b",
    "exercise_8a",
    "exercise_8b",
]
