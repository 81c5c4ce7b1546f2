"""Which sites are one drive: those that are only added up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from online_grads import Model, gradient, kf_rtrl, optimal_kronecker, rtrl, snap
from online_grads.analysis import analyse
from online_grads.linearize import Weights
from tests.models import exact_gradient, relative_error

N, M = 2, 3
SHAPES = {
    "W": (N, N),
    "U": (N, M),
    "b": (N,),
    "c": (N,),
    "s": (1,),
    "V": (4, N),
    "d": (4,),
    "K": (1, N, N),
    "k": (1, N),
}
RNG = np.random.default_rng(0)
VALUES = {name: 0.5 * RNG.normal(size=shape) for name, shape in SHAPES.items()}
START, XS, YS = np.linspace(-1, 1, N), RNG.normal(size=(6, M)), RNG.normal(size=(6, N))
# transition -> the weights of every drive, by their parameters' names
DRIVES = {
    "a layer": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["U"] @ x + p["b"]), ["WUb"]),
    "in any order": (lambda p, h, x: jnp.tanh(p["b"] + (p["U"] @ x + p["W"] @ h)), ["UWb"]),
    "and something else": (lambda p, h, x: jnp.tanh(p["W"] @ h + 0.5 * h + 1.0 + p["b"]), ["Wb"]),
    "as a row": (lambda p, h, x: jnp.tanh(h[None] @ p["W"] + p["b"][None])[0], ["Wb"]),
    "two sums": (
        lambda p, h, x: jnp.tanh(p["W"] @ h + p["b"]) * jnp.tanh(p["U"] @ x + p["c"]),
        ["Wb", "Uc"],
    ),
    "a difference": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["b"] - p["U"] @ x), ["Wb", "U"]),
    "a part used twice": (lambda p, h, x: jnp.tanh((z := p["W"] @ h) + p["b"]) + z, ["W", "b"]),
    "a sum used twice": (lambda p, h, x: jnp.tanh(z := p["W"] @ h + p["b"]) + z, ["Wb"]),
    "a bias used twice": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["b"]) + p["b"], ["W", "b"]),
    "scaled": (lambda p, h, x: jnp.tanh(2 * (p["W"] @ h) + p["b"]), ["W", "b"]),
    "spread over units": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["s"]), ["W", "s"]),
    "turned": (lambda p, h, x: jnp.tanh((p["W"] @ h)[::-1] + p["b"]), ["W", "b"]),
    "reshaped in another order": (
        lambda p, h, x: jnp.tanh(lax.reshape(lax.reshape(p["V"] @ h, (2, 2)), (4,), (1, 0)) + p["d"])[:N],
        ["V", "d"],
    ),
    "of blocks": (
        lambda p, h, x: jnp.tanh(jnp.einsum("kij,kj->ki", p["K"], h[None]) + p["k"])[0],
        ["Kk"],
    ),
    "the same weight twice": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["W"] @ jnp.sin(h) + p["b"]), ["WWb"]),
    "only biases": (lambda p, h, x: jnp.tanh(0.3 * h + (p["b"] + p["c"] * h)), ["c", "b"]),
    "returned": (lambda p, h, x: p["W"] @ h + p["b"], ["Wb"]),
    "a constant matrix": (lambda p, h, x: jnp.tanh(jnp.eye(N) @ h + p["U"] @ x + p["b"]), ["Ub"]),
}


def model_of(name):
    transition, drives = DRIVES[name]
    init = lambda key: ({n: jnp.asarray(VALUES[n]) for n in set("".join(drives))}, jnp.asarray(START))
    loss = lambda params, h, y: (jnp.sum((h - y) ** 2), ())
    return Model(init, transition, loss, (jnp.zeros(M), jnp.zeros(N)))


@pytest.mark.parametrize("name", DRIVES)
def test_sites_that_are_only_added_up_are_one_drive(name):
    structure = Weights(analyse(model_of(name)), dense=True)
    letters = [n.split("'")[1] for n in structure.names]
    weights = lambda drive: "".join(letters[structure.sites[i].weight] for i in structure.members(drive))
    assert [weights(drive) for drive in structure.trained_drives] == DRIVES[name][1]


@pytest.mark.parametrize("name", DRIVES)
def test_the_gradient_is_exact_however_they_are_joined(name):
    model = model_of(name)
    # a drive has N² pairs of a hidden entry and a unit: so many products hold all of its influence
    kronecker = optimal_kronecker(model, rank=N * N)
    estimators = (rtrl(model), 1), (rtrl(model), 3), (snap(model, order=N), 1), (kronecker, 1)

    @jax.jit
    def gradients(*given):
        each = [gradient(e, *given, key=jax.random.key(2), window=window) for e, window in estimators]
        return exact_gradient(model, *given), each

    expected, each = gradients(*model.init(jax.random.key(0)), XS, YS)
    for got, bound in zip(each, (1e-10, 1e-10, 1e-6, 1e-6), strict=True):
        assert relative_error(got, expected) <= bound


def test_joined_sites_share_one_product_of_the_kronecker_methods():
    """And a part that is used twice has a product of its own: joining it would be wrong."""
    sizes = {}
    for name in ("a sum used twice", "a part used twice"):
        model = model_of(name)
        state = kf_rtrl(model).init(*model.init(jax.random.key(0)), key=jax.random.key(1))
        sizes[name] = [factors.u.shape for factors in state.influence.products], len(state.influence.direct)
    assert sizes == {"a sum used twice": ([(1, N + 1)], 0), "a part used twice": ([(1, N)], 1)}
    one, other = (DRIVES[name][0] for name in sizes)
    params, h = model_of("a sum used twice").init(jax.random.key(0))
    assert np.abs(one(params, h, None) - other(params, h, None)).max() > 1e-3
