r"""aⁿbⁿ: as many b as there were a. How many is known only to who has counted.

    aᵏ \n bᵏ \n          k ~ U{shortest, ..., longest} in every line

Once the a have ended, all is known up to the line's end: a line has log₂(longest - shortest + 1) bits.

Reference: Tallec & Ollivier, arXiv:1702.05043, section 5.2.
"""

import math

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, in_order, positive_int
from online_grads.tasks import episodes
from online_grads.tasks.text import next_character
from online_grads.tasks.types import Task

NEWLINE, A, B = range(3)


def anbn(*, shortest: int = 1, longest: int = 32, dtype=None) -> Task:
    r"""aⁿbⁿ: predict the next character of an endless text whose lines have as many b as a.

        aᵏ \n bᵏ \n          x_t = onehot(u_t)          y_t = u_{t+1}

    The vocabulary is ("\n", "a", "b"). The references are the entropy rate, log₂(number of k) bits
    for each line of 2k + 2 characters, and what the previous character alone tells.

    Args:
        shortest: the least k.
        longest: the largest k.
        dtype: of x, by default JAX's float.

    Returns:
        A `Task` with x [3], one-hot, and y [] int32, whose loss is shown in bits per character.

    Raises:
        TypeError, ValueError: shortest is not a positive integer, longest is not an integer or is
            below shortest, the dtype is not a floating one.

    >>> task = anbn(longest=5)
    >>> _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 24)
    >>> "".join("\nab"[u] for u in xs.argmax(1).tolist())
    'aa\nbb\naaa\nbbb\naaaaa\nbbbb'
    >>> {name: round(bits, 4) for name, bits in anbn().references.items()}
    {'given the previous character': 0.3681, 'entropy rate': 0.1429}
    """
    shortest = positive_int("shortest", shortest)
    longest = positive_int("longest", longest)
    in_order(shortest=shortest, longest=longest)
    dtype = float_dtype(dtype)

    def line(key, index):
        k = jax.random.randint(jax.random.fold_in(key, index), (), shortest, longest + 1, jnp.int32)
        return 2 * k + 2, k

    def character(offset, k):
        letter = jnp.where(offset < k, A, B)
        return jnp.where((offset == k) | (offset == 2 * k + 1), NEWLINE, letter).astype(jnp.int32)

    def codes(position, length):
        position, offset, k = episodes.walk(position, length, line, shortest=2 * shortest + 2)
        # after a line's last character comes the first one of a line, whichever line it is
        return position, character(offset, k), character((offset + 1) % (2 * k + 2), k)

    return next_character(
        episodes.begin, codes, size=3, references=_references(shortest, longest), dtype=dtype
    )


def _references(shortest, longest):
    mean = (shortest + longest) / 2
    # a mean line has `mean` times a, and the same of b, and the last of each is followed by a line end;
    # of its two line ends, one is followed by a and one by b
    last = sum(-p * math.log2(p) for p in (1 / mean, 1 - 1 / mean) if p > 0)
    return {
        "given the previous character": (2 * mean * last + 2) / (2 * mean + 2),
        "entropy rate": math.log2(longest - shortest + 1) / (2 * mean + 2),
    }
