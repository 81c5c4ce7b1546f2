"""E-prop: the influence that stays inside a unit, and its extension to paths of a few hops.

    J_t = J₀ + (J_t − J₀)          J₀ = ∂h_t/∂h_{t-1} with the drives held: inside a unit

    hops = 0     S_t = J₀ S_{t-1} + ∂h_t/∂w                            eligibility vectors
    hops = m     S⁽ᵏ⁾_t = J₀ S⁽ᵏ⁾_{t-1} + (J_t − J₀) S⁽ᵏ⁻¹⁾_{t-1} + ∂h_t/∂w,  k = 0 … m,  S⁽⁻¹⁾ = 0
    g_t = (∂ℓ_t/∂h_t) S⁽ᵐ⁾_t

S⁽ᵐ⁾ counts every path that passes between units at most m times; m ≥ T − 1 over T steps is RTRL.
With hops = 0 this is e-prop: on a leaky rate unit, an LSTM, a LIF or an ALIF neuron it equals
backpropagation with a stop_gradient at the recurrent input.

Cost per step: O(p) time and memory with hops = 0. With more, every tensor keeps the entries that its
hops can reach, all n of a dense cell from the first hop on: m times RTRL, of use for sparse networks
and for analysis. Biased, unless nothing passes between units. hops = 0 refuses a cell in which a
weight reaches another drive within the same step; hops ≥ 1 serves every cell.

Every product of h with a matrix passes between units, one with a constant matrix too: a leak is
written `d * h`. SnAp-1 is another method, it keeps a unit's recurrent weight to itself. A filtered
readout belongs outside the hidden state: inside it, the loss would read none of what is kept.

Reference: Bellec et al. (2020), A solution to the learning dilemma for recurrent networks of spiking
neurons, Nat. Commun. 11:3625, eqs. 2-4; Martín-Sánchez, Bohté & Otte (2022), A taxonomy of
recurrent learning rules, arXiv:2207.11439.
"""

from online_grads.analysis import analyse
from online_grads.arguments import positive_int
from online_grads.estimators.feedback import Feedback, symmetric
from online_grads.estimators.past_facing.base import past_facing
from online_grads.estimators.past_facing.masked import masked_influence
from online_grads.estimators.past_facing.units import inside, reachable, require_local, require_read
from online_grads.linearize import Weights
from online_grads.types import Estimator, Model


def eprop(
    model: Model,
    *,
    hops: int = 0,
    influence_dtype=None,
    feedback: Feedback = symmetric,
    allow_unused: bool = False,
) -> Estimator:
    """The gradient through paths that pass between units at most `hops` times.

        S⁽ᵏ⁾_t = J₀ S⁽ᵏ⁾_{t-1} + (J_t − J₀) S⁽ᵏ⁻¹⁾_{t-1} + ∂h_t/∂w          g_t = (∂ℓ_t/∂h_t) S⁽ᵐ⁾_t

    Args:
        model: the model.
        hops: m, at least 0; 0 is e-prop. A hop is one step in which influence passes through a
            recurrent weight.
        influence_dtype: what the influence is stored in, by default the weights' dtype. `jnp.bfloat16`
            halves it, and every step rounds: decays closer to 1 than 2⁻⁸ (`jnp.float16`: 2⁻¹¹) are
            lost, so that time constants above 100 steps (1000) are not for it.
        feedback: how the error reaches the hidden state, see `online_grads.feedback`.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`. A segment is scanned step by step. `info["kept"]` is the most hidden entries
        at which a weight keeps its influence.

    Raises:
        ValueError: if hops is below 0; with hops=0, if a weight reaches another drive within the
            same step (the error names both); if a weight's direct use keeps too many entries, the loss
            reads nothing of what a weight keeps, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts, rtrl
    >>> cell, readout = cells.vanilla_rnn(2, 8, leak=0.5), readouts.linear(8, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> given = *model.init(jax.random.key(0)), jnp.ones((4, 2)), jnp.ones((4, 1))
    >>> exact = gradient(rtrl(model), *given, key=jax.random.key(1))["cell"]["W_in"]
    >>> for hops in range(4):
    ...     got = gradient(eprop(model, hops=hops), *given, key=jax.random.key(1))["cell"]["W_in"]
    ...     print(hops, bool(jnp.allclose(got, exact, rtol=1e-5)))
    0 False
    1 False
    2 False
    3 True

    Reference: Bellec et al. (2020), Nat. Commun. 11:3625, eqs. 2-4; Martín-Sánchez et al. (2022),
    arXiv:2207.11439.
    """
    hops = positive_int("hops", hops, least=0)
    found = analyse(model, allow_unused=allow_unused)
    structure = Weights(found, dense=False)
    if hops == 0:
        require_local("eprop", structure)
    chain = reachable(structure, hops, within=inside(structure.patterns.held))
    require_read("eprop", found, structure, chain[-1])
    # beyond the reach of the graph the masks stay the same, and paths still get longer
    chain += chain[-1:] * (hops + 1 - len(chain))
    influence = masked_influence(structure, chain, held=True, influence_dtype=influence_dtype)
    return past_facing(found, structure, influence, block=1, direct=False, feedback=feedback)
