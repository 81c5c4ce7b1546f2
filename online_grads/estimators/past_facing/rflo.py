"""RFLO, random feedback local online learning: one eligibility trace per weight.

    B_t = ∂h_t/∂h_{t-1}|_drives ∘ B_{t-1} + D_t ⊗ v_t          g_t = q_t ∘ B_t

For a leaky rate unit a_t = (1 − α) a_{t-1} + α φ(W [a_{t-1}; x_t; 1]) this is

    B_t[i, j] = (1 − α) B_{t-1}[i, j] + α φ'(z_i) [a; x; 1]_j

It is `eprop` with hops = 0 where every unit is one hidden entry: rate units, a GRU. The paper sends
the error back through fixed random matrices, `feedback=feedback.random(key)`; the default is the true
gradient of the loss.

Cost per step: O(p) time and memory. Biased, unless nothing passes between units.

Reference: Murray (2019), Local online learning in recurrent networks with random feedback,
eLife 8:e43299, eqs. 3-5.
"""

import numpy as np

from online_grads.analysis import analyse
from online_grads.estimators.feedback import Feedback, symmetric
from online_grads.estimators.past_facing.base import past_facing
from online_grads.estimators.past_facing.masked import masked_influence
from online_grads.estimators.past_facing.units import inside, reachable, require_local, require_read
from online_grads.linearize import Weights
from online_grads.types import Estimator, Model


def rflo(
    model: Model,
    *,
    influence_dtype=None,
    feedback: Feedback = symmetric,
    allow_unused: bool = False,
) -> Estimator:
    """One eligibility trace per weight, met by the credit of the unit it acts on.

        B_t = ∂h_t/∂h_{t-1}|_drives ∘ B_{t-1} + D_t ⊗ v_t          g_t = q_t ∘ B_t

    Args:
        model: the model, of units with one hidden entry each.
        influence_dtype: what the influence is stored in, by default the weights' dtype. `jnp.bfloat16`
            halves it, and every step rounds: decays closer to 1 than 2⁻⁸ (`jnp.float16`: 2⁻¹¹) are
            lost, so that time constants above 100 steps (1000) are not for it.
        feedback: how the error reaches the hidden state; the paper's is `feedback.random(key)`.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`. A segment is scanned step by step. `info["kept"]` is 1, or the number of
        units that share a gain or a decay.

    Raises:
        ValueError: if a weight reaches another drive within the same step or acts on a unit of
            several hidden entries (an LSTM's; use `eprop`), or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, feedback, from_cell, losses, readouts
    >>> cell, readout = cells.vanilla_rnn(2, 8, leak=0.5), readouts.linear(8, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> estimator = rflo(model, feedback=feedback.random(jax.random.key(0)))

    Reference: Murray (2019), eLife 8:e43299, eqs. 3-5.
    """
    found = analyse(model, allow_unused=allow_unused)
    structure = Weights(found, dense=False)
    require_local("rflo", structure)
    (reaches,) = reachable(structure, 0, within=inside(structure.patterns.held))
    require_read("rflo", found, structure, reaches, remedy="use eprop with hops=1 or more, snap or rtrl")
    for drive, reach in zip(structure.trained_drives, reaches, strict=True):
        most = int(np.diff(reach.tocsc().indptr).max(initial=0))
        # a gain or a decay that several units share has a trace for each of them
        if most > 1 and not structure.is_constant(drive):
            raise ValueError(
                f"rflo keeps one trace per weight, but each entry of {structure.name(drive)} reaches {most} "
                "hidden entries; use eprop"
            )
    influence = masked_influence(structure, [reaches], held=True, influence_dtype=influence_dtype)
    return past_facing(found, structure, influence, block=1, direct=False, feedback=feedback)
