"""The contract: a model, an estimator, a learner, and what they return.

Shape legend, used in every docstring and comment of the library:

    k       length of a segment: the steps over which the parameters are frozen
    n       real, differentiable entries of the hidden state, flattened
    p       entries of the parameters, flattened
    pre     entries of a presynaptic vector (what a weight matrix is multiplied with)
    post    entries of a drive (what a weight matrix produces)
    T       length of a stream

The carry comes first and is returned first, as in `jax.lax.scan`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
Array = jax.Array


class Model(NamedTuple):
    """A recurrent model: pure functions over pytrees.

        h_t = transition(θ, h_{t-1}, x_t)          ℓ_t, out_t = loss(θ, h_t, y_t)

    `init` draws the parameters and the state before the first step. `example` is the (x, y) of
    one step, as arrays or `jax.ShapeDtypeStruct`: estimators analyse a model from shapes alone.
    `reset` says whether a step begins a new episode; `with_resets` sets it.
    """

    init: Callable  # key -> (params, hidden)
    transition: Callable  # (params, hidden, x) -> hidden
    loss: Callable  # (params, hidden, y) -> (scalar loss, outputs)
    example: tuple  # (x, y) of one step
    reset: Callable | None = None  # x -> bool []


class Estimate(NamedTuple):
    """What one segment of k steps tells about the gradient."""

    grads: PyTree  # like params: of the segment's mean loss
    loss: Array  # []  mean over the segment
    outputs: PyTree  # [k, ...] what model.loss returned besides the loss
    info: dict  # name -> Array, {} for most estimators


class Estimator(NamedTuple):
    """An online gradient estimator: a pure pair over a state of fixed size.

    `flush` gives what an estimator that emits late still owes at the end of a stream, so that
    Σ k·grads + flush estimates the gradient of the summed loss.
    """

    init: Callable  # (params, hidden, *, key) -> state
    update: Callable  # (state, params, xs [k, ...], ys [k, ...]) -> (state, Estimate)
    flush: Callable | None = None  # (state, params) -> (state, grads)


class LearnerState(NamedTuple):
    """Everything that learning carries from segment to segment."""

    params: PyTree  # θ
    estimator: PyTree  # the estimator's state, the hidden state included
    optimizer: PyTree  # the optax state
    step: Array  # [] int32, parameter updates so far


class Metrics(NamedTuple):
    """What one parameter update reports."""

    loss: Array  # []  mean over the segment
    finite: Array  # []  bool: the loss and the norms of the gradient and of the new parameters are finite
    grad_norm: Array  # []  global 2-norm of the estimate
    outputs: PyTree  # [k, ...] what model.loss returned besides the loss
    info: dict  # the estimator's info


class Learner(NamedTuple):
    """An estimator and an optimizer: one parameter update from one segment."""

    init: Callable  # (params, hidden, *, key) -> LearnerState
    update: Callable  # (state, xs [k, ...], ys [k, ...]) -> (state, Metrics)
