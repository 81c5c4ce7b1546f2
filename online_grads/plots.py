"""Figures. Needs matplotlib: pip install online-grads[run].

Every function takes plain arrays and returns a matplotlib `Figure` that belongs to no window; `save` writes
it as PNG and PDF. An estimator looks the same in all of them, see `online_grads.plot_style`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from online_grads.gradient_plots import (
    Line,
    Point,
    alignment_matrix,
    alignment_over_training,
    bias_variance,
    credit_by_lag,
)
from online_grads.plot_style import (
    COLUMN,
    MUTED,
    PAGE,
    add_grid,
    add_legend,
    new_axes,
    new_figure,
    padded,
    paper,
    save,
    styles,
    thickness,
)

__all__ = [
    "COLUMN", "PAGE", "CostCurve", "Curve", "Line", "Point", "alignment_matrix", "alignment_over_training",
    "bias_variance", "cost_curves", "credit_by_lag", "learning_curves", "level_curves", "save",
]  # fmt: skip

POINTS = 200  # at most, per line


class Curve(NamedTuple):
    """The loss of one estimator on several seeds."""

    label: str
    x: np.ndarray  # [points] ascending, in the axis' unit
    loss: np.ndarray  # [seeds, points]
    diverged: np.ndarray  # [seeds] bool: left out of mean and band, unless all are
    name: str | None = None  # the estimator's in the registry, which decides the look


class CostCurve(NamedTuple):
    """What one estimator costs at several sizes."""

    label: str
    n: np.ndarray  # [sizes] hidden units
    cost: np.ndarray  # [sizes] µs per step
    slope: float | None  # the exponent a of cost ∝ n^a, for the legend
    name: str | None = None  # the estimator's in the registry, which decides the look


@paper()
def learning_curves(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
    log_y: bool | None = None,
    width: float = PAGE,
):
    """Learning curves: the mean over seeds and a band around it, one line per estimator.

    Losses are averaged over blocks of updates. The axes are logarithmic where that is needed to see every
    line: x if one is more than 5 times as long as another, y if the means span more than two decades. The
    range is that of the curves that do not diverge; the others leave the figure.

    Args:
        curves: what to draw.
        xlabel, ylabel: what the axes show, with units.
        references: name -> loss, drawn as dotted lines.
        title: of the figure.
        log_y: whether y is logarithmic; by default as above.
        width: in inches.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> steps = np.arange(1, 101)
    >>> curve = Curve("rtrl", steps, np.ones((4, 100)) / steps, np.zeros(4, bool), "rtrl")
    >>> figure = learning_curves([curve], xlabel="steps", ylabel="loss")
    >>> figure.axes[0].get_yscale()
    'linear'
    """
    looks = styles([curve.name for curve in curves])
    drawn = [(curve, look) for curve, look in zip(curves, looks, strict=True) if curve.x.size]
    curves = [curve for curve, _ in drawn]
    lengths = [curve.x[-1] for curve in curves]
    log_x = bool(curves) and max(lengths) > 5 * min(lengths)
    lines = [_blocks(curve, log_x) for curve in curves]
    steady = [y.mean(axis=0) for (_, y), curve in zip(lines, curves, strict=True) if not curve.diverged.all()]
    levels = np.concatenate([*(steady or [y.ravel() for _, y in lines]), [*(references or {}).values()]])
    levels = levels[np.isfinite(levels)]
    if log_y is None:
        lowest = min(map(np.min, steady), default=0.0)
        log_y = bool(lowest > 0 and levels.max() > 100 * lowest)
    levels = levels[levels > 0] if log_y else levels

    figure, axes = new_axes(width, 0.53, xlabel=xlabel, ylabel=ylabel, title=title)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    for i, ((x, y), (curve, look)) in enumerate(zip(lines, drawn, strict=True)):
        mean = y.mean(axis=0)
        thick = thickness(i, len(curves))
        axes.plot(x, mean, color=look.colour, linestyle=look.dash, linewidth=thick, label=_label(curve))
        if len(y) > 1:
            error = y.std(axis=0, ddof=1) / np.sqrt(len(y))
            band = (y.min(axis=0), y.max(axis=0)) if log_y else (mean - error, mean + error)
            axes.fill_between(x, *band, color=look.colour, alpha=0.2, linewidth=0)
    if levels.size:
        axes.set_ylim(*padded(levels.min(), levels.max(), log_y))
    add_references(axes, {name: y for name, y in (references or {}).items() if y > 0 or not log_y})
    add_grid(axes)
    if curves:
        shown = "min to max" if log_y else "± standard error"
        several = any(len(y) > 1 for _, y in lines)
        add_legend(figure, title=f"mean over seeds\nband: {shown}" if several else "one seed")
    return figure


def level_curves(
    curves: Sequence[Curve],
    *,
    xlabel: str = "stream steps",
    ylabel: str = "level of the curriculum",
    title: str | None = None,
    width: float = PAGE,
):
    """How far a curriculum has come along the stream, one line per estimator.

    Args:
        curves: as for `learning_curves`, with the level in place of the loss.
        xlabel, ylabel: what the axes show, with units.
        title: of the figure.
        width: in inches.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> steps = np.arange(1, 101)
    >>> figure = level_curves([Curve("snap", steps, 1 + steps[None] // 10, np.zeros(1, bool), "snap")])
    >>> figure.axes[0].get_ylabel()
    'level of the curriculum'
    """
    figure = learning_curves(curves, xlabel=xlabel, ylabel=ylabel, title=title, log_y=False, width=width)
    figure.axes[0].locator_params(axis="y", integer=True)
    return figure


@paper()
def cost_curves(panels: Mapping[str, Sequence[CostCurve]], *, title: str | None = None):
    """Cost against size on logarithmic axes, one panel per cell and one line per estimator.

    Args:
        panels: title of the panel -> what to draw in it, in the same order in all panels. A curve without
            sizes is left out.
        title: of the figure.

    Returns:
        A matplotlib `Figure`, whose legend has the slopes in the order of the panels.

    Raises:
        ImportError: matplotlib is missing.

    >>> sizes = np.array([32, 64, 128])
    >>> figure = cost_curves({"gru": [CostCurve("tbptt", sizes, 1e-3 * sizes**2, 2.0, "tbptt")]})
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['tbptt  n^2.0']
    """
    count = max(len(panels), 1)
    figure = new_figure(max(PAGE, 2.6 * count), 4.2)
    figure.suptitle(title)
    handles: dict[str, Any] = {}
    slopes: dict[str, list[str]] = {}
    for axes, (name, curves) in zip(
        figure.subplots(1, count, sharey=True, squeeze=False)[0], panels.items(), strict=False
    ):
        axes.set(title=name, xlabel="hidden units n", xscale="log", yscale="log")
        for curve, look in zip(curves, styles([curve.name for curve in curves]), strict=True):
            slopes.setdefault(curve.label, []).append("–" if curve.slope is None else f"{curve.slope:.1f}")
            if not len(curve.n):
                continue
            shape = {"marker": look.marker, "markersize": 3, "linewidth": 1.2, "linestyle": look.dash}
            (line,) = axes.plot(curve.n, curve.cost, color=look.colour, **shape)
            handles.setdefault(curve.label, line)
        sizes = sorted({int(n) for curve in curves for n in curve.n})
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.set_xticks([], minor=True)
        axes.tick_params(labelleft=True)
        add_grid(axes)
    figure.axes[0].set_ylabel("time per step (µs)")
    for label, line in handles.items():
        known = set(slopes[label]) != {"–"}
        line.set_label(f"{label}  n^{' / '.join(slopes[label])}" if known else label)
    if handles:
        order = f"slopes: {' / '.join(panels)}" if len(panels) > 1 else None
        add_legend(figure, title=order, handles=list(handles.values()))
    return figure


def add_references(axes, references: Mapping[str, float]) -> None:
    """Dotted lines with their names, side by side where the lines are close to one another."""
    from matplotlib.patheffects import withStroke

    # where a name can stand, and how high the last one there is, as a part of the axes
    places = {(0.995, "right"): -1.0, (0.005, "left"): -1.0, (0.5, "center"): -1.0}
    line = 10 / (72 * axes.figure.get_figheight())
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        axes.axhline(value, color=MUTED, linestyle=":", linewidth=0.8)
        at = (axes.transScale + axes.transLimits).transform((1, value))[1]
        clear = [place for place, last in places.items() if at - last > line]
        x, side = place = clear[0] if clear else min(places, key=places.__getitem__)
        places[place] = at
        where = {"xy": (x, value), "xycoords": axes.get_yaxis_transform()}
        text = axes.annotate(name, **where, ha=side, va="bottom", fontsize=6.5, color=MUTED)
        text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])


def _blocks(curve: Curve, log_x: bool) -> tuple[np.ndarray, np.ndarray]:
    """x [blocks] and loss [seeds, blocks], averaged over blocks and limited to the seeds that count."""
    loss = np.asarray(curve.loss, np.float64)
    loss = np.where(np.isfinite(loss), loss, np.nan)
    loss = loss if curve.diverged.all() else loss[~curve.diverged]
    count = curve.x.size
    edges = np.geomspace(1, count + 1, POINTS + 1) - 1 if log_x else np.linspace(0, count, POINTS + 1)
    starts = np.unique(edges.astype(int))[:-1] if count > 1 else np.zeros(1, int)
    sizes = np.diff([*starts, count])
    with np.errstate(all="ignore"):
        return np.add.reduceat(curve.x, starts) / sizes, np.add.reduceat(loss, starts, axis=1) / sizes


def _label(curve: Curve) -> str:
    seeds, lost = curve.diverged.size, int(curve.diverged.sum())
    if lost == seeds:
        return f"{curve.label} (diverges)"
    return f"{curve.label} ({lost} of {seeds} diverged)" if lost else curve.label
