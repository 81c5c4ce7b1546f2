"""Units: the hidden entries that act on one another apart from the recurrent weights.

With all drives held at their values, J₀ = ∂h'/∂h is what is left of the Jacobian: a leak, a forget
gate. A unit is a component of its pattern, an LSTM's (h_i, c_i). A product of hidden entries with
an input, `phi @ x`, counts as a drive here: the weights φ of a linear learner in the hidden state,
which meet in its prediction, are units of their own. A batched product, as of columns with a matrix
each, stays inside a unit, and so does whatever is written as a sum of elementwise products. Methods
with a mask keep whole units; local methods keep what stays inside one, with the plain credit ∂ℓ/∂h.
"""

from collections.abc import Callable

import jax
import numpy as np
from scipy import sparse

from online_grads.analysis import Analysis
from online_grads.dependence import dependence
from online_grads.linearize import Weights

# Steps that are followed before a cell's J is made.
PROBED = 2


def reachable(structure: Weights, steps: int, *, within: sparse.csr_matrix) -> list[list]:
    """Per number of further steps (0 … steps) and trained drive the entries [n, batch·post] reached.

    Whatever an entry reaches `within` a unit [n, n] is reached with it, at every number of steps. The
    list ends early where nothing more is reached.
    """
    patterns = structure.patterns
    chain = [[within @ patterns.drives[number] for number in range(len(structure.trained_drives))]]
    for _ in range(steps):
        further = [sparse.csr_matrix(r + within @ patterns.jacobian @ r) for r in chain[-1]]
        if all(f.nnz == r.nnz for f, r in zip(further, chain[-1], strict=True)):
            break
        chain.append(further)
    return chain


def carried(structure: Weights, pattern) -> sparse.csr_matrix:
    """Rows of the entries that the next step reads; the others owe nothing to the past influence."""
    return sparse.csr_matrix(sparse.diags(structure.patterns.carried, dtype=bool) @ pattern)


def confined(structure: Weights, affordable: Callable) -> list | None:
    """Per trained drive all carried entries [n, batch·post] that it ever reaches.

    None as soon as what is reached so far is not `affordable`, [K per drive] -> bool.
    """
    patterns = structure.patterns
    most = lambda reach: int(np.diff(reach.tocsc().indptr).max(initial=0))
    reaches = [carried(structure, reach) for reach in patterns.drives[: len(structure.trained_drives)]]
    # of a dense cell a few steps from one entry per drive tell enough, and its J need not be made
    probes = [reach[:, :1].toarray().any(axis=1) for reach in reaches]
    for _ in range(PROBED):
        probes = [probe | patterns.follow(probe) & patterns.carried for probe in probes]
    if not affordable([int(probe.sum()) for probe in probes]):
        return None
    jacobian = carried(structure, patterns.jacobian)
    while affordable([most(reach) for reach in reaches]):
        further = [sparse.csr_matrix(reach + jacobian @ reach) for reach in reaches]
        if all(f.nnz == r.nnz for f, r in zip(further, reaches, strict=True)):
            return reaches
        reaches = further
    return None


def inside(held: sparse.csr_matrix) -> sparse.csr_matrix:
    """Which entries J₀ leads to from which, in any number of steps, itself included: [n, n]."""
    reached = sparse.csr_matrix(held + sparse.identity(held.shape[0], dtype=bool))
    while (further := sparse.csr_matrix(reached @ reached)).nnz > reached.nnz:
        reached = further
    return reached


def require_read(
    name: str,
    found: Analysis,
    structure: Weights,
    reaches: list,
    *,
    direct: bool = False,
    remedy: str = "keep more (a higher order, more hops), or use rtrl",
) -> None:
    """Refuse a mask that keeps nothing of what the loss reads of a weight, for want of further steps.

    With the gradient's direct form it reads the influence before the step, through the step. The message
    ends with the remedy.

    Raises:
        ValueError: naming the weight whose gradient would be zero.
    """

    def loss(h, readout, rest, y):
        return found.loss(readout, h, rest, y)[0][None]

    shapes = jax.tree.leaves(found.params)
    h, rest = jax.eval_shape(found.flat.split, found.hidden)
    given = [shapes[number] for number in found.reading], rest, found.y
    read = dependence(loss, h, given=given)
    if direct:
        drives = structure.patterns.drives[: len(reaches)]
        reaches = [structure.patterns.jacobian @ kept + d for kept, d in zip(reaches, drives, strict=True)]
    later = read @ inside(structure.patterns.jacobian)
    for weight, label in enumerate(structure.names):
        # all uses of a weight add up: one that is read is enough
        uses = [
            reach
            for drive, reach in zip(structure.trained_drives, reaches, strict=True)
            if any(structure.sites[number].weight == weight for number in drive.sites)
        ]
        if not any((read @ reach).nnz for reach in uses) and any((later @ reach).nnz for reach in uses):
            raise ValueError(
                f"{name} would give {label} a gradient of zero: the loss reads none of the hidden entries "
                f"at which its influence is kept; {remedy}"
            )


def units(entrywise: sparse.csr_matrix) -> sparse.csr_matrix:
    """Which hidden entries belong to one unit, a component of `Patterns.entrywise`: [n, n]."""
    _, label = sparse.csgraph.connected_components(entrywise, directed=False)
    member = sparse.csr_matrix((np.ones(label.size, bool), (np.arange(label.size), label)))
    return sparse.csr_matrix(member @ member.T)


def require_local(name: str, structure: Weights) -> None:
    """Refuse a cell in which a trained weight reaches another drive of the same step.

    Raises:
        ValueError: naming the weight and the one whose drive it reaches.
    """
    if structure.tangled:
        raise ValueError(
            f"{name} is local, and {structure.tangled[0]} meets the hidden state other than as a matrix that "
            "multiplies a vector (a batch axis inside the hidden state, a product inside scan or cond): what "
            "passes between units cannot be told apart; use `batched` for streams, snap or rtrl"
        )
    synapses = structure.synapses
    owners = np.repeat(np.arange(len(synapses)), [site.batch * site.post for site in synapses])
    for number in structure.trained_numbers:
        site, own = structure.sites[number], structure.drive_of[number]
        reached = structure.patterns.between[own]
        for other in np.unique(owners[np.diff(reached.tocsr().indptr) > 0]):
            if structure.drive_of[other] != own:
                through = synapses[other].weight
                drive = structure.names[through] if through < structure.trained else "a constant matrix"
                drive += " (its second use)" if through == site.weight else ""
                raise ValueError(
                    f"{name} is local: it would lose the credit of {structure.names[site.weight]}, which "
                    f"acts on the drive of {drive} within the same step (a reset gate before the product, "
                    "a projection, a stack, a learned initial state); use eprop with hops=1 or more, "
                    "snap or rtrl"
                )
