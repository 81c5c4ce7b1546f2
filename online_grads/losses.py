"""Losses of one step: (prediction [outputs], y) -> scalar."""

import jax.numpy as jnp
import optax

from online_grads.types import Array


def softmax_cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy between labels and a softmax, in nats.

        ℓ = - Σ_i y_i log softmax(ŷ)_i          ∂ℓ/∂ŷ = softmax(ŷ) - y          (if Σ_i y_i = 1)

    Args:
        logits: ŷ [outputs], floating.
        labels: an integer class [] in 0 ... outputs - 1, or soft labels y [outputs], floating.

    Returns:
        The loss [].

    Raises:
        ValueError: the shapes are not [outputs] and [], or [outputs] and [outputs].
        TypeError: the labels are neither integers nor floats.

    >>> bool(abs(softmax_cross_entropy(jnp.zeros(4), jnp.array(2)) - jnp.log(4)) < 1e-6)
    True
    """
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    hard, soft = (jnp.issubdtype(labels.dtype, kind) for kind in (jnp.integer, jnp.floating))
    if not hard and not soft:
        raise TypeError(f"labels must be an integer class or floating soft labels, got dtype {labels.dtype}")
    expected = () if hard else logits.shape
    if logits.ndim != 1 or labels.shape != expected:
        raise ValueError(
            "softmax_cross_entropy: "
            f"expected logits [outputs] and {'a class []' if hard else 'labels [outputs]'}, "
            f"got shapes {logits.shape} and {labels.shape} ({labels.dtype})"
        )
    if hard:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return optax.softmax_cross_entropy(logits, labels)


def squared_error(prediction: Array, target: Array) -> Array:
    """Half the sum of squared errors, so that the gradient is the error itself.

        ℓ = ½ Σ_i (ŷ_i - y_i)²          ∂ℓ/∂ŷ = ŷ - y

    Args:
        prediction: ŷ, of any shape.
        target: y, of the same shape.

    Returns:
        The loss [].

    Raises:
        ValueError: the shapes differ; nothing is broadcast.

    >>> float(squared_error(jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])))
    2.5
    """
    if jnp.shape(prediction) != jnp.shape(target):
        raise ValueError(
            "squared_error: prediction and target must have the same shape, "
            f"got {jnp.shape(prediction)} and {jnp.shape(target)}"
        )
    return jnp.sum((prediction - target) ** 2) / 2
