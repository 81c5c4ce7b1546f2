"""Whether JAX can differentiate a user's function in the modes that an estimator needs, told from shapes."""

from collections.abc import Callable

import jax


def require_differentiable(
    step: Callable, at, given, called: str = "the transition", *, forward: bool = True
) -> None:
    """Refuse a `step(at, given)` -> array that JAX cannot differentiate in `at`, backwards and `forward`.

    Raises:
        ValueError: with what JAX says.
    """

    def both(at, given):
        one = lambda at: step(at, given)
        if forward:
            # under vmap, because only batching and running show that a rule has no forward mode
            jax.vmap(lambda tangent: jax.jvp(one, (at,), (tangent,)))(
                jax.tree.map(lambda leaf: leaf[None], at)
            )
        moved, pull = jax.vjp(one, at)
        return pull(moved)

    try:
        jax.eval_shape(both, at, given)
    except (TypeError, ValueError, NotImplementedError) as error:
        modes = (
            "forward and in reverse mode; where it uses a custom_vjp, define a custom_jvp instead"
            if forward
            else "reverse mode; es, pes and es_single differentiate nothing"
        )
        raise ValueError(f"{called} must be differentiable in {modes}. JAX says: {error}") from error
