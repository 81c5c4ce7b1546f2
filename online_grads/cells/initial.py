"""How cells draw their weights.

recurrent:  every gate's W is orthogonal, so that ‖W h‖ = ‖h‖          inward:  W_ij ~ N(0, 1/columns)
"""

import math

import jax
import jax.numpy as jnp

from online_grads.types import Array


def orthogonal(key: Array, gates: int, size: int, dtype) -> Array:
    """One orthogonal matrix per gate, stacked: [gates * size, size]."""
    # the QR decomposition exists in 32 and 64 bits only
    wide = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    draw = lambda key: jax.nn.initializers.orthogonal()(key, (size, size), wide)
    return jax.vmap(draw)(jax.random.split(key, gates)).reshape(gates * size, size).astype(dtype)


def inward(key: Array, rows: int, columns: int, dtype) -> Array:
    """Independent Gaussian weights of variance 1/columns: [rows, columns]."""
    return jax.random.normal(key, (rows, columns), dtype) / math.sqrt(columns)
