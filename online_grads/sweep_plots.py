"""The figure of a sweep: the final loss against each of the values swept."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from online_grads.plot_style import (
    PAGE,
    add_grid,
    add_legend,
    new_figure,
    padded,
    paper,
    styles,
    thickness,
)
from online_grads.plots import add_references

COLUMNS = 3  # of panels, at most


class SweptLine(NamedTuple):
    """One estimator in one panel."""

    label: str
    x: Sequence[Any]  # [values] those of the panel where it was trained; empty: it does not take the key
    loss: Sequence[np.ndarray]  # [values] of [seeds] that count; a single entry where x is empty
    lost: Sequence[bool]  # [values] every seed diverged: the range is that of the others
    name: str | None = None  # the estimator's in the registry, which decides the look


class Panel(NamedTuple):
    """One key that was swept."""

    key: str
    values: Sequence[Any]
    texts: Sequence[str]  # the values for reading
    numeric: bool
    log: bool
    lines: Sequence[SweptLine]  # in the same order in all panels


@paper()
def sweep_curves(
    panels: Sequence[Panel],
    *,
    ylabel: str,
    references: Mapping[str, float] | None = None,
    title: str | None = None,
):
    """Final losses, one panel per key and one line per estimator: mean over seeds and a band around it.

    The band is ± the standard error, or from minimum to maximum where y is logarithmic: if the means span
    more than two decades. An estimator that does not take a panel's key is a horizontal line without
    markers. Values that are no numbers stand side by side.

    Args:
        panels: what to draw.
        ylabel: what the axes show, with units.
        references: name -> loss, drawn as dotted lines.
        title: of the figure.

    Returns:
        A matplotlib `Figure`.

    Raises:
        ImportError: matplotlib is missing.

    >>> line = SweptLine("rtrl", [1e-3, 1e-2], [np.array([2.0, 3.0]), np.array([1.0, 2.0])], [False] * 2)
    >>> panel = Panel("optimizer.learning_rate", line.x, ["0.001", "0.01"], True, True, [line])
    >>> figure = sweep_curves([panel], ylabel="loss")
    >>> figure.axes[0].get_xscale(), figure.axes[0].lines[0].get_ydata().tolist()
    ('log', [2.5, 1.5])
    """
    across = min(len(panels), COLUMNS)
    down = -(-len(panels) // COLUMNS)
    figure = new_figure(PAGE, 0.6 * PAGE if across == 1 else 0.45 * PAGE * down)
    figure.suptitle(title)
    grid = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    losses = [
        pair for panel in panels for line in panel.lines for pair in zip(line.loss, line.lost, strict=True)
    ]
    steady = [_band(values, False)[0] for values, lost in losses if not lost]
    means = np.array(steady or [_band(values, False)[0] for values, _ in losses])
    means = means[np.isfinite(means)]
    levels = np.array([*means, *(references or {}).values()])
    log_y = bool(means.size and means.min() > 0 and levels.max() > 100 * means.min())
    levels = levels[levels > 0] if log_y else levels
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, log_y)
    if log_y:
        grid[0].set_yscale("log")
    if levels.size:
        grid[0].set_ylim(*padded(levels.min(), levels.max(), log_y))
    for axes in grid[: len(panels)]:
        add_references(axes, {name: y for name, y in (references or {}).items() if y > 0 or not log_y})
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[::across]:
        axes.set_ylabel(ylabel)
    shown = "min to max" if log_y else "± standard error"
    several = any(len(values) > 1 for values, _ in losses)
    add_legend(figure, title=f"mean over seeds\nband: {shown}" if several else "one seed")
    return figure


def _draw(axes, panel: Panel, log_y: bool) -> None:
    places = [float(v) for v in panel.values] if panel.numeric else [*map(float, range(len(panel.values)))]
    ends = [min(places), max(places)]
    looks = styles([line.name for line in panel.lines])
    for i, (line, look) in enumerate(zip(panel.lines, looks, strict=True)):
        if line.x:
            x = [places[panel.values.index(value)] for value in line.x]
            y, shape = line.loss, {"marker": look.marker, "markersize": 3}
        else:
            x, y, shape = ends, [*line.loss] * 2, {}
        band = np.array([_band(values, log_y) for values in y]).reshape(-1, 3)
        style = {"color": look.colour, "linestyle": look.dash, "linewidth": thickness(i, len(panel.lines))}
        axes.plot(x[: len(band)], band[:, 0], label=line.label, **style, **shape)
        axes.fill_between(x[: len(band)], band[:, 1], band[:, 2], color=look.colour, alpha=0.2, linewidth=0)
    axes.set_xlabel(panel.key)
    if panel.log:
        axes.set_xscale("log")
    if not panel.numeric:
        axes.set_xticks(places, panel.texts)
    add_grid(axes)


def _band(values: np.ndarray, log_y: bool) -> tuple[float, float, float]:
    """Mean, lower and upper edge over seeds; NaN, which leaves a gap, where no seed counts."""
    if not len(values):
        return np.nan, np.nan, np.nan
    with np.errstate(all="ignore"):  # a diverging loss may overflow
        mean = values.mean()
        error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else 0.0
        low, high = (values.min(), values.max()) if log_y else (mean - error, mean + error)
    return mean, low, high
