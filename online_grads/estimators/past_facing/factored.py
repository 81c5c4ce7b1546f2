"""Influences that are sums of Kronecker products, one sum per drive.

A drive's immediate influence is a product, ∂h'/∂w[j, i] = D[:, i] v[j], with v = [h; x; 1] for
W h + U x + b. Methods that keep a few random products per drive share the rest, which is here: the
full D of any cell, every element of a batch on its own, and weights that are added to no product
(gains, decays). The presynaptic factor of those is constant, so they are carried exactly:

    E' = J E + ∂h'/∂w            E [n, post]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.estimators.past_facing.base import Influence, past_facing, zeroed
from online_grads.estimators.past_facing.signs import random_signs
from online_grads.linearize import Weights
from online_grads.types import Array, Estimator, Model, PyTree

# A weight without a presynaptic factor costs n · post entries: more than this is not left to chance.
DIRECT_LIMIT = 2**24


class DriveRule(NamedTuple):
    """What one method says of one drive with influence [n, post, pre]."""

    start: Callable  # (n, post, pre, dtype) -> factors at zero
    move: Callable  # (factors, J [n, n], D [n, post], v [pre], signs) -> factors
    contract: Callable  # (factors, credit [n]) -> gradient [pre, post]
    signs: Callable  # (n, post, pre) -> shape of the random signs of one step


class FactoredInfluence(NamedTuple):
    """What the Kronecker methods carry."""

    products: list[PyTree]  # per drive its factors, [batch, ...]
    direct: list[Array]  # per drive without a product E [n, batch, post], exact


def factored(model: Model, rule: DriveRule, *, direct: bool, allow_unused: bool) -> Estimator:
    """The estimator of a Kronecker method.

    Raises:
        ValueError: if the exact influence of a weight that is added to no product has more than
            `DIRECT_LIMIT` entries, or the model does not fit together.
    """
    found = analyse(model, allow_unused=allow_unused)
    structure, n = Weights(found, dense=False), found.flat.size
    random = [drive for drive in structure.trained_drives if not structure.is_constant(drive)]
    others = [drive for drive in structure.trained_drives if structure.is_constant(drive)]
    for drive in others:
        if n * drive.post > DIRECT_LIMIT:
            raise ValueError(
                f"{structure.name(drive)} acts other than by a product of a matrix with a vector, so that it "
                f"cannot be factored, and its exact influence has {n} x {drive.post} entries, over the limit "
                f"of {DIRECT_LIMIT}; use uoro"
            )
    sizes = lambda drive: (n, drive.post, structure.pre(drive))

    def init(h, key):
        batch = lambda drive, one: jax.tree.map(lambda a: jnp.zeros((drive.batch, *a.shape), a.dtype), one)
        return FactoredInfluence(
            [batch(drive, rule.start(*sizes(drive), drive.dtype)) for drive in random],
            [jnp.zeros((n, drive.batch, drive.post), drive.dtype) for drive in others],
        )

    def noise(key):
        shape = lambda drive: (drive.batch, *rule.signs(*sizes(drive)))
        return random_signs(key, [jax.ShapeDtypeStruct(shape(d), d.dtype) for d in random])

    def propagate(influence, segment, signs):
        transfer, parts = segment.jacobians()
        products = [part for part in parts if part[1] is not None]
        totals = [total for total, presynaptic in parts if presynaptic is None]
        move = jax.vmap(rule.move, in_axes=(0, None, 1, 0, 0))
        moved = []
        for drive, old, (delta, v), each in zip(random, influence.products, products, signs, strict=True):
            step = [a.astype(drive.dtype) for a in (transfer, delta[0], v[0])]
            moved.append(move(old, *step, each))
        exact = [
            jnp.tensordot(transfer.astype(e.dtype), e, 1) + total.astype(e.dtype)
            for e, total in zip(influence.direct, totals, strict=True)
        ]
        return FactoredInfluence(moved, exact)

    def contract(influence, credit):
        read = jax.vmap(rule.contract, in_axes=(0, None))
        grads = [
            read(each, credit.astype(drive.dtype))
            for drive, each in zip(random, influence.products, strict=True)
        ]
        for drive, e in zip(others, influence.direct, strict=True):
            grad = jnp.tensordot(credit.astype(e.dtype), e, 1)[:, None]
            grads.append(jnp.broadcast_to(grad, (drive.batch, structure.pre(drive), drive.post)))
        return structure.spread([*random, *others], grads)

    influence = Influence(init, propagate, contract, noise=noise, forget=zeroed)
    return past_facing(found, structure, influence, block=1, direct=direct)
