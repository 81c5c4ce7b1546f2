"""What is refused, in which words, and what is taken as it is."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model, rtrl, tbptt
from online_grads.analysis import analyse

W, V, KEY = jnp.ones((2, 2)), jnp.ones(2), jax.random.key(0)
GOOD = Model(
    init=lambda key: ({"W": W, "out": V}, V),
    transition=lambda p, h, x: jnp.tanh(p["W"] @ h + x),
    loss=lambda p, h, y: (jnp.sum((p["out"] * h - y) ** 2), h),
    example=(V, V),
)


def says(error, words):
    """Expects an error with these words, ... standing for anything."""
    return pytest.raises(error, match=".*".join(map(re.escape, words.split(" ... "))))


def starting(hidden=V, **params):
    return {"init": lambda key: ({"W": W, "out": V} | params, hidden)}


def moving(transition):
    return {"transition": transition}


def losing(loss):
    return {"loss": loss}


counting = starting(jnp.zeros(2, int)) | moving(lambda p, h, x: h + jnp.sum(p["W"] > 0))

REFUSED = [
    ({"init": lambda key: V}, TypeError, "model.init must return a pair (params, hidden), got float64[2]"),
    ({"example": (V,)}, TypeError, "model.example must be a pair (x, y) of one step, got (float64[2],)"),
    ({"init": lambda key: ({}, V)}, ValueError, "there is nothing to learn"),
    (starting(n=jnp.array(1)), TypeError, "params['n'] has dtype int64"),
    (starting(z=jnp.ones(1, complex)), TypeError, "params['z'] has dtype complex128"),
    (starting(k=KEY), TypeError, "params['k'] has dtype key<fry>"),
    (
        starting(W=jnp.ones((2, 3))),
        ValueError,
        "transition fails on params {W: float64[2, 3] ... dot",
    ),
    ({"init": lambda key: ({"U": V}, V)}, ValueError, "transition fails on params {U: float64[2]} ... 'W'"),
    (starting(jnp.ones(3)), ValueError, "model.transition fails on ... hidden float64[3], x float64[2]: "),
    ({"example": (jnp.ones(3), V)}, ValueError, "model.transition fails on ... x float64[3]: add"),
    ({"example": (V.astype("float32"), V)}, ValueError, "model.transition fails on ... x float32[2]: "),
    ({"example": (V, jnp.ones(3))}, ValueError, "model.loss fails on ... y float64[3]: sub"),
    (moving(lambda p, h, x: (p["W"] @ h,)), ValueError, "returns: expected the structure PyTreeDef(*), got "),
    (moving(lambda p, h, x: p["W"]), ValueError, "returns: expected float64[2], got float64[2, 2]"),
    (moving(lambda p, h, x: h.astype("float32")), ValueError, "returns: expected float64[2], got float32[2]"),
    (counting | losing(lambda p, h, y: (p["out"][0], h)), ValueError, "hidden state has no floating-point"),
    (losing(lambda p, h, y: h[0]), TypeError, "model.loss must return a pair (scalar loss, outputs), got"),
    (losing(lambda p, h, y: (h, h)), ValueError, "must return a floating-point scalar loss, got float64[2]"),
    (losing(lambda p, h, y: (jnp.sum(h > y), h)), ValueError, "floating-point scalar loss, got int64[]"),
    (starting(a={"b": V}, c=V), ValueError, "uses params['a']['b'], params['c']; remove it ... allow_unused"),
    (losing(lambda p, h, y: (h[0], p["out"])), ValueError, "neither ... nor model.loss uses params['out']"),
]


@pytest.mark.parametrize(("change", "error", "words"), REFUSED, ids=[words for _, _, words in REFUSED])
def test_refused_at_construction(change, error, words):
    with says(error, words):
        rtrl(GOOD._replace(**change))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"example": (np.zeros(2), jax.ShapeDtypeStruct((2,), float))},
        starting(np.ones(2), W=np.ones((2, 2)), out=2.0),
    ],
)
def test_taken(change):
    """Near misses of what is refused."""
    assert analyse(GOOD._replace(**change)).flat.size == 2


def test_what_is_no_model_is_refused():
    with says(TypeError, "expected an online_grads.Model, got tuple"):
        analyse((1, 2))


@pytest.mark.parametrize("constructor", [rtrl, tbptt])
def test_parameters_that_are_unused_or_that_only_the_outputs_show(constructor):
    model = GOOD._replace(
        loss=lambda p, h, y: (GOOD.loss(p, h, y)[0], p["shown"] + h), **starting(dead={"b": V}, shown=7 * V)
    )
    found = analyse(model, allow_unused=True)
    assert found.names == ["params['W']", "params['dead']['b']", "params['out']", "params['shown']"]
    assert (found.moving, found.reading) == ([0], [2, 3])
    estimator = constructor(model, allow_unused=True)
    state = estimator.init(*model.init(KEY), key=KEY)
    state, estimate = jax.jit(estimator.update)(state, model.init(KEY)[0], V[None], V[None])
    np.testing.assert_allclose(estimate.outputs[0], 7 + state.hidden)
    assert [bool(jnp.any(g)) for g in jax.tree.leaves(estimate.grads)] == [True, False, True, False]


def test_a_parameter_of_both_functions_gets_both_gradients():
    model = GOOD._replace(loss=lambda p, h, y: (jnp.sum(p["W"] @ (h * p["out"])), h))
    found, params = analyse(model), model.init(KEY)[0]
    assert (found.moving, found.reading) == ([0], [0, 1])
    np.testing.assert_array_equal(found.gradient([W], [W / 2, V])["W"], 1.5 * W)
    assert [leaf.shape for leaf in found.theta(params)] == [(2, 2)]
    assert [leaf.shape for leaf in found.readout(params)] == [(2, 2), (2,)]


PARAMS = {"W": W, "out": V}
STARTS = [
    (PARAMS | {"out": jnp.ones(3)}, V, KEY, ValueError, "params['out']: expected float64[2], got float64[3]"),
    (PARAMS, jnp.zeros(2, int), KEY, ValueError, "hidden: expected float64[2], got int64[2]"),
    (PARAMS, [V], KEY, ValueError, "hidden: expected the structure PyTreeDef(*), got PyTreeDef([*])"),
    ({"W": W}, V, KEY, ValueError, "params: expected the structure PyTreeDef({'W': *, 'out': *}), got"),
    ({"W": W}, V, KEY, ValueError, "PyTreeDef({'W': *}), without params['out']"),
    (PARAMS, V, jax.random.PRNGKey(0), TypeError, "typed key as jax.random.key makes it, got uint32[2]"),
    (PARAMS, V, 0, TypeError, "key must be a typed key as jax.random.key makes it, got int"),
    (PARAMS, V, jax.random.split(KEY), ValueError, "must be a single key, got shape (2,); vmap over several"),
]


@pytest.mark.parametrize(("params", "hidden", "key", "error", "words"), STARTS)
def test_a_start_that_does_not_fit(params, hidden, key, error, words):
    analyse(GOOD).check_start(PARAMS, V, KEY)
    with says(error, words):
        analyse(GOOD).check_start(params, hidden, key)


SEGMENTS = [
    (jnp.zeros(()), W, "xs and ys need a leading time axis [k, ...] on every leaf"),
    ((), (), "xs and ys need a leading time axis [k, ...] on every leaf"),
    (V, V, "xs: expected float64[2, 2], got float64[2]"),
    (jnp.zeros((0, 2)), jnp.zeros((0, 2)), "a segment needs at least one step, got 0"),
    (W, jnp.zeros((3, 2)), "ys: expected float64[2, 2], got float64[3, 2]"),
    (W.astype(int), W, "xs: expected float64[2, 2], got int64[2, 2]"),
    ([W], W, "xs: expected the structure PyTreeDef(*), got PyTreeDef([*])"),
]


@pytest.mark.parametrize(("xs", "ys", "words"), SEGMENTS)
def test_a_segment_that_does_not_fit(xs, ys, words):
    assert analyse(GOOD).check_segment(jnp.zeros((3, 2)), np.zeros((3, 2))) == 3
    with says(ValueError, words):
        analyse(GOOD).check_segment(xs, ys)
