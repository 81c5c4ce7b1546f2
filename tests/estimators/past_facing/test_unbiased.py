"""Every estimator that claims to be unbiased, on a tanh network, an LSTM and a GRU.

With five times the keys, and the smallest visible bias printed:

    python -m pytest tests/estimators/past_facing/test_unbiased.py -s --keys 100000
"""

from functools import partial

import jax
import pytest

from online_grads import ESTIMATORS, snap
from tests.models import problem
from tests.unbiased import STEPS, samples, verdict

# name -> (estimator, options, window)
FORMS = {
    "uoro": ("uoro", {}, 1),
    "uoro, k = 4": ("uoro", {}, 4),
    "no_backtrack": ("no_backtrack", {}, 1),
    "kf_rtrl": ("kf_rtrl", {}, 1),
    "reverse_kf_rtrl": ("reverse_kf_rtrl", {}, 1),
    "optimal_kronecker, r = 1": ("optimal_kronecker", {"rank": 1}, 1),
    "optimal_kronecker, r = 2": ("optimal_kronecker", {"rank": 2}, 1),
    "dodge": ("dodge", {}, 1),
    "dodge, k = 4": ("dodge", {"directions": 2}, 4),
}
CELLS = ("vanilla", "lstm", "gru")
# the papers' form differs in the builder alone: one cell each
LATE = {
    f"{name}, late": (name, {"direct": False}, 1)
    for name in ("uoro", "no_backtrack", "kf_rtrl", "reverse_kf_rtrl", "optimal_kronecker", "dodge")
}
CASES = [(form, cell) for form in FORMS for cell in CELLS] + [(form, "vanilla") for form in LATE]


def made(form):
    name, options, window = (FORMS | LATE)[form]
    return partial(ESTIMATORS[name].constructor, **options), window


@pytest.mark.parametrize(("form", "cell"), CASES)
def test_unbiased(form, cell, request):
    estimator, window = made(form)
    found = verdict(*samples(estimator, problem(cell, STEPS), window, request.config.getoption("--keys")))
    print(
        f"\n{form:26} {cell:8} max |z| {found.worst:.2f} of {found.threshold:.2f}, "
        f"a bias of {found.visible:.1e} would show"
    )
    assert found.unbiased


def test_every_estimator_that_claims_it_is_tested():
    claimed = {name for name, row in ESTIMATORS.items() if row.bias.startswith("unbiased")}
    assert claimed == {name for name, _, _ in FORMS.values()}


@pytest.mark.parametrize("form", [form for form in FORMS if "k = 4" not in form])
def test_signs_of_the_wrong_size_are_seen(form, monkeypatch, request):
    """Noise with E[νν] = 0.8 shrinks the past: the same test fails."""
    rademacher = jax.random.rademacher
    monkeypatch.setattr(jax.random, "rademacher", lambda *args: 0.8**0.5 * rademacher(*args))
    estimator, window = made(form)
    assert not verdict(
        *samples(estimator, problem("vanilla", STEPS), window, request.config.getoption("--keys"))
    ).unbiased


def test_a_biased_estimator_is_seen(request):
    """SnAp-1, given the same noise as UORO has."""
    given = problem("gru", STEPS)
    drawn, exact = samples(made("uoro")[0], given, 1, request.config.getoption("--keys"))
    biased, _ = samples(snap, given, 1, 1)
    assert not verdict(drawn - exact + biased, exact).unbiased
