"""What a module changes beside its carry is hidden state; what it never changes is a constant."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from online_grads import gradient, losses, readouts, rtrl, with_resets
from online_grads.adapters import equinox as from_equinox
from online_grads.adapters import linen as from_linen
from online_grads.adapters import nnx as from_nnx
from tests.adapters.modules import EXAMPLE, F64, HIDDEN, INPUTS, OUTPUTS
from tests.models import exact_gradient, relative_error, stream

KEY, STEPS = jax.random.key(3), 4
OPTIONS = {"example": EXAMPLE, "readout": readouts.linear(HIDDEN, OUTPUTS)}
ZEROS = jnp.zeros(HIDDEN, jnp.float64)


class LinenCentred(nn.Module):
    """Dropout, and a running mean of the state that its next step subtracts."""

    @nn.compact
    def __call__(self, h, x):
        mean = self.variable("statistics", "mean", jnp.zeros, HIDDEN, jnp.float64)
        scale = self.variable("constants", "scale", jnp.full, HIDDEN, 0.7)
        h, _ = nn.SimpleCell(HIDDEN, **F64)(h - scale.value * mean.value, x)
        mean.value = 0.9 * mean.value + 0.1 * h
        return h, nn.Dropout(0.5, deterministic=False)(h)


class NnxCentred(nnx.Module):
    """The same."""

    def __init__(self, rngs):
        self.cell = nnx.GRUCell(INPUTS, HIDDEN, **F64, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.mean = nnx.BatchStat(ZEROS)
        self.scale = nnx.Variable(jnp.full(HIDDEN, 0.7))

    def __call__(self, h, x):
        h, _ = self.cell(h - self.scale[...] * self.mean[...], x)
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * h
        return h, self.dropout(h)

    def initialize_carry(self, shape, rngs):
        self.dropout.rngs()  # moves the module, but no module of the caller
        return ZEROS


class EquinoxCentred(eqx.Module):
    """The same; equinox passes states and keys by hand, here in the carry."""

    cell: eqx.nn.GRUCell
    dropout: eqx.nn.Dropout
    mean: eqx.nn.StateIndex
    scale: jax.Array

    def __init__(self, key):
        self.cell, self.dropout = eqx.nn.GRUCell(INPUTS, HIDDEN, key=key), eqx.nn.Dropout(0.5)
        self.mean, self.scale = eqx.nn.StateIndex(ZEROS), jnp.full(HIDDEN, 0.7)

    def __call__(self, carry, x):
        h, state, key = carry
        key, now = jax.random.split(key)
        mean = state.get(self.mean)
        h = self.cell(x, h - self.scale * mean)
        return (h, state.set(self.mean, 0.9 * mean + 0.1 * h), key), self.dropout(h, key=now)


def exact(model, params, hidden, expected=None):
    """The relative error of RTRL; by default against backpropagation through the model."""
    xs, ys = stream(model, STEPS)
    expected = exact_gradient(model, params, hidden, xs, ys) if expected is None else expected(xs, ys)
    got = jax.jit(lambda *args: gradient(rtrl(model), *args, key=KEY))(params, hidden, xs, ys)
    return relative_error(got, expected)


def test_linen_statistics_and_dropout():
    model = from_linen.from_module(
        LinenCentred(), losses.squared_error, rngs=("dropout",), carry=ZEROS, **OPTIONS
    )
    params, hidden = model.init(KEY)
    assert set(hidden.state["cell"]) == {"statistics", "constants", "rngs"}
    assert hidden.state["cell"]["constants"] == {"scale": None}  # no step changes it
    assert exact(model, params, hidden) <= 1e-10


def test_every_step_draws_a_mask_of_its_own():
    options = {"rngs": ("dropout",), "carry": ZEROS, "example": (EXAMPLE[0], ZEROS)}
    model = from_linen.from_module(LinenCentred(), losses.squared_error, **options)
    params, hidden = model.init(KEY)
    _, after = jax.lax.scan(lambda h, x: (model.transition(params, h, x),) * 2, hidden, jnp.ones((8, INPUTS)))
    masks = np.asarray(after.output) == 0
    assert (masks != masks[0]).any(axis=1).sum() > 4


def test_linen_variables_take_the_place_of_init():
    cell = LinenCentred()
    made = cell.init({"params": KEY, "dropout": KEY}, ZEROS, EXAMPLE[0])
    options = {"rngs": ("dropout",), "carry": ZEROS, **OPTIONS}
    model = from_linen.from_module(cell, losses.squared_error, variables=made, **options)
    params, _ = model.init(jax.random.key(9))
    jax.tree.map(np.testing.assert_array_equal, params["cell"]["params"], made["params"])


def test_nnx_statistics_and_dropout():
    module = NnxCentred(nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(module))
    model = from_nnx.from_module(module, losses.squared_error, **OPTIONS)
    params, hidden = model.init(KEY)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(hidden.state)}
    # the module's own key and scale are constants
    assert {path.removesuffix(".value") for path in paths} == {
        "['cell']['mean']",
        "['cell']['dropout']['rngs']['count']",
    }

    def by_the_framework(xs, ys):
        def mean_loss(params):
            made, h, total = nnx.clone(module), ZEROS, 0.0
            nnx.update(made, params["cell"])
            for x, y in zip(xs, ys, strict=True):
                h, out = made(h, x)
                total += losses.squared_error(params["readout"]["W"] @ out + params["readout"]["bias"], y)
            return total / STEPS

        return jax.jit(jax.grad(mean_loss))(params)

    assert exact(model, params, hidden, by_the_framework) <= 1e-10
    # nothing has moved what was given: a state, the module, its arrays
    first, again = (model.transition(params, hidden, EXAMPLE[0]) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    jax.jit(lambda given: given, donate_argnums=0)(model.init(KEY))
    jax.tree.map(
        np.testing.assert_array_equal, jax.tree.map(_data, before), jax.tree.map(_data, nnx.state(module))
    )


def test_nnx_constructors_draw_keys_anew():
    model = from_nnx.from_module(NnxCentred, losses.squared_error, **OPTIONS)
    keys = [model.init(jax.random.key(seed))[1].state["cell"]["dropout"]["rngs"]["key"] for seed in (0, 1)]
    one, other = (np.asarray(_data(jax.tree.leaves(key)[0])) for key in keys)
    assert (one != other).any()


def test_equinox_state_and_dropout_in_the_carry():
    module, state = eqx.nn.make_with_state(EquinoxCentred)(KEY)
    frozen = eqx.tree_at(lambda m: m.scale, jax.tree.map(eqx.is_inexact_array, module), False)
    carry = lambda key: (ZEROS, state, key)
    model = from_equinox.from_module(module, losses.squared_error, carry=carry, trainable=frozen, **OPTIONS)
    params, hidden = model.init(KEY)
    assert params["cell"].scale is None
    assert eqx.combine(params["cell"], module).scale is module.scale

    def by_the_framework(xs, ys):
        def mean_loss(params):
            whole = eqx.combine(params["cell"], module)
            predict = jax.vmap(lambda out: params["readout"]["W"] @ out + params["readout"]["bias"])
            outs = jax.lax.scan(lambda c, x: whole(c, x), hidden.carry, xs)[1]
            return jnp.mean(jax.vmap(losses.squared_error)(predict(outs), ys))

        return jax.jit(jax.grad(mean_loss))(params)

    assert exact(model, params, hidden, by_the_framework) <= 1e-10


def test_resets_begin_everything_anew():
    model = from_linen.from_module(
        LinenCentred(), losses.squared_error, rngs=("dropout",), carry=ZEROS, **OPTIONS
    )
    params, hidden = model.init(KEY)
    episodic = with_resets(model, hidden)
    xs = jnp.ones((1, INPUTS))
    first = model.transition(params, hidden, xs[0])
    again = episodic.transition(params, first, (xs[0], True))
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(_data, tree) for tree in (first, again)))


def _data(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
