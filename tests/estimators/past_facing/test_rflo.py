import jax
import pytest

from online_grads import eprop, feedback, gradient, rflo
from tests.models import MODELS, problem, relative_error


def run(estimator, given):
    return jax.jit(lambda *args: gradient(estimator, *args, key=jax.random.key(1)))(*given.args)


@pytest.mark.parametrize("name", ["vanilla", "gru", "normalised"])
def test_is_eprop_where_a_unit_is_one_entry(name):
    given = problem(name, 8)
    got = run(rflo(given.model), given)
    assert relative_error(got, run(eprop(given.model), given)) <= 1e-12
    assert relative_error(got, run(eprop(given.model, hops=1), given)) > 1e-4


def test_random_feedback_changes_the_recurrent_gradient_alone():
    given = problem("vanilla", 8)
    true, random = (
        run(rflo(given.model, feedback=back), given)
        for back in (feedback.symmetric, feedback.random(jax.random.key(0)))
    )
    assert relative_error(random["readout"], true["readout"]) <= 1e-12
    assert all(relative_error(random["cell"][name], true["cell"][name]) > 0.1 for name in true["cell"])


def test_units_of_several_entries_are_refused():
    with pytest.raises(ValueError, match=r"\['W'\], params\['cell'\]\['bias'\] reaches 2 hidden entries"):
        rflo(MODELS["lstm"]())
    with pytest.raises(ValueError, match="rflo is local"):
        rflo(MODELS["stacked"]())
