"""Feedback: how the loss's error reaches the hidden state.

    z = v · w                every readout matrix w of the loss, with v made from h
    ∂ℓ/∂v = w ∂ℓ/∂z          symmetric: the true gradient, the default everywhere
    ∂ℓ/∂v ≈ B ∂ℓ/∂z          random: a fixed matrix B in place of every w

A brain has no way to know w where the error comes back, and learning works without it (feedback
alignment). The readout's own gradient stays exact; only the credit ∂ℓ/∂h changes. Readout matrices
are found in the loss's own equations, so that any readout works, one of several layers included. What
reaches the loss past every trained matrix (a penalty on h) keeps its true gradient.

Reference: Lillicrap et al. (2016), Random synaptic feedback weights support error backpropagation
for deep learning; in recurrent networks: Murray (2019), Bellec et al. (2020).
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis, check_key
from online_grads.dependence import dependence
from online_grads.sites import Site
from online_grads.structure import Structure
from online_grads.types import Array

# Given an analysed model, `credit(readout, h [n], rest, y)` -> [n], or None for the true gradient.
Feedback = Callable[[Analysis], Callable | None]


def symmetric(found: Analysis) -> None:
    """The true gradient of the loss."""


def credit_through(feedback: Feedback, found: Analysis) -> Callable | None:
    """`feedback(found)`, checked.

    Raises:
        TypeError: it is not a feedback.
    """
    if feedback in (random, fixed) or not callable(feedback):
        raise TypeError(
            "feedback must be feedback.symmetric, feedback.random(key) or feedback.fixed(*matrices), got "
            f"{getattr(feedback, '__name__', repr(feedback))}"
        )
    return feedback(found)


def random(key: Array) -> Feedback:
    """Fixed random matrices in place of every readout matrix.

        B [pre, post] ~ N(0, 1/post)

    Args:
        key: of the matrices: the same key, the same feedback.

    Returns:
        A `Feedback`. With a model whose loss has no readout matrix it raises a ValueError.

    Raises:
        TypeError: the key is not a typed key.

    >>> import online_grads as og
    >>> cell, readout = og.cells.gru(2, 4), og.readouts.linear(4, 1)
    >>> example = jnp.zeros(2), jnp.zeros(1)
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=example)
    >>> estimator = og.eprop(model, feedback=og.feedback.random(jax.random.key(0)))

    Reference: Murray (2019), eLife 8:e43299, eq. 4.
    """
    check_key(key)

    def feedback(found: Analysis):
        structure, sites = _readout_matrices(found)
        keys = jax.random.split(key, len(sites))
        drawn = [
            jax.random.normal(one, _shape(site), found.flat.dtype) / math.sqrt(site.post)
            for one, site in zip(keys, sites.values(), strict=True)
        ]
        return _through(structure, dict(zip(sites, drawn, strict=True)))

    return feedback


def fixed(*matrices: Array) -> Feedback:
    """Your own matrices in place of the readout matrices.

    Args:
        matrices: one B [pre, post] per readout matrix (or [batch, pre, post] for a batched one), in
            the order in which the loss applies them.

    Returns:
        A `Feedback`. With a model whose readout matrices are of other shapes or another number it
        raises a ValueError.

    >>> import online_grads as og
    >>> cell, readout = og.cells.gru(2, 4), og.readouts.linear(4, 1)
    >>> example = jnp.zeros(2), jnp.zeros(1)
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=example)
    >>> estimator = og.eprop(model, feedback=og.feedback.fixed(jnp.ones((4, 1))))

    Reference: Lillicrap et al. (2016), Nat. Commun. 7:13276.
    """

    def feedback(found: Analysis):
        structure, sites = _readout_matrices(found)
        wanted = [_shape(site) for site in sites.values()]
        given = [(1,) * (3 - jnp.ndim(matrix)) + jnp.shape(matrix) for matrix in matrices]
        if wanted != given:
            show = lambda shapes: ", ".join(str(list(shape)) for shape in shapes) or "none"
            raise ValueError(
                f"the loss has readout matrices [batch, pre, post] {show(wanted)}; got {show(given)}"
            )
        shaped = [jnp.asarray(matrix).reshape(shape) for matrix, shape in zip(matrices, wanted, strict=True)]
        return _through(structure, dict(zip(sites, shaped, strict=True)))

    return feedback


def _through(structure: Structure, matrices: dict[int, Array]) -> Callable:
    """The credit that returns through other matrices [batch, pre, post], by the synapse's number."""

    def drive(number, presynaptic, value):
        if number not in matrices:
            return value
        returning = jnp.einsum("bp,bpo->bo", presynaptic, matrices[number].astype(presynaptic.dtype))
        returning = returning.astype(value.dtype)
        # the value is that of the true matrix, the gradient that of the other
        return jax.lax.stop_gradient(value) + (returning - jax.lax.stop_gradient(returning))

    def credit(readout, h, rest, y):
        weights = structure.effective(readout)
        return jax.grad(lambda h: structure.step(weights, h, rest, y, drive=drive)[0])(h)

    return credit


def _shape(site: Site) -> tuple[int, int, int]:
    return site.batch, site.pre, site.post


def _readout_matrices(found: Analysis) -> tuple[Structure, dict]:
    """The split loss, and its trained synapses whose presynaptic vector hangs on h, by number."""
    shapes = jax.tree.leaves(found.params)
    readout, names = [shapes[i] for i in found.reading], [found.names[i] for i in found.reading]
    h, rest = jax.eval_shape(found.flat.split, found.hidden)

    def loss(readout, h, rest, y):
        return found.loss(readout, h, rest, y)[0], []

    structure = Structure(loss, names, readout, h, rest, found.y, dense=False, called="the loss")
    synapses = structure.synapses

    def vectors(h, weights, rest, y):
        presynaptic = structure.step(weights, h, rest, y)[2]
        return jnp.concatenate([h[:0], *(v.ravel().astype(h.dtype) for v in presynaptic)])

    reads = dependence(vectors, h, given=(structure.weights, rest, found.y))
    ends = itertools.accumulate(site.batch * site.pre for site in synapses)
    sites = {
        number: site
        for number, (site, end) in enumerate(zip(synapses, ends, strict=True))
        if site.weight < structure.trained and reads[end - site.batch * site.pre : end].nnz
    }
    if structure.tangled:
        raise ValueError(
            f"{structure.tangled[0]} meets the hidden state in the loss other than as a matrix that "
            "multiplies a vector: feedback cannot take its place; use feedback=symmetric"
        )
    if not sites:
        raise ValueError(
            "feedback takes the place of a readout matrix, and the loss has none: no matrix made from "
            "parameters meets a vector made from the hidden state; use feedback=symmetric"
        )
    return structure, sites
