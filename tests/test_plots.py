"""The figure: what is drawn, on which axes, and that nothing crushes the rest."""

import sys

import numpy as np
import pytest

from online_grads.plots import CostCurve, Curve, cost_curves, learning_curves

STEPS = np.arange(1, 1001)


def curve(label, y, x=STEPS, seeds=3, lost=()):
    loss = np.asarray(y)[None] * (1 + 0.1 * np.arange(seeds))[:, None]
    return Curve(label, x, loss, np.isin(np.arange(seeds), lost))


def draw(*curves, **kwargs):
    figure = learning_curves(curves, xlabel="steps", ylabel="bits", **kwargs)
    (axes,) = figure.axes
    (legend,) = figure.legends
    return axes, [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()


def test_mean_and_standard_error_in_blocks():
    axes, labels, title = draw(curve("rtrl", 2 + STEPS / 1000), curve("one", STEPS / 1000 + 1, seeds=1))
    assert labels == ["rtrl", "one"]
    assert title == "mean over seeds,\nband: ± standard error"
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
    assert title == "mean over seeds,\nband: min to max"
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
    assert [text.get_text() for text in axes.texts] == ["entropy", "floor"]
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


def test_cost_curves_have_a_panel_per_cell_and_their_slopes(tmp_path):
    sizes = np.array([32, 64, 128])
    costs = [CostCurve("rtrl", sizes, 1e-6 * sizes**4, 4.0), CostCurve("new", sizes[:1], sizes[:1], None)]
    empty = CostCurve("none", sizes[:0], sizes[:0], None)
    figure = cost_curves({"tanh": [*costs, empty], "gru": [empty, costs[1]]})
    left, right = figure.axes
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("hidden units n", "µs per step")
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["rtrl  n^4.0", "new"]
    assert [text.get_text() for text in left.get_xticklabels()] == ["32", "64", "128"]
    # the same estimator looks the same in both
    assert left.lines[1].get_color() == right.lines[0].get_color() != left.lines[0].get_color()
    assert len(cost_curves({}).axes) == 1
    figure.savefig(tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes().startswith(b"\x89PNG")
