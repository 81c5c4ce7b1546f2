"""An estimator composed with an optax optimizer, and the pure loops over a stream."""

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import positive_int
from online_grads.leaves import size_in_bytes
from online_grads.numerics import like, norm, widened
from online_grads.types import Array, Estimator, Learner, LearnerState, Metrics, PyTree


def learner(estimator: Estimator, optimizer: optax.GradientTransformation) -> Learner:
    """One parameter update from one segment.

        θ ← θ + optimizer(estimate of ∂(mean loss of the segment)/∂θ)

    What an estimator with a `flush` still owes when a stream ends is not applied.

    Args:
        estimator: any `Estimator`.
        optimizer: any optax `GradientTransformation`. One that takes extra arguments is told the model's
            outputs of the segment, as `outputs` [k, ...].

    Returns:
        A `Learner`, to be driven by `scan`, or by `run` from the host.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, from_cell, losses, readouts, rtrl
    >>> cell, readout = cells.vanilla_rnn(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> online = learner(rtrl(model), optax.sgd(0.1))
    >>> state = online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state, metrics = online.update(state, jnp.ones((1, 2)), jnp.ones((1, 1)))
    >>> int(state.step), bool(metrics.finite)
    (1, True)
    """
    told = optax.with_extra_args_support(optimizer)

    def init(params, hidden, *, key):
        return LearnerState(
            params,
            estimator.init(params, hidden, key=key),
            optimizer.init(params),
            jnp.zeros((), jnp.int32),
        )

    def update(state, xs, ys):
        carried, estimate = estimator.update(state.estimator, state.params, xs, ys)
        updates, optimizer_state = told.update(
            estimate.grads, state.optimizer, state.params, outputs=estimate.outputs
        )
        params = optax.apply_updates(state.params, updates)
        # one norm each tells as much as a test of every entry, in a quarter of its time
        grad_norm = norm(estimate.grads)
        finite = jnp.isfinite(estimate.loss) & jnp.isfinite(grad_norm) & jnp.isfinite(norm(params))
        metrics = Metrics(estimate.loss, finite, grad_norm, estimate.outputs, estimate.info)
        return LearnerState(params, carried, optimizer_state, state.step + 1), metrics

    return Learner(init, update)


def scan(learner: Learner, state: LearnerState, xs: PyTree, ys: PyTree, *, window: int = 1):
    """Drive a learner over a stream, one parameter update per `window` steps.

    Pure: jit it once (an eager call compiles anew every time), vmap it over seeds, learning
    rates, anything.

    Args:
        learner: the `Learner`.
        state: its state.
        xs, ys: the stream, [T, ...] with T a multiple of `window`.
        window: k, steps per segment.

    Returns:
        (state, `Metrics` with a leading axis of T/window segments); with T = 0 the state is unchanged.

    Raises:
        ValueError: if the window does not divide the stream.
    """
    return jax.lax.scan(lambda carry, xy: learner.update(carry, *xy), state, segments(xs, ys, window))


def gradient(
    estimator: Estimator,
    params: PyTree,
    hidden: PyTree,
    xs: PyTree,
    ys: PyTree,
    *,
    key: Array,
    window: int = 1,
) -> PyTree:
    """The estimator's gradient of a whole stream's mean loss, at frozen parameters.

        (1/T) (Σ_segments k·grads + flush)

    Args:
        estimator: any `Estimator`.
        params, hidden: θ and the state before the first step.
        xs, ys: the stream, [T, ...] with T a multiple of `window`.
        key: a typed key for the estimator's noise.
        window: k, steps per segment.

    Returns:
        A pytree like params. For an exact estimator it equals `jax.grad` of the mean loss.

    Raises:
        ValueError: if the stream has no steps, or the window does not divide it.
    """

    state = estimator.init(params, hidden, key=key)
    total, steps = gradient_sum(estimator, state, params, xs, ys, window=window)
    return like(jax.tree.map(lambda g: g / steps, total), params)


def gradient_sum(
    estimator: Estimator, state: PyTree, params: PyTree, xs: PyTree, ys: PyTree, *, window: int = 1
) -> tuple[PyTree, int]:
    """The gradient of the summed loss of a stream, from a state of the estimator on: Σ k·grads + flush.

    Args:
        estimator: any `Estimator`.
        state: its state before the first step.
        params: θ, frozen.
        xs, ys: the stream, [T, ...] with T a multiple of `window`.
        window: k, steps per segment.

    Returns:
        (a pytree like params, of float32 or wider leaves; the number of steps T).

    Raises:
        ValueError: if the stream has no steps, or the window does not divide it.
    """
    parts = segments(xs, ys, window)
    steps = window * jax.tree.leaves(parts)[0].shape[0]
    if not steps:
        raise ValueError("the stream has no steps, and so no gradient")

    def body(carry, xy):
        state, total = carry
        state, estimate = estimator.update(state, params, *xy)
        return (state, jax.tree.map(jnp.add, total, widened(estimate.grads))), None

    (state, total), _ = jax.lax.scan(body, (state, widened(jax.tree.map(jnp.zeros_like, params))), parts)
    total = jax.tree.map(lambda g: window * g, total)
    if estimator.flush is not None:
        total = jax.tree.map(jnp.add, total, widened(estimator.flush(state, params)[1]))
    return total, steps


def memory(estimator: Estimator, params: PyTree, hidden: PyTree) -> int:
    """Bytes of the estimator's state, before anything is allocated; arrays or their shapes will do."""
    init = lambda params, hidden: estimator.init(params, hidden, key=jax.random.key(0))
    return size_in_bytes(jax.eval_shape(init, params, hidden))


def segments(xs: PyTree, ys: PyTree, window: int):
    """(xs, ys) with the time axis [T, ...] split into [T/window, window, ...]."""
    positive_int("window", window)
    leaves = jax.tree.leaves((xs, ys))
    if not leaves or any(jnp.ndim(leaf) == 0 for leaf in leaves):
        raise ValueError("xs and ys need a leading time axis [T, ...] on every leaf")
    lengths = {jnp.shape(leaf)[0] for leaf in leaves}
    if len(lengths) != 1:
        raise ValueError(f"the leaves of xs and ys differ in their number of steps: {sorted(lengths)}")
    (length,) = lengths
    if length % window:
        raise ValueError(f"a window of {window} steps does not divide the stream's {length} steps")
    split = lambda leaf: jnp.reshape(leaf, (length // window, window, *jnp.shape(leaf)[1:]))
    return jax.tree.map(split, (xs, ys))
