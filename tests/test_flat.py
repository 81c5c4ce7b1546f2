"""The hidden state as one vector: what is in it, in which order and precision."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.flat import flatten

HIDDEN = {
    "count": jnp.array(3, jnp.int32),
    "key": jax.random.key(5),
    "phasor": jnp.array([[1 + 2j, 3 - 4j]], jnp.complex64),
    "seen": jnp.array([True, False]),
    "state": (jnp.arange(6.0).reshape(2, 3), jnp.float32(0.5)),
    "void": jnp.zeros((0, 2)),
}


def same(one, other):
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    chex.assert_trees_all_equal(jax.tree.map(data, one), jax.tree.map(data, other))
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.tree.map(data, one), jax.tree.map(data, other))


def test_floats_in_tree_order_a_complex_leaf_as_real_then_imaginary_parts():
    flat = flatten(HIDDEN)
    h, rest = flat.split(HIDDEN)
    assert (flat.size, flat.dtype, h.dtype) == (11, jnp.float64, jnp.float64)
    np.testing.assert_array_equal(h, [1, 3, 2, -4, 0, 1, 2, 3, 4, 5, 0.5])
    assert [leaf.dtype for leaf in rest] == [jnp.int32, HIDDEN["key"].dtype, jnp.bool_]
    same(flat.join(h, rest), HIDDEN)
    changed = flat.join(h + 1, [rest[0] + 1, *rest[1:]])
    np.testing.assert_array_equal(changed["phasor"], HIDDEN["phasor"] + 1 + 1j)
    np.testing.assert_array_equal(changed["state"][0], HIDDEN["state"][0] + 1)
    assert changed["count"] == 4


def test_from_shapes_under_jit_and_vmap():
    flat = flatten(jax.eval_shape(lambda: HIDDEN))
    there_and_back = lambda hidden: flat.join(*flat.split(hidden))
    same(jax.jit(there_and_back)(HIDDEN), HIDDEN)
    many = jax.tree.map(lambda leaf: leaf[None], HIDDEN)
    same(jax.jit(jax.vmap(there_and_back))(many), many)


@pytest.mark.parametrize(
    ("dtypes", "widest"),
    [
        ("float32", "float32"),
        ("float32 float64 int32", "float64"),
        ("bfloat16", "bfloat16"),
        ("bfloat16 float32", "float32"),
        ("float16 bfloat16", "float32"),
        ("complex64", "float32"),
        ("complex64 float64", "float64"),
        ("complex128 float32", "float64"),
        ("int32", "float32"),
        ("", "float32"),
    ],
)
def test_the_widest_precision_holds_every_leaf(dtypes, widest):
    hidden = [jnp.asarray([1, 3], dtype) for dtype in dtypes.split()]
    flat = flatten(hidden)
    h, rest = flat.split(hidden)
    assert h.dtype == flat.dtype == widest
    assert h.shape == (flat.size,)
    same(flat.join(h, rest), hidden)


def test_differentiable_and_linear():
    """The vector's derivative of a complex leaf is that of its two parts."""
    flat = flatten(HIDDEN)
    h, rest = flat.split(HIDDEN)
    square = lambda h: jnp.sum(jnp.abs(flat.join(h, rest)["phasor"]) ** 2)
    np.testing.assert_allclose(jax.jit(jax.grad(square))(h), [2, 6, 4, -8, *[0] * 7])
    identity = jax.jit(jax.jacfwd(lambda h: flat.split(flat.join(h, rest))[0]))(h)
    np.testing.assert_array_equal(identity, np.eye(11))
