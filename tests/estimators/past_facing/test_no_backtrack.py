import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import no_backtrack
from online_grads.estimators.past_facing import no_backtrack as no_backtrack_file
from tests.models import MODELS, problem
from tests.unbiased import flat


def gradient_of(estimator, given, signs, monkeypatch):
    """After one step from zero with these signs: s̃, and the gradient that direct=False reads off."""
    monkeypatch.setattr(no_backtrack_file, "random_signs", lambda key, shapes: [signs])
    state = estimator.init(given.params, given.hidden, key=jax.random.key(0))
    state, estimate = estimator.update(state, given.params, given.xs[:1], given.ys[:1])
    return state.influence.s, flat(estimate.grads["cell"])


@pytest.mark.parametrize("name", ["vanilla", "lstm"])
def test_one_sign_and_scale_per_hidden_entry(name, monkeypatch):
    """After one step s̃_i = ±√‖I[i, :]‖, and a flipped sign takes unit i's part from the others."""
    given = problem(name, 8)
    moved = lambda cell: flat(
        given.model.transition({**given.params, "cell": cell}, given.hidden, given.xs[0])
    )
    rows = jax.jit(jax.jacobian(moved))(given.params["cell"])
    rows = np.concatenate([np.reshape(r, (len(r), -1)) for r in jax.tree.leaves(rows)], axis=1)
    h = given.model.transition(given.params, given.hidden, given.xs[0])
    credit = flat(jax.grad(lambda h: given.model.loss(given.params, h, given.ys[0])[0])(h))
    scale = np.sqrt(np.linalg.norm(rows, axis=1))
    n = scale.size

    def expected(signs):
        signs = signs[1:]
        return signs * scale, (credit @ (signs * scale)) * ((signs / scale) @ rows)

    for i in (0, 1, n - 1):
        signs = jnp.ones(n + 1).at[1 + i].set(-1)
        got = gradient_of(no_backtrack(given.model, epsilon=0.0, direct=False), given, signs, monkeypatch)
        for one, other in zip(got, expected(signs), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-12)
    wrong, _ = gradient_of(no_backtrack(given.model, epsilon=1.0, direct=False), given, signs, monkeypatch)
    assert np.abs(wrong - expected(signs)[0]).max() > 1e-3


def test_bad_epsilon():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
        no_backtrack(MODELS["gru"](), epsilon=-1)
