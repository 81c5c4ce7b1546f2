"""What an estimator costs on a cell of n units: time beside its bound, state, and how both grow with n.

The model is that of `online_grads.bench_model`. An estimator's program trains it by gradient descent, one
update per segment; the bounds are in `online_grads.bounds`, and `online_grads.bench_timing` times both.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.bench_model import DTYPE, model_of
from online_grads.bench_timing import Loop, looped, timed
from online_grads.bounds import BOUNDS, RATE, Program, bound_of
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import memory
from online_grads.types import Estimator, Model

PATIENCE = 10.0  # seconds of a call above which an estimator goes to no larger n
REFUSALS = (ValueError, TypeError, NotImplementedError, MemoryError, jax.errors.JaxRuntimeError)


class Cost(NamedTuple):
    """What one estimator costs at one size; None is not measured, and `reason` says why."""

    cell: str
    n: int  # hidden units
    estimator: str
    bound: str  # name of what `seconds` is compared with
    state_bytes: int | None = None
    seconds: float | None = None  # per step
    compile_seconds: float | None = None
    bound_seconds: float | None = None  # per step
    reason: str | None = None

    @property
    def ratio(self) -> float | None:
        """seconds / bound_seconds."""
        if self.seconds is None or self.bound_seconds is None:
            return None
        return self.seconds / self.bound_seconds


def costs(
    cells: Sequence[str],
    sizes: Sequence[int],
    estimators: Sequence[str],
    *,
    window: int = 1,
    repeats: int = 5,
    limit: float,
) -> Iterator[Cost]:
    """Measure every estimator on every cell at every size, the smallest first, as the rows are asked for.

    Args:
        cells: names from `CELLS`.
        sizes: n, hidden units.
        estimators: names from the registry.
        window: k, steps per segment and parameter update.
        repeats: timed runs of each program, of which the median is taken.
        limit: bytes that a state may have.

    Returns:
        An iterator of one `Cost` per row. A state above the limit is not allocated, and an estimator whose
        call would take more than 10 seconds, as it grew so far, is left out; so is one that refuses the cell,
        fails, or diverges.

    >>> [row] = costs(["vanilla_rnn"], [4], ["tbptt"], repeats=1, limit=2**20)
    >>> row.bound, row.state_bytes, row.ratio > 0
    ('forward + backward', 20, True)
    """
    for cell in cells:
        known: dict[str, list[tuple[int, float]]] = {name: [] for name in estimators}
        for n in sorted(set(sizes)):
            start = jax.jit(model_of(cell, n).init)(jax.random.key(0))
            bounds: dict[Any, Loop] = {}  # several estimators share one; each times it anew
            for name in estimators:
                row = Cost(cell, n, name, ESTIMATORS[name].bound)
                guess = predicted(known[name], n)
                try:
                    if known[name] and guess * window > PATIENCE:
                        raise ValueError(f"a call would take about {guess * window:.0f} s")
                    row = _cost(row, start, bounds, window, repeats, limit, guess)
                except REFUSALS as error:
                    row = row._replace(reason=first_sentence(error))
                if row.seconds is not None:
                    known[name].append((n, row.seconds))
                yield row


def _cost(
    row: Cost, start: tuple, bounds: dict, window: int, repeats: int, limit: float, guess: float
) -> Cost:
    """A row measured, from the first (params, hidden)."""
    model = model_of(row.cell, row.n)
    estimator = ESTIMATORS[row.estimator].constructor(model)
    size = memory(estimator, *start)
    if size > limit:
        return row._replace(state_bytes=size, reason="does not fit")
    program = learning(model, estimator)
    loop = looped(program, start, (window,), guess)
    timing = timed(loop, start, repeats)
    state = jax.eval_shape(program.init, *start)[1]
    row = row._replace(
        bound=bound_of(row.bound, state),
        state_bytes=timing.carried_bytes[1],
        compile_seconds=loop.compile_seconds,
    )
    if not timing.finite:
        return row._replace(reason="its loss is not finite")
    bound = BOUNDS[row.bound](model, state)
    shapes = jax.tree.leaves(jax.eval_shape(bound.init, *start))
    key = row.bound, tuple((leaf.shape, leaf.dtype) for leaf in shapes)
    if key not in bounds:
        bounds[key] = looped(bound, start, (), timing.seconds / 3)
    seconds = timed(bounds[key], start, repeats).seconds
    return row._replace(seconds=timing.seconds, bound_seconds=seconds)


def learning(model: Model, estimator: Estimator) -> Program:
    """One segment and one step of gradient descent.

    Args:
        model: the model.
        estimator: of the model.

    Returns:
        A `Program` whose step takes the segment xs [k, inputs], ys [k, outputs] and whose carry is
        (params, the estimator's state, loss []).
    """

    def init(params, hidden):
        return params, estimator.init(params, hidden, key=jax.random.key(1)), jnp.zeros((), DTYPE)

    def step(carry, xs, ys):
        params, state, _ = carry
        state, estimate = estimator.update(state, params, xs, ys)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, estimate.grads)
        return params, state, estimate.loss

    return Program(init, step)


def predicted(known: Sequence[tuple[int, float]], n: int) -> float:
    """Seconds per step at n units, from those at smaller sizes.

    A power law through the last two, at most n⁴; n³ after a single one; before any RTRL's n⁴ operations at
    10¹⁰ a second, or 10 µs.

    >>> [f"{predicted(known, 20):.1e}" for known in ([], [(10, 1e-6)], [(5, 1e-6), (10, 4e-6)])]
    ['1.6e-05', '8.0e-06', '1.6e-05']
    """
    if not known:
        return max(n**4 / 1e10, 1e-5)
    size, seconds = known[-1]
    exponent = _slope(known[-2:]) if len(known) > 1 else 3
    return seconds * (n / size) ** min(max(exponent, 0), 4)


def slope(points: Sequence[tuple[int, float]]) -> float | None:
    """The exponent a of cost ∝ n^a, by least squares on logarithms over the larger half of the sizes.

    Args:
        points: (n, cost) pairs.

    Returns:
        a, or None with fewer than three sizes, where it would be mostly noise.

    >>> round(slope([(n, 3e-6 * n**2.5) for n in (32, 64, 128, 256, 512)]), 6)
    2.5
    """
    points = sorted(points)
    if len({n for n, _ in points}) < 3:
        return None
    return _slope(points[min(len(points) // 2, len(points) - 2) :])


def _slope(points: Sequence[tuple[int, float]]) -> float:
    n, cost = np.log(np.asarray(points, np.float64)).T
    n, cost = n - n.mean(), cost - cost.mean()
    return float(n @ cost / (n @ n))


def memory_limit() -> int:
    """A quarter of the device's memory in bytes; of the host's where the device does not say."""
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return stats.get("bytes_limit", host) // 4


def first_sentence(error: BaseException) -> str:
    """What an error says first, in one line.

    >>> first_sentence(ValueError("expected a core of one kind,\\ngot two. Use rtrl."))
    'expected a core of one kind, got two'
    """
    return " ".join(str(error).split()).split(". ")[0] or type(error).__name__
