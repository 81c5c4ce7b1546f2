"""Conditioning trials laid end to end: a cue, after some time perhaps a US, and the return to predict.

    offset in the trial    0           isi           isi + iti, the next trial
    CS                     |▔▔▔|                     |▔▔▔|              for cs_length steps
    US                                 |▔▔▔|                            for us_length steps, if it comes

    x_t = [US, CS, distractors]          G_t = Σ_{j≥0} γ^j US_{t+1+j}

isi and iti are uniform over their ranges, both ends included. Distractor d = 1, 2, ... fires at a step
with probability 1/(10 d), whatever else happens, and is on from a firing for distractor_length steps: one
that fires again meanwhile stays on. A trial is a function of key and index, so the return needs no waiting:

    G_t = (what is still to come of this trial) + γ^(its steps after t) V          V = Σ_{j≥0} γ^j US_{s+j}

where s is the first step of the next trial: V is the return one step before it, G_{s-1}. It is summed over so
many trials that γ^steps is below 1e-8 beyond them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import float_dtype, positive_int, probability, shown
from online_grads.tasks.episodes import Position, begin, walk
from online_grads.tasks.types import Task
from online_grads.td import TdTarget, eligibility_traces, td_model, value_model
from online_grads.types import Array


class TrialState(NamedTuple):
    """Where a stream of trials stands; what it shows is a function of keys and steps."""

    position: Position  # in which trial, and where in it
    distractors: Array  # typed PRNG key
    step: Array  # [] int32, steps drawn so far


class Cue(NamedTuple):
    """What a trial shows, and what that announces."""

    cs: Array  # [bits] bool
    us: Array  # [] bool: a US follows


class _Timing(NamedTuple):
    isi: tuple[int, int]
    iti: tuple[int, int]
    us_length: int
    discount: float


class _Trial(NamedTuple):
    number: Array  # [] int32, its index
    us_begins: Array  # [] int32, its isi
    duration: Array  # [] int32
    cue: Cue
    following: Array  # [] V = Σ_j γ^j US_{s+j}, where s is the first step of the next trial


def conditioning(
    cue: Callable,
    *,
    bits: int,
    us_probability: float,
    isi: tuple[int, int],
    iti: tuple[int, int],
    cs_length: int,
    us_length: int,
    distractors: int,
    distractor_length: int,
    discount: float | None = None,
    trace_decay: float | None = None,
    dtype=None,
) -> Task:
    """The task of predicting the return G_t of a stream of trials.

    Args:
        cue: (stream key, trial key) -> `Cue`; the first key is the same for all trials of a stream.
        bits: size of the CS.
        us_probability: how often a US follows.
        isi: least and most steps from CS to US.
        iti: least and most steps from US to the next CS.
        cs_length: for how many steps the CS is on.
        us_length: for how many steps the US is on.
        distractors: how many there are.
        distractor_length: for how many steps they are on.
        discount: γ, by default 1 - 1/mean isi.
        trace_decay: λ of TD(λ); None is semi-gradient TD(0) as a loss.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [1 + bits + distractors] and y a `TdTarget`, learned through `td_model`, or with a
        trace_decay through `value_model` and `eligibility_traces`.

    Raises:
        TypeError, ValueError: a size or a length is not a positive integer (distractors may be 0); a
            range is not two of them in order; the CS outlasts the shortest isi, or the US the shortest
            iti; the discount is outside [0, 1), the trace_decay outside [0, 1]; the dtype is not a
            floating one.
    """
    dtype = float_dtype(dtype)
    shortest = _least("isi", isi) + _least("iti", iti)
    _fits("cs_length", cs_length, "isi", isi)
    _fits("us_length", us_length, "iti", iti)
    positive_int("distractors", distractors, least=0)
    positive_int("distractor_length", distractor_length)
    discount = 1 - 2 / sum(isi) if discount is None else discount
    probability("discount", discount)
    timing = _Timing(isi, iti, us_length, discount)
    tables = _tables(timing)
    # trials to look ahead
    ahead = 1 if discount == 0 else math.ceil(math.log(1e-8) / math.log(discount) / shortest)

    def init(key):
        for_trials, for_distractors = jax.random.split(key)
        return TrialState(begin(for_trials), for_distractors, jnp.zeros((), jnp.int32))

    def trial(key, index):
        for_stream, for_trials = jax.random.split(key)
        for_isi, for_iti, for_cue = jax.random.split(jax.random.fold_in(for_trials, index), 3)
        us_begins = _uniform(for_isi, isi)
        return us_begins, us_begins + _uniform(for_iti, iti), cue(for_stream, for_cue)

    def episode(key, index):
        indices = index + jnp.arange(ahead + 1, dtype=jnp.int32)
        us_begins, duration, shown = jax.vmap(partial(trial, key))(indices)
        to_come = jnp.asarray(tables[0], dtype)
        starts = (jnp.cumsum(duration[1:]) - duration[1:]).astype(dtype)
        returns = shown.us[1:].astype(dtype) * to_come[us_begins[1:] + us_length]
        following = jnp.sum(jnp.asarray(discount, dtype) ** starts * returns)
        own = jax.tree.map(lambda leaf: leaf[0], (us_begins, duration, shown))
        return own[1], _Trial(index, *own, following)

    def draw(state, length):
        # one step more: the last y tells the next x, and its trial is where the stream then stands
        _, offset, now = walk(state.position, length + 1, episode, shortest=shortest)
        us = now.cue.us & (now.us_begins <= offset) & (offset < now.us_begins + us_length)
        cs = now.cue.cs & (offset < cs_length)[:, None]
        on = _distractors(state, length + 1, distractors, distractor_length)
        x = jnp.concatenate([us[:, None], cs, on], axis=1).astype(dtype)
        to_come, powers = (jnp.asarray(table, dtype) for table in tables)
        left = jnp.maximum(now.us_begins + us_length - 1 - offset, 0)
        value = now.cue.us.astype(dtype) * to_come[left] + powers[now.duration - 1 - offset] * now.following
        after = Position(state.position.key, now.number[-1], offset[-1])
        y = TdTarget(x[1:, 0], x[1:], value[:-1])
        return TrialState(after, state.distractors, state.step + length), (x[:-1], y)

    size = 1 + bits + distractors
    zeros = lambda *shape: jnp.zeros(shape, dtype)
    example = jax.eval_shape(lambda: (zeros(size), TdTarget(zeros(), zeros(size), zeros())))
    mean, square = _moments(timing, us_probability)
    build, traces, value_of = td_model, None, lambda prediction: prediction
    if trace_decay is not None:
        build, traces, value_of = value_model, eligibility_traces(trace_decay), lambda outputs: outputs.value
    return Task(
        init=init,
        draw=draw,
        example=example,
        outputs=1,
        unit="squared return error",
        references={"always zero": square, "the best constant": square - mean**2},
        build=partial(build, discount=discount, example=example),
        traces=traces,
        score=lambda outputs, y: (value_of(outputs) - y.value) ** 2,
    )


def _least(name, given):
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{name} must be two integers, [least, most], got {shown(given)}")
    least, most = (positive_int(name, value) for value in given)
    if most < least:
        raise ValueError(f"{name} must be [least, most] in this order, got {shown(given)}")
    return least


def _fits(name, length, pause, steps):
    if positive_int(name, length) > steps[0]:
        raise ValueError(f"{name} must be at most the least {pause}, {steps[0]}, got {length}")


def _tables(timing):
    """[m] what a US is worth whose last step is m steps ahead, nothing for m = 0, and [n] γ^n."""
    longest_isi, us_length = timing.isi[1], timing.us_length
    powers = timing.discount ** np.arange(longest_isi + timing.iti[1])
    end = np.arange(longest_isi + us_length + 1)
    sums = np.cumsum([0.0, *(timing.discount**end)])
    return sums[end] - sums[np.maximum(end - us_length, 0)], powers


def _uniform(key, limits):
    least, most = limits
    return jax.random.randint(key, (), least, most + 1, jnp.int32)


def _distractors(state, count, number, length):
    """[count, number] bool: on where one of the last `length` steps fired."""
    # they fire before the first step too; the offset keeps the indices positive
    steps = state.step + jnp.arange(count + length - 1, dtype=jnp.int32)
    chance = jnp.asarray(1 / (10 * np.arange(1, number + 1)), jnp.float32)
    fire = lambda step: jax.random.bernoulli(jax.random.fold_in(state.distractors, step), chance)
    fired = jnp.cumsum(jax.vmap(fire)(steps).astype(jnp.int32), axis=0)
    before = jnp.concatenate([jnp.zeros((1, number), jnp.int32), fired[: count - 1]])
    return fired[length - 1 :] > before


def _moments(timing, us_probability):
    """E[G] and E[G²] over the steps of a stream, exactly."""
    to_come, powers = _tables(timing)
    p, us_length = us_probability, timing.us_length
    isis, itis = (np.arange(least, most + 1) for least, most in (timing.isi, timing.iti))
    # V at a trial, the return one step before it: V = us·to_come + γ^duration V', V' of the next trial
    whole, past_isi = to_come[isis + us_length], timing.discount**isis
    decay, decay_squared = (np.mean(past_isi**n) * np.mean(timing.discount ** (n * itis)) for n in (1, 2))
    v = p * np.mean(whole) / (1 - decay)
    cross = p * np.mean(whole * past_isi) * np.mean(timing.discount**itis)
    v_squared = (p * np.mean(whole**2) + 2 * cross * v) / (1 - decay_squared)
    first = second = 0.0
    for isi in isis:
        offset = np.arange(isi + itis[-1])
        gap = isi + itis[:, None] - 1 - offset
        weight = np.where(gap >= 0, powers[np.maximum(gap, 0)], 0)
        now = np.where(gap >= 0, to_come[np.maximum(isi + us_length - 1 - offset, 0)], 0)
        first += np.sum(p * now + v * weight)
        second += np.sum(p * now**2 + 2 * p * v * now * weight + v_squared * weight**2)
    steps = len(isis) * len(itis) * (np.mean(isis) + np.mean(itis))
    return float(first / steps), float(second / steps)
