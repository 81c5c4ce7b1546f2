"""Forward propagation through time: an optimizer that pulls θ towards its own running mean.

    min over θ of ℓ_t(θ) + ½α‖θ − θ̄‖² + (ρ − 1) ⟨θ, λ⟩          one optimizer step per segment
    λ ← λ − α (θ − θ̄)
    θ̄ ← (1 − β) θ̄ + β θ − (β/α) λ

It changes the objective, not the gradient: use it with `tbptt`, whose segments are its partitions. The
dynamic regulariser pulls the steps on the segments towards a common θ̄. Credit from before a segment enters
nowhere: where it settles, the mean of the *truncated* gradients is zero.

Reference: Kag & Saligrama (2021), Training recurrent neural networks via forward propagation through time,
ICML, algorithm 2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import above, an_optimizer, not_negative
from online_grads.types import PyTree


class FpttState(NamedTuple):
    """The carry of `fptt`."""

    average: PyTree  # like params: θ̄
    multiplier: PyTree  # like params: λ
    inner: PyTree  # the wrapped optimizer's state


def fptt(
    optimizer: optax.GradientTransformation, *, alpha: float, beta: float = 0.5, rho: float = 0.0
) -> optax.GradientTransformation:
    """Wrap an optimizer so that it minimises the regularised loss of forward propagation through time.

        g = ∂ℓ/∂θ + α(θ − θ̄) + (ρ − 1) λ

    Args:
        optimizer: takes the steps.
        alpha: α > 0, the pull towards θ̄. May be a tracer.
        beta: β in (0, 1], how fast θ̄ follows. May be a tracer.
        rho: ρ, 0 in the paper's code. May be a tracer.

    Returns:
        An optax `GradientTransformation`. Its updates must reach θ unchanged, as θ̄ and λ follow the θ that
        they lead to: clip and scale inside, `fptt(optax.chain(...))`. Its state holds θ̄ in `average`;
        `fptt_restart` goes on from there at the end of a sequence.

    Raises:
        TypeError: the optimizer is none.
        ValueError: if alpha is not above 0, beta outside (0, 1], or rho negative.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, from_cell, learner, losses, readouts, tbptt
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> online = learner(tbptt(model), fptt(optax.sgd(0.1), alpha=0.5))
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = online.update(state, jnp.ones((1, 2)), jnp.ones((1, 1)))
    >>> jax.tree.structure(state.optimizer.average) == jax.tree.structure(state.params)
    True

    Reference: Kag & Saligrama (2021), ICML, algorithm 2.
    """
    an_optimizer("optimizer", optimizer)
    above("alpha", alpha, 0)
    above("beta", beta, 0, 1)
    not_negative("rho", rho)

    def init(params):
        # a copy, for the parameters may be donated
        average = jax.tree.map(jnp.copy, params)
        return FpttState(average, jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(grads, state, params=None):
        if params is None:
            raise ValueError("fptt needs the parameters: optimizer.update(grads, state, params)")
        average, multiplier, inner = state

        def regularised(g, theta, mean, lam):
            a, r = jnp.asarray(alpha, g.dtype), jnp.asarray(rho, g.dtype)
            return g + a * (theta - mean) + (r - 1) * lam

        grads = jax.tree.map(regularised, grads, params, average, multiplier)
        updates, inner = optimizer.update(grads, inner, params)
        moved = optax.apply_updates(params, updates)

        def dual(lam, theta, mean):
            return lam - jnp.asarray(alpha, lam.dtype) * (theta - mean)

        def follow(mean, theta, lam):
            a, b = jnp.asarray(alpha, mean.dtype), jnp.asarray(beta, mean.dtype)
            return (1 - b) * mean + b * theta - b / a * lam

        multiplier = jax.tree.map(dual, multiplier, moved, average)
        average = jax.tree.map(follow, average, moved, multiplier)
        return updates, FpttState(average, multiplier, inner)

    return optax.GradientTransformation(init, update)


def fptt_restart(state: FpttState) -> tuple[PyTree, FpttState]:
    """Go on from the average, as the paper does at the end of a sequence or epoch: (θ = θ̄, λ = 0)."""
    multiplier = jax.tree.map(jnp.zeros_like, state.multiplier)
    return jax.tree.map(jnp.copy, state.average), state._replace(multiplier=multiplier)
