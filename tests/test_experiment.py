"""Training by config: independent lanes, the right precision, bad data and divergence told apart."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import Model, learner, losses, memory, rtrl, scan, tasks
from online_grads.config import ConfigError, EstimatorConfig, OptimizerConfig, parse
from online_grads.experiment import Result, train
from online_grads.scores import best, diverged, scores


def toy(*, spoil=lambda bit, step, x: x, dtype=None):
    """Random bits to be echoed, and a model with one weight, drawn by key; 10 is its scale."""

    def init(key):
        return jax.random.uniform(key, (), dtype), jnp.zeros((), dtype)

    def draw(state, length):
        key, step = state
        steps = step + jnp.arange(length, dtype=jnp.int32)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, steps)
        xs = jax.vmap(lambda key: jax.random.bernoulli(key).astype(dtype))(keys)
        first = jax.random.bernoulli(jax.random.fold_in(key, 0))
        return (key, step + length), (spoil(first, steps, xs),) * 2

    transition = lambda w, h, x: jnp.tanh(w * h + x)
    loss = lambda w, h, y: (losses.squared_error(w * h, y), None)
    example = (jax.ShapeDtypeStruct((), dtype),) * 2
    model = Model(init, transition, loss, example)
    start = lambda key: (key, jnp.zeros((), jnp.int32))
    return tasks.Task(start, draw, example, model=model, scale=10.0, unit="toys")


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "toy", toy)


def settings(*estimators, rates=(0.1,), task="toy", model=None, **run):
    tables = {
        "task": {"name": task},
        "run": {"updates": 30, "precision": "float64", **run},
        "optimizer": {"name": "sgd", "learning_rate": list(rates)},
        "estimator": [{"name": name} if isinstance(name, str) else name for name in estimators],
    }
    return parse(tables | ({"model": model} if model else {}), source="here.toml")


def test_it_trains_as_the_library_does():
    report = train(settings("rtrl", task="influence_balancing", rates=(1e-4,), chunk=7))
    task = tasks.influence_balancing()
    online = learner(rtrl(task.model), optax.sgd(1e-4))
    state = online.init(*task.model.init(jax.random.key(0)), key=jax.random.key(0))
    _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 30)
    ended, metrics = jax.jit(lambda s: scan(online, s, xs, ys))(state)
    (result,) = report.results
    np.testing.assert_allclose(result.loss[0, 0], metrics.loss, rtol=1e-12)
    np.testing.assert_allclose(result.grad_norm[0, 0], metrics.grad_norm, rtol=1e-12)
    np.testing.assert_allclose(result.params["theta"], [[ended.params["theta"]]], rtol=1e-12)
    assert result.state_bytes == memory(rtrl(task.model), *task.model.init(jax.random.key(0)))
    assert result.seconds_per_step > 0
    assert result.compile_seconds > 0
    assert report.failure is None


def test_seeds_and_rates_are_lanes_that_do_not_meet():
    uoro = {"name": "uoro", "window": 2}
    both = train(settings(uoro, rates=(0.1, 0.2), seeds=2, chunk=20)).results[0]
    assert both.loss.shape == both.finite.shape == both.grad_norm.shape == (2, 2, 30)
    alone = train(settings(uoro, rates=(0.2,), seed=1, chunk=60)).results[0]
    np.testing.assert_allclose(both.loss[1, 1], alone.loss[0, 0], rtol=1e-12)
    np.testing.assert_allclose(both.params[1, 1], alone.params[0, 0], rtol=1e-12)
    np.testing.assert_array_equal(both.loss[0, :, 0], both.loss[1, :, 0])
    assert (both.loss[0, :, -1] != both.loss[1, :, -1]).all()
    assert (both.loss[:, 0] != both.loss[:, 1]).any(axis=-1).all()


def test_estimators_see_the_same_start_and_stream():
    report = train(settings("tbptt", "rtrl", {"name": "uoro", "seeds": 1}, rates=(0.0,), seeds=3))
    tbptt, exact, noisy = (result.loss for result in report.results)
    np.testing.assert_allclose(tbptt, exact, rtol=1e-12)
    np.testing.assert_allclose(noisy, exact[:, :1], rtol=1e-12)
    assert exact.shape == (1, 3, 30)


def test_a_cell_a_stack_and_a_scale():
    cell = {"cell": "vanilla_rnn", "hidden": [3, 2], "leak": 0.5}
    (result,) = train(settings("tbptt", task="add", model=cell)).results
    assert result.params is None
    assert 0.3 < result.loss.mean() < 3
    scaled = train(settings({"name": "tbptt", "updates": 1})).results[0]
    start = jax.random.uniform(jax.random.split(jax.random.key(0), 3)[0], ())
    x = toy(dtype=jnp.float64).draw((jax.random.split(jax.random.key(0), 3)[1], jnp.int32(0)), 1)[1][0][0]
    assert scaled.loss[0, 0, 0] == pytest.approx(10 * (start * jnp.tanh(x) - x) ** 2 / 2)


@pytest.mark.parametrize("globally", [False, True])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_precision_is_the_configs_and_does_not_leak(globally, precision):
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", globally)
    try:
        result = train(settings("tbptt", precision=precision)).results[0]
        assert result.loss.dtype == result.grad_norm.dtype == result.params.dtype == precision
        assert jnp.zeros(()).dtype == ("float64" if globally else "float32")
    finally:
        jax.config.update("jax_enable_x64", before)


def test_data_that_are_not_finite_end_the_run(monkeypatch):
    nan_at = lambda where: (
        lambda **o: toy(spoil=lambda bit, step, x: jnp.where(step == where, jnp.nan, x), **o)
    )
    monkeypatch.setitem(tasks.TASKS, "toy", nan_at(25))
    report = train(settings("tbptt", "rtrl", chunk=10, seeds=2))
    assert report.failure == "tbptt: xs is not finite at step 25 of the stream"
    (result,) = report.results
    assert result.loss.shape == (1, 2, 20)
    assert result.finite.all()
    assert np.isfinite(result.params).all()
    monkeypatch.setitem(tasks.TASKS, "toy", nan_at(0))
    (result,) = train(settings("tbptt")).results
    assert result.loss.shape == (1, 1, 0)
    assert scores(result)[0][1:6] == (None, None, None, 0, 0)
    assert not diverged(result).any()


def test_a_diverging_seed_is_counted_and_the_others_go_on(monkeypatch):
    huge = lambda bit, step, x: jnp.where(bit & (step >= 10), 1e300, x)  # finite, but not its square
    monkeypatch.setitem(tasks.TASKS, "toy", lambda **options: toy(spoil=huge, **options))
    (result,) = train(settings("tbptt", seeds=8)).results
    keys = [jax.random.split(jax.random.key(seed), 3)[1] for seed in range(8)]
    expected = [bool(jax.random.bernoulli(jax.random.fold_in(key, 0))) for key in keys]
    assert 0 < sum(expected) < 8
    assert (~result.finite[0].all(axis=-1)).tolist() == expected
    assert np.isfinite(result.loss[0, ~np.array(expected)]).all()
    assert diverged(result)[0, expected].all()


def test_what_only_the_constructors_know():
    cell = {"cell": "gru", "hidden": 2}
    for change, message in [
        ({"model": cell}, "model: leave it out, the task 'toy' brings its own"),
        ({"task": "add"}, "model: missing, the task 'add' needs a cell"),
    ]:
        with pytest.raises(ConfigError, match=f"^here.toml: {re.escape(message)}"):
            train(settings("tbptt", **change))
    with pytest.raises(ConfigError, match=r"^here.toml: estimator.1 \(tbptt\): history must be at least 0"):
        train(settings("rtrl", {"name": "tbptt", "history": -1}))
    tables = {**settings("tbptt").tables, "task": {"name": "text", "path": "no/such/file"}}
    with pytest.raises(ConfigError, match=r"^here.toml: task: no text file at no/such/file"):
        train(parse(tables, source="here.toml"))


def result(loss, rates=(0.1, 0.2)):
    loss = np.asarray(loss, float)
    optimizer = OptimizerConfig("sgd", rates, {})
    chosen = EstimatorConfig("rtrl", "rtrl", 1, loss.shape[-1], loss.shape[1], optimizer, {})
    return Result(chosen, loss, np.isfinite(loss), loss, None, 0.0, 0.0, 0)


FALLING = np.arange(20.0)[::-1]  # first tenth 18.5, last tenth 0.5
LOST = np.where(np.arange(20) == 10, np.nan, FALLING)


def test_scores():
    found = result([[FALLING, FALLING + 1, FALLING[::-1], LOST], [FALLING[::-1]] * 2 + [LOST] * 2])
    assert diverged(found).tolist() == [[False, False, True, True], [True] * 4]
    assert scores(found)[0][:6] == pytest.approx((0.1, 19.0, 1.0, 0.5, 2, 2))
    # when all diverge, those with finite losses at both ends say how far
    assert scores(found)[1][:6] == pytest.approx((0.2, 9.5, 9.5, 18 / 12**0.5, 4, 4))
    assert best(found) == 0
    overflow = result([[[1.0] + [np.inf] * 19]], rates=(0.1,))
    assert scores(overflow)[0][1:6] == (None, None, None, 0, 1)


def test_the_best_rate_has_the_fewest_diverged_seeds_then_the_lowest_loss():
    assert best(result([[FALLING + 1, FALLING + 1], [FALLING, FALLING[::-1]]])) == 0
    assert best(result([[FALLING + 1, FALLING + 1], [FALLING, FALLING]])) == 1


def test_feedback_and_inner_optimizer_reach_the_estimator():
    rows = [
        {"name": "rflo"},
        {"name": "rflo", "feedback": "random", "label": "random"},
        {"name": "kernl", "sigma": 0.1, "label": "kernl"},
        {
            "name": "kernl",
            "sigma": 0.1,
            "label": "learns",
            "inner_optimizer": {"name": "sgd", "learning_rate": 0.5},
        },
        {"name": "dni", "jacobian": "learned", "label": "dni(b)"},
        {
            "name": "dni",
            "jacobian": "learned",
            "label": "dni(b) learns",
            "inner_optimizer": {"name": "sgd", "learning_rate": 0.1},
            "jacobian_optimizer": {"name": "sgd", "learning_rate": 0.1},
        },
    ]
    model = {"cell": "vanilla_rnn", "hidden": 4}
    report = train(settings(*rows, task="add", model=model, seeds=2))
    losses = [result.loss for result in report.results]
    assert all(np.isfinite(loss).all() for loss in losses)
    for i, one in enumerate(losses):
        assert not any(np.allclose(one, other, rtol=1e-9) for other in losses[i + 1 :])
