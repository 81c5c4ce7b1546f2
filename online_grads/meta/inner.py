"""The inner learner: any optax optimizer, as a recurrence over what it trains and its own state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import an_optimizer
from online_grads.types import PyTree


class LearnerHidden(NamedTuple):
    """What an inner learner carries from example to example."""

    params: PyTree  # φ, what it trains
    optimizer: PyTree  # s, its optax state


def begin(optimizer: optax.GradientTransformation, params: PyTree) -> LearnerHidden:
    """An inner learner before its first example.

    >>> begin(optax.sgd(0.1, momentum=0.9), jnp.zeros(2)).optimizer[0].trace.shape
    (2,)
    """
    return LearnerHidden(params, _arrays(an_optimizer("optimizer", optimizer).init(params)))


def descend(
    optimizer: optax.GradientTransformation, objective: Callable, hidden: LearnerHidden
) -> LearnerHidden:
    """One step of an inner learner down its objective, φ -> (scalar, outputs)."""
    grads, _ = jax.grad(objective, has_aux=True)(hidden.params)
    updates, state = optimizer.update(grads, hidden.optimizer, hidden.params)
    return LearnerHidden(optax.apply_updates(hidden.params, updates), _arrays(state))


def per_parameter(rates: PyTree) -> optax.GradientTransformation:
    """Step sizes for the last link of an optax chain: u = −α ∘ g.

    Args:
        rates: α, a pytree like what is trained, or like its upper levels: a leaf is an array like the
            parameter, or a scalar for all that is below.

    Returns:
        A `GradientTransformation` without a state. Its update raises a ValueError where the rates do not
        fit what is trained.

    >>> weights = {"layer": {"W": jnp.ones(2), "bias": jnp.ones(())}, "gain": jnp.ones(2)}
    >>> each = per_parameter({"layer": jnp.array(0.5), "gain": jnp.array([0.0, 1.0])})
    >>> updates, _ = each.update(weights, each.init(weights))
    >>> updates["layer"]["W"].tolist(), updates["gain"].tolist()
    ([-0.5, -0.5], [-0.0, -1.0])
    """

    expected = jax.tree.structure(rates)

    def scaled(updates, params):
        try:
            expected.flatten_up_to(updates)
        except ValueError as error:
            got = jax.tree.structure(updates)
            raise ValueError(f"the rates {expected} do not fit what is trained, {got}") from error
        return jax.tree.map(lambda rate, part: jax.tree.map(lambda g: -rate * g, part), rates, updates)

    return optax.stateless(scaled)


def _arrays(state: PyTree) -> PyTree:
    # a hidden state is made of arrays; optax may hold Python numbers
    return jax.tree.map(jnp.asarray, state)
