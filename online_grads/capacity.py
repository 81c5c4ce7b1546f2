"""How large a network may be for its parameters and an estimator's state to fit, from shapes alone."""

import math
from collections.abc import Callable
from fractions import Fraction

import jax

from online_grads.bench_model import model_of
from online_grads.estimators.registry import ESTIMATORS
from online_grads.learner import memory
from online_grads.leaves import size_in_bytes


def state_polynomial(cell: str, estimator: str) -> Callable[[int], Fraction]:
    """Bytes of parameters and an estimator's state, an exact polynomial of n, at most a cubic.

    Args:
        cell: a name from `CELLS`.
        estimator: a name from the registry.

    Returns:
        n -> bytes.

    Raises:
        ValueError: the estimator refuses the cell, or the bytes are no such polynomial.

    >>> state_polynomial("vanilla_rnn", "tbptt")(100)
    Fraction(45620, 1)
    """

    def measured(n):
        model = model_of(cell, n)
        built = ESTIMATORS[estimator].constructor(model)
        params, hidden = jax.eval_shape(model.init, jax.random.key(0))
        return memory(built, params, hidden) + size_in_bytes(params)

    nodes = {n: measured(n) for n in (8, 16, 24, 32)}

    def polynomial(n):
        basis = {m: math.prod(Fraction(n - o, m - o) for o in nodes if o != m) for m in nodes}
        return sum((size * basis[m] for m, size in nodes.items()), Fraction(0))

    if polynomial(40) != measured(40):
        raise ValueError("its bytes are no cubic polynomial of n")
    return polynomial


def largest(size: Callable[[int], Fraction], limit: float) -> int:
    """The largest n with size(n) ≤ limit, 0 if there is none; size must not fall.

    >>> largest(lambda n: Fraction(4 * n**2), 1000)
    15
    """
    low, high = 0, 1
    while size(high) <= limit and high < 2**60:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low
