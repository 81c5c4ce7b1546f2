import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import no_backtrack
from tests.models import MODELS, problem


@pytest.mark.parametrize("name", ["vanilla", "lstm", "gru_reset_before", "stacked"])
def test_one_sign_and_scale_per_hidden_entry(name, monkeypatch):
    """After one step from zero, v_i = ±√‖I[i, :]‖ and v_i w_i is I's row: checked entry by entry."""
    given = problem(name, 8)
    estimator = no_backtrack(given.model, epsilon=0.0, allow_unused=True)
    state = estimator.init(given.params, given.hidden, key=jax.random.key(0))
    part = given.xs[:1], given.ys[:1]
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]
    moved = lambda params: flat(given.model.transition(params, given.hidden, given.xs[0]))
    rows = jax.jit(jax.jacobian(moved))(given.params)
    norms = np.sqrt(sum(jnp.sum(r**2, axis=tuple(range(1, r.ndim))) for r in jax.tree.leaves(rows)))
    n = norms.size
    total = 0.0
    for i in range(n):
        signs = jnp.ones(n + 1).at[1 + i].set(-1)
        monkeypatch.setattr(jax.random, "rademacher", lambda key, shape, dtype, signs=signs: signs)
        after = estimator.update(state, given.params, *part)[0].influence
        np.testing.assert_allclose(after.s**2, norms, rtol=1e-8)
        assert list(jnp.sign(after.s)) == [-1.0 if j == i else 1.0 for j in range(n)]
        total += flat(after.theta)[0]
    assert np.isfinite(total)


def test_bad_epsilon():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
        no_backtrack(MODELS["gru"](), epsilon=-1)
