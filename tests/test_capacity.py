"""The polynomial of bytes: it is that of parameters and `memory` at every size, and inverted exactly."""

from fractions import Fraction

import jax
import pytest

from online_grads import ESTIMATORS, capacity, memory
from online_grads.bench_model import model_of
from online_grads.capacity import largest, state_polynomial


@pytest.mark.parametrize("cell", ["vanilla_rnn", "alif"])
@pytest.mark.parametrize("name", ["tbptt", "dni", "rtrl", "optimal_kronecker", "kernl", "pes"])
def test_the_polynomial_is_memory_at_another_size(cell, name):
    model = model_of(cell, 101)
    start = jax.eval_shape(model.init, jax.random.key(0))
    carried = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(start[0]))
    carried += memory(ESTIMATORS[name].constructor(model), *start)
    assert state_polynomial(cell, name)(101) == carried


def test_the_largest_size_fits_and_the_next_does_not():
    size = state_polynomial("gru", "rtrl")
    n = largest(size, 2**30)
    assert size(n) <= 2**30 < size(n + 1)


def test_largest_at_the_edges():
    square = lambda n: Fraction(4 * n**2)
    assert largest(square, 3) == 0
    assert largest(square, 4) == largest(square, 15) == 1
    assert largest(square, 16) == 2
    assert largest(square, 4 * 10**40) < 2**61


def test_a_refusal_and_what_is_no_cubic(monkeypatch):
    with pytest.raises(ValueError, match="rflo keeps one trace per weight"):
        state_polynomial("lstm", "rflo")
    monkeypatch.setattr(capacity, "memory", lambda *args: 2 ** args[2].size)
    with pytest.raises(ValueError, match="no cubic polynomial of n"):
        state_polynomial("vanilla_rnn", "tbptt")
