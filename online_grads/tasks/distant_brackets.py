r"""Distant brackets: letters to be repeated after others have come in between.

    [ s letters ] r letters [ the same s letters ] \n          r ~ U{shortest, ..., longest} in every line

The letters in the first brackets and in between are uniform among a. A line is told by its s + r
random letters and by r, so that a line of 2s + r + 5 characters has on average

    (s + r̄) log₂ a + log₂(longest - shortest + 1)  bits,          r̄ = (shortest + longest) / 2,

and s log₂ a more for who knows the form of a line but has forgotten the letters in its brackets.

Reference: Tallec & Ollivier, arXiv:1702.05043, section 5.2.
"""

import math

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, in_order, positive_int
from online_grads.tasks import episodes
from online_grads.tasks.text import next_character
from online_grads.tasks.types import Task


def distant_brackets(
    *, copied: int = 1, shortest: int = 5, longest: int = 5, letters: int = 10, dtype=None
) -> Task:
    r"""Distant brackets: predict the next character of a text whose brackets repeat what they held before.

        [ s letters ] r letters [ the same s letters ] \n          x_t = onehot(u_t)          y_t = u_{t+1}

    The vocabulary is the letters 0 ... letters - 1, then "[", "]" and "\n". The references are the
    entropy rate, "solved", and that without memory of the letters in the brackets; both know r only
    as well as it can be known, that is, its distribution.

    Args:
        copied: s, how many letters are repeated.
        shortest: the least r, how many letters come in between; 0 is possible.
        longest: the largest r.
        letters: how many letters there are.
        dtype: of x, by default JAX's float.

    Returns:
        A `Task` with x [letters + 3], one-hot, and y [] int32, whose loss is shown in bits per
        character.

    Raises:
        TypeError, ValueError: copied is not a positive integer, shortest is not an integer or is
            negative, longest is not an integer or is below shortest, letters is not an integer or
            is below 2, the dtype is not a floating one.

    >>> task = distant_brackets(copied=2, shortest=0, longest=3, letters=4)
    >>> _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 30)
    >>> "".join("abcd[]\n"[u] for u in xs.argmax(1).tolist())
    '[ad]c[ad]\n[aa]c[aa]\n[cb]a[cb]\n'
    >>> {name: round(bits, 3) for name, bits in distant_brackets().references.items()}
    {'no memory of the letters': 1.938, 'solved': 1.661}
    """
    copied = positive_int("copied", copied)
    shortest = positive_int("shortest", shortest, least=0)
    longest = positive_int("longest", longest, least=0)
    in_order(shortest=shortest, longest=longest)
    letters = positive_int("letters", letters, least=2)
    dtype = float_dtype(dtype)
    opening, closing, newline = (jnp.full(1, letters + i, jnp.int32) for i in range(3))

    def line(key, index):
        for_length, for_letters = jax.random.split(jax.random.fold_in(key, index))
        between = jax.random.randint(for_length, (), shortest, longest + 1, jnp.int32)
        drawn = jax.random.randint(for_letters, (copied + longest,), 0, letters, jnp.int32)
        brackets = jnp.concatenate([opening, drawn[:copied], closing])
        # the "[" of the next line at the end, so that every character of the line is followed by one
        end = jnp.concatenate([brackets, newline, opening])
        spelt = jnp.concatenate([brackets, drawn[copied:], jnp.zeros_like(end)])
        spelt = jax.lax.dynamic_update_slice(spelt, end, (copied + 2 + between,))
        return 2 * copied + between + 5, spelt

    def codes(position, length):
        position, offset, spelt = episodes.walk(position, length, line, shortest=2 * copied + shortest + 5)
        pairs = offset[:, None] + jnp.arange(2, dtype=jnp.int32)[None]
        return position, *jnp.take_along_axis(spelt, pairs, axis=1).T

    return next_character(
        episodes.begin,
        codes,
        size=letters + 3,
        references=_references(copied, shortest, longest, letters),
        dtype=dtype,
    )


def _references(copied, shortest, longest, letters):
    between, letter = (shortest + longest) / 2, math.log2(letters)
    characters = 2 * copied + between + 5
    solved = ((copied + between) * letter + math.log2(longest - shortest + 1)) / characters
    return {"no memory of the letters": solved + copied * letter / characters, "solved": solved}
