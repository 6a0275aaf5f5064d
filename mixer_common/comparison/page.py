"""The page that shows a comparison of two models: one file of HTML that needs nothing else."""

import bisect
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from mixer_common import files
from mixer_common.comparison.differences import Comparison, LayerDifference, describe_losses

# Where a colour of the heat maps ends, as a multiple of the bound. The steps widen, because mistakes span many
# more decades than rounding does.
LEVELS = {0.01: "0.01", 0.1: "0.1", 1: "1", 1e2: "100", 1e6: "10⁶", 1e10: "10¹⁰"}
_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_page(comparison: Comparison, path: Path) -> None:
    """Writes the page whole or not at all."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"figure": _figure, "multiple": _multiple, "level": _level}
    runs = comparison.a.step_losses, comparison.b.step_losses
    page = environment.from_string(_TEMPLATE.read_text("utf-8")).render(
        comparison=comparison,
        first=comparison.first,
        levels=LEVELS,
        within="rounding" if comparison.tolerance is None else "the tolerance",
        worst=max((*comparison.activations, *comparison.gradients), key=lambda error: error.ratio),
        parts=[
            (title, errors, _heat_map(errors))
            for title, errors in (("Activations", comparison.activations), ("Gradients", comparison.gradients))
            if errors
        ],
        losses=_losses(comparison, *runs) if all(losses is not None for losses in runs) else None,
    )
    files.replace_file(path, page.encode())


def _heat_map(errors: tuple[LayerDifference, ...]) -> dict[str, Any]:
    """How many blocks there are, and rows of a name and the errors by block, or the only one outside the blocks."""
    places = [(re.fullmatch(r"blocks\.(\d+)\.(.+)", error.name), error) for error in errors]
    blocks = max((int(match[1]) + 1 for match, _ in places if match), default=1)
    rows: dict[str, list[LayerDifference | None]] = {}
    for match, error in places:
        if match:
            rows.setdefault(match[2], [None] * blocks)[int(match[1])] = error
        else:
            rows[error.name] = [error]
    return {"blocks": blocks, "rows": list(rows.items())}


def _losses(comparison: Comparison, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """The figure of two runs' losses, and what it shows in words."""
    from mixer_common.comparison import pictures

    return {
        "words": describe_losses(a, b),
        "svg": pictures.loss_curves_svg(a, b, (comparison.a.name, comparison.b.name)),
    }


def _level(error: LayerDifference) -> str:
    """The colour of an error: "exact", "none" where there is no finite error, else its place among LEVELS."""
    if not math.isfinite(error.max_error):
        return "none"
    return str(bisect.bisect_left(list(LEVELS), error.ratio)) if error.max_error else "exact"


def _figure(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}" if math.isfinite(value) else "NaN" if math.isnan(value) else "∞"


def _multiple(error: LayerDifference) -> str:
    ratio = error.ratio
    if not math.isfinite(ratio):
        return _figure(ratio)
    return f"{ratio:,.0f}" if 10 <= ratio < 1e5 else f"{ratio:.3g}"
