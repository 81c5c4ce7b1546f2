"""What a host loop is given: a learner and its state, or words about what came in their place."""

from typing import Any

import jax

from online_grads.estimators.transforms import hidden_of
from online_grads.types import Learner, LearnerState, PyTree

SHOWN = 4  # differing leaves that an error names
TRACING = (
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
)  # what a function raises on what it cannot take


def check_learner(learner: Any) -> None:
    """Refuse anything but a learner.

    Raises:
        TypeError: it is something else.

    >>> check_learner(jax.numpy.zeros(2))
    Traceback (most recent call last):
    TypeError: learner must be a Learner, as learner(estimator, optimizer) makes it, got ArrayImpl
    """
    if not isinstance(learner, Learner):
        made = "as learner(estimator, optimizer) makes it"
        raise TypeError(f"learner must be a Learner, {made}, got {type(learner).__name__}")


def check_state(state: Any) -> None:
    """Refuse anything but a learner's state that is there.

    Raises:
        TypeError: it is something else.
        ValueError: it was donated.
    """
    if not isinstance(state, LearnerState):
        made = "as learner.init or an earlier call gives it"
        raise TypeError(f"state must be a LearnerState, {made}, got {type(state).__name__}")
    if isinstance(state.step, jax.Array) and state.step.is_deleted():
        raise ValueError(
            "state was given away (donated) to a compiled function: go on with the state that was returned"
        )


def check_owner(learner: Learner, state: LearnerState) -> None:
    """Refuse a state of another learner, as far as `init` tells; for when an update has failed already.

    Raises:
        ValueError: `init` would make another state of its parameters and hidden state.
    """
    init = lambda state, key: learner.init(state.params, hidden_of(state), key=key)
    try:
        expected = jax.eval_shape(init, state, jax.random.key(0))
    except ValueError as error:  # of another model
        raise ValueError(f"not a state of this learner: {error}") from None
    except TRACING:
        return  # its estimator keeps no hidden state that can be found
    check_like(expected, state)


def check_like(expected: PyTree, state: PyTree) -> None:
    """Refuse a state of other leaves.

    Raises:
        ValueError: leaves are missing, or more, or of other shapes or dtypes.

    >>> check_like({"w": jax.ShapeDtypeStruct((2,), "float32")}, {"w": jax.numpy.zeros(3, "float32")})
    Traceback (most recent call last):
    ValueError: not a state of this learner: state['w']: expected float32[2], got float32[3]
    """
    want, have = _forms(expected), _forms(state)
    found = [
        f"state{name}: expected {want.get(name, 'nothing')}, got {have.get(name, 'nothing')}"
        for name in want | have
        if want.get(name) != have.get(name)
    ]
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise ValueError(f"not a state of this learner: {'; '.join(found[:SHOWN] + more)}")


def _forms(tree: PyTree) -> dict[str, str]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda tree: tree, tree))
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{[*leaf.shape]}" for path, leaf in leaves}
