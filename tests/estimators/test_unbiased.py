"""Every estimator that claims to be unbiased, on a tanh network, an LSTM and a GRU.

The perturbation family is so where the loss is quadratic in θ through a linear transition.
With five times the keys, and the smallest visible bias printed:

    python -m pytest tests/estimators/test_unbiased.py -s --keys 100000
"""

import functools
from functools import partial

import jax
import pytest

from online_grads import ESTIMATORS, artbp, es, gradient, snap, tbptt
from online_grads.estimators.past_facing import dodge, factored, no_backtrack, signs, uoro
from tests.models import exact_gradient, fixed_start, problem, problem_of, quadratic, relative_error
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
CUTS = {
    "artbp": ("artbp", {"cut": 0.3}, 1),
    "artbp, α = 4, k = 4": ("artbp", {"cut": 0.3, "alpha": 4.0}, 4),
}
CELLS = ("vanilla", "lstm", "gru")
PARTICLES = {
    "pes": ("pes", {"particles": 4}, 1),
    "pes, k = 4": ("pes", {"particles": 4}, 4),
    "pes, 2 segments": ("pes", {"particles": 4, "resample": 2}, 2),
    "es_single": ("es_single", {"particles": 4}, 2),
}
# the papers' form differs in the builder alone: one cell each
LATE = {
    f"{name}, late": (name, {"direct": False}, 1)
    for name in ("uoro", "no_backtrack", "kf_rtrl", "reverse_kf_rtrl", "optimal_kronecker", "dodge")
}
CASES = (
    [(form, cell) for form in FORMS for cell in CELLS]
    + [(form, cell) for form in CUTS for cell in ("vanilla", "gru")]
    + [(form, "vanilla") for form in LATE]
    + [(form, cell) for form in PARTICLES for cell in ("quadratic", "quadratic, resets")]
)
ALL = FORMS | CUTS | LATE | PARTICLES


def made(form):
    name, options, window = ALL[form]
    return partial(ESTIMATORS[name].constructor, **options), window


@functools.cache
def given(cell):
    """The problem of a cell."""
    if not cell.startswith("quadratic"):
        return problem(cell, STEPS)
    if cell == "quadratic":
        return problem_of(quadratic(), STEPS)
    with_two = problem_of(fixed_start(quadratic()), STEPS)
    # one reset inside a segment, one at the start of another
    (xs, resets), ys = with_two.xs, with_two.ys
    xs = xs, resets.at[3].set(True).at[4].set(True)
    return with_two._replace(xs=xs, exact=exact_gradient(*with_two[:3], xs, ys))


def seen_unbiased(form, cell, request):
    """Whether the test of unbiasedness passes."""
    estimator, window = made(form)
    drawn = samples(estimator, given(cell), window, request.config.getoption("--keys"))
    return verdict(*drawn).unbiased


@pytest.mark.parametrize(("form", "cell"), CASES)
def test_unbiased(form, cell, request):
    estimator, window = made(form)
    found = verdict(*samples(estimator, given(cell), window, request.config.getoption("--keys")))
    print(
        f"\n{form:26} {cell:18} max |z| {found.worst:.2f} of {found.threshold:.2f}, "
        f"a bias of {found.visible:.1e} would show"
    )
    assert found.unbiased


def test_every_estimator_that_claims_it_is_tested():
    claimed = {name for name, row in ESTIMATORS.items() if row.bias.startswith("unbiased")}
    assert claimed == {name for name, _, _ in ALL.values()}


@pytest.mark.parametrize("form", [form for form in FORMS if "k = 4" not in form])
def test_signs_of_the_wrong_size_are_seen(form, monkeypatch, request):
    """Noise with E[νν] = 0.8 shrinks the past: the same test fails."""
    wrong = lambda *args: [0.8**0.5 * s for s in signs.random_signs(*args)]
    for file in (uoro, no_backtrack, factored, dodge):
        monkeypatch.setattr(file, "random_signs", wrong)
    assert not seen_unbiased(form, "vanilla", request)


@pytest.mark.parametrize("form", PARTICLES)
def test_perturbations_of_the_wrong_size_are_seen(form, monkeypatch, request):
    """The same, with E[ε²] = 0.8 σ²."""
    normal = jax.random.normal
    monkeypatch.setattr(jax.random, "normal", lambda *args: 0.8**0.5 * normal(*args))
    assert not seen_unbiased(form, "quadratic", request)


@pytest.mark.parametrize(
    ("estimator", "cell"),
    [
        (partial(es, particles=4), "quadratic"),  # restarts from the state of θ itself
        (partial(artbp, cut=0.3, longest=3), "vanilla"),  # forced cuts
    ],
)
def test_truncation_is_seen(estimator, cell, request):
    assert not verdict(*samples(estimator, given(cell), 2, request.config.getoption("--keys"))).unbiased


def test_backpropagation_on_segments_is_not_the_gradient_of_the_quadratic():
    truncated = gradient(tbptt(quadratic()), *given("quadratic").args, key=jax.random.key(0), window=2)
    assert relative_error(truncated, given("quadratic").exact) > 0.05


def test_a_biased_estimator_is_seen(request):
    """SnAp-1, given the same noise as UORO has."""
    drawn, exact = samples(made("uoro")[0], given("gru"), 1, request.config.getoption("--keys"))
    biased, _ = samples(snap, given("gru"), 1, 1)
    assert not verdict(drawn - exact + biased, exact).unbiased
