"""Entries of a step's Jacobians from few JVPs, against the dense ones."""

import jax
import numpy as np
import pytest

from online_grads.patterns import Patterns
from online_grads.sparse import SparseJacobian
from tests.one_step import case

# whether more products are summed than the dense Jacobian has entries, asked for all of it
DENSE = {
    "vanilla": False,
    "lstm": True,
    "gru": True,
    "gru_reset_before": True,
    "stacked": True,
    "columns": False,
    "normalised": False,
    "mapped columns": False,
    "masked": False,
    "fast weights": False,
    "complex state": False,
    "in a scan": False,
    "returned as it is": False,
    "random dropout": False,
}


def entries(name, rows, columns, patterns=None):
    """The entries, and every D_l read at all positions that its pattern has, in one list."""
    _, structure, found, at, step_at = case(name)
    jacobian = SparseJacobian(structure, patterns or found, rows, columns)
    places = [pattern.tocoo().coords for pattern in found.drives]

    def read(theta, h, rest, x):
        one = jacobian(structure.effective(theta), h, rest, x)
        drives = [one.drive(i, *place) for i, place in enumerate(places)]
        return (one.jacobian(), one.held()), drives, one.presynaptic

    arguments = at(1)
    return jacobian, jax.jit(read)(*arguments), step_at(*arguments), places


@pytest.mark.parametrize("name", DENSE)
def test_equals_the_dense_jacobians(name):
    n = case(name).found.flat.size
    rows, columns = np.indices((n, n)).reshape(2, -1)
    sparse, ((values, held), drives, presynaptic), step, places = entries(name, rows, columns)
    assert (sparse.terms is None) == DENSE[name]
    np.testing.assert_allclose(values.reshape(n, n), step.jacobian, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(held.reshape(n, n), step.held, rtol=1e-12, atol=1e-13)
    reach = [step.drives[drive.at] for drive in sparse.structure.drives]
    for got, dense, place in zip(drives, reach, places, strict=True):
        np.testing.assert_allclose(got, np.asarray(dense).reshape(n, -1)[place], rtol=1e-12, atol=1e-13)
    for got, expected in zip(presynaptic, step.presynaptic, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before", "stacked", "columns"])
def test_few_entries_in_any_order_are_summed_from_products(name):
    n = case(name).found.flat.size
    rows, columns = np.random.default_rng(0).integers(n, size=(2, 1 if name == "gru_reset_before" else 3))
    sparse, ((values, _), _, _), step, _ = entries(name, rows, columns)
    assert sparse.terms is not None
    np.testing.assert_allclose(values, step.jacobian[rows, columns], rtol=1e-12, atol=1e-13)


def test_no_entries_at_all():
    none = np.zeros(0, int)
    assert entries("vanilla", none, none)[1][0][0].shape == (0,)


def test_the_number_of_jvps():
    """A unit's gates share no row with another unit's: an LSTM has four."""
    jacobian = lambda name: SparseJacobian(*case(name)[1:3], *np.zeros((2, 1), int))
    for name, flowing, held in (("lstm", 4, 1), ("mapped columns", 1, 1)):
        prepared = jacobian(name)
        assert (len(prepared.flowing_colours.seeds), len(prepared.held_colours.seeds)) == (flowing, held)
    # a stack's many drives that reach the upper layer outnumber its hidden entries: VJPs instead
    assert jacobian("stacked").flowing_colours is None


def test_drives_are_read_at_some_entries_only():
    """An LSTM's (h, c): c of three units, which the output gate does not reach."""
    _, structure, found, at, step_at = case("lstm")
    reached = np.arange(8) >= 4
    reached[5] = False
    few = SparseJacobian(structure, found, reached=reached)
    assert len(few.flowing_colours.seeds) == 3
    one_row = SparseJacobian(structure, found, reached=np.arange(8) == 6)
    assert one_row.flowing_colours is None
    arguments = at(1)
    dense = step_at(*arguments).drives[structure.drives[0].at].reshape(8, -1)
    rows, columns = np.nonzero(np.asarray(found.drives[0].toarray()) & reached[:, None])
    read = lambda few: jax.jit(
        lambda theta, *at: few(structure.effective(theta), *at).drive(0, rows, columns)
    )(*arguments)
    np.testing.assert_allclose(read(few), dense[rows, columns], rtol=1e-12)


def test_a_pattern_that_lacks_entries_gives_wrong_values():
    """Negative control: the comparison above notices a subset."""
    _, structure, found, _, _ = case("vanilla")
    lacking = Patterns(structure, *structure.shapes)
    lacking.presynaptic = [pattern.copy() for pattern in found.presynaptic]
    lacking.presynaptic[0][0, 0] = False
    lacking.presynaptic[0].eliminate_zeros()
    rows, columns = np.indices(found.held.shape).reshape(2, -1)
    _, ((values, _), _, _), step, _ = entries("vanilla", rows, columns, lacking)
    assert float(abs(values - step.jacobian.ravel()).max()) > 1e-3
