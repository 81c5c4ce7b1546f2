import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.estimators.past_facing.products import singular_products


def products(m, rows, columns, dtype=float):
    keys = jax.random.split(jax.random.key(m))
    return jax.random.normal(keys[0], (m, rows), dtype), jax.random.normal(keys[1], (m, columns), dtype)


@pytest.mark.parametrize(("m", "rows", "columns"), [(2, 5, 9), (3, 2, 9), (5, 8, 3), (9, 33, 64)])
def test_is_the_singular_value_decomposition(m, rows, columns):
    u, v = products(m, rows, columns)
    a, sigma, b = jax.jit(singular_products)(u, v)
    expected = np.linalg.svd(u.T @ v, compute_uv=False)
    full = min(m, rows, columns)
    np.testing.assert_allclose(sigma[:full], expected[:full], rtol=1e-10)
    np.testing.assert_allclose(sigma[full:], 0, atol=1e-12)
    np.testing.assert_allclose(a.T @ (sigma[:, None] * b), u.T @ v, atol=1e-12)
    for vectors in (a[:full], b[:full]):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(full), atol=1e-10)


def test_zero_and_dependent_products():
    """As at the start of a stream: all but one product are zero, or two are the same."""
    some_u, some_v = products(3, 5, 6)
    for u, v in (
        (some_u.at[:2].set(0), some_v.at[:2].set(0)),
        (some_u.at[1].set(some_u[0]), some_v.at[1].set(some_v[0])),
        (0 * some_u, 0 * some_v),
    ):
        a, sigma, b = singular_products(u, v)
        np.testing.assert_allclose(a.T @ (sigma[:, None] * b), u.T @ v, atol=1e-13)
        assert bool(jnp.all(jnp.isfinite(a)) & jnp.all(jnp.isfinite(b)))


def test_the_sum_stays_exact_in_single_precision():
    u, v = products(5, 16, 64, jnp.float32)
    a, sigma, b = singular_products(u, v)
    assert a.dtype == sigma.dtype == b.dtype == jnp.float32
    np.testing.assert_allclose(a.T @ (sigma[:, None] * b), u.T @ v, atol=1e-4)
