"""Figures. Needs matplotlib: pip install online-grads[run]."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# Okabe & Ito's colours without the yellow, which is lost on white: distinct under colour blindness.
COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7")
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)))
POINTS = 200  # at most, per line


class Curve(NamedTuple):
    """The loss of one estimator on several seeds."""

    label: str
    x: np.ndarray  # [points] ascending, in the axis' unit
    loss: np.ndarray  # [seeds, points]
    diverged: np.ndarray  # [seeds] bool: left out of mean and band, unless all are


def learning_curves(
    curves: Sequence[Curve],
    *,
    xlabel: str,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
):
    """Learning curves: the mean over seeds and a band around it, one line per estimator.

    Losses are averaged over blocks of updates. The axes are logarithmic where that is needed to see every
    line: x if one is more than 5 times as long as another, y if the means span more than two decades. The
    range is that of the curves that do not diverge; the others leave the figure. Colours and dashes follow
    the order of the curves.

    Args:
        curves: what to draw.
        xlabel, ylabel: what the axes show, with units.
        references: name -> loss, drawn as dotted lines.
        title: of the figure.

    Returns:
        A matplotlib `Figure`; it belongs to no window and is drawn by `savefig`.

    Raises:
        ImportError: matplotlib is missing.

    >>> steps = np.arange(1, 101)
    >>> curve = Curve("rtrl", steps, np.ones((4, 100)) / steps, np.zeros(4, bool))
    >>> figure = learning_curves([curve], xlabel="steps", ylabel="loss")
    >>> figure.axes[0].get_yscale()
    'linear'
    """
    curves = [curve for curve in curves if curve.x.size]
    lengths = [curve.x[-1] for curve in curves]
    log_x = bool(curves) and max(lengths) > 5 * min(lengths)
    lines = [_blocks(curve, log_x) for curve in curves]
    steady = [y.mean(axis=0) for (_, y), curve in zip(lines, curves, strict=True) if not curve.diverged.all()]
    levels = np.concatenate([*(steady or [y.ravel() for _, y in lines]), [*(references or {}).values()]])
    levels = levels[np.isfinite(levels)]
    log_y = bool(steady) and min(map(np.min, steady)) > 0 and levels.max() > 100 * min(map(np.min, steady))
    levels = levels[levels > 0] if log_y else levels

    figure = _figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.set_xscale("log" if log_x else "linear")
    axes.set_yscale("log" if log_y else "linear")
    for i, ((x, y), curve) in enumerate(zip(lines, curves, strict=True)):
        colour, mean = COLOURS[i % len(COLOURS)], y.mean(axis=0)
        style = DASHES[i // len(COLOURS) % len(DASHES)]
        # the later on top and the thinner: curves that coincide show as stripes
        width = 1.2 + 2 * (1 - (i + 1) / len(curves))
        axes.plot(x, mean, color=colour, linestyle=style, linewidth=width, label=_label(curve))
        if len(y) > 1:
            error = y.std(axis=0, ddof=1) / np.sqrt(len(y))
            band = (y.min(axis=0), y.max(axis=0)) if log_y else (mean - error, mean + error)
            axes.fill_between(x, *band, color=colour, alpha=0.2, linewidth=0)
    for name, value in (references or {}).items():
        if not log_y or value > 0:
            axes.axhline(value, color="0.4", linestyle=":", linewidth=0.8)
            place = {"xy": (0.995, value), "xycoords": axes.get_yaxis_transform()}
            axes.annotate(name, **place, ha="right", va="bottom", fontsize=7, color="0.4")
    if levels.size:
        axes.set_ylim(*_padded(levels.min(), levels.max(), log_y))
    axes.grid(alpha=0.25, linewidth=0.5)
    if curves:
        legend = "min to max" if log_y else "± standard error"
        several = any(len(y) > 1 for _, y in lines)
        legend = f"mean over seeds,\nband: {legend}" if several else "one seed"
        figure.legend(loc="outside right upper", fontsize=8, title=legend, title_fontsize=8)
    return figure


class CostCurve(NamedTuple):
    """What one estimator costs at several sizes."""

    label: str
    n: np.ndarray  # [sizes] hidden units
    cost: np.ndarray  # [sizes] µs per step
    slope: float | None  # the exponent a of cost ∝ n^a, for the legend


def cost_curves(panels: Mapping[str, Sequence[CostCurve]], *, title: str | None = None):
    """Cost against size on logarithmic axes, one panel per cell and one line per estimator.

    Colours and dashes follow the order of the curves, as in `learning_curves`.

    Args:
        panels: title of the panel -> what to draw in it, in the same order in all panels. A curve without
            sizes is left out.
        title: of the figure.

    Returns:
        A matplotlib `Figure`; it belongs to no window and is drawn by `savefig`.

    Raises:
        ImportError: matplotlib is missing.

    >>> sizes = np.array([32, 64, 128])
    >>> figure = cost_curves({"gru": [CostCurve("tbptt", sizes, 1e-3 * sizes**2, 2.0)]})
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['tbptt  n^2.0']
    """
    count = max(len(panels), 1)
    figure = _figure(figsize=(7 * count, 5.4), layout="constrained")
    figure.suptitle(title)
    for axes, (name, curves) in zip(
        figure.subplots(1, count, sharey=True, squeeze=False)[0], panels.items(), strict=False
    ):
        axes.set(title=name, xlabel="hidden units n", ylabel="µs per step", xscale="log", yscale="log")
        for i, curve in enumerate(curves):
            if not len(curve.n):
                continue
            colour, style = COLOURS[i % len(COLOURS)], DASHES[i // len(COLOURS) % len(DASHES)]
            grows = "" if curve.slope is None else f"  n^{curve.slope:.1f}"
            look = {"color": colour, "linestyle": style, "marker": "o", "markersize": 3, "linewidth": 1.4}
            axes.plot(curve.n, curve.cost, **look, label=curve.label + grows)
        sizes = sorted({int(n) for curve in curves for n in curve.n})
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.set_xticks([], minor=True)
        axes.tick_params(labelleft=True)
        axes.grid(alpha=0.25, linewidth=0.5)
        if sizes:
            axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8)
    return figure


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


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """The range with 5 % of room on both sides."""
    if log:
        room = (high / low) ** 0.05
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _figure(**kwargs):
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install online-grads[run]") from None
    return Figure(**kwargs)
