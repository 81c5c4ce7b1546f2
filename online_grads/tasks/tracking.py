"""Tracking: a linear target drifts, and most inputs have nothing to do with it.

    y*_t = Σ_{i ≤ r} w_i(t) x_i + σ ξ_t          x ~ N(0, 1) [m]

Every few steps one of the r relevant weights changes its sign, or takes a step of a random walk. What is
learned are the step sizes of LMS, one per input, as α_i = exp(β_i): those of the irrelevant inputs should
go to 0, those of the others to about 1/(r + 2). Meta-gradient descent on β by `snap` is IDBD.

Reference: Sutton (1992), Adapting bias by gradient descent: an incremental version of delta-bar-delta,
AAAI, section 4.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import above, float_dtype, not_negative, positive_int
from online_grads.losses import squared_error
from online_grads.meta import as_model, per_parameter
from online_grads.tasks.types import Task
from online_grads.types import Array


class TrackingState(NamedTuple):
    """Where a stream stands; the moves are counted, so that no rounding depends on how it is cut."""

    key: Array  # typed PRNG key
    step: Array  # [] int32, steps drawn so far
    moved: Array  # [relevant] int32, moves up minus moves down, before the next step


def tracking(
    *,
    inputs: int = 20,
    relevant: int = 5,
    every: int = 20,
    walk: float = 0.0,
    noise: float = 0.0,
    rate: float = 0.05,
    dtype=None,
) -> Task:
    """A drifting linear target and the step sizes of LMS, one per input, that follow it best.

        y*_t = Σ_{i ≤ r} w_i x_i + σ ξ_t          w' = w + exp(β) ∘ (y*_t − w·x_t) x_t
        ℓ_t = ½ (y*_{t+1} − w'·x_{t+1})²

    The task is about one learner, which it brings along: parameters `{"log_rate": β [inputs]}`, hidden
    state w [inputs] (as `online_grads.meta.as_model` lays it out). The x of a step is an example (x
    [inputs], y* []), and its y is the next one. The squared error is shown. Among the references are
    the least ones of step sizes that stay as they are, the same for all inputs, or 0 for the
    irrelevant ones.

    Args:
        inputs: m, the size of x.
        relevant: r, how many of them the target depends on.
        every: steps from one move to the next; each time one relevant weight moves, any of them.
        walk: by how much, up or down, a weight moves, from 0 on; with 0 the weights are ±1 and a move
            changes the sign.
        noise: σ.
        rate: α, the step size of every input to begin with.
        dtype: of parameters, hidden state and stream, by default JAX's float.

    Returns:
        A `Task` with a `model`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, `relevant` exceeds `inputs`, walk or
            noise is negative, the rate is not above 0, the dtype is not a floating one.

    >>> task = tracking()
    >>> for name, error in task.references.items():
    ...     print(f"{error:.2f} {name}")
    3.35 best step size for all inputs
    1.37 best step sizes for each input
    >>> state, ((x, target), following) = task.draw(task.init(jax.random.key(0)), 20)
    >>> bool(jnp.allclose(target, x[:, :5].sum(1), atol=1e-5))  # no weight has changed its sign yet
    True

    Reference: Sutton (1992), section 4.
    """
    inputs, relevant = positive_int("inputs", inputs), positive_int("relevant", relevant)
    every, dtype = positive_int("every", every), float_dtype(dtype)
    if relevant > inputs:
        raise ValueError(f"relevant must be at most inputs, got {relevant} of {inputs}")
    not_negative("walk", walk)
    not_negative("noise", noise)
    above("rate", rate, 0)

    def numbers(key, index):
        """(x, ξ, how the weights move before this step)."""
        for_x, for_noise, for_place, for_sign = jax.random.split(jax.random.fold_in(key, index), 4)
        place = jax.random.randint(for_place, (), 0, relevant, jnp.int32)
        sign = jnp.where(jax.random.bernoulli(for_sign), 1, -1).astype(jnp.int32)
        moves = (jnp.arange(relevant, dtype=jnp.int32) == place) & (index > 0) & (index % every == 0)
        return (
            jax.random.normal(for_x, (inputs,), dtype),
            jax.random.normal(for_noise, (), dtype),
            jnp.where(moves, sign, 0),
        )

    def draw(state, length):
        # the last example is the y of the last step
        indices = state.step + jnp.arange(length + 1, dtype=jnp.int32)
        x, xi, moves = jax.vmap(numbers, (None, 0))(state.key, indices)
        moved = state.moved[None] + jnp.cumsum(moves, axis=0)
        weights = float(walk) * moved.astype(dtype) if walk else 1 - 2 * (moved % 2).astype(dtype)
        targets = jnp.sum(weights * x[:, :relevant], axis=1) + float(noise) * xi
        after = TrackingState(state.key, state.step + length, moved[-2])
        return after, ((x[:-1], targets[:-1]), (x[1:], targets[1:]))

    def loss(params, w, example):
        x, target = example
        prediction = w @ x
        return squared_error(prediction, target), prediction

    example = (jax.ShapeDtypeStruct((inputs,), dtype), jax.ShapeDtypeStruct((), dtype))
    model = as_model(
        loss,
        lambda params: per_parameter(jnp.exp(params["log_rate"])),
        init=lambda key: (
            {"log_rate": jnp.full(inputs, math.log(rate), dtype)},
            jnp.zeros(inputs, dtype),
        ),
        example=example,
    )
    zero = jnp.zeros((), jnp.int32)
    return Task(
        init=lambda key: TrackingState(key, zero, jnp.zeros(relevant, jnp.int32)),
        draw=draw,
        example=model.example,
        model=model,
        unit="squared error",
        scale=2.0,
        references={
            "best step size for all inputs": _least(inputs, relevant, every, float(walk), float(noise)),
            "best step sizes for each input": _least(relevant, relevant, every, float(walk), float(noise)),
        },
    )


def _least(learning: int, relevant: int, every: int, walk: float, noise: float) -> float:
    """The least mean squared error of LMS in the long run, with one step size for so many inputs.

    The distance V = E‖w* − w‖² shrinks by κ = 1 − 2α + α² (d + 2) a step and grows by α² d σ². A step
    of the walk adds its square, a change of sign 4 (1 − E[w*_i (w*_i − w_i)]).
    """
    alpha = np.linspace(0, 2 / (learning + 2), 100_001)[1:-1]
    shrinking = 2 * alpha - alpha**2 * (learning + 2)
    # E[w*_i (w*_i − w_i)] just before a change of sign, which makes m of it 2 − m for one of the weights
    left = (1 - alpha) ** every
    behind = left * 2 / relevant / (1 - left * (1 - 2 / relevant))
    added = walk**2 if walk else 4 * (1 - behind)
    return float(np.min((added / every + alpha**2 * learning * noise**2) / shrinking) + noise**2)
