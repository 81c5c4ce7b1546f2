"""From a config to its task, models, estimators and seeds, and who is blamed when one is refused."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import assembly, readouts, tasks
from online_grads.config import ConfigError, parse
from tests import models

RUN = {"steps": 12, "precision": "float64"}


def settings(*estimators, task="add", cell="vanilla_rnn", hidden=3, **sections):
    rows = [{"name": name} if isinstance(name, str) else name for name in estimators or ("rtrl",)]
    tables = {
        "task": {"name": task} if isinstance(task, str) else task,
        "model": {"cell": cell, "hidden": hidden},
        "run": RUN,
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "estimator": rows,
        **sections,
    }
    return parse({name: table for name, table in tables.items() if table}, source="here.toml")


def made(config, chosen=None):
    return assembly.model_of(config, assembly.task_of(config), chosen)


def stub(**fields):
    """A task of vectors of 2 that differs from `add` in some fields."""
    return lambda *, dtype=None: tasks.add(dtype=dtype)._replace(**fields)


@pytest.fixture
def known(monkeypatch):
    return lambda **fields: monkeypatch.setitem(tasks.TASKS, "stub", stub(**fields))


def test_a_cell_or_a_stack_of_them():
    shapes = lambda config: jax.eval_shape(made(config).init, jax.random.key(0))
    params, hidden = shapes(settings())
    assert params["cell"]["W_in"].shape == (3, 2)
    assert hidden.shape == (3,)
    assert hidden.dtype == params["readout"]["W"].dtype == "float64"
    _, hidden = shapes(settings(hidden=[3, 2]))
    assert [leaf.shape for leaf in jax.tree.leaves(hidden)] == [(3,), (2,)]
    # an rtu gives on two numbers per unit
    params, _ = shapes(settings(cell="rtu", hidden=[3, 2]))
    assert [part["W"].shape for part in (*params["cell"], params["readout"])] == [(6, 2), (4, 6), (2, 4)]
    low = shapes(settings(run={**RUN, "precision": "float32"}))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(low)} == {"float32"}


def test_a_variant_of_the_cell():
    half = {"cell": "vanilla_rnn", "hidden": 3, "leak": 0.5}
    config = settings("rtrl", {"name": "tbptt", "label": "leaky", "model": {"leak": 0.125}}, model=half)
    params, hidden = made(config).init(jax.random.key(0))
    x = jnp.ones(2)
    whole, leaky = (made(config, row).transition(params, hidden, x) for row in config.estimators)
    np.testing.assert_allclose(leaky, 0.25 * whole, rtol=1e-12)
    np.testing.assert_array_equal(made(config).transition(params, hidden, x), whole)
    bad = settings("rtrl", {"name": "rtrl", "label": "b", "model": {"leak": 2.0}})
    with pytest.raises(ConfigError, match=r"^here.toml: estimator.1 \(rtrl\): model: .*leak"):
        made(bad, bad.estimators[1])
    bad = settings(model={"cell": "vanilla_rnn", "hidden": 3, "leak": 2.0})
    with pytest.raises(ConfigError, match=r"^here.toml: model: .*leak"):
        made(bad)


def test_a_task_s_own_readout_and_own_way_to_build(known):
    def readout(inputs, outputs, *, dtype):
        inner = readouts.linear(inputs, outputs, dtype=dtype)
        return inner._replace(apply=lambda params, h: 10 * inner.apply(params, h))

    known(readout=readout)
    ten, one = made(settings(task="stub")), made(settings())
    params, hidden = one.init(jax.random.key(0))
    h = one.transition(params, hidden, jnp.ones(2))
    y = jnp.array([0.5, 0.5])
    np.testing.assert_allclose(ten.loss(params, h, y)[1], 10 * one.loss(params, h, y)[1], rtol=1e-12)
    seen = {}

    def build(cell, readout):
        seen.update(size=cell.size, readout=readout)
        return models.vanilla()

    known(build=build)
    assert made(settings(task="stub", hidden=[5, 4])).example[0].shape == (3,)
    assert seen["size"] == 4
    assert seen["readout"].init(jax.random.key(0))["W"].shape == (2, 4)


def test_tasks_and_models_that_do_not_fit(known):
    known(loss=None)
    with pytest.raises(
        ConfigError, match=r"^here.toml: model: the task 'stub' brings neither a model nor a loss"
    ):
        made(settings(task="stub"))
    known(example=(jax.ShapeDtypeStruct((2, 2), float), jax.ShapeDtypeStruct((2,), float)))
    with pytest.raises(ConfigError, match=r"^here.toml: model: cells take vectors, the task gives "):
        made(settings(task="stub"))
    known(model=models.vanilla())
    with pytest.raises(ConfigError, match=r"^here.toml: model: leave it out, the task 'stub' brings its own"):
        made(settings(task="stub"))
    assert made(settings(task="stub", model=None)).example is models.EXAMPLE
    with pytest.raises(
        ConfigError, match=r"^here.toml: model: constructive_columns grows .* 'copy' begins the"
    ):
        made(settings(task="copy", cell="constructive_columns"))
    made(settings(cell="constructive_columns"))
    with pytest.raises(ConfigError, match=r"^here.toml: model: missing, the task 'add' needs a cell"):
        made(settings(model=None))
    with pytest.raises(ConfigError, match=r"^here.toml: task: t1 and t2 must differ, got 5 for both"):
        made(settings(task={"name": "add", "t2": 5}))


def test_resets_begin_where_the_cell_begins(known):
    base = models.vanilla()
    start = jnp.arange(4.0)
    model = base._replace(init=lambda key: (base.init(key)[0], start))
    known(model=model, resets=True)
    episodic = made(settings(task="stub", model=None))
    params, hidden = episodic.init(jax.random.key(3))
    np.testing.assert_array_equal(hidden, start)
    x, far = jnp.ones(3), jnp.full(4, 9.0)
    for reset, before in ((True, start), (False, far)):
        np.testing.assert_allclose(
            episodic.transition(params, far, (x, jnp.array(reset))), model.transition(params, before, x)
        )
    assert made(settings()).reset is None


def test_random_feedback_is_of_the_first_seed(known):
    rows = [{"name": "rflo", "feedback": "random"}, {"name": "rflo", "label": "fed by the readout"}]

    def gradient(seed, row):
        config = settings(*rows, run={**RUN, "seed": seed})
        model = made(config)
        params, hidden = model.init(jax.random.key(0))
        estimator = assembly.estimator_of(config, config.estimators[row], model)
        given = params, jnp.ones((1, 2)), jnp.array([[1.0, 0.0]])
        # the noise of each is another: the feedback is not drawn from it
        state = estimator.init(params, hidden, key=jax.random.key(next(noise)))
        return jax.jit(estimator.update)(state, *given)[1].grads["cell"]["bias"]

    noise = iter(range(9))
    random, again, other, symmetric = gradient(0, 0), gradient(0, 0), gradient(1, 0), gradient(0, 1)
    np.testing.assert_array_equal(again, random)
    assert not np.allclose(random, other)
    assert not np.allclose(random, symmetric)


def test_the_second_of_two_like_ones_is_blamed():
    config = settings("rtrl", {"name": "tbptt", "label": "a"}, {"name": "tbptt", "history": -1})
    assert [assembly.place(row) for row in config.estimators] == [
        *("estimator.0 (rtrl)", "estimator.1 (tbptt)", "estimator.2 (tbptt)")
    ]
    with pytest.raises(ConfigError, match=re.escape("here.toml: estimator.2 (tbptt): history must be at")):
        assembly.estimator_of(config, config.estimators[2], made(config))


def test_an_estimator_s_own_optimizer(known):
    inner = {"name": "sgd", "learning_rate": 0.1}
    config = settings({"name": "kernl", "inner_optimizer": inner})
    (row,) = config.estimators
    model = made(config)
    params, hidden = model.init(jax.random.key(0))
    assembly.estimator_of(config, row, model).init(params, hidden, key=jax.random.key(0))


def test_a_seed_decides_everything():
    config = settings()
    task, model = assembly.task_of(config), made(config)
    data = lambda start: jax.tree.map(
        lambda leaf: (
            jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        ),
        start,
    )
    one, again, other = (jax.tree.leaves(data(assembly.start(task, model, seed))) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(one, again, strict=True))
    assert sum(not np.array_equal(a, b) for a, b in zip(one, other, strict=True)) >= 4
    # parameters, stream and noise have keys of their own
    start = assembly.start(task, model, 3)
    keys = {
        tuple(np.ravel(jax.random.key_data(key))) for key in (start.stream.key, start.key, jax.random.key(3))
    }
    assert len(keys) == 3


def test_x64_is_on_or_off_inside_only():
    before = jnp.zeros(()).dtype
    for on, dtype in ((True, "float64"), (False, "float32")):
        with assembly.x64(on):
            assert jnp.zeros(()).dtype == dtype
        assert jnp.zeros(()).dtype == before


def test_blaming_keeps_one_line_and_other_errors():
    config = settings()
    with (
        pytest.raises(ConfigError, match=r"^here.toml: there: two lines$"),
        assembly.blaming(config, "there", (ValueError,)),
    ):
        raise ValueError("two\n   lines")
    with pytest.raises(KeyError), assembly.blaming(config, "there", (ValueError,)):
        raise KeyError("a bug")
