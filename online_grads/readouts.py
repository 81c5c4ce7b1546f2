"""Readouts: from a cell's output to a prediction."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import boolean, float_dtype, not_negative, positive_int


class Readout(NamedTuple):
    """A pure pair; a readout sees the present output only, so that its gradient is exact."""

    init: Callable  # key -> params
    apply: Callable  # (params, output [inputs]) -> prediction [outputs]


def linear(inputs: int, outputs: int, *, bias: bool = True, std: float | None = None, dtype=None) -> Readout:
    """An affine readout.

        ŷ = W a + b

    Parameters `{"W": [outputs, inputs], "bias": [outputs]}`, drawn N(0, std²) and 0.

    Args:
        inputs: size of the cell's output.
        outputs: size of the prediction.
        bias: False leaves b out.
        std: of the initial W, by default 1/√inputs.
        dtype: of the parameters, by default JAX's float.

    Returns:
        A `Readout`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, `bias` is not a bool, `std` is
            negative or not a number, the dtype is not a floating one.

    >>> import jax
    >>> params = (readout := linear(8, 2)).init(jax.random.key(0))
    >>> readout.apply(params, jnp.ones_like(params["W"][0])).shape
    (2,)
    """
    inputs, outputs, dtype = (
        positive_int("inputs", inputs),
        positive_int("outputs", outputs),
        float_dtype(dtype),
    )
    boolean("bias", bias)
    if std is not None:
        not_negative("std", std)

    def init(key):
        W = jax.random.normal(key, (outputs, inputs), dtype)
        W = W / math.sqrt(inputs) if std is None else W * float(std)
        return {"W": W, "bias": jnp.zeros(outputs, dtype)} if bias else {"W": W}

    def apply(params, output):
        product = params["W"] @ output
        return product + params["bias"] if bias else product

    return Readout(init, apply)


def identity() -> Readout:
    """The prediction is the cell's output: ŷ = a, without parameters.

    Returns:
        A `Readout` whose parameters are `{}`.

    >>> identity().apply({}, 2.0)
    2.0
    """
    return Readout(lambda key: {}, lambda params, output: output)
