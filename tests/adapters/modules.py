"""Modules of flax and equinox, and the same modules run by hand: what the adapters are held against."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from online_grads import Model, losses
from online_grads.adapters import equinox as from_equinox
from online_grads.adapters import linen as from_linen
from online_grads.adapters import nnx as from_nnx
from tests.strange import random_like

INPUTS, OUTPUTS, HIDDEN, STEPS = 3, 2, 4, 5
# in NumPy: 64 bits of JAX may be turned on later than this is imported
EXAMPLE = (np.zeros(INPUTS), np.zeros(OUTPUTS))
F64 = {"param_dtype": jnp.float64}


class LinenStack(nn.Module):
    """A GRU below an LSTM, with a readout."""

    @nn.compact
    def __call__(self, carry, x):
        below, above = carry
        below, x = nn.GRUCell(HIDDEN, **F64)(below, x)
        above, x = nn.LSTMCell(HIDDEN - 1, **F64)(above, x)
        return (below, above), nn.Dense(OUTPUTS, **F64)(x)

    @nn.nowrap
    def initialize_carry(self, key, shape):
        cells = nn.GRUCell(HIDDEN, **F64), nn.LSTMCell(HIDDEN - 1, **F64)
        return tuple(cell.initialize_carry(key, shape) for cell in cells)


class LinenHand(nn.Module):
    """A leaky network whose output also sees the input: it cannot be read off the carry."""

    @nn.compact
    def __call__(self, h, x):
        W = self.param("W", nn.initializers.normal(0.5), (HIDDEN, HIDDEN + INPUTS), jnp.float64)
        h = 0.5 * h + 0.5 * jnp.tanh(W @ jnp.concatenate([h, x]))
        return h, nn.Dense(OUTPUTS, **F64)(jnp.concatenate([h, x]))


class NnxStack(nnx.Module):
    """The same stack."""

    def __init__(self, rngs):
        self.below = nnx.GRUCell(INPUTS, HIDDEN, **F64, rngs=rngs)
        self.above = nnx.LSTMCell(HIDDEN, HIDDEN - 1, **F64, rngs=rngs)
        self.readout = nnx.Linear(HIDDEN - 1, OUTPUTS, **F64, rngs=rngs)

    def __call__(self, carry, x):
        below, x = self.below(carry[0], x)
        above, x = self.above(carry[1], x)
        return (below, above), self.readout(x)

    def initialize_carry(self, shape, rngs):
        return tuple(cell.initialize_carry(shape, rngs) for cell in (self.below, self.above))


class NnxHand(nnx.Module):
    """The same leaky network, with a gain that is no parameter."""

    def __init__(self, rngs):
        self.W = nnx.Param(0.5 * jax.random.normal(rngs.params(), (HIDDEN, HIDDEN + INPUTS), jnp.float64))
        self.readout = nnx.Linear(HIDDEN + INPUTS, OUTPUTS, **F64, rngs=rngs)
        self.gain = nnx.Variable(jnp.asarray(0.9, jnp.float64))

    def __call__(self, h, x):
        h = 0.5 * h + 0.5 * jnp.tanh(self.W[...] @ jnp.concatenate([h, self.gain[...] * x]))
        return h, self.readout(jnp.concatenate([h, x]))


class EquinoxStack(eqx.Module):
    """The same stack."""

    below: eqx.nn.GRUCell
    above: eqx.nn.LSTMCell
    readout: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.below = eqx.nn.GRUCell(INPUTS, HIDDEN, key=keys[0])
        self.above = eqx.nn.LSTMCell(HIDDEN, HIDDEN - 1, key=keys[1])
        self.readout = eqx.nn.Linear(HIDDEN - 1, OUTPUTS, key=keys[2])

    def __call__(self, carry, x):
        below, above = carry
        below = self.below(x, below)
        above = self.above(below, above)
        return (below, above), self.readout(above[0])


class EquinoxHand(eqx.Module):
    """The same leaky network, with fields of every kind."""

    W: jax.Array
    readout: eqx.nn.Linear
    order: jax.Array
    activation: Callable
    bias: jax.Array | None = None
    leak: float = 0.5

    def __init__(self, key):
        self.W = 0.5 * jax.random.normal(key, (HIDDEN, HIDDEN + INPUTS))
        self.readout = eqx.nn.Linear(HIDDEN + INPUTS, OUTPUTS, key=key)
        self.order, self.activation = jnp.arange(INPUTS)[::-1], jnp.tanh

    def __call__(self, h, x):
        drive = self.W @ jnp.concatenate([h, x[self.order]])
        h = (1 - self.leak) * h + self.leak * self.activation(drive)
        return h, self.readout(jnp.concatenate([h, x]))


class Case(NamedTuple):
    """A model and the module itself."""

    model: Model
    step: Callable  # (params, carry, x) -> (carry, prediction), by the framework alone


def linen_cell(name):
    cell, readout = getattr(nn, name)(HIDDEN, **F64), nn.Dense(OUTPUTS, **F64)

    def step(params, carry, x):
        carry, out = cell.apply(params["cell"], carry, x)
        return carry, readout.apply(params["readout"], out)

    return Case(from_linen.from_module(cell, losses.squared_error, example=EXAMPLE, readout=readout), step)


def linen_module(module, **options):
    return Case(
        from_linen.from_module(module, losses.squared_error, example=EXAMPLE, **options), module.apply
    )


def nnx_cell(name):
    # its SimpleCell alone computes in float32 by default
    cell = getattr(nnx, name)(INPUTS, HIDDEN, dtype=jnp.float64, **F64, rngs=nnx.Rngs(0))
    readout = nnx.Linear(HIDDEN, OUTPUTS, **F64, rngs=nnx.Rngs(1))
    graphs = [nnx.split(module)[0] for module in (cell, readout)]

    def step(params, carry, x):
        cell, readout = (
            nnx.merge(graph, params[role]) for graph, role in zip(graphs, ("cell", "readout"), strict=True)
        )
        carry, out = cell(carry, x)
        return carry, readout(out)

    return Case(from_nnx.from_module(cell, losses.squared_error, example=EXAMPLE, readout=readout), step)


def nnx_module(make, **options):
    graph, _, rest = nnx.split(make(nnx.Rngs(0)), nnx.Param, ...)
    step = lambda params, carry, x: nnx.merge(graph, params, rest)(carry, x)
    return Case(from_nnx.from_module(make, losses.squared_error, example=EXAMPLE, **options), step)


def equinox_cell(name):
    keys = jax.random.split(jax.random.key(0))
    cell, readout = (
        getattr(eqx.nn, name)(INPUTS, HIDDEN, key=keys[0]),
        eqx.nn.Linear(HIDDEN, OUTPUTS, key=keys[1]),
    )

    def step(params, carry, x):
        carry = eqx.combine(params["cell"], cell)(x, carry)
        return carry, eqx.combine(params["readout"], readout)(carry if name == "GRUCell" else carry[0])

    return Case(from_equinox.from_module(cell, losses.squared_error, example=EXAMPLE, readout=readout), step)


def equinox_module(make, **options):
    module = make(jax.random.key(0))
    step = lambda params, carry, x: eqx.combine(params, module)(carry, x)
    return Case(from_equinox.from_module(make, losses.squared_error, example=EXAMPLE, **options), step)


ZEROS = np.zeros(HIDDEN)
CASES = {
    **{
        f"linen {name}": functools.partial(linen_cell, name)
        for name in ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "MGUCell", "SimpleCell")
    },
    "linen stacked": lambda: linen_module(LinenStack()),
    "linen hand-written": lambda: linen_module(LinenHand(), carry=ZEROS),
    **{
        f"nnx {name}": functools.partial(nnx_cell, name)
        for name in ("GRUCell", "LSTMCell", "OptimizedLSTMCell", "SimpleCell")
    },
    "nnx stacked": lambda: nnx_module(NnxStack),
    "nnx hand-written": lambda: nnx_module(NnxHand, carry=ZEROS),
    **{f"equinox {name}": functools.partial(equinox_cell, name) for name in ("GRUCell", "LSTMCell")},
    "equinox stacked": lambda: equinox_module(EquinoxStack, carry=(ZEROS, (ZEROS[1:], ZEROS[1:]))),
    "equinox hand-written": lambda: equinox_module(EquinoxHand, carry=ZEROS),
}


class Problem(NamedTuple):
    """A case with a stream, and exact gradients of its mean loss by the framework alone."""

    model: Model
    params: dict
    hidden: object
    xs: jax.Array
    ys: jax.Array
    exact: dict  # steps -> the gradient of the first of them: of one, and of all

    @property
    def args(self):
        return self[1:5]


@functools.cache
def problem(name):
    """The problem of a case, computed once."""
    model, step = CASES[name]()
    # flax starts its biases at zero: a gradient there should be told from none
    params = random_like(jax.eval_shape(model.init, jax.random.key(0))[0], seed=0)
    hidden = jax.jit(lambda key: model.init(key)[1])(jax.random.key(0))
    draw = np.random.default_rng(1).normal
    xs, ys = (jnp.asarray(draw(size=(STEPS, *s.shape))) for s in model.example)

    def mean_loss(params, counted):
        body = lambda carry, x: step(params, carry, x)
        predictions = jax.lax.scan(body, hidden.carry, xs)[1]
        return counted @ jax.vmap(losses.squared_error)(predictions, ys)

    exact = jax.jit(jax.grad(mean_loss))
    counted = lambda steps: np.where(np.arange(STEPS) < steps, 1 / steps, 0.0)
    return Problem(model, params, hidden, xs, ys, {n: exact(params, counted(n)) for n in (1, STEPS)})
