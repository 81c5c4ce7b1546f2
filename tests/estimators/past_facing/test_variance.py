"""The order of the estimators' variances; tests/benchmarks/variance.py prints the table."""

import pytest

from tests.benchmarks.variance import variances


@pytest.fixture(scope="module")
def variance():
    return variances(4_000)


def test_the_better_approximation_has_less_variance(variance):
    order = [
        *(f"optimal_kronecker, r = {r}, late" for r in (4, 2, 1)),
        "kf_rtrl, late",
        "uoro, late",
    ]
    assert [variance[name] for name in order] == sorted(variance[name] for name in order)
    order = [f"optimal_kronecker, r = {r}" for r in (4, 2, 1)] + ["kf_rtrl", "uoro", "uoro, late"]
    assert [variance[name] for name in order] == sorted(variance[name] for name in order)
    # the margins are far from this sample's noise of a few per cent
    assert 1.3 * variance["optimal_kronecker, r = 1, late"] < variance["kf_rtrl, late"]
    assert 2 * variance["kf_rtrl"] < variance["uoro"] < variance["uoro, late"] / 2


def test_as_many_products_as_presynaptic_entries_have_none(variance):
    for form in ("", ", late"):
        assert (
            variance[f"optimal_kronecker, r = 8{form}"] < 1e-18 < variance[f"optimal_kronecker, r = 4{form}"]
        )


@pytest.mark.parametrize("name", ["uoro", "kf_rtrl"])
def test_copies_divide_the_variance(variance, name):
    assert variance[f"averaged({name}, 8)"] == pytest.approx(variance[name] / 8, rel=0.1)
    assert variance[name] != pytest.approx(variance[name] / 8, rel=0.1)
