"""The reference levels of a sweep: those that all of its points share, and those of single points."""

import math

from online_grads.report import columns
from online_grads.sweeping import Sweep

MOST = 12  # levels of single points that are listed


def shared(sweep: Sweep) -> dict[str, float]:
    """The levels that are the same at all points that were trained: name -> loss."""
    known = [row.meaning.references for row in sweep.rows if row.meaning is not None]
    first = known[0] if known else {}
    return {name: y for name, y in first.items() if all(_agree(y, other.get(name)) for other in known)}


def levels(sweep: Sweep) -> list[str]:
    """Lines that list the levels, each that is not shared with the values of the task's keys."""
    common = shared(sweep)
    keys = [axis.key for axis in sweep.axes if axis.key.startswith("task.")]
    own: dict[tuple[str, str], None] = {}
    for row in sweep.rows:
        at = ", ".join(f"{key} = {row.point.values[key]}" for key in keys if key in row.point.values)
        for name, y in ({} if row.meaning is None else row.meaning.references).items():
            if name not in common:
                own[f"{name}, {at}", f"{y:.4g} {sweep.unit}"] = None
    lines = columns([*((name, f"{y:.4g} {sweep.unit}") for name, y in common.items()), *own])
    if len(own) <= MOST:
        return lines
    return [*lines[: len(common)], f"… levels that differ with {' and '.join(keys)} are in sweep.json"]


def _agree(one: float, other: float | None) -> bool:
    return other is not None and math.isclose(one, other, rel_tol=1e-5)  # in another precision, too
