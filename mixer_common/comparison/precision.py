"""The precision of a comparison."""

from mixer_common.comparison.bounds import lower_precision
from mixer_common.comparison.recording import Subject
from mixer_common.comparison.sides import WeightsSubject


def default_precision(a: Subject, b: Subject, has_judge: bool) -> tuple[str, str]:
    """The precision in which two sides are compared unless one is chosen, and the reason for people, or "".

    It is float64, in which the mathematics alone differs. A judge in float64 needs sides of a lower precision. Two runs
    of other weights are compared in the lower precision of their trainings: each step rounded the weights to it, and a
    higher one shows that rounding and nothing else.
    """
    if has_judge:
        return "float32", ""
    runs = [side.trained_in for side in (a, b) if isinstance(side, WeightsSubject) and side.trained_in]
    if len(runs) < 2 or _equal_weights(a, b):
        return "float64", ""
    precision = lower_precision(*runs)
    if precision == "float64":
        return precision, ""
    return precision, "as the runs were trained: their weights differ, and carry its rounding"


def _equal_weights(a: Subject, b: Subject) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        array.tobytes() == b.weights[name].tobytes() for name, array in a.weights.items()
    )
