"""The bench: what it measures, what it leaves out and why. No test looks at how long anything takes."""

import jax
import pytest

from online_grads import ESTIMATORS, memory
from online_grads.bench import costs, memory_limit, predicted, slope
from online_grads.bench_model import model_of

LIMIT = 2**30


def test_every_row_has_its_time_its_bound_and_its_state():
    rows = list(costs(["vanilla_rnn"], [4], ["tbptt", "rtrl", "uoro"], repeats=1, limit=LIMIT))
    assert [(row.n, row.estimator) for row in rows] == [(4, name) for name in ("tbptt", "rtrl", "uoro")]
    for row in rows:
        model = model_of("vanilla_rnn", row.n)
        start = jax.eval_shape(model.init, jax.random.key(0))
        assert row.state_bytes == memory(ESTIMATORS[row.estimator].constructor(model), *start)
        assert row.bound == ESTIMATORS[row.estimator].bound
        assert min(row.seconds, row.compile_seconds, row.bound_seconds) > 0
        assert row.ratio == row.seconds / row.bound_seconds
        assert row.reason is None


def test_segments_and_integers_in_the_state():
    (row,) = costs(["lif"], [4], ["tbptt"], window=3, repeats=2, limit=LIMIT)
    assert row.ratio > 0


def test_what_does_not_fit_is_not_allocated():
    rows = list(costs(["vanilla_rnn"], [4, 400], ["rtrl"], repeats=1, limit=2**20))
    assert rows[0].seconds > 0
    assert rows[1]._replace(state_bytes=None) == rows[1]._replace(state_bytes=None, seconds=None)
    assert rows[1].reason == "does not fit"
    assert rows[1].state_bytes > 400**3
    assert rows[1].ratio is None


def test_a_refusal_is_a_row_and_the_others_go_on():
    one, other = costs(["lstm"], [4], ["rflo", "tbptt"], repeats=1, limit=LIMIT)
    assert one.reason.startswith("rflo keeps one trace per weight")
    assert (one.seconds, one.state_bytes) == (None, None)
    assert other.seconds > 0


def test_a_loss_that_is_not_finite_is_a_row(monkeypatch):
    tbptt = ESTIMATORS["tbptt"].constructor

    def exploding(model):
        sound = tbptt(model)

        def update(*args):
            state, estimate = sound.update(*args)
            return state, estimate._replace(loss=estimate.loss / 0)

        return sound._replace(update=update)

    monkeypatch.setitem(ESTIMATORS, "tbptt", ESTIMATORS["tbptt"]._replace(constructor=exploding))
    (row,) = costs(["vanilla_rnn"], [4], ["tbptt"], repeats=1, limit=LIMIT)
    assert row.reason == "its loss is not finite"
    assert row.seconds is None


def test_no_larger_size_where_a_call_would_take_too_long(monkeypatch):
    monkeypatch.setattr("online_grads.bench.PATIENCE", 1e-9)
    rows = list(costs(["vanilla_rnn"], [4, 8], ["tbptt"], repeats=1, limit=LIMIT))
    assert rows[0].seconds > 0
    assert rows[1].reason.startswith("a call would take about")


@pytest.mark.parametrize("exponent", [0.0, 1.0, 3.2])
def test_slope_is_the_exponent_over_the_larger_half(exponent):
    sizes = (32, 64, 128, 256, 512)
    assert slope([(n, 1e-7 * n**exponent) for n in sizes]) == pytest.approx(exponent, abs=1e-9)
    # an overhead that dominates small sizes is no growth
    flat = [(n, 1e-7 * max(n, 128) ** 2) for n in sizes]
    assert slope(flat) == pytest.approx(2)


def test_slope_needs_three_sizes():
    assert slope([]) is None
    assert slope([(4, 1.0)]) is None
    assert slope([(4, 1.0), (8, 2.0), (8, 2.1)]) is None
    assert slope([(4, 1.0), (8, 2.0), (16, 4.0)]) == pytest.approx(1)


def test_prediction_is_bounded():
    assert predicted([(8, 1.0), (16, 0.5)], 32) == 0.5  # noise: more units do not cost less
    assert predicted([(8, 1.0), (16, 1000.0)], 32) == pytest.approx(16_000)


def test_the_default_limit_is_part_of_the_memory():
    assert memory_limit() > 2**26
