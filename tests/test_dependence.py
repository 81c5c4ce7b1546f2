"""Patterns: never a subset of the true dependence, and no larger than they need to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import sparse

from online_grads.dependence import dependence, may_be_nonzero
from tests.models import MODELS
from tests.one_step import case
from tests.strange import CELLS

MASK = jnp.asarray([1.0, 0, 1])
EXACT = [
    "vanilla",
    "lstm",
    "gru",
    "flax GRUCell",
    "equinox LSTMCell",
    "masked",
    "chosen by a mask",
    "mapped columns",
]


def reached(name, seeds):
    """The entries that are not zero at some of these points: J, J₀, D and V, side by side."""
    _, _, _, at, step_at = case(name)
    found = False
    for seed in seeds:
        step = step_at(*at(seed))
        n = step.held.shape[0]
        rows = [step.jacobian, step.held, *(d.reshape(n, -1) for d in step.drives)]
        rows += [v.reshape(-1, n).T for v in step.vectors]
        found |= np.concatenate([np.asarray(part) for part in rows], axis=1) != 0
    return found


def pattern(name):
    """The patterns in the same arrangement."""
    patterns = case(name).patterns
    parts = [patterns.jacobian, patterns.held, *patterns.sites, *(v.T for v in patterns.presynaptic)]
    assert all(part.dtype == bool and part.tocsr().data.all() for part in parts)
    return sparse.hstack(parts).toarray()


@pytest.mark.parametrize("name", [*MODELS, *CELLS])
def test_every_entry_that_can_move_is_in_the_pattern(name):
    assert not np.any(reached(name, range(3)) & ~pattern(name))


@pytest.mark.parametrize("name", EXACT)
def test_no_other_entry_is_where_nothing_cancels_or_saturates(name):
    np.testing.assert_array_equal(pattern(name), reached(name, range(3)))


def test_points_alone_miss_what_a_pattern_must_have():
    """Negative control: a branch that is not taken, a unit that is off."""
    for name in ("untaken branch", "in branches", "relu"):
        assert np.any(pattern(name) & ~reached(name, [1])), name


# functions of h [3] and of a vector w [3] of unknown value: the rows of the exact pattern
FUNCTIONS = {
    "elementwise": (lambda h, w: jnp.tanh(h) * w - jnp.where(h > 0, h, 0) / (1 + h**2), "100 010 001"),
    "dead relu": (lambda h, w: jax.nn.relu(h - 1e9), "100 010 001"),
    "roll": (lambda h, w: jnp.roll(h, 1), "001 100 010"),
    "gather": (lambda h, w: h[jnp.array([2, 2, 0])], "001 001 100"),
    "gather out of bounds": (
        lambda h, w: h.at[jnp.array([0, 9, 2])].get(mode="fill", fill_value=0.5),
        "100 000 001",
    ),
    "gather at unknown places": (lambda h, w: h[jnp.argsort(w)], "111 111 111"),
    "constant mask": (lambda h, w: MASK * h + (h * w)[::-1] * (1 - MASK), "100 010 001"),
    "mask of unknown value": (lambda h, w: w * h + jnp.zeros(3), "100 010 001"),
    "constant choice": (lambda h, w: jnp.where(MASK > 0, h, h[::-1] * h[0]), "100 110 001"),
    "unknown choice": (lambda h, w: jnp.where(w > 0, h, jnp.roll(h, 1)), "101 110 011"),
    "unknown scalar choice": (lambda h, w: lax.select(w[0] > 0, h, h[::-1]), "101 010 101"),
    "cond": (lambda h, w: lax.cond(w[0] > 0, lambda: h[:1], lambda: h[1:2]), "111"),
    "scalar times vector": (lambda h, w: h[0] * w + h, "100 110 101"),
    "row times column": (lambda h, w: (h[:, None] * h[None]).ravel()[1:5], "110 101 110 010"),
    "matrix times row": (lambda h, w: (jnp.ones((2, 3)) * h[None]).sum(1), "111 111"),
    "matrix times column": (lambda h, w: (jnp.ones((3, 2)) * h[:, None]).sum(1), "100 010 001"),
    "constant matrix": (lambda h, w: jnp.array([[0.0, 2, 0], [1, 0, 1]]) @ h, "010 101"),
    "matrix of masked unknowns": (lambda h, w: (w[:, None] * jnp.eye(3)) @ h, "100 010 001"),
    "product over no entries": (lambda h, w: jnp.ones((2, 0)) @ h[:0], "000 000"),
    "batched product": (lambda h, w: jnp.einsum("ij,ij->i", h[None] * w[:2, None], jnp.eye(2, 3)), "100 010"),
    "pad": (lambda h, w: lax.pad(h, 0.0, ((-1, 1, 1),)), "000 010 000 001 000"),
    "pad with an entry": (lambda h, w: lax.pad(h[:2], h[2], ((1, 0, 1),)), "001 100 001 010"),
    "reduction over an axis": (lambda h, w: jnp.stack([h, 2 * h[::-1]]).sum(0)[:2], "101 010"),
    "maximum of an axis": (lambda h, w: jnp.stack([h, h[::-1]]).max(0)[:2], "101 010"),
    "reshape and transpose": (lambda h, w: jnp.stack([h, h]).T.reshape(2, 3)[0], "100 100 010"),
    "sort": (lambda h, w: jnp.sort(h)[:1], "111"),
    "scan": (lambda h, w: lax.scan(lambda c, a: (c + a, c), 0.0, h)[1][:1], "111"),
    "complex": (lambda h, w: jnp.imag(lax.complex(h, h) ** 2), "100 010 001"),
    "cast": (lambda h, w: h.astype(jnp.bfloat16).astype(h.dtype), "100 010 001"),
    "not differentiated": (
        lambda h, w: lax.stop_gradient(h) + jnp.round(h) + (h > 0).astype(h.dtype),
        "000 000 000",
    ),
    "nothing": (lambda h, w: w, "000 000 000"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exact_pattern(name):
    function, rows = FUNCTIONS[name]
    vector = jax.ShapeDtypeStruct((3,), float)
    found = dependence(function, vector, given=(vector,)).toarray()
    assert " ".join("".join(str(int(entry)) for entry in row) for row in found) == rows


def test_products_that_sum_over_entries_can_be_left_out():
    vector, rows = jax.ShapeDtypeStruct((3,), float), jax.ShapeDtypeStruct((2, 3), float)
    apart = lambda function, given: dependence(function, vector, given=(given,), products=False).toarray()
    assert not apart(lambda h, w: w @ jnp.tanh(h), rows).any()
    assert dependence(lambda h, w: w @ jnp.tanh(h), vector, given=(rows,)).toarray().all()
    # what no product mixes stays, an outer product too
    np.testing.assert_array_equal(apart(lambda h, w: w * h + jnp.sum(w @ h), vector), np.eye(3))
    outer = lambda h, w: jnp.einsum("i,j->ij", h, w).ravel()
    np.testing.assert_array_equal(apart(outer, vector), np.repeat(np.eye(3), 3, axis=0))


def test_constants_that_are_tracers_count_as_dense():
    vector = jax.ShapeDtypeStruct((3,), float)
    found = []

    @jax.jit
    def traced(mask):
        found.append(dependence(lambda h: jnp.diag(mask) @ h, vector).nnz)
        return mask

    traced(MASK)
    jax.vmap(traced)(MASK[None])
    assert found[0] >= 3
    assert dependence(lambda h: jnp.diag(MASK) @ h, vector).nnz == 2


def test_provably_zero_entries():
    shape = jax.ShapeDtypeStruct((3,), float)
    zero = lambda function: may_be_nonzero(function, shape)[0].tolist()
    assert zero(lambda w: jnp.tanh(w * MASK)) == [True, False, True]
    assert zero(lambda w: jnp.exp(w * MASK)) == [True, True, True]
    assert zero(lambda w: jnp.where(MASK > 0, w, 0)) == [True, False, True]
    assert zero(lambda w: (w * MASK)[jnp.array([1, 0, 1])] * -w) == [False, True, False]
    assert zero(lambda w: w * MASK + (1 - MASK)) == [True, True, True]
    filled = lambda w: jnp.take(w * (1 - MASK), jnp.array([0, 1, 9]), mode="fill", fill_value=0.5)
    assert zero(filled) == [False, True, True]
