"""The figures: what is drawn, how, on which axes, and that nothing crushes the rest."""

import itertools
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from online_grads.estimators.registry import ESTIMATORS
from online_grads.plot_style import COLUMN, FAMILIES, PAGE, SETTINGS, style_of, styles
from online_grads.plots import (
    CostCurve,
    Curve,
    Line,
    Point,
    alignment_matrix,
    alignment_over_training,
    bias_variance,
    cost_curves,
    credit_by_lag,
    learning_curves,
    level_curves,
    save,
)

STEPS = np.arange(1, 1001)


def curve(label, y, x=STEPS, seeds=3, lost=(), name=None):
    loss = np.asarray(y)[None] * (1 + 0.1 * np.arange(seeds))[:, None]
    return Curve(label, x, loss, np.isin(np.arange(seeds), lost), name)


def draw(*curves, **kwargs):
    figure = learning_curves(curves, xlabel="steps", ylabel="bits", **kwargs)
    (axes,) = figure.axes
    (legend,) = figure.legends
    return axes, [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()


def test_mean_and_standard_error_in_blocks():
    axes, labels, title = draw(curve("rtrl", 2 + STEPS / 1000), curve("one", STEPS / 1000 + 1, seeds=1))
    assert labels == ["rtrl", "one"]
    assert title == "mean over seeds\nband: ± standard error"
    x, y = axes.lines[0].get_data()
    assert len(x) == 200
    np.testing.assert_allclose((x[0], x[-1]), (3.0, 998.0))
    np.testing.assert_allclose(y, (2 + x / 1000) * 1.1)
    (band,) = axes.collections
    low, high = band.get_paths()[0].get_extents().intervaly
    np.testing.assert_allclose(low, y[0] - y[0] / 11 / 3**0.5, rtol=1e-6)
    np.testing.assert_allclose(high, y[-1] + y[-1] / 11 / 3**0.5, rtol=1e-6)
    assert axes.get_xlabel() == "steps"
    assert axes.get_ylabel() == "bits"
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")


def test_axes_become_logarithmic_where_values_span_decades():
    axes, _, title = draw(curve("a", 10.0 ** (-STEPS / 100.0)), curve("b", STEPS[:100] / 9.0, STEPS[:100]))
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert title == "mean over seeds\nband: min to max"
    x, y = axes.lines[0].get_data()
    assert x[0] == 1
    assert x[-1] > 950
    assert (np.diff(x) > 0).all()
    assert y[0] == pytest.approx(1.1 * 10**-0.01)


def test_a_diverging_line_does_not_crush_the_others():
    growing = np.exp(STEPS / 20.0)
    growing[-10:] = np.inf
    axes, labels, _ = draw(curve("good", 2 - STEPS / 1000), curve("bad", growing, lost=[0, 1, 2]))
    low, high = axes.get_ylim()
    assert 1.0 < low < 1.1
    assert 2.2 < high < 2.3
    assert axes.get_yscale() == "linear"
    assert labels == ["good", "bad (diverges)"]
    axes, labels, _ = draw(curve("only", growing, lost=[0, 1, 2]))
    assert np.isfinite(axes.get_ylim()).all()


def test_diverged_seeds_are_left_out_of_the_mean():
    axes, labels, _ = draw(curve("some", np.ones(1000), lost=[2]))
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 1.05)
    assert labels == ["some (1 of 3 diverged)"]


def test_references_are_dotted_in_range_and_named():
    axes, _, _ = draw(curve("a", 2 - STEPS / 1000), references={"entropy": 4.0, "floor": 0.5})
    (entropy,) = [line for line in axes.lines if line.get_linestyle() == ":" and line.get_ydata()[0] == 4.0]
    assert entropy.get_linewidth() < axes.lines[0].get_linewidth()
    assert axes.get_ylim()[0] < 0.5
    assert axes.get_ylim()[1] > 4.0
    assert [text.get_text() for text in axes.texts] == ["floor", "entropy"]
    axes, _, _ = draw(curve("a", 10.0 ** (-STEPS / 100.0)), references={"optimum": 0.0})
    assert not axes.texts  # there is no zero on a logarithmic axis


def test_twelve_lines_are_told_apart(tmp_path):
    axes, labels, _ = draw(*(curve(f"estimator {i}", 2 + i - STEPS / 1000) for i in range(12)))
    looks = [(line.get_color(), line.get_linestyle(), line._dash_pattern) for line in axes.lines]
    assert len(set(map(str, looks))) == len(labels) == 12
    axes.figure.savefig(tmp_path / "twelve.png")
    assert (tmp_path / "twelve.png").read_bytes().startswith(b"\x89PNG")
    box = axes.figure.legends[0].get_window_extent()
    assert not box.overlaps(axes.get_window_extent())


def test_nothing_to_draw_and_matplotlib_missing(monkeypatch):
    empty = Curve("none", np.zeros(0), np.zeros((2, 0)), np.zeros(2, bool))
    assert not learning_curves([empty], xlabel="steps", ylabel="bits").axes[0].lines
    short = Curve("one update", np.ones(1), np.ones((1, 1)), np.zeros(1, bool))
    assert learning_curves([short], xlabel="steps", ylabel="bits").axes[0].lines
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"need matplotlib: pip install online-grads\[run\]"):
        learning_curves([], xlabel="steps", ylabel="bits")


def test_cost_curves_have_a_panel_per_cell_and_their_slopes():
    sizes = np.array([32, 64, 128])
    costs = [CostCurve("rtrl", sizes, 1e-6 * sizes**4, 4.0), CostCurve("new", sizes[:1], sizes[:1], None)]
    empty = CostCurve("none", sizes[:0], sizes[:0], None)
    figure = cost_curves({"tanh": [*costs, empty], "gru": [costs[0]._replace(slope=3.5), costs[1], empty]})
    left, right = figure.axes
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xlabel() == "hidden units n"
    assert left.get_ylabel() == "time per step (µs)"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["rtrl  n^4.0 / 3.5", "new"]
    assert legend.get_title().get_text() == "slopes: tanh / gru"
    assert [text.get_text() for text in left.get_xticklabels()] == ["32", "64", "128"]
    # the same estimator looks the same in both
    assert left.lines[1].get_color() == right.lines[1].get_color() != left.lines[0].get_color()
    assert len(cost_curves({}).axes) == 1


# ---- looks


def test_every_estimator_has_its_own_look():
    assert sorted(itertools.chain(*FAMILIES.values())) == sorted(ESTIMATORS)
    for members in FAMILIES.values():
        looks = [style_of(name) for name in members]
        assert len({look.colour for look in looks}) == 1
        assert len({look.dash for look in looks}) == len({look.marker for look in looks}) == len(members)
    assert len({style_of(names[0]).colour for names in FAMILIES.values()}) == len(FAMILIES)


def test_lines_of_a_figure_are_told_apart():
    names = ["tbptt", *ESTIMATORS, None, "tbptt", "mine", "tbptt", None, "rtrl"]
    looks = styles(names)
    assert len(set(looks)) == len(looks)
    assert looks[0] == style_of("tbptt")
    assert looks[1 + list(ESTIMATORS).index("uoro")] == style_of("uoro")
    shades = [look for name, look in zip(names, looks, strict=True) if name == "tbptt"]
    assert len({look.colour for look in shades}) == 4
    assert len({look.dash for look in shades}) == 1
    assert len(set(styles([None] * 40))) == 40


def test_an_estimator_looks_the_same_in_every_figure():
    want = style_of("kf_rtrl").colour
    first = lambda label, name: [("uoro", "uoro"), (label, name)]
    curves = [curve(label, 2 - STEPS / 1000, name=name) for label, name in first("x", "kf_rtrl")]
    lines = [Line(label, name, np.array([1.0, 0.5])) for label, name in first("x", "kf_rtrl")]
    costs = [CostCurve(n, STEPS[:2], STEPS[:2], 1.0, n) for n in ("rtrl", "kf_rtrl")]
    figures = [
        learning_curves(curves, xlabel="steps", ylabel="bits"),
        level_curves(curves),
        cost_curves({"gru": costs}),
        credit_by_lag(np.arange(2), lines),
        alignment_over_training(np.arange(2), lines),
        bias_variance([Point("a", "uoro", 0.1, 1.0), Point("b", "kf_rtrl", 0.2, 1.0)]),
    ]
    assert [figure.axes[0].lines[1].get_color() for figure in figures] == [want] * len(figures)
    unnamed = learning_curves([c._replace(name=None) for c in curves], xlabel="steps", ylabel="bits")
    assert unnamed.axes[0].lines[1].get_color() != want


def test_settings_are_those_of_a_paper_and_only_here(tmp_path):
    before = dict(matplotlib.rcParams)
    figure = learning_curves([curve("a", 2 - STEPS / 1000)], xlabel="steps", ylabel="bits", width=COLUMN)
    save(figure, tmp_path / "v1.5")
    assert dict(matplotlib.rcParams) == before
    assert before["pdf.fonttype"] != SETTINGS["pdf.fonttype"]
    assert figure.get_figwidth() == COLUMN
    assert figure.axes[0].xaxis.label.get_fontsize() == 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.5.pdf", "v1.5.png"]
    assert (tmp_path / "v1.5.png").read_bytes().startswith(b"\x89PNG")
    pdf = (tmp_path / "v1.5.pdf").read_bytes()
    assert b"/CIDFontType2" in pdf  # TrueType
    assert b"/Type3" not in pdf
    save(figure, tmp_path / "again")
    assert (tmp_path / "again.pdf").read_bytes() == pdf


def test_a_figure_that_fails_leaves_no_file(tmp_path, monkeypatch):
    figure = level_curves([])
    monkeypatch.setattr(figure, "savefig", lambda page, format, **_: 1 / (format == "png"))
    with pytest.raises(ZeroDivisionError):
        save(figure, tmp_path / "half")  # the PDF fails, so there is no PNG either
    assert not list(tmp_path.glob("half*"))


def test_matplotlib_waits_until_a_figure_is_drawn():
    check = "import sys, online_grads, online_grads.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_references_that_are_close_stand_side_by_side():
    axes, _, _ = draw(curve("a", 2 - STEPS / 1000), references={"first": 1.5, "second": 1.505, "far": 1.8})
    axes.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    assert [text.get_ha() for text in axes.texts] == ["right", "left", "right"]


@pytest.mark.parametrize("width", [COLUMN, PAGE])
def test_legends_stand_outside(width):
    names = list(ESTIMATORS)[:8]
    lines = [Line(name, name, np.linspace(1, 0.1, 5), np.full(5, 0.1)) for name in names]
    points = [Point(name, name, 0.1 * i, 10.0**i) for i, name in enumerate(names)]
    for figure in (
        alignment_over_training(np.array([0, 10, 100, 1000, 10000]), lines, width=width),
        credit_by_lag(np.arange(5), lines, np.ones(5), width=width),
        bias_variance(points, draws=100, width=width),
    ):
        figure.draw_without_rendering()
        (axes,), (legend,) = figure.axes, figure.legends
        assert not legend.get_window_extent().overlaps(axes.get_window_extent())
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= figure.bbox.x1
        ticks = [text.get_window_extent() for text in axes.get_xticklabels() if text.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(ticks))


# ---- figures that compare gradients


def test_alignment_matrix_writes_its_numbers():
    matrix = np.array([[1.0, -0.031, np.nan], [-0.031, 1.0, 0.5], [np.nan, 0.5, 1.0]])
    figure = alignment_matrix(["rtrl", "uoro", "rflo"], matrix, title="add")
    axes = figure.axes[0]
    found = {text.get_position(): text.get_text() for text in axes.texts}
    assert found == {
        **{(i, i): "1.00" for i in range(3)},
        **{(0, 1): "−.03", (1, 0): "−.03", (1, 2): ".50", (2, 1): ".50"},
    }
    assert axes.images[0].get_clim() == (-1, 1)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["rtrl", "uoro", "rflo"]
    with pytest.raises(ValueError, match=r"expected a matrix \[2, 2\] for 2 labels, got \(3, 3\)"):
        alignment_matrix(["rtrl", "uoro"], matrix)


def test_numbers_of_a_large_matrix_stay_in_their_cells():
    figure = alignment_matrix(list(ESTIMATORS), -0.88 * np.ones((len(ESTIMATORS),) * 2))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert figure.get_figwidth() <= PAGE + 1e-9
    cell = axes.get_window_extent().width / len(ESTIMATORS)
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_bias_variance_has_a_place_for_zeros():
    points = [Point("exact", "rtrl", 0.0, 0.0), Point("a", "uoro", 0.03, 20.0), Point("b", "es", np.nan, 1.0)]
    figure = bias_variance(points, draws=100)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("symlog", "symlog")
    low, high = axes.get_xlim()
    assert low < 0 < 0.03 < high
    assert next(text.get_text() for text in axes.get_xticklabels()) == "$\\mathdefault{0}$"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["exact", "a", "b (not finite)", "noise of the bias,\n100 draws"]
    bias, variance = axes.lines[-1].get_data()
    np.testing.assert_allclose(bias, np.sqrt(variance / 100))
    figure = bias_variance(points[1:2])
    assert (figure.axes[0].get_xscale(), figure.axes[0].get_yscale()) == ("log", "log")
    assert not bias_variance([]).legends


def test_credit_by_lag_is_not_crushed_by_a_wild_estimate():
    lags = np.arange(4)
    wild = Line("uoro", "uoro", np.array([1.0, 2.0, -40.0, 900.0]), np.full(4, 50.0))
    short = Line("tbptt", "tbptt", np.array([1.0, 1.0, 0.0, 0.0]))
    (axes,) = credit_by_lag(lags, [short, wild], 4 * 0.5**lags).axes
    assert axes.get_ylim() == pytest.approx((-1.15, 2.15))
    area, band = axes.collections
    assert area.get_paths()[0].get_extents().intervaly == pytest.approx((0, 1))
    assert band.get_paths()[0].get_extents().intervaly == pytest.approx((-90, 950))
    (axes,) = credit_by_lag(lags, [short]).axes
    assert axes.get_ylim() == pytest.approx((-0.05, 1.05))


def test_alignment_over_training_shows_its_steps():
    line = Line("rflo", "rflo", np.array([0.9, -0.2, np.nan]), np.full(3, 0.05))
    (axes,) = alignment_over_training(np.array([0, 100, 10_000]), [line]).axes
    assert axes.get_xscale() == "symlog"
    assert axes.get_ylim() == pytest.approx((-0.26, 1.06))
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [0, 100, 10_000])
    (axes,) = alignment_over_training(np.array([0, 100, 200]), [line]).axes
    assert axes.get_xscale() == "linear"


def test_levels_are_whole_numbers_on_a_linear_axis():
    levels = 1 + STEPS[None] // 2
    (axes,) = level_curves([Curve("snap", STEPS, levels, np.zeros(1, bool), "snap")]).axes
    assert axes.get_yscale() == "linear"
    assert all(tick == int(tick) for tick in axes.get_yticks())
