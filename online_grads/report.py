"""What an experiment leaves behind: a table to read, numbers to go on with, a figure."""

import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from online_grads.config import OWN_OPTIMIZERS
from online_grads.experiment import Report, Result
from online_grads.files import write_whole
from online_grads.plots import Curve, learning_curves, level_curves, save
from online_grads.scores import best, diverged, never_advanced, scores
from online_grads.versions import versions

NOTE = """\
loss: mean over the last tenth of the updates ± standard error over the seeds that did not diverge
µs/step: of one seed at one learning rate; an estimator's seeds, and small ones' rates, run side by side
diverged: seeds that are not finite or, without a curriculum, end above where they began"""


def table(report: Report) -> str:
    """The results as text, one line per estimator at its best learning rate, and the task's references."""
    unit, levels = report.task.unit, report.task.level is not None
    rows = [["estimator", "learning rate", f"loss [{unit}]", "µs/step", "state bytes", "diverged"]]
    rows[0] += ["level reached"] * levels
    for result in report.results:
        score = scores(result)[best(result)]
        row = [
            result.config.label,
            f"{score.learning_rate:g}",
            measured(score.loss_last, score.loss_last_se),
            f"{1e6 * result.seconds_per_step:.3g}",
            f"{result.state_bytes:,}",
            f"{score.diverged} of {result.config.seeds}",
        ]
        rows.append(row + [measured(score.level, score.level_se)] * levels)
    references = columns([(name, f"{value:.4g} {unit}") for name, value in report.task.references.items()])
    parts = ["\n".join(columns(rows)), "\n".join(references), NOTE, _stuck(report)]
    return "\n\n".join(filter(None, parts))


def _stuck(report: Report) -> str:
    """Which estimators never took a curriculum beyond its start, if any."""
    stuck = [each.config.label for each in report.results if never_advanced(each)]
    if not stuck:
        return ""
    return (
        f"the curriculum never advanced with {', '.join(stuck)}:\n"
        "on every seed, at every learning rate the loss stayed above the task's threshold; train longer,\n"
        "try other rates or an easier start"
    )


def columns(rows: Sequence[Sequence[str]], *, right: bool = True) -> list[str]:
    """Rows of text as aligned lines; the first column to the left, the others to the right if asked.

    >>> columns([("name", "bytes"), ("a", "10")])
    ['name  bytes', 'a        10']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    others = str.rjust if right else str.ljust
    aligned = lambda row: [row[0].ljust(widths[0]), *map(others, row[1:], widths[1:])]
    return ["  ".join(aligned(row)).rstrip() for row in rows]


def summary(report: Report) -> dict[str, Any]:
    """The results as JSON values: what is not finite becomes None.

    Returns:
        {"estimators": {label: {"loss_first", "loss_last", "diverged", "seconds_per_step", "state_bytes",
        "params" (small models: the final ones, one entry per seed), ...}}, "config": the config as read,
        "unit", "references", "failure", ...}. Each estimator's numbers are those of its best learning rate;
        "learning_rates" has one entry for each.
    """
    return jsonable(
        {
            "task": report.config.task.name,
            "unit": report.task.unit,
            "references": report.task.references,
            "estimators": {result.config.label: _estimator(result) for result in report.results},
            "failure": report.failure,
            "precision": report.config.run.precision,
            "device": jax.devices()[0].device_kind,
            "versions": versions(),
            "config": report.config.tables,
        }
    )


def curves(report: Report) -> list[Curve]:
    """The learning curves of all estimators, each at its best learning rate."""
    found = []
    for result in report.results:
        rate, window = best(result), result.config.window if report.config.run.axis == "steps" else 1
        where = window * np.arange(1, result.loss.shape[-1] + 1)
        lost = diverged(result)[rate]
        found.append(Curve(result.config.label, where, result.loss[rate], lost, result.config.name))
    return found


def levels(report: Report) -> list[Curve]:
    """How far a curriculum has come with all estimators, each at its best learning rate."""
    return [
        Curve(
            result.config.label,
            result.levels.steps,
            result.levels.reached[best(result)],
            np.zeros(result.config.seeds, bool),  # a level is one, whatever becomes of the loss
            result.config.name,
        )
        for result in report.results
        if result.levels is not None
    ]


def write(report: Report, folder: Path) -> None:
    """Write metrics.npz, the figure curves and, last, summary.json, each complete or not at all.

    Figures are written as PNG and PDF; with a curriculum there is a second one, level. metrics.npz holds
    for every estimator `<label>/loss`, `<label>/finite` and `<label>/grad_norm`, each [learning rates,
    seeds, updates], and `<label>/step`, the stream steps that each update ends on; with a curriculum
    `<label>/level` [learning rates, seeds, 1 + chunks] and `<label>/level_step` too.
    """
    arrays = {}
    for result in report.results:
        for name in ("loss", "finite", "grad_norm"):
            arrays[f"{result.config.label}/{name}"] = getattr(result, name)
        steps = result.config.window * np.arange(1, result.loss.shape[-1] + 1)
        arrays[f"{result.config.label}/step"] = steps
        if result.levels is not None:
            arrays[f"{result.config.label}/level"] = result.levels.reached
            arrays[f"{result.config.label}/level_step"] = result.levels.steps
    np.savez(packed := io.BytesIO(), **arrays)
    write_whole(folder / "metrics.npz", packed.getbuffer())
    title = report.config.task.name.replace("_", " ")
    figure = learning_curves(
        curves(report),
        xlabel={"steps": "stream steps", "updates": "parameter updates"}[report.config.run.axis],
        ylabel=report.task.unit,
        references=report.task.references,
        title=title,
    )
    save(figure, folder / "curves")
    if report.task.level is not None:
        save(level_curves(levels(report), title=title), folder / "level")
    text = json.dumps(summary(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / "summary.json", text.encode())


def _estimator(result: Result) -> dict[str, Any]:
    found, chosen = scores(result), best(result)
    own = {name: getattr(result.config, name) for name in OWN_OPTIMIZERS}
    return {
        "name": result.config.name,
        **found[chosen]._asdict(),
        "seconds_per_step": result.seconds_per_step,
        "compile_seconds": result.compile_seconds,
        "state_bytes": result.state_bytes,
        "window": result.config.window,
        "updates": result.loss.shape[-1],
        "steps": result.loss.shape[-1] * result.config.window,
        "seeds": result.config.seeds,
        "optimizer": dataclasses.asdict(result.config.optimizer),
        "options": result.config.options,
        "frozen": result.config.frozen,
        "model": result.config.model,
        "feedback": result.config.feedback,
        **{name: optimizer and dataclasses.asdict(optimizer) for name, optimizer in own.items()},
        "params": jax.tree.map(lambda leaf: leaf[chosen], result.params),
        "learning_rates": [score._asdict() for score in found],
    }


def jsonable(value: Any) -> Any:
    """As JSON has it: what is not finite becomes None.

    >>> jsonable({"loss": (np.float32(0.5), float("nan"))})
    {'loss': [0.5, None]}
    """
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return jsonable(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, type(None))) else str(value)


def measured(value: float | None, error: float | None) -> str:
    """A number with its standard error.

    >>> measured(0.12345, 0.0021), measured(0.12345, None), measured(None, None)
    ('0.1235 ± 0.002', '0.1235', 'none')
    """
    if value is None:
        return "none"
    if error is None:
        return f"{value:.4g}"
    return f"{value:.4g} ± {error:.1g}"
