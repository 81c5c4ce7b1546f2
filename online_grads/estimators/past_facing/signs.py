"""Random signs, 32 to a word: drawing the words is what noise costs on a CPU."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.types import Array

WORD = 32


def random_signs(key: Array, shapes: Sequence) -> list[Array]:
    """Independent signs ±1 with equal chances, an array for every shape and dtype, all from one draw.

    >>> one, other = random_signs(jax.random.key(0), [jax.ShapeDtypeStruct((2, 3), jnp.float32)] * 2)
    >>> one.shape, set(other.ravel().tolist()) <= {-1.0, 1.0}
    ((2, 3), True)
    """
    sizes = [math.prod(shape.shape) for shape in shapes]
    words = jax.random.bits(key, (-(-sum(sizes) // WORD), 1), jnp.uint32)
    bits = ((words >> jnp.arange(WORD, dtype=jnp.uint32)[None]) & 1).ravel()
    ends = np.cumsum(sizes)
    return [
        (2 * bits[end - size : end].astype(shape.dtype) - 1).reshape(shape.shape)
        for size, end, shape in zip(sizes, ends, shapes, strict=True)
    ]
