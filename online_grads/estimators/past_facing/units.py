"""Units: the hidden entries that act on one another apart from the recurrent weights.

With all drives held at their values, J₀ = ∂h'/∂h is what is left of the Jacobian: a leak, a forget
gate. A unit is a component of its pattern, an LSTM's (h_i, c_i). Methods with a mask keep whole
units; local methods keep what stays inside one, with the plain credit ∂ℓ/∂h.
"""

import numpy as np
from scipy import sparse

from online_grads.linearize import Weights


def reachable(structure: Weights, steps: int) -> list[list]:
    """Per number of further steps (0 … steps) and trained site the entries [n, batch·post] reached.

    Counted in units: with a hidden entry all of its unit is reached. The list ends early where
    nothing more is reached.
    """
    patterns = structure.patterns
    together = units(patterns.held)
    chain = [[together @ patterns.sites[number] for number in structure.trained_numbers]]
    for _ in range(steps):
        further = [sparse.csr_matrix(r + together @ patterns.jacobian @ r) for r in chain[-1]]
        if all(f.nnz == r.nnz for f, r in zip(further, chain[-1], strict=True)):
            break
        chain.append(further)
    return chain


def units(held: sparse.csr_matrix) -> sparse.csr_matrix:
    """Which hidden entries belong to one unit, a component of J₀'s pattern: [n, n]."""
    _, label = sparse.csgraph.connected_components(held, directed=False)
    member = sparse.csr_matrix((np.ones(label.size, bool), (np.arange(label.size), label)))
    return sparse.csr_matrix(member @ member.T)


def require_local(name: str, structure: Weights) -> None:
    """Refuse a cell in which a trained weight reaches another drive of the same step.

    Raises:
        ValueError: naming the weight and the one whose drive it reaches.
    """
    synapses = [site for site in structure.sites if not site.direct]
    owners = np.repeat(np.arange(len(synapses)), [site.batch * site.post for site in synapses])
    for number in structure.trained_numbers:
        site, reached = structure.sites[number], structure.patterns.between[number]
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
