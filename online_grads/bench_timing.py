"""How long a step of a program takes.

A program is a scan over steps. It lasts some tens of milliseconds, is compiled ahead of time, and its carry
is donated from call to call.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from online_grads.bench_model import random_stream
from online_grads.bounds import Program
from online_grads.leaves import size_in_bytes

CALL = 0.03  # seconds of one compiled call that are aimed at
SHORTEST, LONGEST = 0.01, 0.2  # seconds of a call between which it is not compiled again
MOST_STEPS = 2**14  # of one call


class Loop(NamedTuple):
    """A program compiled into a loop."""

    init: Callable  # (params, hidden) -> carry
    run: Callable  # (carry, xs, ys) -> carry; the carry is donated
    data: tuple  # (xs, ys) of its segments
    steps: int
    compile_seconds: float  # of `run`, tracing included


class Timing(NamedTuple):
    """What running one program took."""

    seconds: float  # per step: the median over the repeats
    carried_bytes: list[int]  # of the arrays of each entry of the carry
    finite: bool  # whether the last of its carry still is


def looped(program: Program, start: tuple, lead: tuple[int, ...], guess: float) -> Loop:
    """Compile a program's loop, with as many steps as take some 30 ms.

    It is compiled a second time if a call with as many steps as guessed is far from that.

    Args:
        program: the program.
        start: (params, hidden), which it begins with and leaves as they are.
        lead: leading axes of a step's x and y: () for one step, (k,) for a segment.
        guess: seconds per step that are expected.

    Returns:
        A `Loop`.
    """
    # copied, since the carry is donated and jit would hand on as it is an array that it does not change
    copied = lambda *start: program.init(*jax.tree.map(jnp.copy, start))
    init, length = jax.jit(copied).lower(*start).compile(), math.prod(lead)
    wanted = lambda seconds: min(max(1, round(CALL / (seconds * length))), max(1, MOST_STEPS // length))

    def run(carry, xs, ys):
        return jax.lax.scan(lambda carry, xy: (program.step(carry, *xy), None), carry, (xs, ys))[0]

    carry, segments = init(*start), wanted(guess)
    for last in (False, True):
        data = random_stream((segments, *lead))
        begin = time.perf_counter()
        compiled = jax.jit(run, donate_argnums=0).lower(carry, *data).compile()
        loop = Loop(init, compiled, data, segments * length, time.perf_counter() - begin)
        carry, took = _call(loop, carry, 1)
        if took < LONGEST:  # the first call may be slow for reasons of its own
            carry, took = _call(loop, carry, 1)
        better = wanted(took / loop.steps)
        if last or better == segments or SHORTEST <= took <= LONGEST:
            break
        segments = better
    return loop


def timed(loop: Loop, start: tuple, repeats: int) -> Timing:
    """Time a loop: one call to warm up, then the median of several; short calls are made back to back.

    Args:
        loop: as `looped` makes it.
        start: (params, hidden), left as they are.
        repeats: timed runs.

    Returns:
        A `Timing`.
    """
    carry = loop.init(*start)
    carried_bytes = [size_in_bytes(part) for part in carry]
    carry, took = _call(loop, carry, 1)
    calls, runs = max(1, math.ceil(CALL / took)), []
    for _ in range(repeats):
        carry, took = _call(loop, carry, calls)
        runs.append(took / (calls * loop.steps))
    return Timing(statistics.median(runs), carried_bytes, bool(jnp.isfinite(carry[-1])))


def _call(loop: Loop, carry: Any, calls: int) -> tuple[Any, float]:
    begin = time.perf_counter()
    for _ in range(calls):
        carry = loop.run(carry, *loop.data)
    jax.block_until_ready(carry)
    return carry, time.perf_counter() - begin
