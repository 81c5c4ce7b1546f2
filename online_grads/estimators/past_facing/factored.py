"""Influences that are sums of Kronecker products, one sum per synapse.

A synapse's immediate influence is a product, ∂h'/∂w[j, i] = D[:, i] v[j]. Methods that keep a few
random products per synapse share the rest, which is here: the full D of any cell, every element of
a batched synapse on its own, and weights that do not meet a vector (biases, gains, decays). The
presynaptic factor of those is 1, so they are carried exactly:

    E' = J E + ∂h'/∂w            E [n, post]
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.estimators.past_facing.base import Influence, past_facing, zeroed
from online_grads.linearize import Weights
from online_grads.types import Array, Estimator, Model, PyTree

# A weight without a presynaptic factor costs n · post entries: more than this is not left to chance.
DIRECT_LIMIT = 2**24


class SynapseRule(NamedTuple):
    """What one method says of one synapse with influence [n, post, pre]."""

    start: Callable  # (n, post, pre, dtype) -> factors at zero
    move: Callable  # (factors, J [n, n], D [n, post], v [pre], signs) -> factors
    contract: Callable  # (factors, credit [n]) -> gradient [pre, post]
    signs: Callable  # (n, post, pre) -> shape of the random signs of one step


class FactoredInfluence(NamedTuple):
    """What the Kronecker methods carry."""

    synapses: list[PyTree]  # per synapse its factors, [batch, ...]
    direct: list[Array]  # per other use of a weight E [n, batch, post], exact


def factored(model: Model, rule: SynapseRule, *, direct: bool, allow_unused: bool) -> Estimator:
    """The estimator of a Kronecker method.

    Raises:
        ValueError: if the exact influence of a weight that meets no vector has more than
            `DIRECT_LIMIT` entries, or the model does not fit together.
    """
    found = analyse(model, allow_unused=allow_unused)
    structure, n = Weights(found, dense=False), found.flat.size
    synapses = [site for site in structure.trained_sites if not site.direct]
    others = [site for site in structure.trained_sites if site.direct]
    for site in others:
        if n * site.post > DIRECT_LIMIT:
            raise ValueError(
                f"{structure.names[site.weight]} acts other than by a product of a matrix with a vector, so "
                f"that it cannot be factored, and its exact influence has {n} x {site.post} entries, over "
                f"the limit of {DIRECT_LIMIT}; use uoro"
            )
    dtype = lambda site: structure.weights[site.weight].dtype
    sizes = lambda site: (n, site.post, site.pre)

    def init(h, key):
        one = lambda site: rule.start(*sizes(site), dtype(site))
        batch = lambda site: jax.tree.map(lambda a: jnp.zeros((site.batch, *a.shape), a.dtype), one(site))
        return FactoredInfluence(
            [batch(site) for site in synapses],
            [jnp.zeros((n, site.batch, site.post), dtype(site)) for site in others],
        )

    def noise(key):
        shapes = [(site.batch, *rule.signs(*sizes(site))) for site in synapses]
        keys = jax.random.split(key, len(synapses))
        draw = lambda key, shape, site: jax.random.rademacher(key, shape, dtype(site))
        return [draw(*each) for each in zip(keys, shapes, synapses, strict=True)]

    def propagate(influence, segment, signs):
        transfer, parts = segment.jacobians()
        products, totals = parts[: len(synapses)], parts[len(synapses) :]
        move = jax.vmap(rule.move, in_axes=(0, None, 1, 0, 0))
        moved = []
        for site, old, (delta, v), each in zip(synapses, influence.synapses, products, signs, strict=True):
            step = [a.astype(dtype(site)) for a in (transfer, delta[0], v[0])]
            moved.append(move(old, *step, each))
        exact = [
            jnp.tensordot(transfer.astype(e.dtype), e, 1) + total.astype(e.dtype)
            for e, (total, _) in zip(influence.direct, totals, strict=True)
        ]
        return FactoredInfluence(moved, exact)

    def contract(influence, credit):
        read = jax.vmap(rule.contract, in_axes=(0, None))
        grads = [
            structure.along(site, read(each, credit.astype(dtype(site))), pre=True, post=True)
            for site, each in zip(synapses, influence.synapses, strict=True)
        ]
        grads += [
            structure.along(site, jnp.tensordot(credit.astype(e.dtype), e, 1), post=True)
            for site, e in zip(others, influence.direct, strict=True)
        ]
        return structure.collect(grads)

    influence = Influence(init, propagate, contract, noise=noise, forget=zeroed)
    return past_facing(found, structure, influence, block=1, direct=direct)
