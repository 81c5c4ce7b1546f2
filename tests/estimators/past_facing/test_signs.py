import jax
import jax.numpy as jnp
import numpy as np

from online_grads.estimators.past_facing.signs import random_signs

SHAPES = [jax.ShapeDtypeStruct((3, 5), jnp.float64), jax.ShapeDtypeStruct((40,), jnp.bfloat16)]


def test_shapes_dtypes_and_values():
    signs = jax.jit(lambda key: random_signs(key, SHAPES))(jax.random.key(0))
    assert [(s.shape, s.dtype) for s in signs] == [(s.shape, s.dtype) for s in SHAPES]
    for one in signs:
        assert set(np.asarray(one, float).ravel()) == {-1.0, 1.0}
    assert random_signs(jax.random.key(0), []) == []


def test_signs_are_balanced_and_independent():
    """Σ_keys of every sign and of every product of two lies within 5 standard deviations."""
    keys = jax.random.split(jax.random.key(1), 4000)
    draw = lambda key: jnp.concatenate([s.ravel().astype(float) for s in random_signs(key, SHAPES)])
    signs = np.asarray(jax.vmap(draw)(keys))
    bound = 5 * np.sqrt(len(keys))
    assert np.abs(signs.sum(axis=0)).max() < bound
    products = signs.T @ signs
    assert np.abs(products - np.diag(np.diag(products))).max() < bound
    # a bit that is used twice would be noticed
    twice = np.concatenate([signs, signs[:, :1]], axis=1)
    assert (twice.T @ twice)[0, -1] > bound
