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
    """A model whose loss is a value and the logarithm of a policy, for `td.eligibility_traces`.

        ℓ_t = v_t + w log π_t(a_t)          [v_t, z_t] = readout(θ_o, output(h_t)), π_t = softmax(z_t)

    The parameters are `{"cell": θ, "readout": θ_o}`; the loss's outputs are `td.TdOutputs`. Nothing is to
    be minimised: with the traces before the optimizer, δ_t strengthens what led to v_t and to a_t.

    To act, take the step first, h = `model.transition(params, hidden_of(state.estimator), x)`, and draw a_t
    by the logits `readout.apply(params["readout"], cell.output(h))[1:]`. Then show the learner x_t and what
    came of it: the reward as the cumulant, the next observation, the action.

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

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, learner, readouts, rtrl, td
    >>> x, number = jnp.zeros(3), jnp.zeros(())
    >>> y = td.TdTarget(number, x, number, action=jnp.array(1))
    >>> model = actor_critic(cells.gru(3, 8), readouts.linear(8, 1 + 2), discount=0.9, example=(x, y))
    >>> online = learner(rtrl(model), optax.chain(td.eligibility_traces(0.9), optax.sgd(0.01)))
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = online.update(state, *jax.tree.map(lambda leaf: leaf[None], (x, y)))
    >>> metrics.outputs.error.shape
    (1,)

    Reference: Lemmel & Grosu (2023), arXiv:2311.04830.
    """
    not_negative("weight", weight)
    action = getattr(example[1], "action", None)
    if action is None or not jnp.issubdtype(action.dtype, jnp.integer):
        raise TypeError(f"the y of example must be a TdTarget with an integer action, got {example[1]!r}")

    def loss(prediction, target, step, y):
        log_policy = jax.nn.log_softmax(prediction[1:])[y.action]
        weighted = jnp.asarray(weight, log_policy.dtype) * log_policy
        return step.value + weighted, step._replace(error=target - step.value)

    return predicting(cell, readout, loss, discount, example, least=3, most=math.inf)
