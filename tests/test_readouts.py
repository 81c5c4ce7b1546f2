"""Readouts: shapes, values, initial weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import readouts


def test_linear_is_affine():
    readout = readouts.linear(3, 2)
    params = {"W": jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]]), "bias": jnp.array([10.0, 20.0])}
    assert jax.tree.structure(readout.init(jax.random.key(0))) == jax.tree.structure(params)
    np.testing.assert_array_equal(readout.apply(params, jnp.array([1.0, 1.0, 2.0])), [19.0, 21.0])
    assert readouts.linear(3, 2, bias=False).init(jax.random.key(0)).keys() == {"W"}
    unbiased = readouts.linear(3, 2, bias=False).apply({"W": params["W"]}, jnp.array([1.0, 1.0, 2.0]))
    np.testing.assert_array_equal(unbiased, [9.0, 1.0])


def test_linear_starts_with_variance_one_over_inputs():
    params = readouts.linear(100, 50).init(jax.random.key(0))
    np.testing.assert_allclose(jnp.var(params["W"]), 1 / 100, rtol=0.1)
    assert not params["bias"].any()
    narrow = readouts.linear(100, 50, std=0.3).init(jax.random.key(0))
    np.testing.assert_allclose(jnp.std(narrow["W"]), 0.3, rtol=0.05)
    assert not narrow["bias"].any()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtype_is_honoured(dtype):
    readout = readouts.linear(3, 2, dtype=dtype)
    params = readout.init(jax.random.key(0))
    assert (
        params["W"].dtype == params["bias"].dtype == readout.apply(params, jnp.ones(3, dtype)).dtype == dtype
    )


def test_identity_has_no_parameters():
    readout = readouts.identity()
    assert readout.init(jax.random.key(0)) == {}
    np.testing.assert_array_equal(readout.apply({}, jnp.arange(3)), [0, 1, 2])


def test_bad_arguments():
    with pytest.raises(ValueError, match="outputs must be at least 1, got -1"):
        readouts.linear(3, -1)
    with pytest.raises(TypeError, match="bias must be True or False, got 1"):
        readouts.linear(3, 1, bias=1)
    with pytest.raises(ValueError, match=r"std must be at least 0, got -0\.1"):
        readouts.linear(3, 1, std=-0.1)
    with pytest.raises(TypeError, match="std must be a number, got 'small'"):
        readouts.linear(3, 1, std="small")
