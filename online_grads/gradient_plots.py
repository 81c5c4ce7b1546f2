"""Figures that compare gradients: with one another, with the true one, lag by lag, along a training."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from online_grads.plot_style import (
    MUTED,
    PAGE,
    add_grid,
    add_legend,
    new_axes,
    new_figure,
    padded,
    paper,
    styles,
    thickness,
)


class Line(NamedTuple):
    """A quantity of one estimator at several points."""

    label: str
    name: str | None  # the estimator's in the registry, which decides the look
    mean: np.ndarray  # [points]
    se: np.ndarray | None = None  # [points] its standard error, drawn as a band


class Point(NamedTuple):
    """Bias and variance of one estimator, relative to the true gradient."""

    label: str
    name: str | None  # the estimator's in the registry, which decides the look
    bias: float  # ‖E ĝ − g‖ / ‖g‖
    variance: float  # E ‖ĝ − E ĝ‖² / ‖g‖²


@paper()
def alignment_matrix(labels: Sequence[str], matrix: np.ndarray, *, title: str | None = None):
    """How alike gradients are, pair by pair: a heat map with the numbers in its cells.

        cos(ĝ_i, ĝ_j) = ⟨ĝ_i, ĝ_j⟩ / (‖ĝ_i‖ ‖ĝ_j‖)

    Args:
        labels: of the E estimators.
        matrix: [E, E] cosines in −1 ... 1; what is not finite stays empty.
        title: of the figure.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: the matrix is not [E, E].

    Reference: Marschall, Cho & Savin 2020, arXiv:1907.02649, figure 4.

    >>> figure = alignment_matrix(["rtrl", "uoro"], np.array([[1.0, 0.25], [0.25, 1.0]]))
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['1.00', '.25', '.25', '1.00']
    """
    matrix, count = np.asarray(matrix, np.float64), len(labels)
    if matrix.shape != (count, count):
        raise ValueError(f"expected a matrix [{count}, {count}] for {count} labels, got {matrix.shape}")
    # as wide as the cells need, but no wider than a page
    margin = 0.4 + 0.06 * max(map(len, labels), default=0)
    cell = min(0.4, (PAGE - margin - 0.7) / max(count, 1))
    figure = new_figure(max(margin + count * cell + 0.7, 2.6), max(margin + count * cell, 1.9))
    axes = figure.add_subplot(title=title)
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="RdBu_r", vmin=-1, vmax=1)
    for i, j in np.argwhere(np.isfinite(matrix)):
        text = f"{matrix[i, j]:.2f}".replace("0.", ".").replace("-", "−")
        # dark cells take white text
        colour = "white" if abs(matrix[i, j]) > 0.7 else "black"
        axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=min(7, 20 * cell))
    axes.set_xticks(range(count), labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(count), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(image, label="cosine alignment", shrink=0.8)
    bar.outline.set_visible(False)
    return figure


@paper()
def bias_variance(
    points: Sequence[Point], *, draws: int | None = None, title: str | None = None, width: float = PAGE
):
    """Bias against variance, one marker per estimator.

    The axes are logarithmic; a zero has its own place at their lower end. Points that are not finite are
    named in the legend and not drawn. With the number of draws N that they come from, a dotted line
    shows the noise of the bias, which to its left is not told from 0:

        noise = √(variance / N)

    Args:
        points: what to draw.
        draws: N, the draws for each case.
        title: of the figure.
        width: in inches.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> figure = bias_variance([Point("rtrl", "rtrl", 0.0, 0.0), Point("uoro", "uoro", 1e-3, 20.0)])
    >>> figure.axes[0].get_xscale()
    'symlog'
    """
    figure, axes = new_axes(width, 0.53, title=title, xlabel="relative bias", ylabel="relative variance")
    known = [point for point in points if np.isfinite([point.bias, point.variance]).all()]
    low_x, _ = _scale(axes, "x", [point.bias for point in known])
    low_y, high_y = _scale(axes, "y", [point.variance for point in known])
    for i, (point, look) in enumerate(zip(points, styles([point.name for point in points]), strict=True)):
        drawn = point in known
        at = (point.bias, point.variance) if drawn else (np.nan, np.nan)
        # the later on top and the smaller: points that coincide show as rings
        size = 4.5 + 4 * (1 - (i + 1) / len(points))
        label = point.label if drawn else f"{point.label} (not finite)"
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.4}
        axes.plot(*at, look.marker, color=look.colour, markersize=size, label=label, **edge)
    if draws:
        # a straight line, above the places of the zeros
        variance = np.geomspace(max(low_y, draws * low_x**2), 10 * max(high_y, draws * low_x**2))
        label = f"noise of the bias,\n{draws:,} draws"
        dotted = {"color": MUTED, "linestyle": ":", "linewidth": 0.8, "zorder": 1}
        axes.plot(np.sqrt(variance / draws), variance, label=label, **dotted)
    add_grid(axes)
    if points:
        add_legend(figure)
    return figure


@paper()
def credit_by_lag(
    lags: np.ndarray,
    curves: Sequence[Line],
    weight: np.ndarray | None = None,
    *,
    title: str | None = None,
    width: float = PAGE,
):
    """How much of the true credit an estimator gives to what happened so many steps ago.

    Args:
        lags: [L] steps into the past.
        curves: fraction [L] of the true gradient's contribution that is recovered: 1 is all, 0 is none.
        weight: [L] size of the true contribution, drawn as a grey area relative to the largest.
        title: of the figure.
        width: in inches.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> figure = credit_by_lag(np.arange(4), [Line("tbptt", "tbptt", np.array([1.0, 1.0, 0.0, 0.0]))])
    >>> figure.axes[0].get_xlabel()
    'lag (steps into the past)'
    """
    labels = {"xlabel": "lag (steps into the past)", "ylabel": "recovered credit (fraction)"}
    figure, axes = new_axes(width, 0.45, title=title, **labels)
    if weight is not None:
        weight = np.asarray(weight) / (np.max(weight) or 1.0)
        axes.fill_between(lags, 0, weight, color="0.88", linewidth=0, label="true credit,\nrelative size")
    _add_lines(figure, axes, lags, curves)
    axes.locator_params(axis="x", integer=True)
    for level in (0, 1):
        axes.axhline(level, color=MUTED, linestyle=":", linewidth=0.8)
    means = np.concatenate([[0.0, 1.0], *(curve.mean for curve in curves)])
    means = means[np.isfinite(means)]
    axes.set_ylim(*padded(max(means.min(), -1.0), min(means.max(), 2.0), False))
    return figure


@paper()
def alignment_over_training(
    steps: np.ndarray, curves: Sequence[Line], *, title: str | None = None, width: float = PAGE
):
    """How well an estimate points along the true gradient, at several points of a training.

    The steps are on a logarithmic axis, with a place for 0, if the largest is more than 50 times the smallest
    above 0.

    Args:
        steps: [P] of the stream, at which gradients are compared.
        curves: cosine [P] between the estimate and the true gradient.
        title: of the figure.
        width: in inches.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> figure = alignment_over_training(np.array([0, 1000]), [Line("rflo", "rflo", np.array([0.9, 0.7]))])
    >>> figure.axes[0].get_ylabel()
    'cosine with the true gradient'
    """
    labels = {"xlabel": "stream steps", "ylabel": "cosine with the true gradient"}
    figure, axes = new_axes(width, 0.45, title=title, **labels)
    positive = [step for step in steps if step > 0]
    if positive and max(positive) > 50 * min(positive):
        _scale(axes, "x", steps)
    _add_lines(figure, axes, steps, curves)
    means = np.concatenate([[0.0, 1.0], *(curve.mean for curve in curves)])
    axes.set_ylim(*padded(np.nanmin(means), 1.0, False))
    axes.axhline(0, color=MUTED, linestyle=":", linewidth=0.8)
    return figure


def _add_lines(figure, axes, x: np.ndarray, curves: Sequence[Line]) -> None:
    """One marked line and band per curve, and the legend."""
    for i, (curve, look) in enumerate(zip(curves, styles([curve.name for curve in curves]), strict=True)):
        thick = thickness(i, len(curves))
        shape = {"linestyle": look.dash, "linewidth": thick, "marker": look.marker, "markersize": 2 + thick}
        axes.plot(x, curve.mean, color=look.colour, label=curve.label, **shape)
        if curve.se is not None:
            axes.fill_between(
                x, curve.mean - curve.se, curve.mean + curve.se, color=look.colour, alpha=0.2, linewidth=0
            )
    add_grid(axes)
    if curves:
        several = any(curve.se is not None for curve in curves)
        add_legend(figure, title="band: ± standard error" if several else None)


def _scale(axes, which: str, values) -> tuple[float, float]:
    """Make an axis logarithmic, with a place for zeros if there are any; the decades that it shows."""
    from matplotlib.ticker import NullLocator

    exponents = np.log10([value for value in values if value > 0] or [1.0])
    first, last = int(np.floor(exponents.min() + 1e-9)), int(np.ceil(exponents.max() - 1e-9))
    low, high = 10.0**first, 10.0 ** max(last, first + 1)
    if min(values, default=1.0) > 0:
        axes.set(**{f"{which}scale": "log"})
        return low, high
    axis = getattr(axes, f"{which}axis")
    axes.set(**{f"{which}lim": (-0.35 * low, 1.5 * high)})
    getattr(axes, f"set_{which}scale")("symlog", linthresh=low, linscale=0.6)
    axis.set_ticks([0, *10.0 ** np.arange(first, max(last, first + 1) + 1, 1 + (last - first) // 8)])
    axis.set_minor_locator(NullLocator())
    return low, high
