"""What the observations of a stream must look like, and which numbers they may be."""

import jax
import numpy as np
import pytest

from online_grads import StreamError
from online_grads.observations import Law
from online_grads.precision import x64
from online_grads.streams import Gathering


def test_numbers_that_are_cast_and_numbers_that_are_not():
    taken = [(0.5, 1), (np.float32(0.5), 2), (1, np.int8(3))]
    [(length, (xs, ys))] = filter(None, Gathering(iter(taken), [3]).chunks())
    assert (length, xs.tolist(), ys.tolist()) == (3, [0.5, 0.5, 1.0], [1, 2, 3])
    assert (xs.dtype, ys.dtype) == (np.float64, np.int64)
    with pytest.raises(StreamError, match=r"step 1 of the stream: y: expected int64\[\], got float64\[\]"):
        list(Gathering(iter([(0.5, 1), (0.5, 1.5)]), [2]).chunks())


@pytest.mark.parametrize("value", [128, -129, np.int64(300), np.array(200, np.uint8)])
def test_integers_do_not_wrap(value):
    law = Law((np.int8(1), 0.0))
    law.leaves((127, 0.0))
    law.leaves((-128, 0.0))
    for _ in range(2):
        with pytest.raises(ValueError, match=f"x: {int(value)} does not fit into int8"):
            law.leaves((value, 0.0))


@pytest.mark.parametrize("place", [0, 1])
def test_integers_fit_into_what_the_device_has(place):
    """As JAX is set where the run is called, which is not the thread that reads the stream."""
    observations = [(1, 0.0), (2, 0.0)]
    observations[place] = (1_700_000_000_000, 0.0)
    [(_, (xs, _))] = filter(None, Gathering(iter(observations), [2]).chunks())
    assert jax.numpy.asarray(xs)[place] == 1_700_000_000_000
    with (
        x64(False),
        pytest.raises(StreamError, match=rf"step {place} .* x: 1700000000000 does not fit into int32"),
    ):
        list(Gathering(iter(observations), [2]).chunks())


def test_a_masked_array_is_refused():
    masked = np.ma.array([1.0, 2.0], mask=[True, False])
    with pytest.raises(ValueError, match=r"y: a masked array would lose its mask"):
        Law((0.0, masked))
    with pytest.raises(ValueError, match=r"y: a masked array would lose its mask"):
        Law((0.0, masked.filled(0.0))).leaves((0.0, masked))
