"""Pattern generation: from frozen noise, draw a smooth curve.

    x_t ~ Bernoulli(rate · dt) [m]          y_t = c Σ_i a_i (sin(2π t/T_i + φ_i) − sin φ_i)
    a_i ~ U(½, 2),  φ_i ~ U(0, 2π),  c such that max_t |y_t| = 1          ℓ_t = ½ (ŷ_t − y_t)²

dt = 1 ms. Input spikes and target are drawn once and come again in every episode, which begins with
a reset: what is learned is one pattern by heart.

Reference: Bellec et al. (2020), A solution to the learning dilemma for recurrent networks of spiking
neurons, Nat. Commun. 11:3625.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import float_dtype, number_in, positive_int, shown
from online_grads.losses import squared_error
from online_grads.tasks.types import Task
from online_grads.types import Array

AMPLITUDES = (0.5, 2.0)
CURVES = 1000  # over which the reference is a mean


class PatternState(NamedTuple):
    """Where a stream stands; the pattern is a function of the key, so it is not kept."""

    key: Array  # typed PRNG key
    step: Array  # [] int32, steps of the episode that are past


def pattern_generation(
    *,
    neurons: int = 100,
    steps: int = 1000,
    rate: float = 50.0,
    periods: tuple[int, ...] = (1000, 500, 333, 200),
    dtype=None,
) -> Task:
    """Pattern generation: from frozen noise, draw a smooth curve.

        x_t ~ Bernoulli(rate/1000) [m]          y_t = c Σ_i a_i (sin(2π t/T_i + φ_i) − sin φ_i)

    y begins at 0 and max |y| = 1. A key means one pattern: the same x and y in every episode. Meant
    for spiking cells with a filtered output, `lif(..., readout_decay=0.97)`.

    Args:
        neurons: m, the number of input neurons.
        steps: of an episode, in ms; at least 2.
        rate: at which an input neuron spikes, in Hz, in (0, 1000).
        periods: T_i of the sines, in ms; each at least 3.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [m], y [1] and a reset at the first step of each episode. Its reference is a
        mean over targets.

    Raises:
        TypeError, ValueError: a size or a period is not an integer or too small, there is no period,
            the rate is out of its range, the dtype is not a floating one.

    >>> task = pattern_generation(steps=100, periods=(100, 50))
    >>> _, ((x, reset), y) = task.draw(task.init(jax.random.key(0)), 200)
    >>> bool((y[:100] == y[100:]).all()), bool((x[:100] == x[100:]).all()), reset.nonzero()[0].tolist()
    (True, True, [0, 100])
    >>> float(y[0, 0]), round(float(abs(y).max()), 6)
    (0.0, 1.0)

    Reference: Bellec et al. (2020), Nat. Commun. 11:3625.
    """
    neurons, steps, dtype = (
        positive_int("neurons", neurons),
        positive_int("steps", steps, least=2),
        float_dtype(dtype),
    )
    number_in(0, 1000, rate=rate)
    if not isinstance(periods, (tuple, list)) or not periods:
        raise TypeError(f"periods must be a list of at least one integer, got {shown(periods)}")
    periods = tuple(positive_int("a period", period, least=3) for period in periods)
    angles = 2 * np.pi * np.arange(steps) / np.asarray(periods)[:, None]
    # sin(ωt + φ) − sin φ = cos φ sin ωt + sin φ (cos ωt − 1)
    waves = np.concatenate([np.sin(angles), np.cos(angles) - 1])

    def draw(state, length):
        for_x, for_y = jax.random.split(state.key)

        def spikes(index):
            return jax.random.bernoulli(jax.random.fold_in(for_x, index), rate / 1000, (neurons,))

        where = (state.step + jnp.arange(length + 1, dtype=jnp.int32)) % steps
        amplitudes, phases = jax.random.uniform(for_y, (2, len(periods)), dtype)
        curve = _curve(amplitudes, phases, jnp.asarray(waves, dtype), jnp)
        x = jax.vmap(spikes)(where[:-1]).astype(dtype)
        return PatternState(state.key, where[-1]), ((x, where[:-1] == 0), curve[where[:-1], None])

    uniform = np.random.default_rng(0).uniform(size=(2, CURVES, len(periods)))
    curves = _curve(uniform[0], uniform[1], waves, np)
    return Task(
        init=lambda key: PatternState(key, jnp.zeros((), jnp.int32)),
        draw=draw,
        example=(jax.ShapeDtypeStruct((neurons,), dtype), jax.ShapeDtypeStruct((1,), dtype)),
        loss=squared_error,
        outputs=1,
        unit="½ squared error",
        references={"always 0": float(np.mean(curves**2) / 2)},
        resets=True,
    )


def _curve(amplitudes, phases, waves, xp: Any):
    """The target [..., steps] from uniform draws [..., sines] and waves [2 sines, steps], in NumPy or JAX."""
    low, high = AMPLITUDES
    amplitudes, phases = low + (high - low) * amplitudes, 2 * np.pi * phases
    parts = [amplitudes * xp.cos(phases), amplitudes * xp.sin(phases)]
    curve = xp.concatenate(parts, axis=-1) @ waves
    return curve / abs(curve).max(axis=-1, keepdims=True)
