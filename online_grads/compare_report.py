"""What a comparison leaves behind: tables to read, diagnostics.npz, figures."""

import io
from pathlib import Path

import numpy as np

from online_grads.compare import THROUGH, Comparison
from online_grads.files import write_whole
from online_grads.gradient_plots import (
    Line,
    Point,
    alignment_matrix,
    alignment_over_training,
    bias_variance,
    credit_by_lag,
)
from online_grads.plot_style import save
from online_grads.report import columns

NOTE = f"""\
Gradients of {{steps}} steps after {{at}} steps of training with {{by}}. Networks: {{networks}}, stretches
for each: {{streams}}, draws where there is noise: {{keys}}. The first table, the decrease apart, is for the
parameters that act {THROUGH}, the second for all and for each leaf.
alignment: cosine with the exact gradient, mean ± standard error over stretches; bias, variance: relative to
the exact gradient; its noise: √(variance/draws), only a bias well above it is certain; signal/noise: |mean|²
over variance; signs: share of entries with the right sign; decrease: of the loss by a step of plain gradient
descent along the estimate, at the learning rate to first and to second order, and at the best rate for it"""


def table(found: Comparison) -> str:
    """The comparison at the last point as text, then the alignments leaf by leaf."""
    chosen, runs = found.config.compare, found.config.run
    rows: list[tuple[str, ...]] = [
        (
            "estimator",
            "alignment",
            "bias",
            "its noise",
            "variance",
            "signal/noise",
            "signs",
            "decrease: first",
            "second",
            "best",
        )
    ]
    leaves: list[tuple[str, ...]] = [("alignment of", *found.groups[1:])]
    for row in found.rows:
        q, d = row.quality[-1], row.decrease[-1]
        measured = [q.bias[0], q.noise[0], q.variance[0], q.signal_to_noise[0]]
        rows.append(
            (
                row.config.label,
                f"{q.alignment[0]:.3f}"
                + ("" if np.isnan(q.alignment_se[0]) else f" ± {q.alignment_se[0]:.3f}"),
                *(f"{value:.2g}" for value in measured),
                f"{q.signs[0]:.3f}",
                *(f"{value:.3g}" for value in d),
            )
        )
        leaves.append((row.config.label, *(f"{value:.3f}" for value in q.alignment[1:])))
    note = NOTE.format(
        steps=chosen.steps,
        at=f"{found.at[-1]:,}",
        by=chosen.by,
        networks=runs.seeds,
        streams=chosen.streams,
        keys=chosen.keys,
    )
    return "\n\n".join(["\n".join(columns(rows)), "\n".join(columns(leaves)), note])


def arrays(found: Comparison) -> dict[str, np.ndarray]:
    """The comparison as arrays, as in diagnostics.npz.

    Returns:
        "at" [points], "groups" [groups], "estimators" [rows] (labels), "matrix" [1 + rows, 1 + rows], and for
        every estimator `<label>/alignment` and the other fields of `Quality` [points, groups],
        `<label>/decrease` [points, 3] (first, second, best), `<label>/credit` and its `credit_error` [lags];
        "credit_weight" [lags].
    """
    labels = [row.config.label for row in found.rows]
    packed = {"at": np.array(found.at), "groups": np.array(found.groups), "estimators": np.array(labels)}
    packed["matrix"] = found.alignment
    for row, label in zip(found.rows, labels, strict=True):
        for name in row.quality[0]._fields:
            packed[f"{label}/{name}"] = np.stack([getattr(point, name) for point in row.quality])
        packed[f"{label}/decrease"] = np.array(row.decrease)
        if row.credit is not None:
            packed[f"{label}/credit"], packed[f"{label}/credit_error"] = row.credit.fraction, row.credit.error
            packed["credit_weight"] = row.credit.weight
    return packed


def write(found: Comparison, folder: Path) -> None:
    """Write diagnostics.npz and the figures, as PNG and PDF.

    alignment_matrix and bias_variance; alignment_over_training if there are several points; credit_by_lag
    if lags are asked for.
    """
    np.savez(packed := io.BytesIO(), **arrays(found))  # type: ignore[arg-type]
    write_whole(folder / "diagnostics.npz", packed.getbuffer())
    for name, figure in figures(found).items():
        save(figure, folder / name)


def figures(found: Comparison) -> dict:
    """name -> matplotlib figure."""
    names = [(row.config.label, row.config.name) for row in found.rows]
    last = [row.quality[-1] for row in found.rows]
    points = [Point(*name, q.bias[0], q.variance[0]) for name, q in zip(names, last, strict=True)]
    drawn = {
        "alignment_matrix": alignment_matrix(["exact", *(label for label, _ in names)], found.alignment),
        "bias_variance": bias_variance(points, draws=found.config.compare.keys),
    }
    if len(found.at) > 1:
        values = [[(q.alignment[0], q.alignment_se[0]) for q in row.quality] for row in found.rows]
        lines = [Line(*name, *np.transpose(value)) for name, value in zip(names, values, strict=True)]
        drawn["alignment_over_training"] = alignment_over_training(np.array(found.at), lines)
    credits = [
        (name, row.credit) for name, row in zip(names, found.rows, strict=True) if row.credit is not None
    ]
    if credits:
        lags = np.arange(len(credits[0][1].fraction))
        error = lambda reach: None if np.isnan(reach.error).all() else reach.error
        lines = [Line(*name, reach.fraction, error(reach)) for name, reach in credits]
        drawn["credit_by_lag"] = credit_by_lag(lags, lines, credits[0][1].weight)
    return drawn
