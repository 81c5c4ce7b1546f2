"""From a config's tables to optax: which optimizer, at which rate when, for which parameters."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads.optimizers import OptimizerConfig, lazy, leaves_under, make, read, read_one
from online_grads.precision import x64
from online_grads.tables import ConfigError, Section

SHARED = {"name": "adam", "learning_rate": [0.1, 1], "b1": 0.8, "slowdown": 0.5}
ADAMW = {"name": "adamw", "learning_rate": 0.1}


def own(**table):
    return Section("estimator.0.optimizer", table)


def test_tables_are_laid_over_the_shared_one():
    assert read(own(), SHARED) == OptimizerConfig("adam", (0.1, 1.0), {"b1": 0.8}, 0.5)
    assert read(own(learning_rate=2, b2=0.9), SHARED) == OptimizerConfig(
        "adam", (2.0,), {"b1": 0.8, "b2": 0.9}, 0.5
    )
    # the same name is no other one, and another name starts afresh, the slowdown included
    assert read(own(name="adam", slowdown=1), SHARED).slowdown == 1.0
    assert read(own(name="sgd", learning_rate=3.0), SHARED) == OptimizerConfig("sgd", (3.0,), {}, 0.0)
    assert read(own(learning_rate=1.0), {}).name == "adam"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"slowdown": -1.0}, "estimator.0.optimizer.slowdown: expected a finite number ≥ 0, got -1.0"),
        ({"slowdown": float("nan")}, "slowdown: expected a finite number ≥ 0, got nan"),
        ({"slowdown": "fast"}, "slowdown: expected a number, got 'fast'"),
        ({"learning_rate": [0.1, -0.1]}, "learning_rate: expected finite numbers ≥ 0, got [0.1, -0.1]"),
        ({"learning_rate": float("inf")}, "learning_rate: expected finite numbers ≥ 0, got inf"),
        ({"name": "sgd"}, "estimator.0.optimizer.learning_rate: missing"),
        ({"name": "clip"}, "estimator.0.optimizer.name: unknown name 'clip'; "),
        ({"mu_dtype": "nonsense"}, "expected one of bfloat16, float16, float32, float64, got 'nonsense'"),
        ({"mu_dtype": "int32"}, "estimator.0.optimizer.mu_dtype: expected one of bfloat16, "),
        (ADAMW | {"mask": "cell"}, "estimator.0.optimizer.mask: expected true or false, or a table of them"),
        (ADAMW | {"mask": {"cell": 1}}, "with the parameters' names, got {'cell': 1}"),
        (ADAMW | {"mask": [True]}, "with the parameters' names, got [True]"),
        (ADAMW | {"mask": {"cell": [True]}}, "with the parameters' names, got {'cell': [True]}"),
        (ADAMW | {"mask": {"cell": {}}}, "with the parameters' names, got {'cell': {}}"),
    ],
)
def test_mistakes(table, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read(own(**table), SHARED)


def test_a_narrow_momentum_and_a_mask_are_taken():
    table = ADAMW | {"mu_dtype": "bfloat16", "mask": {"cell": True, "readout": False}, "weight_decay": 0.5}
    optimizer = make(read(own(**table), {}), 0.1)
    params = {"cell": {"W": jnp.ones(2)}, "readout": jnp.ones(2)}
    state = optimizer.init(params)
    assert state[0].mu["cell"]["W"].dtype == jnp.bfloat16
    with jax.numpy_dtype_promotion("standard"):
        moves, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), state, params)
    np.testing.assert_allclose(moves["cell"]["W"], -0.05)
    np.testing.assert_array_equal(moves["readout"], 0)


def test_the_defaults_of_optax_are_taken():
    table = ADAMW | {"mu_dtype": None, "mask": None}
    assert make(read(own(**table), {}), 0.1).init(jnp.ones(2))[0].mu.dtype == jnp.float64


def test_a_momentum_is_not_narrowed_without_a_word():
    chosen = read(own(mu_dtype="float64"), SHARED)
    make(chosen, 0.1)
    with x64(False), pytest.raises(ConfigError, match=r'^mu_dtype: float64 needs precision = "float64"'):
        make(chosen, 0.1)


def test_mistakes_in_the_shared_table_are_named_there():
    with pytest.raises(ConfigError, match=r"^optimizer.learning_rate: missing"):
        read(own(), {})
    section = Section("estimator.0", {"inner": {"learning_rate": [0.1, 0.2]}})
    with pytest.raises(
        ConfigError, match=r"^estimator.0.inner.learning_rate: expected one number, got a list"
    ):
        read_one(section, "inner")
    assert read_one(Section("estimator.0", {}), "inner") is None


def rates(chosen, window, updates=5):
    """The rates of the first updates, from the steps that they take along a gradient of ones."""
    optimizer = make(chosen, 0.3, window=window)
    params = jnp.zeros(2)
    state, found = optimizer.init(params), []
    for _ in range(updates):
        step, state = optimizer.update(jnp.ones(2), state, params)
        found.append(-float(step[0]))
    return found


def test_the_slowdown():
    sgd = OptimizerConfig("sgd", (0.3,), {}, 0.5)
    for window in (1, 4):
        steps = window * np.arange(5)
        np.testing.assert_allclose(rates(sgd, window), 0.3 / (1 + 0.5 * np.sqrt(steps)), rtol=1e-12)
    np.testing.assert_allclose(rates(OptimizerConfig("sgd", (0.3,), {}), 4), 0.3, rtol=1e-12)
    # Adam takes steps of its rate along a constant gradient
    adam = OptimizerConfig("adam", (0.3,), {"eps": 0.0}, 2.0)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes its count
        found = rates(adam, 1)
    np.testing.assert_allclose(found, 0.3 / (1 + 2 * np.sqrt(np.arange(5))), rtol=1e-5)


PARAMS = {"cell": {"W_in": jnp.ones(2), "W_rec": jnp.ones(2)}, "readout": [jnp.ones(1), jnp.ones(1)]}


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_frozen_does_not_move(name):
    chosen = OptimizerConfig(name, (0.3,), {"weight_decay": 0.1} if name == "adamw" else {})
    optimizer = make(chosen, 0.3, frozen=("cell.W_in", "readout.1"))
    free = make(chosen, 0.3)
    ones = {"cell": {"W_in": jnp.full(2, jnp.nan), "W_rec": jnp.ones(2)}, "readout": [jnp.ones(1)] * 2}
    with jax.numpy_dtype_promotion("standard"):
        step, _ = optimizer.update(ones, optimizer.init(PARAMS), PARAMS)
        full, _ = free.update(ones, free.init(PARAMS), PARAMS)
    moved = optax.apply_updates(PARAMS, step)
    np.testing.assert_array_equal(moved["cell"]["W_in"], 1)  # whatever its gradient
    np.testing.assert_array_equal(moved["readout"][1], 1)
    assert (moved["cell"]["W_rec"] < 1).all()
    np.testing.assert_allclose(step["cell"]["W_rec"], full["cell"]["W_rec"])
    np.testing.assert_allclose(step["readout"][0], full["readout"][0])


def test_a_lazy_optimizer_moves_nothing_without_a_gradient():
    table = {"name": "sgd", "learning_rate": 0.3, "momentum": 0.9}
    moves = []
    for idle in (True, False):
        optimizer = make(read(own(**table, lazy=idle), {}), 0.3)
        _, state = optimizer.update(jnp.ones(2), optimizer.init(jnp.zeros(2)))
        moves.append(optimizer.update(jnp.array([0.0, 1.0]), state)[0])
    np.testing.assert_allclose(moves, [[0, -0.57], [-0.27, -0.57]], rtol=1e-12)
    with pytest.raises(TypeError, match="optimizer must be an optax GradientTransformation, got 'adam'"):
        lazy("adam")


def test_names_of_parameters():
    named = leaves_under(PARAMS, ("cell",))
    assert named == {"cell": {"W_in": True, "W_rec": True}, "readout": [False, False]}
    assert leaves_under(PARAMS, ("readout.0", "cell.W_rec"))["readout"] == [True, False]
    known = "the parameters are cell.W_in, cell.W_rec, readout.0, readout.1"
    for name in ("cell.W", "W_in", "cell.W_in.x", "cel", "", "cell."):
        with pytest.raises(ValueError, match=re.escape(f"no parameter is called {name!r}; {known}")):
            leaves_under(PARAMS, ("readout", name))
    with pytest.raises(ValueError, match="readout, cell are all the parameters there are"):
        leaves_under(PARAMS, ("readout", "cell"))
