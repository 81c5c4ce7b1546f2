"""What a sweep leaves behind: a table, a figure, all numbers, each estimator's best setting as a config."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np

from online_grads.arguments import counted
from online_grads.files import file_name, write_whole
from online_grads.grid import Axis, printed
from online_grads.plot_style import save
from online_grads.report import columns, jsonable, measured
from online_grads.scores import rank
from online_grads.sweep_plots import Panel, SweptLine, sweep_curves
from online_grads.sweep_references import levels, shared
from online_grads.sweeping import Row, Sweep
from online_grads.versions import versions

MOST = 40  # rows of the table; of more, each estimator shows its best
BEST = 5
NOTE = """\
loss: mean over the last tenth of the updates ± standard error over the seeds that did not diverge
diverged: seeds that are not finite or, without a curriculum, end above where they began
*: the estimator's best: fewest diverged seeds, then highest level of a curriculum, then lowest loss"""


def best(rows: Sequence[Row]) -> Row | None:
    """The row with the best score, if one has a loss."""
    scored = [row for row in rows if row.score is not None and row.score.loss_last is not None]
    return min(scored, key=_rank, default=None)


def table(sweep: Sweep) -> str:
    """The results as text: a line for each point, or for the best of each estimator if there are many."""
    texts = {
        axis.key: dict(zip(map(repr, axis.values), printed(axis.values), strict=True)) for axis in sweep.axes
    }
    with_level = any(row.meaning is not None and row.meaning.with_level for row in sweep.rows)
    lines = [["estimator", *texts, f"loss [{sweep.unit}]", "diverged", *["level reached"] * with_level]]
    for rows in _by_estimator(sweep):
        chosen = best(rows)
        if len(sweep.rows) > MOST:
            rows = sorted((row for row in rows if row.score is not None), key=_rank)[:BEST]
        for row in rows:
            values = row.point.values
            shown = [texts[key][repr(values[key])] if key in values else "–" for key in texts]
            lines.append([row.point.label + " *" * (row is chosen), *shown, *_said(row, with_level)])
    left_out = len(sweep.rows) - len(lines) + 1
    more = [f"… the best of each estimator; sweep.json has all {len(sweep.rows)} points"] if left_out else []
    parts = ["\n".join([*columns(lines), *more]), "\n".join(levels(sweep)), NOTE]
    parts += ["\n".join(_refused(sweep)), "\n".join(_edges(sweep)), _counts(sweep)]
    return "\n\n".join(filter(None, parts))


def write(sweep: Sweep, folder: Path, command: str) -> None:
    """Write sweep.json, the figure sweep as PNG and PDF, and best_<label>.toml, each complete or not at all.

    Args:
        sweep: what to write.
        folder: where to.
        command: the command line, for the files.

    Raises:
        OSError: something cannot be written.
    """
    text = json.dumps(_summary(sweep, command), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "sweep.json", text.encode())
    for name, text in best_configs(sweep, command).items():
        write_whole(folder / name, text.encode())
    figure = sweep_curves(
        panels(sweep),
        ylabel=f"final loss: {sweep.unit}",
        references=shared(sweep),
        title=", ".join(_tasks(sweep)).replace("_", " "),
    )
    save(figure, folder / "sweep")


def best_configs(sweep: Sweep, command: str) -> dict[str, str]:
    """Each estimator's best setting as a config: file name -> TOML.

    `online-grads run` then gives the loss of the table, to rounding: there may be other points in a sweep's
    program, and numbers other than the learning rate are arrays there.
    """
    import tomli_w

    found: dict[str, str] = {}
    for rows in _by_estimator(sweep):
        row = best(rows)
        if row is None or row.score is None:
            continue
        score, label = row.score, row.point.label
        name = f"best_{file_name(label)}"
        while f"{name}.toml" in found:  # two labels that differ in other letters alone
            name += "_"
        values = ", ".join(f"{key} = {value}" for key, value in row.point.values.items()) or "as it was"
        loss = f"loss {measured(score.loss_last, score.loss_last_se)} [{sweep.unit}]"
        lost = f"{score.diverged} of {len(row.last if row.last is not None else ())} seeds diverged"
        comment = [f"{label}: {loss}, {lost}", f"the best of {len(rows)} points: {values}", command]
        head = "".join(f"# {' '.join(line.split())}\n" for line in comment)
        found[f"{name}.toml"] = f"{head}\n{tomli_w.dumps(row.point.tables)}"
    return found


def panels(sweep: Sweep) -> list[Panel]:
    """One for each key that was swept: for each value the best over all other keys."""
    found = []
    for axis in sweep.axes:
        lines = []
        for rows in _by_estimator(sweep):
            at: list[tuple[Any, Row | None]] = []
            for value in axis.values:
                there = [r for r in rows if axis.key in r.point.values and r.point.values[axis.key] == value]
                at += [(value, best(there))] if there else []
            chosen = [row for _, row in at] if at else [best(rows)]
            lost = [
                row is not None and row.diverged is not None and bool(row.diverged.all()) for row in chosen
            ]
            x, name = [value for value, _ in at], rows[0].point.tables["estimator"][0]["name"]
            lines.append(SweptLine(rows[0].point.label, x, [*map(_counted, chosen)], lost, name))
        texts = [text if len(text) < 12 else f"{text[:11]}…" for text in printed(axis.values)]
        found.append(Panel(axis.key, axis.values, texts, axis.numeric, axis.log or _wide(axis), lines))
    return found


def _tasks(sweep: Sweep) -> list[str]:
    """Their names: more than one if they were swept."""
    trained = [row.point.config for row in sweep.rows if row.meaning is not None]
    names = dict.fromkeys(config.task.name for config in trained if config is not None)
    return [*names] or [sweep.config.task.name]


def _by_estimator(sweep: Sweep) -> list[list[Row]]:
    return [[*rows] for _, rows in groupby(sweep.rows, key=lambda row: row.point.place)]


def _rank(row: Row) -> tuple[float, ...]:
    assert row.score is not None
    return rank(row.score)


def _counted(row: Row | None) -> np.ndarray:
    """The losses of the seeds that make up the mean in the score."""
    if row is None or row.last is None or row.diverged is None:
        return np.zeros(0)
    return row.last[np.isfinite(row.last) & (row.diverged.all() | ~row.diverged)]


def _wide(axis: Axis) -> bool:
    return axis.numeric and min(axis.values) > 0 and max(axis.values) >= 20 * min(axis.values)


def _said(row: Row, with_level: bool) -> list[str]:
    score = row.score
    if score is None or row.diverged is None:
        return ["refused", "", *[""] * with_level]
    said = [measured(score.loss_last, score.loss_last_se), f"{score.diverged} of {len(row.diverged)}"]
    return said + [measured(score.level, score.level_se)] * with_level


def _refused(sweep: Sweep) -> list[str]:
    """Why points have no loss, each reason once for each estimator."""
    reasons: dict[tuple[str, str], int] = {}
    for row in sweep.rows:
        if row.refused is not None:
            where = (row.point.label, row.refused)
            reasons[where] = reasons.get(where, 0) + 1
    said = [
        f"refused: {label}, {counted(number, 'point')}: {why}" for (label, why), number in reasons.items()
    ]
    return said[:MOST] + ["… sweep.json has all refusals"] * (len(said) > MOST)


def _edges(sweep: Sweep) -> list[str]:
    """Where the best lies on the edge of three numbers or more."""
    found = []
    for rows in _by_estimator(sweep):
        chosen = best(rows)
        for axis in sweep.axes:
            tried = [row.point.values[axis.key] for row in rows if axis.key in row.point.values]
            here = chosen is not None and axis.key in chosen.point.values
            if chosen is None or not here or not axis.numeric or len({*tried}) < 3:
                continue
            value = chosen.point.values[axis.key]
            for edge, word in ((max(tried), "largest"), (min(tried), "smallest")):
                if value == edge:
                    text = dict(zip(axis.values, printed(axis.values), strict=True))[value]
                    found.append(f"{chosen.point.label}: the best {axis.key}, {text}, is the {word} tried")
    return found


def _counts(sweep: Sweep) -> str:
    times = f"{sweep.compile_seconds:.1f} s compiling, {sweep.run_seconds:.1f} s training"
    done = f"{counted(len(sweep.rows), 'point')} in {counted(sweep.programs, 'program')}: {times}"
    return done if sweep.interrupt is None else f"interrupted; {done}, of {sweep.points} points"


def _summary(sweep: Sweep, command: str) -> dict[str, Any]:
    chosen = {id(best(rows)) for rows in _by_estimator(sweep)}
    points = [
        {
            "estimator": row.point.label,
            "values": row.point.values,
            "best": id(row) in chosen,
            "refused": row.refused,
            **({} if row.score is None else row.score._asdict()),
            "loss_last_of_seeds": row.last,
            "diverged_seeds": row.diverged,
            "program": row.program,
            "references": None if row.meaning is None else row.meaning.references,
        }
        for row in sweep.rows
    ]
    return jsonable(
        {
            "command": command,
            "task": ", ".join(_tasks(sweep)),
            "unit": sweep.unit,
            "references": shared(sweep),
            "axes": {axis.key: axis.values for axis in sweep.axes},
            "points": points,
            "points_in_all": sweep.points,
            "programs": sweep.programs,
            "compile_seconds": sweep.compile_seconds,
            "run_seconds": sweep.run_seconds,
            "interrupted": sweep.interrupt is not None,
            "failure": sweep.failure,
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
            "config": sweep.config.tables,
        }
    )
