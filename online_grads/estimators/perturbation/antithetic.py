"""Antithetic particles: what the evolution strategies share.

    ε_i ~ N(0, σ²)          members θ + ε_i and θ − ε_i of pair i, on the same data
    g = 1/(2σ²N) Σ_i ξ_i Σ_t (ℓ_t⁺ − ℓ_t⁻)_i          ξ_i all perturbations that h_i has seen, summed

Nothing is differentiated: transitions and losses may use argmax, rounding, integer states. A segment runs
all particles in one vmapped program, from equal hidden states, keys in it included. `resample` is what tells
the members of the family apart: how many segments pass from one ε to the next. With 1 (PES) ξ is a random
walk; with None (ES-Single) ε stays for the whole episode, ξ = ε.

A reset begins an episode: the perturbation drawn with its segment comes into force, and ξ is that alone.
(From a segment's first reset on: further ones in the same segment share it.) A particle whose loss is not
finite makes the estimate so until a reset.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis, analyse
from online_grads.arguments import above, positive_int
from online_grads.numerics import like, wide, widened
from online_grads.types import Array, Estimate, Estimator, Model, PyTree


class Particles(NamedTuple):
    """The carry of `pes` and `es_single`. Perturbations are kept in at least float32."""

    members: PyTree  # hidden states, [2N, ...]: the N with θ + ε, then the N with θ − ε
    epsilon: PyTree | None  # like params, [N, ...]: in force; None where every segment draws its own
    earlier: PyTree | None  # like params, [N, ...]: the sum of those before it; None where there are none
    age: Array | None  # [] int32, segments since ε was drawn; None where nothing depends on it
    key: Array  # [] typed key of the perturbations to come

    @property
    def hidden(self) -> PyTree:
        """The mean over the particles; what is not a floating number is the first one's."""
        return mean_particle(self.members)


def persistent(
    model: Model, *, sigma: float, particles: int, resample: int | None, allow_unused: bool
) -> Estimator:
    """Particles whose states persist, with a new perturbation every `resample` segments."""
    above("sigma", sigma, 0)
    pairs = pairs_of(particles)
    found = analyse(model, allow_unused=allow_unused)
    walks, stays = resample is not None, resample != 1  # ξ is a sum; ε outlives its segment
    episodic = model.reset is not None
    draw = lambda key: drawn(key, found, pairs, sigma)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        key, key_epsilon = jax.random.split(key)
        epsilon = draw(key_epsilon) if stays else None
        earlier = jax.tree.map(jnp.zeros_like, jax.eval_shape(draw, key)) if walks else None
        age = jnp.zeros((), jnp.int32) if walks and stays else None
        return Particles(copies(hidden, 2 * pairs), epsilon, earlier, age, key)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        key, key_epsilon = jax.random.split(state.key)
        begun = resets_begun(found, xs)
        epsilon, xi, candidate = perturbed(state, key_epsilon, begun)
        after = candidate if episodic and stays else None
        members, seen = run(found, params, (epsilon, after), state.members, xs, ys, k, begun)
        # a past that nothing of this segment has seen may be anything, infinite too
        xis = [either(begun[0], candidate, xi), candidate] if episodic else [xi]
        estimate = Estimate(contracted(xis, seen, sigma, k, params), seen.loss, seen.outputs, {})
        return Particles(members, *carried(state, epsilon, xi, candidate, begun), key), estimate

    def perturbed(state, key, begun):
        """ε and ξ where a segment begins, and the perturbation that comes into force with its first reset."""
        epsilon, candidate = state.epsilon, None
        if not stays:
            epsilon = candidate = draw(key)
        elif walks or episodic:
            due = state.age == 0 if walks else jnp.array(False)
            needed = due | begun[-1] if episodic else due
            candidate = jax.lax.cond(needed, draw, lambda key: state.epsilon, key)
            epsilon = either(due, candidate, epsilon)
        xi = jax.tree.map(jnp.add, state.earlier, epsilon) if walks else epsilon
        return epsilon, xi, candidate

    def carried(state, epsilon, xi, candidate, begun):
        """(ε, the sum of those before it, its age) where a segment ends."""
        earlier, age = state.earlier, state.age
        if episodic:
            nothing = jax.tree.map(jnp.zeros_like, (earlier, age))
            new = candidate, candidate, nothing
            epsilon, xi, (earlier, age) = either(begun[-1], new, (epsilon, xi, (earlier, age)))
        if not stays:
            return None, xi, None
        if not walks:
            return epsilon, None, None
        age = (age + 1) % resample
        return epsilon, either(age == 0, xi, earlier), age

    return Estimator(init, update)


class Seen(NamedTuple):
    """What a segment's losses say."""

    differences: Array  # [candidates, N]  Σ_t (ℓ_t⁺ − ℓ_t⁻) while each perturbation was in force
    loss: Array  # []  mean over the segment and the particles
    outputs: PyTree  # [k, ...]  mean over the particles


def run(
    found: Analysis,
    params: PyTree,
    epsilons: tuple[PyTree, PyTree | None],
    members: PyTree,
    xs: PyTree,
    ys: PyTree,
    k: int,
    begun: Array | None,
) -> tuple[PyTree, Seen]:
    """All particles over a segment.

    Args:
        found: the analysed model.
        params: θ.
        epsilons: the perturbation, like params [N, ...], and the one from where `begun` is true; None if it
            stays the same.
        members: hidden states, [2N, ...].
        xs, ys: the segment, k steps.
        begun: [k] bool, whether a reset has come; None without resets.

    Returns:
        (members, `Seen`); there are two candidates, before and after, if there are resets.
    """
    model = found.model

    def around(theta, epsilon):
        centre = theta.astype(epsilon.dtype)[None]
        return jnp.concatenate([centre + epsilon, centre - epsilon]).astype(theta.dtype)

    def under(theta):
        """One step of all particles with their parameters [2N, ...]."""

        def step(members, x, y):
            members = jax.vmap(model.transition, (0, 0, None))(theta, members, x)
            return members, jax.vmap(model.loss, (0, 0, None))(theta, members, y)

        return step

    steps = [under(jax.tree.map(around, params, e)) for e in epsilons if e is not None]

    def body(members, step):
        *xy, later = step
        if len(steps) == 1:
            members, (losses, outputs) = steps[0](members, *xy)
        else:
            members, (losses, outputs) = jax.lax.cond(later, steps[1], steps[0], members, *xy)
        return members, (widened(losses), mean_particle(outputs))

    members, (losses, outputs) = jax.lax.scan(body, members, (xs, ys, begun), k)
    plus, minus = jnp.split(losses, 2, axis=1)
    parts = [plus - minus]
    if begun is not None:
        later = begun[:, None]
        parts = [jnp.where(later, 0, plus - minus), jnp.where(later, plus - minus, 0)]
    differences = jnp.stack([jnp.sum(part, axis=0) for part in parts])
    return members, Seen(differences, jnp.mean(losses), outputs)


def resets_begun(found: Analysis, xs: PyTree) -> Array | None:
    """[k] bool, whether a reset has come in this segment; None for a model without resets."""
    if found.model.reset is None:
        return None
    return jax.lax.cummax(jax.vmap(found.model.reset)(xs).astype(jnp.int32)).astype(bool)


def contracted(xis: list[PyTree], seen: Seen, sigma, k: int, params: PyTree) -> PyTree:
    """1/(2σ²Nk) Σ_i ξ_i Σ_t (ℓ_t⁺ − ℓ_t⁻)_i, like params."""
    pairs = seen.differences.shape[1]
    weights = seen.differences / (2 * jnp.asarray(sigma, seen.differences.dtype) ** 2 * pairs * k)

    def read(*leaves):
        parts = [jnp.tensordot(w.astype(xi.dtype), xi, 1) for w, xi in zip(weights, leaves, strict=True)]
        return sum(parts[1:], parts[0])

    return like(jax.tree.map(read, *xis), params)


def drawn(key: Array, found: Analysis, pairs: int, sigma) -> PyTree:
    """ε like params, [pairs, ...], in at least float32: half precision has no good normal numbers."""
    leaves, treedef = jax.tree.flatten(found.params)
    sizes = [math.prod(leaf.shape) for leaf in leaves]
    dtype = max((wide(leaf.dtype) for leaf in leaves), key=lambda dtype: dtype.itemsize)
    # one draw for all leaves costs less than one each
    flat = jnp.asarray(sigma, dtype) * jax.random.normal(key, (pairs, sum(sizes)), dtype)
    parts = jnp.split(flat, list(itertools.accumulate(sizes[:-1])), axis=1)
    shaped = [
        part.reshape(pairs, *leaf.shape).astype(wide(leaf.dtype))
        for part, leaf in zip(parts, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, shaped)


def pairs_of(particles) -> int:
    """N, from an even number of particles."""
    if positive_int("particles", particles, least=2) % 2:
        raise ValueError(f"particles come in pairs θ ± ε: expected an even number, got {particles}")
    return particles // 2


def copies(hidden: PyTree, count: int) -> PyTree:
    """Every particle in the same state."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), hidden)


def mean_particle(tree: PyTree) -> PyTree:
    """The mean over the particles; of what is not a floating number the first one's."""
    one = lambda leaf: jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]
    return jax.tree.map(one, tree)


def either(when: Array, these: PyTree, others: PyTree) -> PyTree:
    """One of two trees."""
    return jax.tree.map(lambda one, other: jnp.where(when, one, other), these, others)
