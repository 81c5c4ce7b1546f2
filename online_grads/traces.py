"""Eligibility traces: TD(λ) as a link before any optimizer, and the learner made of it.

    e_t = ρ_t (γ_t λ e_{t-1} + ∂v_t/∂θ)          θ ← θ + α δ_t e_t

What v_t, δ_t and the rest are: `online_grads.td`.

References: Sutton (1988), Learning to predict by the methods of temporal differences, Machine Learning 3;
Maei (2011), Gradient temporal-difference learning algorithms (ρ in the trace).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import an_optimizer, fraction
from online_grads.learner import learner
from online_grads.numerics import like, widened
from online_grads.types import Array, Estimator, Learner, PyTree


class TdOutputs(NamedTuple):
    """What the loss of `value_model` returns besides the value, for `eligibility_traces`."""

    value: Array  # [] v_t
    error: Array  # [] δ_t
    discount: Array  # [] γ_{t+1}
    ratio: Array  # [] ρ_t
    begins: Array  # [] bool


class TraceState(NamedTuple):
    """The carry of `eligibility_traces`."""

    traces: PyTree  # like params, of float32 or wider leaves: e_t
    discount: Array  # [] γ_{t+1}


def td_learner(
    estimator: Estimator, optimizer: optax.GradientTransformation, *, trace_decay: float
) -> Learner:
    """Learn a `value_model` or an `actor_critic` by TD(λ), one step of the stream at a time.

        e_t = ρ_t (γ_t λ e_{t-1} + ∂ℓ_t/∂θ)          θ ← θ + optimizer(−δ_t e_t)

    It is `learner(estimator, optax.chain(eligibility_traces(trace_decay), optimizer))`.

    Args:
        estimator: an `Estimator` of a model whose outputs are `TdOutputs`, with gradients in time.
        optimizer: any optax `GradientTransformation`, such as Adam.
        trace_decay: λ in [0, 1]. May be a tracer.

    Returns:
        A `Learner`, for windows of one step.

    Raises:
        TypeError: the decay is not a number, or the second argument no optimizer. When traced: the model's
            outputs are not `TdOutputs`.
        ValueError: the decay is outside [0, 1], or the estimator emits its gradients late, as `fbptt` and
            `artbp` do. When traced: there is more than one step or stream.

    >>> from online_grads import cells, readouts, rtrl, td
    >>> x = jnp.zeros(3)
    >>> example = x, td.TdTarget(jnp.zeros(()), x)
    >>> model = td.value_model(cells.gru(3, 8), readouts.linear(8, 1), discount=0.9, example=example)
    >>> online = td_learner(rtrl(model), optax.sgd(0.01), trace_decay=0.9)
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state.optimizer[0].traces["readout"]["W"].shape
    (1, 8)

    Reference: Sutton (1988).
    """
    if estimator.flush is not None:
        raise ValueError(
            "the estimator emits its gradients late (it has a flush): "
            "the trace would weigh them with another step's TD error"
        )
    optimizer = an_optimizer("optimizer", optimizer)
    return learner(estimator, optax.chain(eligibility_traces(trace_decay), optimizer))


def eligibility_traces(trace_decay: float) -> optax.GradientTransformationExtraArgs:
    """TD(λ): gradients of predictions become gradients for any optimizer to descend.

        e_t = ρ_t (γ_t λ e_{t-1} + ∂v_t/∂θ)          emits −δ_t e_t

    The first link of the optimizer of `td_learner`; `learner` hands over what the loss of `value_model`
    returned. Decaying with γ_t, the step before's, the trace ends at a termination; a step that begins an
    episode forgets it in any case.
    With frozen parameters Σ_t δ_t e_t is that of the forward view, Σ_t ρ_t (G^λ_t − v_t) ∂v_t/∂θ, where

        G^λ_t = c_{t+1} + γ_{t+1} (v(h') + λ ρ_{t+1} (G^λ_{t+1} − v_{t+1}))

    and at the end of an episode λ = 0.

    Args:
        trace_decay: λ in [0, 1]. May be a tracer.

    Returns:
        An optax `GradientTransformationExtraArgs`. `optimizer.update(grads, state, params,
        outputs=estimate.outputs)` by hand; what wraps it must pass that on, as `optax.chain` does and
        `optax.MultiSteps` does not.

    Raises:
        TypeError: the decay is not a number. When traced: the outputs are not those of `value_model`.
        ValueError: the decay is outside [0, 1]. When traced: there are no outputs, or they are of more than
            one step or stream.

    >>> import jax.numpy as jnp
    >>> traces = eligibility_traces(0.5)
    >>> told = TdOutputs(*jnp.array([[0.0], [2.0], [0.8], [1.0]]), jnp.array([False]))
    >>> state = traces.init(jnp.zeros(()))
    >>> for _ in range(2):
    ...     emitted, state = traces.update(jnp.ones(()), state, outputs=told)
    >>> round(float(state.traces), 6), round(float(emitted), 6)
    (1.4, -2.8)

    Reference: Sutton (1988); Maei (2011).
    """
    fraction("trace_decay", trace_decay)

    def init(params):
        return TraceState(widened(jax.tree.map(jnp.zeros_like, params)), jnp.zeros(()))

    def update(updates, state, params=None, *, outputs=None, **others):
        del params, others
        step = _single(outputs)

        def moved(e, g):
            decay = jnp.asarray(trace_decay, e.dtype) * state.discount.astype(e.dtype)
            # not a product: what was before may not even be finite
            left = jnp.where(step.begins, 0, decay * e)
            return step.ratio.astype(e.dtype) * (left + g.astype(e.dtype))

        traces = jax.tree.map(moved, state.traces, updates)
        emitted = jax.tree.map(lambda e: -step.error.astype(e.dtype) * e, traces)
        return like(emitted, updates), TraceState(traces, step.discount.astype(state.discount.dtype))

    return optax.GradientTransformationExtraArgs(init, update)


def _single(outputs) -> TdOutputs:
    """The outputs of a segment of one step, without its axis."""
    if outputs is None:
        raise ValueError(
            "eligibility_traces needs what the loss of value_model returned: "
            "optimizer.update(grads, state, params, outputs=estimate.outputs), as learner does; what wraps "
            "the traces must pass `outputs` on, optax.MultiSteps does not (td_learner has the traces outside)"
        )
    if not isinstance(outputs, TdOutputs):
        raise TypeError(
            "eligibility_traces needs the TdOutputs of value_model or actor_critic "
            "(td_model has no use for traces: learner descends its loss as it is)"
        )
    if (shape := jnp.shape(outputs.error)) != (1,):
        raise ValueError(
            f"eligibility_traces needs windows of one step and one stream, got TD errors of shape {shape}; "
            "for several streams jax.vmap a learner each, not the estimator (`batched`)"
        )
    return TdOutputs(*(leaf[0] for leaf in outputs))
