"""Influence balancing: the sign of the gradient is right only after many steps of the past.

    s_t = A s_{t-1} + v θ          A_ii = A_{i,i+1} = ½          v = (+1, ..., +1, -1, ..., -1)
    ℓ_t = ½ (s_t[0] - 1)²          s_0 = (1, ..., 1),  θ_0 = ½

θ pushes the first `positive` units up and the others down. Its early influence on unit 0 is
positive, its whole influence is c = 2 (2·positive - units): negative, -6, by default, where 41 steps
are needed before the sign turns. In the long run s[0] = c θ, so the optimum is θ = 1/c.

Reference: Tallec & Ollivier, arXiv:1702.05043, section 5.
"""

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import float_dtype, positive_int
from online_grads.losses import squared_error
from online_grads.tasks.types import Task
from online_grads.types import Model


def influence_balancing(*, positive: int = 10, units: int = 23, dtype=None) -> Task:
    """Influence balancing: the sign of the gradient is right only after many steps of the past.

        s_t = A s_{t-1} + v θ          ℓ_t = ½ (s_t[0] - 1)²          optimum θ = 1 / (2 (2·positive - units))

    The task is about one linear model, which it brings along: parameters `{"theta": []}`, hidden
    state s [units]. Nothing enters it: x is an array of shape (0,); y is always 1.

    Args:
        positive: how many units θ pushes up.
        units: how many units there are.
        dtype: of parameters, hidden state and stream, by default JAX's float.

    Returns:
        A `Task` with a `model`; among its references the loss in the long run if θ stays at ½.

    Raises:
        TypeError, ValueError: a size is not a positive integer; `positive` exceeds `units`, or is
            half of it, where θ has no influence in the long run; the dtype is not a floating one.

    >>> task = influence_balancing()
    >>> task.references
    {'θ stays at 0.5': 8.0, 'optimum': 0.0}
    """
    positive, units = positive_int("positive", positive), positive_int("units", units)
    dtype = float_dtype(dtype)
    if positive > units or 2 * positive == units:
        raise ValueError(f"positive must be at most units and not half of it, got {positive} of {units}")
    A = np.asarray((np.eye(units) + np.eye(units, k=1)) / 2, dtype)
    v = np.where(np.arange(units) < positive, 1, -1).astype(dtype)

    def init(key):
        return {"theta": jnp.array(0.5, dtype)}, jnp.ones(units, dtype)

    def transition(params, s, x):
        return jnp.asarray(A) @ s + jnp.asarray(v) * params["theta"]

    def loss(params, s, y):
        return squared_error(s[0], y), s[0]

    def draw(state, length):
        return state + length, (jnp.zeros((length, 0), dtype), jnp.ones(length, dtype))

    example = (jax.ShapeDtypeStruct((0,), dtype), jax.ShapeDtypeStruct((), dtype))
    whole_influence = 2 * (2 * positive - units)
    return Task(
        # steps so far: not needed, but a state with an array in it can be vmapped over seeds
        init=lambda key: jnp.zeros((), jnp.int32),
        draw=draw,
        example=example,
        model=Model(init, transition, loss, example),
        unit="½(s₀ − 1)²",
        references={"θ stays at 0.5": (whole_influence * 0.5 - 1) ** 2 / 2, "optimum": 0.0},
    )
