"""Antithetic particles: what the evolution strategies share.

    ε_i ~ N(0, σ²)          members θ + ε_i and θ − ε_i of pair i, on the same data and keys
    g = 1/(2σ²N) Σ_i ξ_i Σ_t (ℓ_t⁺ − ℓ_t⁻)_i          ξ_i all perturbations that h_i has seen, summed

Nothing is differentiated: transitions and losses may use argmax, rounding, integer states. A segment runs
all particles in one vmapped program. `resample` is what tells the members of the family apart: how many
segments pass from one ε to the next. With 1 (PES) ξ is a random walk, and the gradient of every step is
seen through noise of its own; with None (ES-Single) ε stays for the whole episode, ξ = ε.

A reset begins an episode: the perturbation drawn with its segment comes into force, and ξ is that alone.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis, analyse
from online_grads.arguments import above, positive_int
from online_grads.numerics import like, widened
from online_grads.types import Array, Estimate, Estimator, Model, PyTree


class Particles(NamedTuple):
    """The carry of `pes` and `es_single`."""

    members: PyTree  # hidden states, [2N, ...]: the N with θ + ε, then the N with θ − ε
    epsilon: PyTree | None  # like params, [N, ...]: in force; None where every segment draws its own
    earlier: PyTree | None  # like params, [N, ...]: the sum of those before it; None where there are none
    age: Array  # [] int32, segments since ε was drawn
    key: Array  # [] typed key of the perturbations to come

    @property
    def hidden(self) -> PyTree:
        """The mean over the particles; what is not a floating number is the first one's."""
        return mean(self.members)


def persistent(
    model: Model, *, sigma: float, particles: int, resample: int | None, allow_unused: bool
) -> Estimator:
    """Particles whose states persist, with a new perturbation every `resample` segments."""
    above("sigma", sigma, 0)
    pairs = pairs_of(particles)
    found = analyse(model, allow_unused=allow_unused)
    stays, walks = resample != 1, resample is not None  # ε outlives its segment, ξ is a sum
    episodic = model.reset is not None

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        key, key_epsilon = jax.random.split(key)
        epsilon = drawn(key_epsilon, params, pairs, sigma)
        earlier = jax.tree.map(jnp.zeros_like, epsilon) if walks else None
        members = copies(hidden, 2 * pairs)
        return Particles(members, epsilon if stays else None, earlier, jnp.zeros((), jnp.int32), key)

    def update(state, params, xs, ys):
        k = found.check_segment(xs, ys)
        key, key_epsilon = jax.random.split(state.key)
        _, epsilon, earlier, age, _ = state
        new = drawn(key_epsilon, params, pairs, sigma) if walks or episodic else None
        if not stays:
            epsilon = new
        elif walks:
            epsilon = where(age == 0, new, epsilon)
        xi = jax.tree.map(jnp.add, earlier, epsilon) if walks else epsilon
        begun = resets_begun(found, xs)
        # from the segment's first reset on, the new perturbation is in force
        after = new if episodic and stays else None
        members, seen = run(found, params, epsilon, after, state.members, xs, ys, k, begun)
        xis = [xi]
        if episodic:
            # a past that nothing of this segment has seen may be anything, infinite too
            xis = [where(begun[0], new, xi), new]
            ended = begun[-1]
            epsilon, xi = where(ended, (new, new), (epsilon, xi))
            age = jnp.where(ended, 0, age)
            if walks:
                earlier = where(ended, jax.tree.map(jnp.zeros_like, earlier), earlier)
        if walks:
            age = (age + 1) % resample
            earlier = where(age == 0, xi, earlier)
        grads = like(jax.tree.map(lambda leaf: leaf / k, contracted(xis, seen, sigma)), params)
        state = Particles(members, epsilon if stays else None, earlier, age, key)
        return state, Estimate(grads, seen.loss, seen.outputs, {})

    return Estimator(init, update)


class Seen(NamedTuple):
    """What a segment's losses say."""

    differences: Array  # [candidates, N]  Σ_t (ℓ_t⁺ − ℓ_t⁻) while each perturbation was in force
    loss: Array  # []  mean over the segment and the particles
    outputs: PyTree  # [k, ...]  mean over the particles


def run(
    found: Analysis,
    params: PyTree,
    epsilon: PyTree,
    after: PyTree | None,
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
        epsilon: like params, [N, ...].
        after: the perturbation from where `begun` is true; None if it stays the same.
        members: hidden states, [2N, ...].
        xs, ys: the segment, k steps.
        begun: [k] bool, whether a reset has come; None without resets.

    Returns:
        (members, `Seen`); there are two candidates, before and after, if there are resets.
    """
    model = found.model
    both = lambda theta, epsilon: jnp.concatenate([theta + epsilon, theta - epsilon])
    around = lambda epsilon: jax.tree.map(lambda p, e: both(p[None], e), params, epsilon)
    theta, theta_after = around(epsilon), None if after is None else around(after)

    def body(members, step):
        x, y, later = step
        now = theta if theta_after is None else where(later, theta_after, theta)
        members = jax.vmap(model.transition, (0, 0, None))(now, members, x)
        losses, outputs = jax.vmap(model.loss, (0, 0, None))(now, members, y)
        return members, (losses, mean(outputs))

    members, (losses, outputs) = jax.lax.scan(body, members, (xs, ys, begun), k)
    plus, minus = jnp.split(widened(losses), 2, axis=1)
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


def contracted(xis: list[PyTree], seen: Seen, sigma) -> PyTree:
    """1/(2σ²N) Σ_i ξ_i Σ_t (ℓ_t⁺ − ℓ_t⁻)_i, like params in at least float32."""
    pairs = seen.differences.shape[1]
    scale = lambda row: row / (2 * jnp.asarray(sigma, row.dtype) ** 2 * pairs)

    def read(*leaves):
        leaves = [widened(leaf) for leaf in leaves]
        read = [
            jnp.tensordot(scale(row).astype(leaf.dtype), leaf, 1)
            for row, leaf in zip(seen.differences, leaves, strict=True)
        ]
        return sum(read[1:], read[0])

    return jax.tree.map(read, *xis)


def drawn(key: Array, params: PyTree, pairs: int, sigma) -> PyTree:
    """ε like params, [pairs, ...]."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draw = lambda key, leaf: (
        jnp.asarray(sigma, leaf.dtype) * jax.random.normal(key, (pairs, *leaf.shape), leaf.dtype)
    )
    return jax.tree.unflatten(treedef, [draw(*both) for both in zip(keys, leaves, strict=True)])


def pairs_of(particles) -> int:
    """N, from an even number of particles."""
    if positive_int("particles", particles, least=2) % 2:
        raise ValueError(f"particles come in pairs θ ± ε: expected an even number, got {particles}")
    return particles // 2


def copies(hidden: PyTree, count: int) -> PyTree:
    """Every particle in the same state."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))), hidden)


def mean(tree: PyTree) -> PyTree:
    """Over the particles; of what is not a floating number the first one's."""
    one = lambda leaf: jnp.mean(leaf, axis=0) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf[0]
    return jax.tree.map(one, tree)


def where(when: Array, these: PyTree, others: PyTree) -> PyTree:
    """One of two trees."""
    return jax.tree.map(lambda one, other: jnp.where(when, one, other), these, others)
