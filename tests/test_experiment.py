"""Training by config: independent lanes, the right precision, bad data and divergence told apart."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import Model, learner, losses, memory, rtrl, scan, tasks, tbptt
from online_grads.config import ConfigError, EstimatorConfig, parse
from online_grads.experiment import Levels, Report, Result, train
from online_grads.optimizers import OptimizerConfig
from online_grads.report import table
from online_grads.scores import best, diverged, never_advanced, scores
from online_grads.trainer import begin


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
    with pytest.raises(ConfigError, match=r"^here.toml: task: path: no text file at no/such/file"):
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


def test_a_variant_of_the_cell_begins_with_parameters_of_its_own():
    columns = lambda density: {"cell": "columnar_lstm", "hidden": 3, "density": density}
    linked = {"name": "tbptt", "label": "linked", "model": {"density": 1.0}}
    plain, variant = train(settings("tbptt", linked, task="add", model=columns(0.0))).results
    (alone,) = train(settings("tbptt", task="add", model=columns(1.0))).results
    np.testing.assert_array_equal(variant.loss, alone.loss)
    assert not np.allclose(variant.loss, plain.loss, rtol=1e-6)


TINY = {"cell": "vanilla_rnn", "hidden": 1}  # of so few parameters that the final ones are reported


def test_frozen_parameters_keep_their_values():
    held = {"name": "rtrl", "label": "held", "frozen": ["cell.W_rec", "readout"]}
    config = settings("rtrl", held, task="add", model=TINY, seeds=2, rates=(0.1, 1.0))
    initial = jax.device_get(begin(config)[2].params)
    free, frozen = (result.params for result in train(config).results)
    for section, name, kept in [("cell", "W_rec", True), ("readout", "W", True), ("cell", "W_in", False)]:
        same = (frozen[section][name] == initial[section][name]).all()
        assert same == kept
        assert (free[section][name] != initial[section][name]).all()
    unknown = settings("rtrl", {"name": "tbptt", "frozen": ["cell.W_out"]}, task="add", model=TINY)
    message = "here.toml: estimator.1 (tbptt): no parameter is called 'cell.W_out'; the parameters are cell."
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        train(unknown)
    everything = settings({"name": "tbptt", "frozen": ["cell", "readout"]}, task="add", model=TINY)
    with pytest.raises(ConfigError, match=r"estimator.0 \(tbptt\): cell, readout are all the parameters"):
        train(everything)


def test_the_rate_slows_down_with_the_steps_of_the_stream():
    own = {"name": "tbptt", "window": 2, "optimizer": {"slowdown": 0.5}}
    (result,) = train(settings(own, updates=6, rates=(0.3,), chunk=4)).results
    task = toy(dtype=jnp.float64)
    for_model, for_stream, _ = jax.random.split(jax.random.key(0), 3)
    w, h = task.model.init(for_model)
    _, (xs, ys) = task.draw(task.init(for_stream), 12)
    estimator = tbptt(task.model)
    state, update = estimator.init(w, h, key=for_model), jax.jit(estimator.update)
    for t in range(0, 12, 2):
        state, estimate = update(state, w, xs[t : t + 2], ys[t : t + 2])
        w = w - 0.3 / (1 + 0.5 * t**0.5) * estimate.grads
    np.testing.assert_allclose(result.params[0, 0], w, rtol=1e-12)


def test_a_score_is_shown_in_place_of_the_loss(monkeypatch):
    def scored(**options):
        task = toy(**options)
        loss = lambda w, h, y: (task.model.loss(w, h, y)[0], {"said": w * h})
        score = lambda outputs, y: jnp.abs(outputs["said"] - y)
        return task._replace(model=task.model._replace(loss=loss), score=score)

    row = {"name": "tbptt", "window": 3}
    (plain,) = train(settings(row, seeds=2)).results
    monkeypatch.setitem(tasks.TASKS, "toy", scored)
    (result,) = train(settings(row, seeds=2)).results
    # what is learned is the loss
    np.testing.assert_allclose(result.params, plain.params, rtol=1e-12)
    np.testing.assert_allclose(result.grad_norm, plain.grad_norm, rtol=1e-12)
    task = toy(dtype=jnp.float64)
    for_model, for_stream, _ = jax.random.split(jax.random.key(1), 3)
    w, h = task.model.init(for_model)
    _, (xs, ys) = task.draw(task.init(for_stream), 3)
    by_hand = []
    for x, y in zip(xs, ys, strict=True):
        h = task.model.transition(w, h, x)
        by_hand.append(abs(w * h - y))
    assert result.loss[0, 1, 0] == pytest.approx(10 * np.mean(by_hand))


def test_resets_reach_the_model(monkeypatch):
    """A stream that begins anew at every step has no past to differ by."""

    def forgetful(every):
        def make(**options):
            task = toy(**options)

            def draw(state, length):
                steps = state[1] + jnp.arange(length, dtype=jnp.int32)
                state, (xs, ys) = task.draw(state, length)
                return state, ((xs, steps % every == 0), ys)

            return task._replace(draw=draw, resets=True)

        return make

    for every, same in ((1, True), (7, False)):
        monkeypatch.setitem(tasks.TASKS, "toy", forgetful(every))
        exact, cut = train(settings("rtrl", "tbptt", chunk=10)).results
        assert np.allclose(exact.loss, cut.loss, rtol=1e-9) == same
        assert np.isfinite(exact.loss).all()


def climbing(*, limit: float = 0.05, dtype=None):
    """A toy whose inputs grow by half with each level; a chunk with little loss leads to the next."""
    task = toy(dtype=dtype)

    def draw(state, length):
        (key, step), level = state
        (key, step), (xs, ys) = task.draw((key, step), length)
        xs = xs * (1 + level.astype(xs.dtype) / 2)
        return ((key, step), level), (xs, ys)

    def adapt(state, ys, losses):
        rises = jnp.mean(losses) < limit
        return state[0], state[1] + rises.astype(jnp.int32)

    return task._replace(
        init=lambda key: (task.init(key), jnp.zeros((), jnp.int32)),
        draw=draw,
        adapt=adapt,
        level=lambda state: state[1],
    )


@pytest.fixture(params=[True, False], ids=["side by side", "one after another"])
def side_by_side(monkeypatch, request):
    """How several learning rates are trained."""
    monkeypatch.setattr("online_grads.trainer.ON_CPU", 2**40 if request.param else 0)


def test_a_curriculum_is_one_for_each_rate_and_seed(monkeypatch, side_by_side):
    monkeypatch.setitem(tasks.TASKS, "toy", climbing)
    row = {"name": "tbptt", "window": 2}
    (both,) = train(settings(row, rates=(0.0, 1.0), seeds=16, chunk=12)).results
    assert both.levels.steps.tolist() == [0, 12, 24, 36, 48, 60]
    assert both.levels.reached.shape == (2, 16, 6)
    # each chunk of six updates, in the units of the loss itself
    easy = (both.loss / 10).reshape(2, 16, 5, 6).mean(axis=-1) < 0.05
    rises = np.diff(both.levels.reached, axis=-1)
    np.testing.assert_array_equal(rises, easy)
    assert not both.levels.reached[..., 0].any()
    ends = both.levels.reached[..., -1]
    assert len(set(ends[0])) > 1  # of seeds
    assert (ends[0] != ends[1]).any()  # of rates
    (alone,) = train(settings(row, rates=(1.0,), seed=2, chunk=12)).results
    np.testing.assert_array_equal(alone.levels.reached[0, 0], both.levels.reached[1, 2])
    np.testing.assert_allclose(alone.loss[0, 0], both.loss[1, 2], rtol=1e-12)


def test_a_lane_of_a_curriculum_that_diverges_is_alone(monkeypatch, side_by_side):
    monkeypatch.setitem(tasks.TASKS, "toy", climbing)
    (alone,) = train(settings("tbptt", rates=(0.5,), seeds=2, chunk=10)).results
    report = train(settings("tbptt", rates=(1e308, 0.5), seeds=2, chunk=10))
    (both,) = report.results
    assert report.failure is None
    assert not both.finite[0].all()
    np.testing.assert_array_equal(both.levels.reached[1], alone.levels.reached[0])
    np.testing.assert_allclose(both.loss[1], alone.loss[0], rtol=1e-12)
    assert scores(both)[0].diverged == 2
    # where the loss is not a number nothing is below the limit
    gone = np.isnan(both.loss[0]).reshape(2, 3, 10).any(axis=-1)
    assert gone.any()
    assert not np.diff(both.levels.reached[0], axis=-1)[gone].any()


def test_the_levels_of_a_curriculum_that_ends_early(monkeypatch, side_by_side):
    def spoilt(**options):
        task = climbing(limit=1e9, **options)

        def draw(state, length):
            step = state[0][1] + jnp.arange(length, dtype=jnp.int32)
            state, (xs, ys) = task.draw(state, length)
            return state, (jnp.where(step == 25, jnp.nan, xs), ys)

        return task._replace(draw=draw)

    monkeypatch.setitem(tasks.TASKS, "toy", spoilt)
    report = train(settings("tbptt", rates=(0.1, 0.2), chunk=10))
    assert report.failure == "tbptt: xs is not finite at step 25 of the stream"
    (result,) = report.results
    assert result.levels.steps.tolist() == [0, 10, 20]
    assert result.levels.reached.tolist() == [[[0, 1, 2]]] * 2


def levelled(reached, loss=None, rates=(0.1, 0.2)):
    reached = np.asarray(reached)
    found = result(np.tile(FALLING, (*reached.shape[:2], 1)) if loss is None else loss, rates)
    return found._replace(levels=Levels(np.arange(reached.shape[-1]), reached))


def test_scores_of_a_curriculum():
    found = levelled([[[1, 2], [1, 6]], [[1, 5], [1, 5]]])
    assert [(score.level, score.level_se) for score in scores(found)] == [(4.0, 2.0), (5.0, 0.0)]
    assert scores(levelled([[[1, 2]]], rates=(0.1,)))[0].level_se is None
    assert scores(result([[FALLING]], (0.1,)))[0].level is None
    # longer tasks cost more: the level comes before the loss, after the seeds that diverged
    assert best(levelled([[[1, 2]], [[1, 5]]], [[FALLING], [FALLING + 9]])) == 1
    assert best(levelled([[[1, 5]], [[1, 5]]], [[FALLING + 9], [FALLING]])) == 1
    assert best(levelled([[[1, 5]], [[1, 2]]], [[LOST], [FALLING]])) == 1
    # and a loss that rises with the level is no divergence
    assert best(levelled([[[1, 5]], [[1, 2]]], [[FALLING[::-1]], [FALLING]])) == 0


def test_a_curriculum_that_never_advanced_is_named():
    stuck, moved = levelled([[[3, 3], [3, 3]]] * 2), levelled([[[3, 3], [3, 3]], [[3, 3], [3, 4]]])
    assert never_advanced(stuck)
    assert not never_advanced(moved)
    assert not never_advanced(result([[FALLING]], (0.1,)))
    task = climbing(dtype=jnp.float64)
    named = moved._replace(config=EstimatorConfig("uoro", "noisy", 1, 20, 2, moved.config.optimizer, {}))
    said = table(Report(settings("rtrl"), task, (stuck, named), None))
    assert "the curriculum never advanced with rtrl:" in " ".join(said.split())
    lines = said.splitlines()
    assert lines[0].endswith("level reached")
    assert lines[1].endswith("3 ± 0")
    assert lines[2].endswith("3.5 ± 0.5")
    assert "never advanced" not in table(Report(settings("rtrl"), task, (named,), None))
    plain = table(Report(settings("rtrl"), toy(dtype=jnp.float64), (result([[FALLING]], (0.1,)),), None))
    assert "level" not in plain
