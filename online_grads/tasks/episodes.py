"""Episodes of random lengths laid end to end, and where in which of them every step of a stream is."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.types import Array, PyTree


class Position(NamedTuple):
    """Where a stream stands; an episode is a function of key and index, so no history is kept."""

    key: Array  # typed PRNG key
    episode: Array  # [] int32, the index of the episode that the next step is in
    offset: Array  # [] int32, how many of its steps are past


def begin(key: Array) -> Position:
    """The start of the first episode."""
    zero = jnp.zeros((), jnp.int32)
    return Position(key, zero, zero)


def walk(
    position: Position, length: int, episode: Callable, *, shortest: int
) -> tuple[Position, Array, PyTree]:
    """The next steps of a stream of episodes, without a loop over them.

    Args:
        position: where the stream stands.
        length: how many steps to take.
        episode: (key, index [] int32) -> (number of steps [] int32, contents, a pytree of arrays), pure;
            the same key for all, so that it folds in the index.
        shortest: no episode has fewer steps.

    Returns:
        (position, offset [length], contents [length, ...]): the position after these steps, and for
        each of them how many steps of its episode are before it and the contents of its episode.

    >>> import jax
    >>> lengthening = lambda key, index: (2 + index, {"index": index})
    >>> position, offset, contents = walk(begin(jax.random.key(0)), 8, lengthening, shortest=2)
    >>> offset.tolist(), contents["index"].tolist()
    ([0, 1, 0, 1, 2, 0, 1, 2], [0, 0, 1, 1, 1, 2, 2, 2])
    >>> int(position.episode), int(position.offset)
    (2, 3)
    """
    # the next step, too, must find its episode
    indices = position.episode + jnp.arange(length // shortest + 2, dtype=jnp.int32)
    durations, contents = jax.vmap(lambda index: episode(position.key, index))(indices)
    ends = jnp.cumsum(durations.astype(jnp.int32)) - position.offset
    steps = jnp.arange(length + 1, dtype=jnp.int32)
    # the number of episodes that have ended
    passed = jnp.cumsum(jnp.zeros(length + 1, jnp.int32).at[ends].add(1, mode="drop"))
    offset = steps - (ends - durations)[passed]
    after = Position(position.key, indices[passed[-1]], offset[-1])
    return after, offset[:-1], jax.tree.map(lambda leaf: leaf[passed[:-1]], contents)
