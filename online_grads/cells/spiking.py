"""What spiking cells share: the spike with its surrogate gradient, weights without self-connections.

    z = H(u),    dz/du := γ max(0, 1 − |u|)          u = (v − threshold)/v_th

The conventions of the papers' code: a neuron spikes at most once in `refractory` steps and has no
gradient while it is silent; the reset of the potential is not differentiated; no neuron is connected
to itself.
"""

from functools import partial

import jax
import jax.numpy as jnp

from online_grads.cells.initial import inward
from online_grads.types import Array


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def spike(u: Array, dampening: float) -> Array:
    """H(u): 1 where u > 0; its derivative is γ max(0, 1 − |u|).

    >>> u = jnp.array([-0.5, 0.5, 2.0])
    >>> spike(u, 0.25).tolist(), jax.vmap(jax.grad(spike), (0, None))(u, 0.25).tolist()
    ([0.0, 1.0, 1.0], [0.125, 0.125, 0.0])
    """
    return (u > 0).astype(u.dtype)


@spike.defjvp
def _(dampening, primals, tangents):
    (u,), (tangent,) = primals, tangents
    return spike(u, dampening), dampening * jnp.maximum(0, 1 - jnp.abs(u)) * tangent


def fire(u: Array, silent: Array, refractory: int, dampening: float) -> tuple[Array, Array]:
    """(spikes, steps of silence to come) from u and the steps of silence that are left, [n] int32."""
    z = jnp.where(silent > 0, 0, spike(u, dampening))
    left = silent + refractory * z.astype(silent.dtype) - 1
    return z, jnp.clip(left, 0, refractory)


def synapses(key: Array, inputs: int, hidden: int, dtype) -> dict[str, Array]:
    """{"W_rec": [n, n], "W_in": [n, m]}, N(0, 1/n) and N(0, 1/m)."""
    key_rec, key_in = jax.random.split(key)
    return {
        "W_rec": inward(key_rec, hidden, hidden, dtype),
        "W_in": inward(key_in, hidden, inputs, dtype),
    }


def current(params: dict[str, Array], z: Array, x: Array) -> Array:
    """What the synapses bring: W_rec z, without self-connections, + W_in x."""
    others = 1 - jnp.eye(z.size, dtype=z.dtype)
    return (params["W_rec"] * others) @ z + params["W_in"] @ x
