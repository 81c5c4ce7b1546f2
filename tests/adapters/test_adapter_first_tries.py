"""What one tries first with a module of a framework: served as it is meant, or refused with the way out."""

import functools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.adapters.modules import EXAMPLE, F64, HIDDEN, INPUTS, OUTPUTS
from tests.adapters.test_adapter_refusals import EQUINOX_GRU, GRU, ZEROS, equinox, in_nnx, linen

RNGS = nnx.Rngs(0)
NNX_GRU = nnx.GRUCell(INPUTS, HIDDEN, **F64, rngs=RNGS)
BATCH = tuple(jnp.zeros((8, *part.shape)) for part in EXAMPLE)
NORM = functools.partial(nn.BatchNorm, force_float32_reductions=False, **F64)
IMAGE = jnp.zeros((2, 3, 1))


class LinenNormed(nn.Module):
    """A cell below a BatchNorm whose mode is an attribute, or else an argument."""

    attribute: bool | None = None
    argument: bool | None = None

    @nn.compact
    def __call__(self, h, x):
        h, _ = nn.SimpleCell(HIDDEN, **F64)(h, x)
        return h, NORM(self.attribute)(h, self.argument)


class NnxNormed(nnx.Module):
    """The same, or over an axis of its own; in float32, as its means are."""

    def __init__(self, attribute=None, argument=None, rows=1):
        self.cell = nnx.GRUCell(INPUTS, HIDDEN, rngs=RNGS)
        self.norm = nnx.BatchNorm(HIDDEN, use_running_average=attribute, rngs=RNGS)
        self.argument, self.rows = argument, rows

    def __call__(self, h, x):
        h, _ = self.cell(h, x)
        rows = jnp.stack([n * h for n in range(self.rows)])
        return h, self.norm(rows, self.argument)[-1]


def nnx_normed(module):
    h, x = jnp.zeros(HIDDEN, jnp.float32), jnp.zeros(INPUTS, jnp.float32)
    return in_nnx(module, example=(x, h), carry=h, readout=None)


class EquinoxNormed(eqx.Module):
    cell: eqx.nn.GRUCell
    norm: eqx.nn.BatchNorm

    def __init__(self, key):
        self.cell = EQUINOX_GRU(key)
        self.norm = eqx.nn.BatchNorm(HIDDEN, axis_name="batch", mode="ema")

    def __call__(self, carry, x):
        h, state = carry
        h = self.cell(x, h)
        out, state = self.norm(h, state)
        return (h, state), out


def equinox_normed(inference):
    module, state = eqx.nn.make_with_state(EquinoxNormed)(jax.random.key(0))
    return equinox(eqx.nn.inference_mode(module, inference), carry=(ZEROS, state))


class Swapped(nn.Module):
    """Arguments in the usual order, what is returned in the other."""

    @nn.compact
    def __call__(self, h, x):
        return nn.Dense(OUTPUTS, **F64)(x), h


ALONE = r"BatchNorm on float.*4\] normalises over a batch.*one observation.*use_running_average=True"
NO_STEP = r"is no \(carry, x\) -> \(carry, out\) module"
SEQUENCE = "RNN runs over a whole sequence.*give its cell"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: linen(LinenNormed(False), carry=ZEROS), ValueError, ALONE),
        (lambda: linen(LinenNormed(None, False), carry=ZEROS), ValueError, ALONE),
        (lambda: linen(GRU, readout=NORM(False)), ValueError, ALONE),
        (lambda: nnx_normed(NnxNormed(False)), ValueError, ALONE),
        (lambda: nnx_normed(NnxNormed(True, False)), ValueError, ALONE),
        (lambda: linen(GRU, readout=NORM(False, axis_name="streams")), ValueError, "no batch: what needs a"),
        (lambda: equinox_normed(False), ValueError, "no batch: what needs a batch, as BatchNorm"),
        # modules of another form
        (lambda: linen(nn.RNN(GRU)), TypeError, SEQUENCE),
        (lambda: linen(nn.RNN(GRU), carry=ZEROS), TypeError, SEQUENCE),
        (lambda: in_nnx(nnx.RNN(NNX_GRU), carry=None), TypeError, SEQUENCE),
        (lambda: linen(nn.Dense(2)), TypeError, f"Dense {NO_STEP}; call="),
        (lambda: linen(nn.Sequential([nn.Dense(2)])), ValueError, r"if it is a \(carry, x\) ->"),
        (lambda: linen(nn.Sequential([nn.Dense(2)]), carry=ZEROS), ValueError, r"called as \(carry, x\) and"),
        (lambda: in_nnx(nnx.Linear(3, 2, rngs=RNGS)), TypeError, f"Linear {NO_STEP}"),
        (lambda: equinox(lambda key: eqx.nn.Linear(3, 2, key=key)), TypeError, f"Linear {NO_STEP}"),
        (lambda: linen(Swapped(), carry=ZEROS), ValueError, r"changes carry from .*\(carry, out\), in this"),
        # axes and sizes
        (lambda: linen(GRU, example=BATCH), ValueError, r"an x of 1 axis, got float64\[8, 3\]; .*batched"),
        (lambda: in_nnx(NNX_GRU, example=BATCH), ValueError, "an x of 1 axis, got .*batched"),
        (lambda: equinox(EQUINOX_GRU, example=BATCH), ValueError, "an x of 1 axis, got .*batched"),
        (
            lambda: linen(nn.ConvLSTMCell(2, (2, 2)), example=(jnp.zeros((8, 2, 3, 1)), EXAMPLE[1])),
            ValueError,
            "an x of 3 axes",
        ),
        (lambda: linen(GRU, carry=ZEROS[1:]), ValueError, r"from carry float64\[4\], got float64\[3\]"),
        (lambda: in_nnx(NNX_GRU, carry=ZEROS[1:]), ValueError, r"carry float64\[4\], got float64\[3\]"),
        # modules of another framework, classes
        (lambda: linen(NNX_GRU), TypeError, "Module, got GRUCell, which online_grads.adapters.nnx takes$"),
        (lambda: in_nnx(GRU), TypeError, "Module, got GRUCell, which online_grads.adapters.linen takes$"),
        (lambda: in_nnx(EQUINOX_GRU(jax.random.key(0))), TypeError, "which online_grads.adapters.equinox"),
        (lambda: equinox(NNX_GRU), TypeError, "which online_grads.adapters.nnx takes$"),
        (lambda: linen(nn.GRUCell), TypeError, r"got the class GRUCell: make one, GRUCell\(...\)"),
        (lambda: in_nnx(nnx.GRUCell), ValueError, r"missing.*or lambda rngs: GRUCell\(..., rngs=rngs\)"),
        (lambda: equinox(eqx.nn.GRUCell), ValueError, r"missing.*or lambda key: GRUCell\(..., key=key\)"),
    ],
)  # fmt: skip
def test_refused_with_the_way_out(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: linen(LinenNormed(True), carry=ZEROS),
        lambda: linen(LinenNormed(None, True), carry=ZEROS),
        lambda: nnx_normed(NnxNormed(False, True)),
        lambda: nnx_normed(NnxNormed(False, rows=2)),  # a mean of two entries
        lambda: equinox_normed(True),
        lambda: linen(nn.ConvLSTMCell(2, (2, 2), **F64), example=(IMAGE, jnp.zeros((2, 3, 2))), readout=None),
        lambda: linen(nn.remat(nn.GRUCell)(HIDDEN, **F64)),
        lambda: linen(nn.Sequential([GRU, lambda h, out: (h, 2 * out)]), carry=ZEROS),
        # what `call` says how to call, and then with a carry of its own
        lambda: linen(GRU, carry=(ZEROS, ZEROS), call=lambda cell, h, x: ((h[1], h[0]), cell(h[0], x)[1])),
        lambda: linen(nn.Dense(HIDDEN, **F64), carry=ZEROS, call=lambda dense, h, x: (dense(x), h)),
    ],
)
def test_served(make):
    jax.eval_shape(make().init, jax.random.key(0))
