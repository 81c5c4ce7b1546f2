"""Real-time recurrent learning: the exact influence.

    M_t = J_t M_{t-1} + ∂h_t/∂w            M_t [n, p],  M_0 = 0

over a block of b steps (Schmidhuber 1992, with Φ = ∂h_b/∂h_0 and drives z_t = v_t · w),

    M_b = Φ M_0 + Σ_t (∂h_b/∂z_t) ⊗ v_t          g = (∂L/∂h_0) M_0 + ∂L/∂w at fixed h_0

Cost per step: O(n² p) at k = 1, one matrix product J M; O(n p + n³) in blocks of b ≈ n steps, the
same product once per block. Memory n p. Exact for every k, with frozen parameters. Any cell.

Where the patterns of a cell say that weights never reach more than K entries of h, and Σ K² p is far
below n² p (columns, diagonal recurrences), only those are carried, K per weight: O(p) if K is a
constant. A few weights may reach everything, as a gain or an encoder of the inputs does. Entries of h
that the next step does not read (an output) carry nothing: their credit goes back through the step.

Reference: Williams & Zipser (1989); Schmidhuber (1992), A fixed size storage O(n³) time complexity
learning algorithm for fully recurrent continually running networks.
"""

from functools import partial

import jax.numpy as jnp

from online_grads.analysis import analyse
from online_grads.arguments import float_dtype, positive_int
from online_grads.estimators.past_facing.base import Influence, past_facing, zeroed
from online_grads.estimators.past_facing.masked import DENSE_LIMIT, FEW, masked_influence
from online_grads.estimators.past_facing.units import confined
from online_grads.linearize import Weights
from online_grads.numerics import wide
from online_grads.types import Estimator, Model

# A product of the compressed form takes as long as so many of a matrix product.
SLOWER = 8


def rtrl(
    model: Model, *, block: int | None = None, influence_dtype=None, allow_unused: bool = False
) -> Estimator:
    """The exact gradient through the whole past, carried forward.

        g = (1/k) Σ_{t in segment} (∂ℓ_t/∂h_t) dh_t/dθ + ∂ℓ_t/∂θ

    The influence is one array [n, batch, post, pre] per drive: weights whose products are only added
    up, W h + U x + b, share one, with pre entries for [h; x; 1]. A weight that is used several times in
    a step has one per use. On columns and diagonal recurrences it is compressed by itself, to K numbers
    per weight: O(p) time and memory, still exact. `info["kept"]` then is the largest K.

    Args:
        model: the model.
        block: steps composed at a time in a longer segment, n by default. Given, it asks for the dense
            influence; a compressed one moves step by step. On segments of n steps, with K above √n, it is
            the faster one.
        influence_dtype: what the influence is stored in, by default the weights' dtype. `jnp.bfloat16`
            halves it, and every step rounds, Φ too: decays closer to 1 than 2⁻⁸ (`jnp.float16`: 2⁻¹¹)
            are lost, so that time constants above 100 steps (1000) are not for it.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`, exact while the parameters are frozen.

    Raises:
        TypeError, ValueError: if block is below 1, influence_dtype is not a floating one, or the model
            does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, gradient, losses, readouts, tbptt
    >>> cell, readout = cells.lstm(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> stream = jnp.ones((6, 2)), jnp.ones((6, 1))
    >>> online = gradient(rtrl(model), params, hidden, *stream, key=jax.random.key(1))
    >>> whole = gradient(tbptt(model), params, hidden, *stream, key=jax.random.key(1), window=6)
    >>> all(jnp.allclose(a, b, atol=1e-6) for a, b in zip(*map(jax.tree.leaves, (online, whole))))
    True

    Reference: Williams & Zipser (1989); Schmidhuber (1992).
    """
    if block is not None:
        positive_int("block", block)
    dtype = None if influence_dtype is None else float_dtype(influence_dtype, "influence_dtype")
    found = analyse(model, allow_unused=allow_unused)
    structure = Weights(found, dense=True)
    drives, n = structure.trained_drives, found.flat.size
    if block is None:
        few = Weights(found, dense=False)
        reaches = confined(few, partial(_affordable, few, products=n**2 * sum(_columns(structure))))
        if reaches is not None:
            return _compressed(found, few, reaches, dtype)

    def init(h, key):
        shape = lambda drive: (n, drive.batch, drive.post, structure.pre(drive))
        stored = lambda drive: drive.dtype if dtype is None else dtype
        return [jnp.zeros(shape(drive), stored(drive)) for drive in drives]

    def propagate(influence, segment, noise):
        transfer, factors = segment.jacobians()
        moved = []
        for drive, m, factor in zip(drives, influence, factors, strict=True):
            product = jnp.tensordot(transfer.astype(m.dtype), m, 1, preferred_element_type=wide(m.dtype))
            immediate = _immediate(*factor, structure.pre(drive))
            moved.append((product + immediate.astype(product.dtype)).astype(m.dtype))
        return moved

    def contract(influence, credit):
        product = lambda drive, m: jnp.tensordot(credit.astype(drive.dtype), m.astype(drive.dtype), 1)
        grads = [product(drive, m) for drive, m in zip(drives, influence, strict=True)]
        return structure.spread(drives, [jnp.swapaxes(grad, 1, 2) for grad in grads])

    influence = Influence(init, propagate, contract, forget=zeroed, exact=dtype is None)
    return past_facing(found, structure, influence, block=block or n)


def _compressed(found, structure, reaches, dtype):
    """Every weight's influence at the few entries that it ever reaches."""
    influence = masked_influence(structure, [reaches], held=False, influence_dtype=dtype, limited=False)
    direct = not structure.patterns.carried.all()
    return past_facing(found, structure, influence, block=1, direct=direct)


def _affordable(structure, kept, *, products):
    """Whether K entries per weight take far less than the products of J M."""
    sizes = [drive.batch * drive.post for drive in structure.trained_drives]
    each = zip(kept, _columns(structure), sizes, strict=True)
    few = sum(k**2 * (columns + size) for k, columns, size in each)
    gathered = sum(k**2 * size for k, size in zip(kept, sizes, strict=True) if k > FEW)
    return SLOWER * few <= products and gathered <= DENSE_LIMIT


def _columns(structure):
    """Per trained drive how many columns the dense influence has."""
    return [structure.pre(drive) * drive.batch * drive.post for drive in structure.trained_drives]


def _immediate(delta, presynaptic, pre):
    """∂h_b/∂w at fixed h_0, [n, batch, post, pre], from the factors of `Segment.jacobians`."""
    if presynaptic is None:
        return jnp.broadcast_to(delta[..., None], (*delta.shape, pre))
    presynaptic = presynaptic.astype(delta.dtype)
    if delta.shape[2] == 1:  # one matrix product, for which XLA moves nothing
        return jnp.einsum("tno,tp->nop", delta[:, :, 0], presynaptic[:, 0])[:, None]
    return jnp.einsum("tnbo,tbp->nbop", delta, presynaptic)
