"""SnAp-n, the sparse n-step approximation: an exact recursion on a fixed mask.

    M_t = P_n ∘ (J_t M_{t-1} + ∂h_t/∂w)

P_n keeps, for every weight, the hidden units that it can reach within n steps of the recurrent
core: n = 1 the units that it acts on at once, every further order the units that those reach in one
more step. A unit is a set of hidden entries that act on each other apart from the recurrent
weights and other products (an LSTM's c_i and h_i): so order 1 is exact on columnar and diagonal cells.

Cost per step at order 1: O(p) time and memory (a dense cell's weight acts on one unit). Biased,
except that a mask which drops nothing is exact. Any cell; a cell whose weights act on many units at
once (a reset gate before the product, a lower layer of a stack) keeps them all, and costs like RTRL.

Reference: Menick et al. (2021), Practical real time recurrent learning with a sparse approximation,
arXiv:2006.07232.
"""

from online_grads.analysis import analyse
from online_grads.arguments import positive_int
from online_grads.estimators.feedback import Feedback, symmetric
from online_grads.estimators.past_facing.base import past_facing
from online_grads.estimators.past_facing.masked import masked_influence
from online_grads.estimators.past_facing.units import carried, reachable, require_read, units
from online_grads.linearize import Weights
from online_grads.types import Estimator, Model


def snap(
    model: Model,
    *,
    order: int = 1,
    influence_dtype=None,
    feedback: Feedback = symmetric,
    allow_unused: bool = False,
) -> Estimator:
    """RTRL that keeps the influence of a weight on the units it reaches within `order` steps.

    Args:
        model: the model.
        order: n, at least 1. Large enough, the mask drops nothing and the method is `rtrl`.
        influence_dtype: what the influence is stored in, by default the weights' dtype. `jnp.bfloat16`
            halves it, and every step rounds: decays closer to 1 than 2⁻⁸ (`jnp.float16`: 2⁻¹¹) are
            lost, so that time constants above 100 steps (1000) are not for it.
        feedback: how the error reaches the hidden state, see `online_grads.feedback`.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`. A segment is scanned step by step. `info["kept"]` is K, the most hidden
        entries at which a weight keeps its influence.

    Raises:
        TypeError, ValueError: if order is below 1, influence_dtype is not a floating one, a weight's
            direct use keeps too many entries, the loss reads nothing of what a weight keeps, or the
            model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, memory, readouts, rtrl
    >>> cell, readout = cells.gru(2, 16), readouts.linear(16, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> memory(rtrl(model), params, hidden) // memory(snap(model), params, hidden)
    15

    Reference: Menick et al. (2021), arXiv:2006.07232, section 3.
    """
    positive_int("order", order)
    found = analyse(model, allow_unused=allow_unused)
    structure = Weights(found, dense=False)
    # what the next step does not read gets its credit within the step, as a readout does
    direct = feedback is symmetric and not structure.patterns.carried.all()
    entrywise = structure.patterns.entrywise
    within = units(carried(structure, entrywise) if direct else entrywise)
    if direct:
        within = carried(structure, carried(structure, within).T)
    reaches = reachable(structure, order - 1, within=within)[-1]
    require_read("snap", found, structure, reaches, direct=direct)
    influence = masked_influence(structure, [reaches], held=False, influence_dtype=influence_dtype)
    return past_facing(found, structure, influence, block=1, direct=direct, feedback=feedback)
