"""The add task: a label that depends on two bits at two distances in the past.

    b_i ~ Bernoulli(½)          y_i = ½ + ½ b_{i-t1} - ¼ b_{i-t2}

Reference: Pitis 2016; Marschall, Cho & Savin, arXiv:1907.02649.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.losses import softmax_cross_entropy
from online_grads.tasks.types import Task
from online_grads.types import Array


class AddState(NamedTuple):
    """Where an add stream stands; bits are a function of key and index, so no history is kept."""

    key: Array  # PRNG key
    step: Array  # [] int32, steps drawn so far


def add(*, t1: int = 5, t2: int = 9, repeat: int = 1, dtype=None) -> Task:
    """The add task: a label that depends on two bits at two distances in the past.

        y_i = ½ + ½ b_{i-t1} - ¼ b_{i-t2}          x = [b, 1-b],  labels [y, 1-y]

    The labels are soft and the loss is their cross-entropy, so its floor is their mean entropy. The
    references say, in nats, what the best prediction scores that remembers neither bit, one, or both.

    Args:
        t1: the distance that raises y, in pairs (x, y).
        t2: the distance that lowers y, in pairs.
        repeat: how many steps each pair is shown.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [2] and y [2].

    Raises:
        TypeError, ValueError: t1, t2 or repeat is not a positive integer, t1 = t2, the dtype is not
            a floating one.

    >>> task = add()
    >>> for name, nats in task.references.items():
    ...     print(f"{nats:.4f} {name}")
    0.6616 no memory
    0.6277 remembers t−9 only
    0.5192 remembers t−5 only
    0.4545 remembers both
    >>> state, (xs, ys) = task.draw(task.init(jax.random.key(0)), 100)
    >>> bool((ys[9:, 0] == 0.5 + 0.5 * xs[4:-5, 0] - 0.25 * xs[:-9, 0]).all())
    True
    """
    t1, t2, repeat = positive_int("t1", t1), positive_int("t2", t2), positive_int("repeat", repeat)
    dtype = float_dtype(dtype)
    if t1 == t2:
        raise ValueError(f"t1 and t2 must differ, got {t1} for both")

    def draw(state, length):
        def bit(index):
            return jax.random.bernoulli(jax.random.fold_in(state.key, index))

        # bits exist before the first step too; the offset keeps their indices positive
        pair = (state.step + jnp.arange(length, dtype=jnp.int32)) // repeat + max(t1, t2)
        indices = jnp.stack([pair, pair - t1, pair - t2])
        x, raising, lowering = jax.vmap(jax.vmap(bit))(indices).astype(dtype)
        y = 0.5 + 0.5 * raising - 0.25 * lowering
        xs, ys = jnp.stack([x, 1 - x], axis=1), jnp.stack([y, 1 - y], axis=1)
        return AddState(state.key, state.step + length), (xs, ys)

    example = jax.ShapeDtypeStruct((2,), dtype)
    return Task(
        init=lambda key: AddState(key, jnp.zeros((), jnp.int32)),
        draw=draw,
        example=(example, example),
        loss=softmax_cross_entropy,
        outputs=2,
        unit="cross-entropy (nats)",
        references=_references(t1, t2),
    )


def _references(t1, t2):
    def entropy(y):
        return -sum(p * math.log(p) for p in (y, 1 - y) if p > 0)

    def label(raising, lowering):
        return 0.5 + 0.5 * raising - 0.25 * lowering

    # a forgotten bit counts as its mean, ½
    return {
        "no memory": entropy(label(0.5, 0.5)),
        f"remembers t−{t2} only": sum(entropy(label(0.5, b)) for b in (0, 1)) / 2,
        f"remembers t−{t1} only": sum(entropy(label(b, 0.5)) for b in (0, 1)) / 2,
        "remembers both": sum(entropy(label(a, b)) for a in (0, 1) for b in (0, 1)) / 4,
    }
