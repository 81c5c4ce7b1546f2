"""Short episodes of noise, for comparing gradients rather than for learning.

    x_t ~ Bernoulli(½) [m]          y_t ~ U(−s, s), nothing to do with x          ℓ_t = ½ (ŷ_t − y_t)²

Every episode begins anew, and its gradient from the state 0 is what an approximation is held against:
the columnar networks' one is exact without links and turns by chance where links are dense.

Reference: Javed, White & Sutton (2021), arXiv:2103.05787.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import above, float_dtype, positive_int
from online_grads.losses import squared_error
from online_grads.readouts import linear
from online_grads.tasks.types import Task
from online_grads.types import Array


class AlignmentState(NamedTuple):
    """Where a stream stands; a step's draws are a function of key and index."""

    key: Array  # typed PRNG key
    step: Array  # [] int32, steps drawn so far


def columnar_alignment(*, bits: int = 50, episode: int = 50, target: float = 50.0, dtype=None) -> Task:
    """Short episodes of noise, for comparing gradients rather than for learning.

        x_t ~ Bernoulli(½) [m]          y_t ~ U(−s, s)          ℓ_t = ½ (ŷ_t − y_t)²

    The readout has no bias and begins at N(0, 0.1²). Nothing predicts y, so that no prediction is
    better than 0.

    Args:
        bits: m, the size of x.
        episode: steps from reset to reset.
        target: s, the largest target.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [m], y [1] and a reset at the first step of each episode.

    Raises:
        TypeError, ValueError: a size is not a positive integer, the target is not above 0, the dtype
            is not a floating one.

    >>> task = columnar_alignment(episode=3)
    >>> _, ((x, reset), y) = task.draw(task.init(jax.random.key(0)), 4)
    >>> x.shape, y.shape, reset.tolist()
    ((4, 50), (4, 1), [True, False, False, True])
    >>> print(f"{task.references['always 0']:.1f}")
    416.7

    Reference: Javed, White & Sutton (2021), arXiv:2103.05787.
    """
    bits, episode, dtype = (
        positive_int("bits", bits),
        positive_int("episode", episode),
        float_dtype(dtype),
    )
    above("target", target, 0)

    def draw(state, length):
        def pair(index):
            for_x, for_y = jax.random.split(jax.random.fold_in(state.key, index))
            x = jax.random.bernoulli(for_x, shape=(bits,)).astype(dtype)
            return x, jax.random.uniform(for_y, (1,), dtype, -target, target)

        steps = state.step + jnp.arange(length, dtype=jnp.int32)
        x, y = jax.vmap(pair)(steps)
        return AlignmentState(state.key, state.step + length), ((x, steps % episode == 0), y)

    return Task(
        init=lambda key: AlignmentState(key, jnp.zeros((), jnp.int32)),
        draw=draw,
        example=(jax.ShapeDtypeStruct((bits,), dtype), jax.ShapeDtypeStruct((1,), dtype)),
        loss=squared_error,
        outputs=1,
        unit="½ squared error",
        # E[y²] = s²/3
        references={"always 0": float(target) ** 2 / 6},
        resets=True,
        readout=partial(linear, bias=False, std=0.1),
    )
