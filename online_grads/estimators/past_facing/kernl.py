"""KeRNL: a learned sensitivity and learned decays in place of the influence through other units.

    ∂h_a(t+Δ)/∂h_c(t) ≈ A[a, c] κ_c^Δ,   κ = max(0, 1 − γ)         A [n, n],  γ [n]

    B_t[c, j, i] = κ_c B_{t-1}[c, j, i] + D_t[c, i] v_t[j]         traces, c reached by drive i
    g_t[j, i] = Σ_c (q_t A)_c B_t[c, j, i]

A and γ are learned from a second copy of the network, ĥ, that is driven by noise ζ ~ N(0, σ²):

    ĥ_t = f(w, ĥ_{t-1} + ζ_{t-1}, x_t)
    Γ_t = κ Γ_{t-1} − Ω_{t-1},   Ω_t = κ Ω_{t-1} + ζ_t             Γ = ∂Ω/∂γ
    e_t = A Ω_t − (ĥ_t − h_t)                                      ∂(½|e|²)/∂A = e Ωᵀ,  ∂/∂γ = (e A) Γ

The order is that of Marschall's code: γ's gradient uses the old A, the emitted gradient the new one.

Cost per step: O(n² + p) time and memory. Biased. It refuses a cell in which a weight reaches another
drive within the same step.

Reference: Roth, Kanitscheider & Fiete (2019), Kernel RNN learning, ICLR, algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.analysis import analyse
from online_grads.arguments import an_optimizer, not_negative, positive_int
from online_grads.estimators.feedback import Feedback, symmetric
from online_grads.estimators.past_facing import masked
from online_grads.estimators.past_facing.base import Influence, past_facing
from online_grads.estimators.past_facing.units import require_local, require_read
from online_grads.linearize import Weights
from online_grads.sparse import SparseJacobian
from online_grads.types import Array, Estimator, Model, PyTree


class Kernel(NamedTuple):
    """What is learned of the network."""

    A: Array  # [n, n] sensitivity
    gamma: Array  # [n]   inverse time scales


class KernlLearned(NamedTuple):
    """The learned part; it survives resets."""

    kernel: Kernel
    optimizer: PyTree  # the state of `inner_optimizer`


class KernlInfluence(NamedTuple):
    """What KeRNL carries."""

    learned: KernlLearned
    traces: list  # per drive and site B, at the hidden entries that it reaches within a step
    noisy: Array  # [n]  ĥ_t
    noise: Array  # [n]  ζ_t, in force at the next step
    omega: Array  # [n]  Ω_t
    slope: Array  # [n]  Γ_t = ∂Ω_t/∂γ
    noise_loss: Array  # []   ½|e_t|²
    age: Array  # []   int32, steps since the copy and the filters began


def kernl(
    model: Model,
    *,
    sigma: float = 1e-3,
    gamma: float = 0.8,
    inner_optimizer: optax.GradientTransformation | None = None,
    reset_every: int | None = None,
    feedback: Feedback = symmetric,
    axis_name: str | None = None,
    allow_unused: bool = False,
) -> Estimator:
    """A local gradient through a sensitivity and decays that are learned from noise.

        g_t[j, i] = Σ_c (q_t A)_c B_t[c, j, i]          B_t = κ B_{t-1} + D_t ⊗ v_t

    Args:
        model: the model.
        sigma: σ of the noise, may be a tracer. It must be above the rounding of the hidden state's
            dtype: half precision hardly learns. With 0, A stays the identity. Where the loss reads no
            hidden entry that a weight reaches within one step, the weight's gradient comes through the
            learned A alone and is near zero at first.
        gamma: where the inverse time scales γ start, one number; A starts as the identity.
        inner_optimizer: learns A and γ; by default `optax.sgd(5.0)`, Marschall's. The effective rate
            is σ² times its own; where γ leaves (0, 1) it was too high.
        reset_every: steps after which the copy, the filters and the traces begin anew; by default
            never. Needed where the copy drifts away from a network that does not contract.
        feedback: how the error reaches the hidden state, see `online_grads.feedback`.
        axis_name: the axis under which streams are mapped (`batched`'s): what A and γ learn is
            averaged over it, so that all streams share them.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`. A segment is scanned step by step. `info["noise_loss"]` is ½|e_t|² at its
        last step.

    Raises:
        ValueError: if sigma is negative, reset_every below 1, a weight reaches another drive within
            the same step, sigma is 0 and the loss reads no hidden entry that a weight reaches within
            one step, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.vanilla_rnn(2, 8), readouts.linear(8, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> estimator = kernl(model, reset_every=100)
    >>> state = estimator.init(*model.init(jax.random.key(0)), key=jax.random.key(1))
    >>> state.influence.learned.kernel.A.shape
    (8, 8)

    Reference: Roth, Kanitscheider & Fiete (2019), ICLR, algorithm 1.
    """
    not_negative("sigma", sigma)
    not_negative("gamma", gamma)
    if reset_every is not None:
        positive_int("reset_every", reset_every)
    optimizer = an_optimizer("inner_optimizer", inner_optimizer, optax.sgd(5.0))
    found = analyse(model, allow_unused=allow_unused)
    structure = Weights(found, dense=False)
    require_local("kernl", structure)
    n, dtype = found.flat.size, found.flat.dtype
    patterns = structure.patterns
    reaches = patterns.drives[: len(structure.trained_drives)]
    if not isinstance(sigma, jax.core.Tracer) and float(sigma) == 0:
        # without noise A never learns to carry credit from what the loss reads to what is kept
        name, remedy = "kernl with sigma=0, where A learns nothing,", "take sigma > 0, or use rtrl"
        require_read(name, found, structure, reaches, remedy=remedy)
    kept = masked.keep(structure, reaches)
    jacobian = SparseJacobian(structure, patterns)

    def init(h, key):
        kernel = Kernel(jnp.eye(n, dtype=h.dtype), jnp.full((n,), gamma, h.dtype))
        learned = KernlLearned(kernel, optimizer.init(kernel))
        zero = jnp.zeros_like(h)
        loss, age = jnp.zeros((), h.dtype), jnp.zeros((), jnp.int32)
        return KernlInfluence(learned, masked.start(structure, kept), h, zero, zero, zero, loss, age)

    def begin_anew(influence, h):
        zero = jnp.zeros_like(h)
        traces = jax.tree.map(jnp.zeros_like, influence.traces)
        age = jnp.zeros_like(influence.age)
        return influence._replace(traces=traces, noisy=h, noise=zero, omega=zero, slope=zero, age=age)

    def propagate(influence, segment, noise):
        h_tm1, rest, x = segment.first
        h_t, _ = segment.end
        if reset_every is not None:
            due = influence.age == reset_every
            anew = begin_anew(influence, h_tm1)
            influence = jax.tree.map(lambda new, old: jnp.where(due, new, old), anew, influence)
        noisy, _ = structure.move(segment.weights, influence.noisy + influence.noise, rest, x)
        return advance(influence, h_t, noisy, noise, jacobian(segment.weights, h_tm1, rest, x))

    def advance(influence, h_t, noisy, noise, entries):
        kernel = influence.learned.kernel
        kappa = jnp.maximum(0, 1 - kernel.gamma)
        slope = kappa * influence.slope - influence.omega
        omega = kappa * influence.omega + noise
        # trace c decays by κ_c: a diagonal A in the masked recursion
        terms = [
            [masked.Term(kappa, k.diagonal(), old)] for k, old in zip(kept, influence.traces, strict=True)
        ]
        traces = masked.move(structure, kept, terms, entries)
        error = kernel.A @ omega - (noisy - h_t)
        grads = Kernel(jnp.outer(error, omega), (error @ kernel.A) * slope)
        if axis_name is not None:
            grads = jax.lax.pmean(grads, axis_name)
        updates, inner = optimizer.update(grads, influence.learned.optimizer, kernel)
        learned = KernlLearned(optax.apply_updates(kernel, updates), inner)
        loss = 0.5 * jnp.sum(jnp.square(error))
        return KernlInfluence(learned, traces, noisy, noise, omega, slope, loss, influence.age + 1)

    def contract(influence, credit):
        return masked.contract(structure, kept, influence.traces, credit @ influence.learned.kernel.A)

    influence = Influence(
        init,
        propagate,
        contract,
        noise=lambda key: jnp.asarray(sigma, dtype) * jax.random.normal(key, (n,), dtype),
        # the transition itself replaces the hidden state at a reset, the copy's too: any value does
        forget=lambda influence, noise: begin_anew(influence, jnp.zeros_like(influence.noisy)),
        info=lambda influence: {"noise_loss": influence.noise_loss},
    )
    return past_facing(found, structure, influence, block=1, direct=False, feedback=feedback)
