"""What local methods share: they keep what stays inside a unit, with the plain credit ∂ℓ/∂h.

With the drives held at their values, J₀ = ∂h'/∂h is what is left of the Jacobian (a leak, a forget
gate) and D = ∂h'/∂z the way from a drive into its unit. Where a drive or a weight reaches *another*
drive within the same step, credit that passes there would be dropped without a word.
"""

import numpy as np

from online_grads.linearize import Weights
from online_grads.patterns import Patterns


def require_local(name: str, structure: Weights, patterns: Patterns) -> None:
    """Refuse a cell in which a trained weight reaches another drive of the same step.

    Raises:
        ValueError: naming the weight and the one whose drive it reaches.
    """
    synapses = [site for site in structure.sites if not site.direct]
    owners = np.repeat(np.arange(len(synapses)), [site.batch * site.post for site in synapses])
    for number, (site, reached) in enumerate(zip(structure.sites, patterns.between, strict=True)):
        if site.weight >= structure.trained:
            continue
        for other in np.unique(owners[np.diff(reached.tocsr().indptr) > 0]):
            if other != number:
                through = synapses[other].weight
                drive = structure.names[through] if through < structure.trained else "a constant matrix"
                raise ValueError(
                    f"{name} is local: it would lose the credit of {structure.names[site.weight]}, which "
                    f"acts on the drive of {drive} within the same step (a reset gate before the product, "
                    "a projection, a stack, a learned initial state); use eprop with hops=1 or more, "
                    "snap or rtrl"
                )
