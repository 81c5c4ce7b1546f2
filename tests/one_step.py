"""One step of a model, split and differentiated in every way: what the tests of the split compare."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis, analyse
from online_grads.linearize import Weights
from online_grads.patterns import Patterns
from tests.models import MODELS
from tests.strange import CELLS, random_like, strange


class Step(NamedTuple):
    """Every Jacobian of one step at one point, dense, by JAX's forward mode."""

    moved: Any  # h' [n]
    weights: list
    presynaptic: list  # v [batch, pre] per synapse
    jacobian: Any  # ∂h'/∂h [n, n]
    drives: list  # D per site [n, batch, post]
    held: Any  # J₀ [n, n]
    vectors: list  # V per synapse [batch, pre, n]
    immediate: list  # ∂h'/∂θ [n, ...] from the split: Σ D ⊗ v, pulled back
    expected: Any  # h' [n] of the transition itself
    exact: list  # ∂h'/∂θ [n, ...] of the transition itself


class Case(NamedTuple):
    """A model's split and patterns, and its step at random points."""

    found: Analysis
    structure: Weights
    patterns: Patterns
    at: Any  # seed -> (θ, h, rest, x)
    step: Any  # (θ, h, rest, x) -> Step


@functools.cache
def case(name, dense=False) -> Case:
    """The case of a model of tests/models.py or of a cell of tests/strange.py."""
    model = strange(name) if name in CELLS else MODELS[name]()
    found = analyse(model)
    structure = Weights(found, dense=dense)

    def at(seed):
        hidden = model.init(None)[1] if name in CELLS else found.hidden
        params, hidden, x = random_like((found.params, hidden, found.x), seed)
        return found.theta(params), *found.flat.split(hidden), x

    def step(theta, h, rest, x):
        weights = structure.effective(theta)
        zeros = structure.zeros(structure.drives)
        flowing = lambda h, perturb: structure.step(weights, h, rest, x, perturb=perturb)[0]
        moved, _, presynaptic, drives = structure.step(weights, h, rest, x)
        jacobian, reach = jax.jacfwd(flowing, argnums=(0, 1))(h, zeros)
        reach = [
            reach[drive].reshape(-1, site.batch, site.post)
            for drive, site in zip(structure.drive_of, structure.sites, strict=True)
        ]
        held, vectors = jax.jacfwd(lambda h: structure.step(weights, h, rest, x, hold=drives)[::2])(h)
        whole = lambda theta: found.transition(theta, h, rest, x)[0]
        immediate = jax.vmap(lambda reach: _pulled(structure, theta, reach, presynaptic))(reach)
        return Step(
            moved,
            weights,
            presynaptic,
            jacobian,
            reach,
            held,
            vectors,
            immediate,
            whole(theta),
            jax.jacfwd(whole)(theta),
        )

    patterns = Patterns(structure, *structure.shapes)
    return Case(found, structure, patterns, at, jax.jit(step))


def _pulled(structure, theta, reach, presynaptic):
    """∂h'_r/∂θ of one hidden entry from its row of every D_l [batch, post]."""
    ones = [jnp.ones((1, 1))] * len(structure.sites)
    grads = [
        structure.along(site, jnp.einsum("bi,bj->bji", row, v), pre=True, post=True)
        for site, row, v in zip(structure.sites, reach, [*presynaptic, *ones], strict=False)
        if site.weight < structure.trained
    ]
    return structure.pullback(theta, structure.collect(grads))
