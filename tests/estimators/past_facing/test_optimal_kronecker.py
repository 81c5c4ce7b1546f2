import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import gradient, optimal_kronecker
from online_grads.estimators.past_facing.optimal_kronecker import _mixing, fewer_products
from tests.models import MODELS, problem, relative_error

SPECTRA = {
    "falling": [4.0, 2.0, 1.0, 0.5],
    "one large": [100.0, 0.2, 0.1, 0.05],
    "equal": [1.0, 1.0, 1.0, 1.0],
    "three": [3.0, 2.0, 1.0, 0.0],
    "one": [1.0, 0.0, 0.0, 0.0],
    "none": [0.0, 0.0, 0.0, 0.0],
}


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_mean_over_all_signs_is_the_spectrum(spectrum):
    sigma = jnp.array(SPECTRA[spectrum])
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    phi = jax.vmap(lambda signs: _mixing(sigma, signs))(signs)
    squares = phi @ jnp.swapaxes(phi, 1, 2)
    np.testing.assert_allclose(squares.mean(axis=0), jnp.diag(sigma), atol=1e-14)
    # one draw alone has noise, unless three products are all there is
    exact = np.allclose(squares[0], jnp.diag(sigma), atol=1e-14)
    assert exact == (spectrum in ("three", "one", "none"))


def least_variance(sigma, r):
    """The least E|X − diag(σ)|² of an unbiased X of rank r: Benzing et al., Theorem 1."""
    K = next(K for K in range(r) if (r - K) * sigma[K] <= sigma[K:].sum())
    return sigma[K:].sum() ** 2 / (r - K) - (sigma[K:] ** 2).sum()


@pytest.mark.parametrize("spectrum", ["falling", "one large", "equal"])
def test_the_variance_is_the_least_possible(spectrum):
    sigma = np.array(SPECTRA[spectrum])
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=4)))
    phi = jax.vmap(lambda signs: _mixing(jnp.asarray(sigma), signs))(signs)
    error = phi @ jnp.swapaxes(phi, 1, 2) - jnp.diag(sigma)[None]
    variance = float(jnp.mean(jnp.sum(error**2, axis=(1, 2))))
    assert variance == pytest.approx(least_variance(sigma, 3), rel=1e-10)
    # mixing all of them without regard to their sizes, as one random projection does, has more
    assert variance < sigma.sum() ** 2 - (sigma**2).sum()


def test_a_reduction_keeps_the_mean():
    keys = jax.random.split(jax.random.key(0))
    u, v = jax.random.normal(keys[0], (3, 5)), jax.random.normal(keys[1], (3, 7))
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)))
    reduced = jax.vmap(lambda signs: (lambda a, b: a.T @ b)(*fewer_products(u, v, signs)))(signs)
    np.testing.assert_allclose(reduced.mean(axis=0), u.T @ v, atol=1e-13)
    assert float(jnp.abs(reduced[0] - u.T @ v).max()) > 1e-2
    assert np.all(np.linalg.matrix_rank(reduced, tol=1e-10) == 2)


def test_half_precision_drops_no_small_product():
    """A product of a tenth of the other's size is far above rounding, yet close to it in bfloat16."""
    keys = jax.random.split(jax.random.key(0))
    u = (1 + 0.1 * jax.random.normal(keys[0], (3, 16))).astype(jnp.bfloat16)
    v = (1 + 0.1 * jax.random.normal(keys[1], (3, 16))).astype(jnp.bfloat16)
    signs = jnp.array(list(itertools.product([-1.0, 1.0], repeat=3)), jnp.bfloat16)
    a, b = (part.astype(float) for part in jax.vmap(lambda signs: fewer_products(u, v, signs))(signs))
    mean = jnp.mean(jnp.swapaxes(a, 1, 2) @ b, axis=0)
    exact = u.astype(float).T @ v.astype(float)
    assert float(jnp.abs(mean - exact).max() / jnp.abs(exact).max()) < 4e-3


@pytest.mark.parametrize("name", ["stacked", "normalised", "columns"])
def test_a_rank_of_all_presynaptic_entries_is_exact(name):
    """7 = 4 + 3 is the largest presynaptic vector among the models."""
    given = problem(name, 8)
    run = lambda rank: jax.jit(
        lambda *args: gradient(optimal_kronecker(given.model, rank=rank), *args, key=jax.random.key(1))
    )(*given.args)
    assert relative_error(run(7), given.exact) <= 1e-10
    assert relative_error(run(1), given.exact) > 1e-3


def test_no_more_products_are_carried_than_can_matter():
    model = MODELS["gru"]()
    start = lambda rank: jax.eval_shape(
        lambda key: optimal_kronecker(model, rank=rank).init(*model.init(key), key=key), jax.random.key(0)
    )
    for few, many in zip(start(2).influence.products, start(100).influence.products, strict=True):
        pre = many.u.shape[-1]
        assert (few.u.shape[-2], many.u.shape[-2]) == (2, pre + 1)
        assert many.B.shape[-3] == pre + 1


def test_bad_rank():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        optimal_kronecker(MODELS["gru"](), rank=0)
