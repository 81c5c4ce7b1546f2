"""Losses: values, gradients, and shapes that must not be broadcast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import losses

LOGITS = jnp.array([1.0, -2.0, 0.5])
SOFTMAX = np.exp(LOGITS) / np.exp(LOGITS).sum()


@pytest.mark.parametrize(
    ("labels", "onehot"), [(jnp.array(2), [0, 0, 1]), (jnp.array([0.2, 0.5, 0.3]), [0.2, 0.5, 0.3])]
)
def test_softmax_cross_entropy_in_nats(labels, onehot):
    value, gradient = jax.value_and_grad(losses.softmax_cross_entropy)(LOGITS, labels)
    np.testing.assert_allclose(value, -np.dot(onehot, np.log(SOFTMAX)), rtol=1e-14)
    np.testing.assert_allclose(gradient, SOFTMAX - onehot, atol=1e-15)


def test_softmax_cross_entropy_survives_large_logits():
    assert losses.softmax_cross_entropy(jnp.array([1e4, 0.0]), jnp.array(1)) == 1e4


def test_squared_error_has_the_error_as_gradient():
    prediction, target = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.0, 1.0, 0.5])
    value, gradient = jax.value_and_grad(losses.squared_error)(prediction, target)
    assert value == 5
    np.testing.assert_array_equal(gradient, prediction - target)


@pytest.mark.parametrize(("prediction", "target"), [((3,), ()), ((), (3,)), ((3,), (1,)), ((3,), (3, 1))])
def test_squared_error_does_not_broadcast(prediction, target):
    with pytest.raises(ValueError, match="must have the same shape, got"):
        losses.squared_error(jnp.zeros(prediction), jnp.zeros(target))


@pytest.mark.parametrize(
    ("logits", "labels", "error", "message"),
    [
        (LOGITS, jnp.array([1]), ValueError, r"a class \[\], got shapes \(3,\) and \(1,\) \(int"),
        (LOGITS, jnp.array(1.0), ValueError, r"labels \[outputs\], got shapes \(3,\) and \(\) \(float"),
        (LOGITS[None], jnp.array(1), ValueError, r"got shapes \(1, 3\)"),
        (LOGITS, jnp.array(True), TypeError, "got dtype bool"),
    ],
)
def test_softmax_cross_entropy_bad_arguments(logits, labels, error, message):
    with pytest.raises(error, match=message):
        losses.softmax_cross_entropy(logits, labels)
