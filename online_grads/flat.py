"""The hidden state as one real vector, beside what is carried but never differentiated."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.types import PyTree


class Flat(NamedTuple):
    """How a hidden pytree is laid out as a vector h [n].

    Floating leaves follow one another in tree order, a complex leaf as its real parts and then
    its imaginary parts. Every other leaf (a counter, a key) is listed in `rest`.
    """

    split: Callable  # hidden -> (h [n], rest)
    join: Callable  # (h [n], rest) -> hidden
    size: int  # n
    dtype: jnp.dtype  # of h: the widest among the leaves


def flatten(hidden: PyTree) -> Flat:
    """The layout of a hidden state, from its shapes and dtypes alone.

    >>> import jax.numpy as jnp
    >>> hidden = {"count": jnp.array(3), "h": jnp.ones(2)}
    >>> flat = flatten(hidden)
    >>> flat.split(hidden)[0].shape, len(flat.split(hidden)[1])
    ((2,), 1)
    """
    leaves, treedef = jax.tree.flatten(hidden)
    smooth = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]
    parts = [2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1 for leaf in leaves]
    sizes = [
        math.prod(leaf.shape) * part if s else 0 for leaf, part, s in zip(leaves, parts, smooth, strict=True)
    ]
    reals = {jnp.finfo(leaf.dtype).dtype for leaf, s in zip(leaves, smooth, strict=True) if s}
    widest = max((d.itemsize for d in reals), default=4)
    candidates = [d for d in reals if d.itemsize == widest]
    # two different formats of the same width (float16, bfloat16) meet in float32
    dtype = candidates[0] if len(candidates) == 1 else jnp.dtype(jnp.float32)

    def split(hidden):
        current = treedef.flatten_up_to(hidden)
        pieces, rest = [], []
        for leaf, is_smooth, part in zip(current, smooth, parts, strict=True):
            if not is_smooth:
                rest.append(leaf)
            elif part == 2:
                pieces += [jnp.real(leaf).ravel().astype(dtype), jnp.imag(leaf).ravel().astype(dtype)]
            else:
                pieces.append(jnp.ravel(leaf).astype(dtype))
        return jnp.concatenate(pieces) if pieces else jnp.zeros(0, dtype), rest

    def join(h, rest):
        rest, joined, start = iter(rest), [], 0
        for leaf, is_smooth, part, size in zip(leaves, smooth, parts, sizes, strict=True):
            piece = h[start : start + size]
            start += size
            if not is_smooth:
                joined.append(next(rest))
            elif part == 2:
                real, imaginary = jnp.split(piece.astype(jnp.finfo(leaf.dtype).dtype), 2)
                joined.append(jax.lax.complex(real, imaginary).reshape(leaf.shape))
            else:
                joined.append(piece.reshape(leaf.shape).astype(leaf.dtype))
        return jax.tree.unflatten(treedef, joined)

    return Flat(split, join, sum(sizes), dtype)
