"""What a bench leaves behind: a table to read, JSON to go on with, a figure."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from online_grads.bench import REFUSALS, Cost, first_sentence, slope
from online_grads.bench_model import DTYPE, INPUTS, OUTPUTS
from online_grads.capacity import largest, state_polynomial
from online_grads.estimators.registry import ESTIMATORS
from online_grads.files import write_whole
from online_grads.plots import CostCurve, cost_curves, save
from online_grads.report import columns

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
CAPACITY = """\
n: the most hidden units with which parameters and state fit; a step's working memory comes on top, and an
estimator may refuse so large a cell for what a step of it would cost"""


def table(rows: Sequence[Cost]) -> str:
    """The measurements as text, one line per row, and the fitted slopes."""
    lines = [
        ("cell", "n", "estimator", "µs/step", "compile s", "state", "formula", "bound", "bound µs", "ratio")
    ]
    for row in rows:
        lines.append(
            (
                row.cell,
                str(row.n),
                row.estimator,
                _number(row.seconds, 1e6),
                _number(row.compile_seconds),
                "-" if row.state_bytes is None else human(row.state_bytes),
                ESTIMATORS[row.estimator].memory,
                row.bound,
                _number(row.bound_seconds, 1e6),
                _number(row.ratio),
            )
        )
    parts = [_annotated(lines, ["", *(row.reason or "" for row in rows)])]
    if fitted := slopes(rows):
        grown = [("cell", "estimator", "time ∝ n^"), *((*name, f"{a:.2f}") for name, a in fitted.items())]
        parts.append("\n".join(columns(grown)))
    return "\n\n".join(parts)


def header(*, window: int, repeats: int) -> str:
    """One line on where and how the numbers were taken."""
    device = jax.devices()[0].device_kind
    return (
        f"JAX {jax.__version__}, {device}, {DTYPE}, {INPUTS} inputs, {OUTPUTS} outputs, "
        f"k = {window}, median of {repeats}"
    )


def summary(rows: Sequence[Cost], *, window: int, repeats: int) -> dict[str, Any]:
    """The measurements as JSON values.

    Returns:
        {"jax", "device", "dtype", "inputs", "outputs", "window", "repeats", "rows": [the fields of `Cost`,
        "ratio" and "formula"], "slopes": [{"cell", "estimator", "slope"}]}.
    """
    found = [
        {**row._asdict(), "ratio": row.ratio, "formula": ESTIMATORS[row.estimator].memory} for row in rows
    ]
    fitted = [{"cell": cell, "estimator": name, "slope": a} for (cell, name), a in slopes(rows).items()]
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "dtype": str(DTYPE),
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "window": window,
        "repeats": repeats,
        "rows": found,
        "slopes": fitted,
    }


def fitting(cells: Sequence[str], estimators: Sequence[str], limit: float) -> str:
    """A table of the largest n for which parameters and state take at most `limit` bytes.

    >>> fitting(["gru"], ["tbptt"], 10_000.0).splitlines()[1].split()[:3]
    ['gru', 'tbptt', '23']
    """
    rows = [("cell", "estimator", "n", "bytes", "state's formula")]
    reasons = [""]
    for cell in cells:
        for name in estimators:
            n, state, reason = "-", "-", ""
            try:
                size = state_polynomial(cell, name)
                n = f"{(most := largest(size, limit)):,}"
                state = human(int(size(most))) if most else "-"
            except REFUSALS as error:
                reason = first_sentence(error)
            rows.append((cell, name, n, state, ESTIMATORS[name].memory))
            reasons.append(reason)
    return f"{_annotated(rows, reasons)}\n\n{CAPACITY}"


def write(rows: Sequence[Cost], folder: Path, *, window: int, repeats: int) -> None:
    """Write bench.json, bench.png and bench.pdf: `summary`, and cost against n with the slopes.

    Raises:
        ImportError: matplotlib is missing; nothing is written.
    """
    text = json.dumps(summary(rows, window=window, repeats=repeats), indent=2, ensure_ascii=False)
    figure = cost_curves(curves(rows), title=header(window=window, repeats=repeats))
    write_whole(folder / "bench.json", text.encode())
    save(figure, folder / "bench")


def slopes(rows: Sequence[Cost]) -> dict[tuple[str, str], float]:
    """(cell, estimator) -> the exponent of its time in n, for all that have one."""
    fitted = {name: slope(points) for name, points in _points(rows).items()}
    return {name: exponent for name, exponent in fitted.items() if exponent is not None}


def curves(rows: Sequence[Cost]) -> dict[str, list[CostCurve]]:
    """cell -> one curve per estimator; in the same order for all cells, empty where nothing was measured."""
    fitted, points = slopes(rows), _points(rows)

    def curve(cell, name):
        sizes, seconds = np.array(points.get((cell, name), ())).reshape(-1, 2).T
        return CostCurve(name, sizes, 1e6 * seconds, fitted.get((cell, name)), name)

    names = dict.fromkeys(row.estimator for row in rows)
    return {cell: [curve(cell, name) for name in names] for cell in dict.fromkeys(row.cell for row in rows)}


def human(size: int) -> str:
    """Bytes in the largest unit of which there is at least one, to four digits.

    >>> human(20), human(546310152)
    ('20 B', '521 MiB')
    """
    # what rounds to 1024 is one of the next unit
    power = next((p for p in range(len(UNITS)) if size < 1023.5 * 1024**p), len(UNITS) - 1)
    return f"{size / 1024**power:.4g} {UNITS[power]}"


def _number(value: float | None, scale: float = 1.0) -> str:
    if value is None:
        return "-"
    value *= scale
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _annotated(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """Aligned rows, each with its note behind it."""
    lines = zip(columns(rows), notes, strict=True)
    return "\n".join(f"{line}  {note}".rstrip() for line, note in lines)


def _points(rows: Sequence[Cost]) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(cell, estimator) -> (n, seconds) of what was measured."""
    points: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in rows:
        if row.seconds is not None:
            points.setdefault((row.cell, row.estimator), []).append((row.n, row.seconds))
    return points
