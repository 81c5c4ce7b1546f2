import jax
import pytest

from online_grads import gradient, uoro
from tests.models import MODELS, problem, relative_error
from tests.unbiased import STEPS, samples


def test_a_segment_over_the_whole_stream_is_exact():
    drawn, exact = samples(uoro, problem("lstm", STEPS), STEPS, 2)
    assert relative_error(drawn[0], exact) < 1e-10
    noisy, _ = samples(uoro, problem("lstm", STEPS), STEPS // 2, 2)
    assert relative_error(noisy[0], exact) > 1e-3


def test_epsilon_may_be_traced_and_is_checked_when_it_is_not():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
        uoro(MODELS["gru"](), epsilon=-1.0)
    given = problem("vanilla", STEPS)

    @jax.jit
    def run(epsilon):
        return gradient(uoro(given.model, epsilon=epsilon), *given.args, key=jax.random.key(1))

    assert relative_error(run(0.0), run(1e-2)) > 1e-4
