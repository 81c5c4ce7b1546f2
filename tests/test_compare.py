"""Estimators beside the exact gradient along a training: whose networks, whose gradient, whose noise."""

import copy
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from online_grads import compare_report
from online_grads.compare import THROUGH, compare
from online_grads.config import ConfigError, parse
from online_grads.experiment import train
from online_grads.trainer import begin

compare_module = sys.modules["online_grads.compare"]  # the name is that of the function, too

TABLES = {
    "task": {"name": "add", "t1": 1, "t2": 2},
    "model": {"cell": "vanilla_rnn", "hidden": 1},
    "run": {"steps": 60, "seeds": 2, "precision": "float64", "chunk": 6},
    "optimizer": {"name": "sgd", "learning_rate": [0.1, 10.0]},
    "estimator": [
        {"name": "rtrl", "seeds": 1},
        {"name": "uoro", "seeds": 1},
        {"name": "uoro", "label": "again", "seeds": 1},
        {"name": "tbptt", "window": 3, "seeds": 1, "optimizer": {"learning_rate": [0.3, 3.0]}},
    ],
    "compare": {
        **{"by": "tbptt(3)", "at": [0, 6, 12], "streams": 3, "warmup": 4, "steps": 6, "keys": 5, "lags": 3}
    },
}


def changed(**sections):
    tables = copy.deepcopy(TABLES)
    for name, value in sections.items():
        tables[name] = value if isinstance(value, list) else {**tables[name], **value}
    return parse(tables, source="here.toml")


@pytest.fixture(scope="module")
def found():
    """The comparison, the networks at its points, and the exact gradients there."""
    with pytest.MonkeyPatch.context() as patch:
        networks, training = [], compare_module._training
        exact, truth = [], compare_module._exact

        def recorded(*args):
            for params, streams in training(*args):
                networks.append(jax.device_get(params))
                yield params, streams

        def kept(*args):
            gradients = truth(*args)

            def keeping(*data):
                found = gradients(*data)
                exact.append(found.whole)
                return found

            return keeping

        patch.setattr(compare_module, "_training", recorded)
        patch.setattr(compare_module, "_exact", kept)
        return SimpleNamespace(comparison=compare(changed()), networks=networks, exact=exact)


def test_rows_and_fields(found):
    comparison = found.comparison
    assert comparison.at == (0, 6, 12)
    leaves = ("cell.W_in", "cell.W_rec", "cell.bias", "readout.W", "readout.bias")
    assert comparison.groups == (THROUGH, "all", *leaves)
    assert [row.config.label for row in comparison.rows] == ["rtrl", "uoro", "again", "tbptt(3)"]
    assert [row.draws.shape[1] for row in comparison.rows] == [1, 5, 5, 1]
    for row in comparison.rows:
        assert len(row.quality) == len(row.decrease) == 3
        assert all(value.shape == (7,) for quality in row.quality for value in quality)
        assert all(isinstance(value, float) for point in row.decrease for value in point)
        assert row.draws.shape[::2] == (6, 4)  # cases, parameters of the cell
        assert all(value.shape == (3,) for value in row.credit)
        assert row.credit.weight.max() == 1


def test_rtrl_is_exact_and_the_others_are_not(found):
    rtrl, uoro, again, cut = found.comparison.rows
    for q in rtrl.quality:
        np.testing.assert_allclose(q.alignment, 1, rtol=1e-12)
        np.testing.assert_allclose(q.alignment_se, 0, atol=1e-12)
        np.testing.assert_allclose(q.bias, 0, atol=1e-12)
        np.testing.assert_array_equal(q.noise, 0)
        np.testing.assert_array_equal(q.signs, 1)
    np.testing.assert_allclose(rtrl.credit.fraction, 1, rtol=1e-12)
    for row in (uoro, again):
        assert all((q.variance[0] > 0) & (q.alignment[0] < 0.99) for q in row.quality)
    # the truncation sees the last loss's own segment of three, so no lag beyond; the readout is exact
    assert all(q.alignment[0] < 0.999 and q.bias[0] > 1e-3 for q in cut.quality)
    np.testing.assert_allclose(cut.quality[-1].alignment[-2:], 1, rtol=1e-12)
    np.testing.assert_allclose(cut.credit.fraction, 1, rtol=1e-12)
    # the noise is independent of that of another row
    assert not np.allclose(uoro.draws, again.draws, rtol=1e-3)
    # rates are those of each estimator, the first of a list; to first order they scale the decrease
    assert all(d.best >= d.second for row in (rtrl, cut) for d in row.decrease)
    first = lambda row: np.array([d.first for d in row.decrease])
    assert (first(cut) > 2 * first(rtrl)).all()
    assert (first(cut) < 4 * first(rtrl)).all()


def test_the_networks_are_those_of_a_training(found):
    initial = jax.device_get(begin(changed())[2].params)
    same = lambda a, b, rtol: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol), a, b)
    same(found.networks[0], initial, 0)
    rows = [{"name": "tbptt", "window": 3, "optimizer": {"learning_rate": 0.3}}]
    (trained,) = train(changed(estimator=rows, run={"steps": 12})).results
    same(found.networks[2], jax.tree.map(lambda leaf: leaf[0], trained.params), 1e-12)
    assert not np.allclose(found.networks[0]["cell"]["bias"], found.networks[1]["cell"]["bias"], rtol=1e-6)
    assert not np.allclose(found.networks[1]["cell"]["bias"], found.networks[2]["cell"]["bias"], rtol=1e-6)


def test_the_decrease_is_of_the_loss_whose_gradient_is_estimated(found):
    """To first order, for the exact gradient of each stretch: η |∇L|², L the mean loss of all stretches."""
    for exact, given in zip(found.exact, found.comparison.rows[0].decrease, strict=True):
        slope = np.sum(np.mean(exact, axis=1) ** 2, axis=-1)  # [networks]
        np.testing.assert_allclose(given.first, 0.1 * slope.mean(), rtol=1e-10)


def test_other_rows_and_their_order_do_not_matter(found):
    rows = [TABLES["estimator"][3], TABLES["estimator"][0], {"name": "dni"}]
    settings = {key: value for key, value in TABLES["compare"].items() if key != "by"}
    tables = {**copy.deepcopy(TABLES), "estimator": rows, "compare": settings}
    other = compare(parse(tables))  # by the first, which is the same one
    *rows, dni = other.rows
    for mine, its in zip(rows, [found.comparison.rows[i] for i in (3, 0)], strict=True):
        for a, b in zip(mine.quality, its.quality, strict=True):
            np.testing.assert_allclose(a[:5], b[:5], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(mine.decrease, its.decrease, rtol=1e-9)
        np.testing.assert_allclose(mine.credit, its.credit, rtol=1e-9, atol=1e-12)
    # dni's critic adds up all losses to come: it has no lags
    assert dni.credit is None
    assert "dni/credit" not in compare_report.arrays(other)
    assert "tbptt(3)/credit" in compare_report.arrays(other)


@pytest.mark.parametrize("density", [0.0, 2.0])
def test_a_variant_is_measured_against_the_base_model(density):
    tables = {
        **{"task": TABLES["task"], "run": TABLES["run"], "optimizer": TABLES["optimizer"]},
        "model": {"cell": "columnar_rnn", "hidden": 3, "width": 1, "density": density},
        "estimator": [
            {"name": "tbptt", "window": 4},
            {"name": "tbptt", "window": 4, "label": "inside the columns", "model": {"local": True}},
        ],
        "compare": {"streams": 2, "warmup": 2, "steps": 4},
    }
    found = compare(parse(tables))
    base, inside = found.rows
    assert base.credit is None
    assert sorted(compare_report.figures(found)) == ["alignment_matrix", "bias_variance"]
    assert "credit_weight" not in compare_report.arrays(found)
    np.testing.assert_allclose(base.quality[0].alignment[0], 1, rtol=1e-12)
    if density:
        assert inside.quality[0].alignment[0] < 0.9999
        assert inside.quality[0].bias[0] > 1e-3
    else:
        np.testing.assert_allclose(inside.quality[0].alignment[0], 1, rtol=1e-12)


def test_a_variant_with_other_parameters_is_refused(monkeypatch):
    monkeypatch.setattr(compare_module, "_training", lambda *args: pytest.fail("it began"))
    tables = {
        **{"task": TABLES["task"], "run": TABLES["run"], "optimizer": TABLES["optimizer"]},
        "model": {"cell": "columnar_rnn", "hidden": 3, "density": 1.0},
        "estimator": [{"name": "rtrl"}, {"name": "rtrl", "label": "other", "model": {"density": 0.0}}],
    }
    with pytest.raises(ConfigError, match=r"^here.toml: estimator.1 \(rtrl\): "):
        compare(parse(tables, source="here.toml"))


def test_a_variant_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(compare_module, "_training", lambda *args: pytest.fail("it began"))
    rows = [{"name": "rtrl"}, {"name": "rtrl", "label": "other", "model": {"leak": 0.3}}]
    message = r"^here.toml: estimator.1 \(rtrl\): with its model the losses are others than with \[model\]"
    with pytest.raises(ConfigError, match=message):
        compare(changed(estimator=rows, compare={"by": "rtrl"}))


def test_a_training_that_diverges_is_not_compared():
    rows = [{"name": "tbptt", "window": 3, "optimizer": {"learning_rate": 1e300}}]
    with pytest.raises(ConfigError) as caught:
        compare(changed(estimator=rows))
    said = "compare.at: the training with tbptt(3) is not finite before step 6"
    assert str(caught.value) == f"here.toml: {said}"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 7, "lags": 0}, "compare.steps: tbptt(3) has a window of 3 steps, which does not divide 7"),
        ({"at": [0, 10]}, "compare.at: tbptt(3) has a window of 3 steps, which does not divide 10"),
    ],
)
def test_windows_that_do_not_divide(monkeypatch, given, message):
    monkeypatch.setattr(compare_module, "begin", lambda config: pytest.fail("it began"))
    with pytest.raises(ConfigError) as caught:
        compare(changed(compare=given))
    assert str(caught.value) == f"here.toml: {message}"


def test_only_the_trainer_s_window_divides_the_points(monkeypatch):
    class Began(Exception):
        pass

    def began(config):
        raise Began

    monkeypatch.setattr(compare_module, "begin", began)
    with pytest.raises(Began):
        compare(changed(compare={"at": [0, 10], "by": "rtrl"}))


def test_arrays_and_files(found, tmp_path):
    comparison = found.comparison
    packed = compare_report.arrays(comparison)
    assert packed["at"].tolist() == [0, 6, 12]
    assert packed["estimators"].tolist() == ["rtrl", "uoro", "again", "tbptt(3)"]
    assert packed["matrix"].shape == (5, 5)
    fields = "alignment alignment_se bias noise variance signal_to_noise signs decrease credit credit_error"
    assert set(packed) == {"at", "groups", "estimators", "matrix", "credit_weight"} | {
        f"{label}/{name}" for label in packed["estimators"] for name in fields.split()
    }
    assert packed["uoro/bias"].shape == (3, 7)
    assert packed["uoro/decrease"].shape == (3, 3)
    assert packed["uoro/bias"][1, 2] == comparison.rows[1].quality[1].bias[2]
    compare_report.write(comparison, tmp_path)
    drawn = ("alignment_matrix", "alignment_over_training", "bias_variance", "credit_by_lag")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["diagnostics.npz", *(f"{name}.{suffix}" for name in drawn for suffix in ("pdf", "png"))]
    )
    read = np.load(tmp_path / "diagnostics.npz")
    assert all(
        np.array_equal(read[name], value, equal_nan=value.dtype.kind == "f") for name, value in packed.items()
    )


def test_the_table(found):
    whole, leaves, note = compare_report.table(found.comparison).split("\n\n")
    assert [line.split()[0] for line in whole.splitlines()] == [
        "estimator",
        "rtrl",
        "uoro",
        "again",
        "tbptt(3)",
    ]
    assert whole.splitlines()[1].split()[1:4] == ["1.000", "±", "0.000"]
    d, last = found.comparison.rows[0].decrease[-1], whole.splitlines()[1].split()[-3:]
    assert last == [f"{value:.3g}" for value in (d.first, d.second, d.best)]
    assert leaves.splitlines()[0].split()[-2:] == ["readout.W", "readout.bias"]
    assert leaves.splitlines()[4].split()[-2:] == ["1.000", "1.000"]
    assert note.startswith("Gradients of 6 steps after 12 steps of training with tbptt(3). Networks: 2, ")
