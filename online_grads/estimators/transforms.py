"""Transforms of estimators: many streams at once, many copies of one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import positive_int
from online_grads.types import Estimate, Estimator, LearnerState, PyTree


class BatchedState(NamedTuple):
    """The carry of `batched`."""

    streams: PyTree  # the estimator's state, [streams, ...]


class AveragedState(NamedTuple):
    """The carry of `averaged`."""

    copies: PyTree  # the estimator's state, [copies, ...]


def batched(estimator: Estimator, streams: int, *, axis_name: str = "streams") -> Estimator:
    """One estimator over several independent streams, with the mean gradient.

        g = (1/streams) Σ_s g^{(s)}

    Every stream has its own hidden state, influence and noise. xs and ys are [k, streams, ...],
    outputs likewise; `init` takes one stream's hidden state, in which all streams start. `info`
    has a leading axis of streams.

    Args:
        estimator: any `Estimator`.
        streams: how many streams.
        axis_name: the name under which the streams are mapped, for estimators that learn parts of
            their own and average what they learn over it.

    Raises:
        ValueError: if there is no stream.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts, rtrl
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> estimator = batched(rtrl(model), 3)
    >>> state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
    >>> state, estimate = jax.jit(estimator.update)(state, params, jnp.ones((5, 3, 2)), jnp.ones((5, 3, 1)))
    >>> estimate.outputs.shape, hidden_of(state).shape
    ((5, 3, 1), (3, 4))
    """
    positive_int("streams", streams)

    def init(params, hidden, *, key):
        return BatchedState(_vmap_init(estimator, params, hidden, key, streams, axis_name))

    def update(state, params, xs, ys):
        for leaf in jax.tree.leaves((xs, ys)):
            if jnp.ndim(leaf) < 2 or jnp.shape(leaf)[1] != streams:
                raise ValueError(f"expected xs and ys [k, {streams}, ...], got shape {jnp.shape(leaf)}")
        states, each = jax.vmap(
            estimator.update, in_axes=(0, None, 1, 1), out_axes=(0, _ESTIMATE_AXES), axis_name=axis_name
        )(state.streams, params, xs, ys)
        return BatchedState(states), Estimate(_mean(each.grads), _mean(each.loss), each.outputs, each.info)

    def flush(state, params):
        states, owed = jax.vmap(estimator.flush, in_axes=(0, None), axis_name=axis_name)(
            state.streams, params
        )
        return BatchedState(states), _mean(owed)

    return Estimator(init, update, None if estimator.flush is None else flush)


def averaged(estimator: Estimator, copies: int) -> Estimator:
    """The mean of independent copies of a stochastic estimator on the same stream.

        g = (1/copies) Σ_c g^{(c)}          variance / copies

    Args:
        estimator: any `Estimator`; averaging a deterministic one changes nothing.
        copies: how many copies, each with its own noise; the leading axis of `info`.

    Raises:
        ValueError: if there is no copy.
    """
    positive_int("copies", copies)

    def init(params, hidden, *, key):
        return AveragedState(_vmap_init(estimator, params, hidden, key, copies))

    def update(state, params, xs, ys):
        update = jax.vmap(estimator.update, in_axes=(0, None, None, None))
        states, each = update(state.copies, params, xs, ys)
        first = jax.tree.map(lambda leaf: leaf[0], each.outputs)
        return AveragedState(states), Estimate(_mean(each.grads), _mean(each.loss), first, each.info)

    def flush(state, params):
        states, owed = jax.vmap(estimator.flush, in_axes=(0, None))(state.copies, params)
        return AveragedState(states), _mean(owed)

    return Estimator(init, update, None if estimator.flush is None else flush)


def hidden_of(state: PyTree) -> PyTree:
    """The hidden state h_t inside a learner's or an estimator's state, through all transforms.

    Streams of `batched` appear as a leading axis; of `averaged` the first copy is read (the copies of
    a perturbation estimator follow the same stream with different parameters). `pes` and `es_single`
    give the mean over their particles.
    """
    if isinstance(state, LearnerState):
        return hidden_of(state.estimator)
    if isinstance(state, BatchedState):
        return jax.vmap(hidden_of)(state.streams)
    if isinstance(state, AveragedState):
        return hidden_of(jax.tree.map(lambda leaf: leaf[0], state.copies))
    if not hasattr(state, "hidden"):
        raise TypeError(f"{type(state).__name__} is not the state of a learner or an estimator")
    return state.hidden


_ESTIMATE_AXES = Estimate._make((0, 0, 1, 0))  # outputs stay time-major


def _vmap_init(estimator, params, hidden, key, count, axis_name=None):
    start = lambda key: estimator.init(params, hidden, key=key)
    return jax.vmap(start, axis_name=axis_name)(jax.random.split(key, count))


def _mean(tree):
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)
