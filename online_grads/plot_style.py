"""How figures look: sizes and fonts of a paper, and one colour, dash and marker per estimator.

Members of a family share a hue and differ by dash and marker; lines of the same estimator share these
and differ by lightness. The hues are those of Okabe & Ito without the yellow, which is lost on white:
they stay distinct under colour blindness.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from online_grads.files import write_whole

COLUMN, PAGE = 3.3, 6.8  # inches: one column of a paper, and its full width
SETTINGS: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "legend.handlelength": 2.6,
    "figure.titlesize": 8,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals take it
}
MUTED = "0.4"  # what is not data: references and notes

# the colour itself, and what a second, third and fourth line of the same estimator get
HUES = {
    "black": ("#000000", "#777777", "#B0B0B0", "#444444"),
    "blue": ("#0072B2", "#00304D", "#7D9DB8", "#BCD2EA"),
    "vermilion": ("#D55E00", "#6B2F00", "#F5A56B", "#A34700"),
    "green": ("#009E73", "#00402F", "#76D3B8", "#00704F"),
    "orange": ("#E69F00", "#7A5400", "#F7D27F", "#B57D00"),
    "purple": ("#CC79A7", "#6E2F52", "#E8BFD6", "#A04E7D"),
    "sky": ("#56B4E9", "#1F5A7D", "#B3DDF5", "#3488B8"),
}
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)))
MARKERS = "os^D"
# names of the registry, those that do alike beside each other
FAMILIES = {
    "black": ("rtrl", "snap", "ostl"),
    "blue": ("tbptt", "adaptive_tbptt", "fbptt", "artbp"),
    "vermilion": ("uoro", "no_backtrack", "dodge"),
    "green": ("rflo", "eprop", "kernl"),
    "orange": ("kf_rtrl", "reverse_kf_rtrl", "optimal_kronecker"),
    "purple": ("es", "pes", "es_single"),
    "sky": ("dni",),
}


class Style(NamedTuple):
    """How one line or point looks."""

    colour: str
    dash: str | tuple  # a linestyle of matplotlib
    marker: str


def style_of(name: str, variant: int = 0) -> Style:
    """The look of an estimator, the same in all figures.

    Args:
        name: a name of the registry.
        variant: counts the lines of the same estimator in one figure: the first has its full colour.

    Raises:
        KeyError: the name is not in the registry.

    >>> style_of("uoro").colour == style_of("dodge").colour, style_of("uoro").dash == style_of("dodge").dash
    (True, False)
    """
    return _style(*_PLACES[name], variant)


def styles(names: Sequence[str | None]) -> list[Style]:
    """The looks of all lines of a figure, no two alike while an estimator has at most four lines.

    Args:
        names: of the estimators in the order of the lines; a name may come several times. One that the
            registry does not know, or None, gets a look that no estimator of the figure has.

    >>> first, second, other = styles(["tbptt", "tbptt", None])
    >>> first == style_of("tbptt"), second == style_of("tbptt", 1), other.colour
    (True, True, '#000000')
    """
    taken = {_PLACES[name] for name in names if name in _PLACES}
    places = [(hue, member) for member in range(len(DASHES)) for hue in HUES]
    free = [place for place in places if place not in taken] or places
    found, seen, others = [], dict.fromkeys(names, 0), 0
    for name in names:
        if name is not None and name in _PLACES:
            found.append(style_of(name, seen[name]))
            seen[name] += 1
        else:
            found.append(_style(*free[others % len(free)], others // len(free)))
            others += 1
    return found


@contextmanager
def paper() -> Iterator[None]:
    """The settings of all figures, while one is drawn or saved; matplotlib's own are as before afterwards.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        import matplotlib.figure
    except ImportError:
        raise ImportError("figures need matplotlib: pip install online-grads[run]") from None
    with matplotlib.rc_context(SETTINGS):
        yield


def new_figure(width: float, height: float):
    """A `Figure` of so many inches that belongs to no window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def new_axes(width: float, aspect: float, **labels):
    """A figure with one pair of axes: aspect × width high, or as high as wide in a figure of one column.

    Returns:
        (figure, axes)
    """
    narrow = _narrow(width)
    figure = new_figure(width, width if narrow else aspect * width)
    axes = figure.add_subplot(**labels)
    if narrow:
        axes.locator_params(axis="x", nbins=5)
    return figure, axes


def add_legend(figure, *, title: str | None = None, handles=None) -> None:
    """A legend outside the axes: to their right, or below them in a figure of one column."""
    narrow = _narrow(figure.get_figwidth())
    place = {"loc": "outside lower center", "ncols": 2} if narrow else {"loc": "outside right upper"}
    handles = figure.axes[0].get_legend_handles_labels()[0] if handles is None else handles
    legend = figure.legend(handles=handles, title=title, frameon=False, **place)
    for line in legend.get_lines():  # in a figure, their width only says what is on top
        line.set(linewidth=1.4, markersize=min(line.get_markersize(), 5))


def thickness(i: int, count: int) -> float:
    """The later on top and the thinner, from 2.6 to 1 point: lines that coincide show as stripes."""
    return 1.0 + 1.6 * (1 - (i + 1) / count)


def add_grid(axes) -> None:
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)


def padded(low: float, high: float, log: bool) -> tuple[float, float]:
    """The range with 5 % of room on both sides."""
    if log:
        room = (high / low) ** 0.05
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def save(figure, path: Path) -> None:
    """Write a figure as `path`.png and `path`.pdf, each complete or not at all.

    Args:
        figure: of matplotlib.
        path: where to, without a suffix.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(new_figure(3.3, 2.5), Path(folder) / "empty")
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['empty.pdf', 'empty.png']
    """
    pages = {"png": io.BytesIO(), "pdf": io.BytesIO()}
    with paper():
        figure.savefig(pages["png"], format="png")
        # without a date, so that the same numbers give the same file
        figure.savefig(pages["pdf"], format="pdf", metadata={"CreationDate": None})
    for suffix, page in pages.items():
        write_whole(path.with_name(f"{path.name}.{suffix}"), page.getbuffer())


_PLACES = {name: (hue, i) for hue, names in FAMILIES.items() for i, name in enumerate(names)}


def _narrow(width: float) -> bool:
    return width < (COLUMN + PAGE) / 2


def _style(hue: str, member: int, variant: int) -> Style:
    tones = HUES[hue]
    # more lines than tones: they go on with the next dash
    i = (member + variant // len(tones)) % len(DASHES)
    return Style(tones[variant % len(tones)], DASHES[i], MARKERS[i])
