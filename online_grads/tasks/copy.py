"""Copy with a curriculum: read a string of random bits, then say it; the strings grow as it is learned.

    step      0 ... n-1            n          n+1 ... 2n
    x_t       onehot(b_i) [3]      (0,0,1)    (0,0,0)
    y_t       nothing asked        nothing    b_0 ... b_{n-1}          n ~ uniform {max(1, T - spread) ... T}

    e ← s^m e + (1 - s^m) · (mean cross-entropy, in bits, of the last m recalled bits)          e_0 = 1
    e < threshold:  T ← T + 1,  e ← 1, which is what guessing costs

Reference: Mujika, Meier & Steger, arXiv:1805.10842; Vicol, Kolter & Swersky, arXiv:2304.11153.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import float_dtype, number_in, positive_int
from online_grads.losses import softmax_cross_entropy
from online_grads.tasks.episodes import Position, begin, walk
from online_grads.tasks.types import Task
from online_grads.types import Array


class CopyState(NamedTuple):
    """Where a copy stream stands, and how well it is learned so far."""

    position: Position  # in which episode, and where in it
    level: Array  # [] int32, T: the longest string of the episodes to come
    begun: Array  # [] int32, the T of the episode that has begun
    bits: Array  # [] e, running mean of the cross-entropy, in bits per recalled bit


class Recall(NamedTuple):
    """The y of a step of copy."""

    bit: Array  # [] int32, 0 or 1
    counts: Array  # [] 1 where the bit is asked for, else 0


class _String(NamedTuple):
    key: Array  # typed PRNG key of its bits
    length: Array  # [] int32, n


def copy(
    *,
    start: int = 1,
    longest: int = 100,
    threshold: float = 0.15,
    spread: int = 5,
    smoothing: float = 0.99,
    dtype=None,
) -> Task:
    """Copy: read a string of random bits, then say it; the strings grow as it is learned.

        x: n bits, one delimiter, n silent steps          ŷ: the n bits, at the silent steps

    An episode takes 2n + 1 steps and begins with a reset; n is uniform over max(1, T - spread) ... T. The
    level T rises by one, at most once per `adapt`, when the running mean of the cross-entropy falls below
    the threshold. The mean then begins again at 1 bit, so that every level is judged by itself: even
    without errors it takes log(threshold)/log(smoothing) recalled bits, 189 by default. An episode that has
    begun keeps its string. Losses that are not finite change neither the mean nor the level.

    Args:
        start: the first T.
        longest: T rises no further.
        threshold: of the running mean, in bits per recalled bit, in (0, 1).
        spread: how much shorter than T a string may be, 0 or more.
        smoothing: s in (0, 1), the decay of the running mean per recalled bit.
        dtype: of x and of the running mean, by default JAX's float.

    Returns:
        A `Task` with x [3] and y a `Recall`, whose loss is shown in bits per step, the steps at which
        nothing is asked included. The reference is guessing at the first T; it grows to ½ with T.

    Raises:
        TypeError, ValueError: start or longest is not a positive integer, spread not a non-negative
            one, longest below start; threshold or smoothing is outside (0, 1); the dtype is not a
            floating one.

    >>> task = copy(start=3, spread=0)
    >>> state, ((xs, resets), ys) = task.draw(task.init(jax.random.key(0)), 7)
    >>> resets.astype(int).tolist(), ys.counts.astype(int).tolist()
    ([1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1, 1])
    >>> xs[:3, 1].astype(int).tolist() == ys.bit[4:].tolist()
    True
    >>> int(task.level(state))
    3

    Reference: Mujika, Meier & Steger, arXiv:1805.10842; Vicol, Kolter & Swersky, arXiv:2304.11153.
    """
    start, longest = positive_int("start", start), positive_int("longest", longest)
    spread, dtype = positive_int("spread", spread, least=0), float_dtype(dtype)
    number_in(0, 1, threshold=threshold, smoothing=smoothing)
    if longest < start:
        raise ValueError(f"longest must be at least start, {start}, got {longest}")

    def init(key):
        level = jnp.array(start, jnp.int32)
        return CopyState(begin(key), level, level, jnp.ones((), dtype))

    def draw(state, length):
        position = state.position

        def episode(key, index):
            begun = (index == position.episode) & (position.offset > 0)
            level = jnp.where(begun, state.begun, state.level)
            for_length, for_bits = jax.random.split(jax.random.fold_in(key, index))
            shortest = jnp.maximum(1, level - spread)
            n = jax.random.randint(for_length, (), shortest, level + 1, jnp.int32)
            return 2 * n + 1, _String(for_bits, n)

        after, offset, string = walk(position, length, episode, shortest=2 * max(1, start - spread) + 1)
        reading, recalling = offset < string.length, offset > string.length
        # which bit of its string is shown or asked for
        which = jnp.where(recalling, offset - string.length - 1, offset)
        draw_bit = lambda key, index: jax.random.bernoulli(jax.random.fold_in(key, index))
        bit = jax.vmap(draw_bit)(string.key, which)
        x = jnp.stack([reading & ~bit, reading & bit, offset == string.length], axis=1).astype(dtype)
        y = Recall((bit & recalling).astype(jnp.int32), recalling.astype(dtype))
        same = (after.episode == position.episode) & (position.offset > 0)
        begun = jnp.where(same, state.begun, state.level)
        return CopyState(after, state.level, begun, state.bits), ((x, offset == 0), y)

    def adapt(state, ys, losses):
        asked = jnp.sum(ys.counts)
        steps = ys.counts.shape[0] / losses.shape[0]
        bits = jnp.sum(losses.astype(dtype)) * (steps / math.log(2)) / jnp.maximum(asked, 1)
        kept = jnp.asarray(smoothing, dtype) ** asked
        # nothing asked leaves the mean as it is: kept = 1
        mean = jnp.where(jnp.isfinite(bits), kept * state.bits + (1 - kept) * bits, state.bits)
        rises = (mean < threshold) & (state.level < longest)
        level = state.level + rises.astype(jnp.int32)
        return state._replace(level=level, bits=jnp.where(rises, jnp.ones_like(mean), mean))

    def example():
        return jnp.zeros(3, dtype), Recall(jnp.zeros((), jnp.int32), jnp.zeros((), dtype))

    lengths = np.arange(max(1, start - spread), start + 1)
    return Task(
        init=init,
        draw=draw,
        example=jax.eval_shape(example),
        loss=lambda prediction, y: y.counts * softmax_cross_entropy(prediction, y.bit),
        outputs=2,
        unit="bits per step",
        scale=1 / math.log(2),
        references={f"guessing at T = {start}": float(lengths.sum() / (2 * lengths + 1).sum())},
        resets=True,
        adapt=adapt,
        level=lambda state: state.level,
    )
