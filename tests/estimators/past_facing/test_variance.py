"""The order of the estimators' variances; tests/benchmarks/variance.py prints the table."""

import itertools

import pytest

from tests.benchmarks.variance import variances


def test_the_better_approximation_has_less_variance():
    falling = [f"optimal_kronecker, r = {r}" for r in (8, 4, 2, 1)]
    orders = (
        [*(f"{name}, late" for name in falling), "kf_rtrl, late", "uoro, late"],
        [*falling, "kf_rtrl", "uoro", "uoro, late"],
    )
    averages = {name: f"averaged({name}, 8)" for name in ("uoro", "kf_rtrl")}
    variance = variances(2_000, {*itertools.chain(*orders), *averages.values()})
    for order in orders:
        values = [variance[name] for name in order]
        # margins far from this sample's noise of a few per cent, where 8 products are all there is
        assert all(1.3 * less < more for less, more in itertools.pairwise(values))
        assert values[0] < 1e-18 < values[1]
    for name, averaged in averages.items():
        assert variance[averaged] == pytest.approx(variance[name] / 8, rel=0.1)
