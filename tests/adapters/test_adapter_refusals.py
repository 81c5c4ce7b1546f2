"""What cannot be served is refused before anything compiles, with the reason."""

import sys

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from online_grads import losses, readouts, rtrl
from online_grads.adapters import equinox as from_equinox
from online_grads.adapters import linen as from_linen
from online_grads.adapters import nnx as from_nnx
from tests.adapters.modules import EXAMPLE, F64, HIDDEN, INPUTS, OUTPUTS, EquinoxHand
from tests.adapters.test_adapter_state import EquinoxCentred, LinenCentred

KEY = jax.random.key(0)
ZEROS = jnp.zeros(HIDDEN, jnp.float64)
READOUT = readouts.linear(HIDDEN, OUTPUTS)


class Drawn(nnx.Module):
    """Fixed random features: neither parameters nor state."""

    def __init__(self, rngs):
        self.features = nnx.Variable(jax.random.normal(rngs.params(), (HIDDEN, INPUTS), jnp.float64))
        self.cell = nnx.SimpleCell(HIDDEN, HIDDEN, dtype=jnp.float64, **F64, rngs=rngs)

    def __call__(self, h, x):
        return self.cell(h, self.features[...] @ x)


class Sets(nnx.Module):
    """A step that sets a parameter, or one that makes a variable."""

    def __init__(self, rngs, makes=False):
        self.gain, self.makes = nnx.Param(ZEROS), makes

    def __call__(self, h, x):
        if self.makes:
            self.count = nnx.Variable(jnp.zeros(()))
        else:
            self.gain[...] = h
        return h * self.gain[...], h


class Unused(nnx.Module):
    """A parameter that nothing reads."""

    def __init__(self, rngs):
        self.cell = nnx.GRUCell(INPUTS, HIDDEN, **F64, rngs=rngs)
        self.spare = nnx.Param(ZEROS)

    def __call__(self, h, x):
        return self.cell(h, x)


def linen(module, loss=losses.squared_error, **options):
    return from_linen.from_module(module, loss, **{"example": EXAMPLE, "readout": READOUT, **options})


def in_nnx(module, **options):
    return from_nnx.from_module(
        module, losses.squared_error, **{"example": EXAMPLE, "readout": READOUT, "carry": ZEROS, **options}
    )


def equinox(module, **options):
    return from_equinox.from_module(
        module, losses.squared_error, **{"example": EXAMPLE, "readout": READOUT, **options}
    )


GRU = nn.GRUCell(HIDDEN, **F64)
EQUINOX_GRU = lambda key: eqx.nn.GRUCell(INPUTS, HIDDEN, key=key)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        # the wrong thing
        (lambda: linen(nn.GRUCell), TypeError, "module must be a flax.linen.Module, got .*GRUCell"),
        (lambda: in_nnx(3), TypeError, "module must be an nnx.Module or a function"),
        (lambda: in_nnx(nnx.GRUCell), ValueError, "making the module by .* fails: .*missing"),
        (lambda: in_nnx(lambda rngs: 3), TypeError, "the module that .* makes must be an nnx.Module"),
        (lambda: equinox(3), TypeError, "module must be an equinox.Module or a function"),
        (lambda: equinox(lambda key: (EQUINOX_GRU(key), 1)), TypeError, "eqx.nn.State goes into the carry"),
        (lambda: linen(GRU, readout=3), TypeError, "readout must be a flax.linen.Module"),
        (lambda: in_nnx(Drawn(nnx.Rngs(0)), readout=3), TypeError, "readout must be an nnx.Module"),
        (lambda: equinox(EQUINOX_GRU, readout=3), TypeError, "readout must be an equinox.Module"),
        (lambda: linen(GRU, example=EXAMPLE[0]), TypeError, "example must be a pair"),
        (lambda: linen(GRU, loss=3), TypeError, "loss must be a function"),
        (lambda: linen(GRU, rngs="dropout"), TypeError, r"rngs must be .*, as \('dropout',\)"),
        # no cell
        (lambda: in_nnx(Drawn(nnx.Rngs(0)), carry=None), ValueError, "no initialize_carry"),
        (lambda: equinox(EquinoxHand, carry=None), ValueError, "first carry is not known"),
        (
            lambda: linen(GRU, call=lambda cell, h, x: cell(h, x)[0]),
            TypeError,
            r"must return a pair \(carry, out\), got float64\[4\]",
        ),
        # what does not fit
        (lambda: linen(nn.GRUCell(3, **F64)), ValueError, r"the readout fails on the output float64\[3\]: "),
        (lambda: linen(GRU, carry=(ZEROS,)), ValueError, r"carry float64\[4\], got \(float64\[4\],\)"),
        (lambda: linen(nn.GRUCell(HIDDEN)), ValueError, "float32.*float64.*one precision|strict"),
        (
            lambda: equinox(EQUINOX_GRU, carry=jnp.zeros((2, HIDDEN), jnp.float64)),
            ValueError,
            r"carry float64\[4\], got float64\[2, 4\]",
        ),
        (lambda: equinox(EQUINOX_GRU, readout=None), ValueError, r"prediction float64\[4\] and y float"),
        # state
        (lambda: linen(LinenCentred(), carry=ZEROS), ValueError, r'for "dropout".*rngs=\(.dropout.,\)'),
        (lambda: in_nnx(Drawn), ValueError, r"Drawn.* draws \['cell'\]\['features'\].* from its key"),
        (lambda: in_nnx(Sets), ValueError, r"sets the parameter \['gain'\]"),
        (lambda: in_nnx(lambda rngs: Sets(rngs, makes=True)), ValueError, r"makes .*variable \['count'\]"),
        (lambda: equinox(EquinoxCentred, carry=ZEROS), ValueError, r"Centred\.mean holds .*make_with_state"),
        (
            lambda: equinox(eqx.nn.Dropout(0.5), carry=ZEROS, call=lambda drop, h, x: (h, drop(h))),
            ValueError,
            "Dropout on carry .* fails: .*key",
        ),
    ],
)  # fmt: skip
def test_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


def test_the_same_random_features_are_served_as_constants_of_a_module():
    params, hidden = in_nnx(Drawn(nnx.Rngs(0))).init(KEY)
    assert hidden.state == ()
    assert "features" not in params["cell"]


def test_a_parameter_that_nothing_uses_is_refused_by_the_estimator():
    model = in_nnx(Unused)
    with pytest.raises(ValueError, match=r"\['spare'\].*allow_unused"):
        rtrl(model)
    rtrl(model, allow_unused=True)


@pytest.mark.parametrize(
    ("adapter", "framework"), [("linen", "flax"), ("nnx", "flax"), ("equinox", "equinox")]
)
def test_a_framework_that_is_not_there(adapter, framework, monkeypatch):
    name = f"online_grads.adapters.{adapter}"
    monkeypatch.delitem(sys.modules, name)
    for module in [name for name in sys.modules if name.split(".")[0] == framework]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(
        ImportError, match=rf"{name} needs {framework}: pip install 'online-grads\[{framework}\]'"
    ):
        __import__(name)
