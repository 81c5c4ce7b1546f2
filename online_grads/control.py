"""Control: an actor and a critic on one recurrent core, learned online by eligibility traces.

    [v_t, z_t] = readout(θ_o, output(h_t))          π_t = softmax(z_t)          a_t ~ π_t
    δ_t = r_{t+1} + γ_{t+1} v(h') − v_t
    e_t = γ_t λ e_{t-1} + ∂v_t/∂θ + w ∂log π_t(a_t)/∂θ          θ ← θ + α δ_t e_t

The gradients of v and log π go through the whole past that an estimator sees; with `rtrl` this is
real-time recurrent reinforcement learning, with one λ for actor, critic and core.

Reference: Sutton & Barto (2018), Reinforcement learning, section 13.5; Lemmel & Grosu (2023), Real-time
recurrent reinforcement learning, arXiv:2311.04830.
"""

import math

import jax
import jax.numpy as jnp

from online_grads.arguments import not_negative
from online_grads.td import predicting
from online_grads.types import Model


def actor_critic(cell, readout, *, discount: float, example: tuple, weight: float = 1.0) -> Model:
    """A model whose loss is a value and the logarithm of a policy, to be learned by `td.td_learner`.

        ℓ_t = v_t + w log π_t(a_t)          [v_t, z_t] = readout(θ_o, output(h_t)), π_t = softmax(z_t)

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are `td.TdOutputs`. Nothing is to
    be minimised, and a plain `learner` would descend it: with the traces of `td_learner`, δ_t strengthens
    what led to v_t and to a_t.

    To act, take the step first, from the hidden state that the learner carries; the transition of
    `with_resets` takes (x, reset). Draw a_t by the logits. Then show the learner x_t and what came of it: the
    reward as the cumulant, the next observation, the action, 0 as the discount where the episode terminates,
    and whether step t was the first of one, which the reset in x says once more. An action out of range is
    not refused: from A on it counts as the last one, and a negative one is counted from the end, as JAX
    indexes.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair with 1 + A outputs, v and a logit per action.
        discount: γ in [0, 1), for a y that tells none. May be a tracer.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, y a `td.TdTarget` with an action.
        weight: w, how much the actor moves the core beside the critic. May be a tracer.

    Returns:
        A `Model`.

    Raises:
        TypeError: y is not a `TdTarget`, its action not an integer, or a number none.
        ValueError: the discount is outside [0, 1), the weight below 0; a number of y is not a scalar; y's x
            is unlike x; the readout has less than three outputs.

    A whole agent; the second observation of an episode is its last, and action 1 is then rewarded:

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, hidden_of, readouts, rtrl, td, with_resets
    >>> cell, readout, x, number = cells.gru(2, 8), readouts.linear(8, 1 + 2), jnp.eye(2)[0], jnp.zeros(())
    >>> y = td.TdTarget(number, x, discount=number, begins=jnp.array(False), action=0)
    >>> model = with_resets(actor_critic(cell, readout, discount=0.9, example=(x, y)), jnp.zeros(8))
    >>> online = td.td_learner(rtrl(model), optax.sgd(0.3), trace_decay=0.9)
    >>> def step(carry, key):
    ...     state, x, begins = carry
    ...     h = model.transition(state.params, hidden_of(state), (x, begins))
    ...     logits = readout.apply(state.params["readout"], cell.output(h))[1:]
    ...     action = jax.random.categorical(key, logits)
    ...     over, following = x[1] == 1, x[::-1]
    ...     reward, discount = jnp.where(over & (action == 1), 1.0, 0.0), jnp.where(over, 0.0, 0.9)
    ...     y = td.TdTarget(reward, following, discount=discount, begins=begins, action=action)
    ...     state, _ = online.update(state, *jax.tree.map(lambda leaf: leaf[None], ((x, begins), y)))
    ...     return (state, following, over), reward
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> keys = jax.random.split(jax.random.key(2), 500)
    >>> rewards = jax.lax.scan(step, (state, x, jnp.array(True)), keys)[1]
    >>> float(rewards[1::2][-100:].mean()) > 0.9  # of the last 100 episodes
    True

    Reference: Lemmel & Grosu (2023), arXiv:2311.04830.
    """
    not_negative("weight", weight)
    action = getattr(example[1], "action", None)
    if action is None or not jnp.issubdtype(jnp.result_type(action), jnp.integer):
        raise TypeError(f"the y of example must be a TdTarget with an integer action, got {example[1]!r}")

    def loss(prediction, target, step, y):
        log_policy = jax.nn.log_softmax(prediction[1:])[y.action]
        weighted = jnp.asarray(weight, log_policy.dtype) * log_policy
        return step.value + weighted, step._replace(error=target - step.value)

    return predicting(cell, readout, loss, discount, example, least=3, most=math.inf)
