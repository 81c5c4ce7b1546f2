"""Transitions that use their parameters and their state in unusual ways, one oddity each."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from online_grads import Model

N, M = 4, 3
KEEP = jnp.asarray([[1.0, 0, 0, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]])
W, U, B, S = {"W": (N, N)}, {"U": (N, M)}, {"b": (N,)}, {"s": ()}
VW = {"V": (N, N)} | W


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


spike.defjvp(lambda at, by: (spike(*at), by[0] * jnp.maximum(0, 2 - jnp.abs(at[0]))))


@jax.custom_jvp
def product(weight, h):
    return weight @ h


product.defjvp(lambda at, by: (product(*at), by[0] @ at[1] + at[0] @ by[1]))


def orthogonal(p):
    upper = jnp.zeros((N, N)).at[jnp.triu_indices(N, 1)].set(p["q"])
    return upper - upper.T


def moved_to_top(p, h, x):
    values, places = lax.top_k(p["W"] @ h, 2)
    return jnp.tanh(h.at[places].set(values))


def maximum_of_pairs(p, h, x):
    return jnp.tanh(jnp.repeat((p["W"] @ h).reshape(2, 2).max(1), 2) + h)


def normalised(p, h, x):
    z = p["W"] @ h
    return (z - z.mean()) / jnp.sqrt(z.var() + 0.1)


def convolution(p, h, x):
    return jnp.tanh(lax.conv_general_dilated(h[None, None], p["taps"], (1,), "SAME")[0, 0])


def branches(p, h, x):
    return lax.cond(x[0] > 0, lambda: jnp.tanh(p["W"] @ h), lambda: jnp.sin(p["V"] @ h))


def settling(p, h, x):
    return lax.while_loop(lambda i: i < 3, lambda i: i + 1, 0) * jnp.tanh(p["W"] @ h)


def fast_weights(p, hidden, x):
    h, fast = hidden
    h = jnp.tanh(p["W"] @ h + fast @ h)
    return h, 0.9 * fast + 0.1 * h[:, None] * h[None]


def spiking(p, hidden, x):
    v, s = hidden
    v = 0.9 * v * (1 - s) + p["W"] @ s + x[0]
    return v, spike(v - 1)


def dropout(p, hidden, x):
    h, key, count = hidden
    key, now = jax.random.split(key)
    kept = jnp.where(jax.random.bernoulli(now, 0.5, (N,)), h, 0.0)
    return jnp.tanh(p["W"] @ kept), key, count + 1


def phasor(p, hidden, x):
    z, h = hidden
    turn = jnp.exp(lax.complex(-jnp.exp(p["s"]), p["b"]))
    return turn * z + x[:1].astype(complex), jnp.tanh(p["W"] @ jnp.real(z) + jnp.imag(z) * h)


# name: (transition, shapes of its parameters), and a hidden state where it is not a vector [4]
CELLS = {
    "synapse twice and directly": (
        lambda p, h, x: jnp.tanh(p["W"] @ h + p["W"] @ jnp.sin(h) + jnp.diag(p["W"]) * h + p["U"] @ x),
        W | U,
    ),
    "w·w": (lambda p, h, x: jnp.tanh(jnp.dot(p["b"], p["b"]) * h + p["b"]), B),
    "W and its transpose": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["W"].T @ jnp.sin(h)), W),
    "product of parameters": (lambda p, h, x: jnp.tanh((p["A"] @ p["C"]) @ h), {"A": (N, 1), "C": (1, N)}),
    "one after the other": (lambda p, h, x: jnp.tanh(p["V"] @ (p["W"] @ (p["V"] @ h))), VW),
    "hypernetwork": (
        lambda p, h, x: jnp.tanh((p["Z"] @ p["z"]).reshape(N, N) @ h),
        {"Z": (N * N, 2), "z": (2,)},
    ),
    "weights made of the input": (
        lambda p, h, x: jnp.tanh((p["Z"] @ x).reshape(N, N) @ h),
        {"Z": (N * N, M)},
    ),
    "skew-symmetric": (lambda p, h, x: orthogonal(p) @ jnp.tanh(h), {"q": (N * (N - 1) // 2,)}),
    "compared": (lambda p, h, x: jnp.tanh(jnp.where(p["W"] > 0, p["W"], 0.1) @ h), W),
    "compared with the state": (
        lambda p, h, x: jnp.tanh(
            jnp.where(p["b"] > h, p["b"], 2 * h) + jnp.where(p["W"][0] > 0, p["W"] @ h, h)
        ),
        W | B,
    ),
    "in a scan": (
        lambda p, h, x: lax.scan(lambda c, w: (jnp.tanh(p["W"] @ c + w), None), h, p["V"][:2])[0],
        VW,
    ),
    "in branches": (branches, VW),
    "in a branch on parameters": (
        lambda p, h, x: jnp.tanh(lax.cond(x[0] > 0, lambda: p["W"], lambda: p["V"].T) @ h),
        VW,
    ),
    "beside a while loop": (settling, W),
    "in a custom rule": (lambda p, h, x: jnp.tanh(product(p["W"], jnp.sin(h))), W),
    "scalar": (lambda p, h, x: jnp.tanh(p["s"] * h + x[0]), S),
    "returned as it is": (lambda p, h, x: p["b"], B),
    "dead code": (lambda p, h, x: jnp.tanh(jnp.split(p["W"] @ h, 2)[0][jnp.array([0, 1, 1, 0])]), W),
    "stopped gradient": (
        lambda p, h, x: jnp.tanh(p["W"] @ lax.stop_gradient(h) + lax.stop_gradient(p["W"]) @ (h * p["b"])),
        W | B,
    ),
    "permuted": (
        lambda p, h, x: jnp.tanh(p["W"][::-1] @ h[jnp.array([3, 3, 1, 0])]) + 0.5 * jnp.roll(h, 1),
        W,
    ),
    "one-hot constant": (lambda p, h, x: jnp.tanh(jnp.eye(N)[jnp.array([1, 0, 3, 2])] @ h + p["W"] @ h), W),
    "masked": (lambda p, h, x: jnp.tanh((p["W"] * KEEP) @ h) * KEEP[0] + 0.1 * h, W),
    "chosen by a mask": (lambda p, h, x: jnp.tanh(jnp.where(KEEP > 0, p["W"], 0) @ h), W),
    "relu": (lambda p, h, x: jax.nn.relu(p["W"] @ h + p["b"]), W | B),
    "untaken branch": (lambda p, h, x: jnp.where(x[0] > 9, p["W"] @ h, jnp.tanh(h + p["b"])), W | B),
    "max pooling": (maximum_of_pairs, W),
    "softmax": (lambda p, h, x: jax.nn.softmax(p["W"] @ h), W),
    "log-sum-exp of rows": (lambda p, h, x: jax.nn.logsumexp(p["W"] * h[None], axis=1), W),
    "outer product": (lambda p, h, x: jnp.tanh((p["W"] + h[:, None] * h[None]) @ jnp.sin(h)), W),
    "layer norm": (normalised, W),
    "sorted": (lambda p, h, x: jnp.tanh(jnp.sort(p["W"] @ h) + jnp.cumsum(h)), W),
    "top k": (moved_to_top, W),
    "convolution": (convolution, {"taps": (1, 1, 3)}),
    "traced index": (lambda p, h, x: jnp.tanh(p["W"][jnp.argmax(x)] * h + h[jnp.argmax(x)]), W),
    "dynamic update": (
        lambda p, h, x: lax.dynamic_update_slice(h, jnp.tanh(p["W"] @ h)[:2], (jnp.argmax(x),)),
        W,
    ),
    "padded": (lambda p, h, x: jnp.tanh(p["W"] @ jnp.pad(h[1:3], 1)) + lax.pad(h[:2], h[3], ((0, 1, 1),)), W),
    "rematerialised": (lambda p, h, x: jax.jit(jax.checkpoint(lambda w: jnp.tanh(w @ h)))(p["W"]), W),
    "without input": (lambda p, h, x: jnp.tanh(p["W"] @ h + p["E"] @ h[:0]), W | {"E": (N, 0)}),
    "two contracted axes": (
        lambda p, h, x: jnp.tanh(jnp.einsum("dbac,ab->cd", p["W"], h).T),
        {"W": (2, 2, 2, 2)},
        jnp.zeros((2, 2)),
    ),
    "batch axis in the middle": (
        lambda p, h, x: jnp.tanh(jnp.einsum("ibj,jb->ib", p["W"], h)),
        {"W": (2, 3, 2)},
        jnp.zeros((2, 3)),
    ),
    "shared by columns": (lambda p, h, x: jnp.tanh(h @ p["W"]), {"W": (2, 2)}, jnp.zeros((3, 2))),
    "mapped columns": (
        lambda p, h, x: jax.vmap(lambda w, h: jnp.tanh(w @ h))(p["W"], h),
        {"W": (2, 3, 3)},
        jnp.zeros((2, 3)),
    ),
    "scalar state": (lambda p, h, x: jnp.tanh(p["s"] * h + x[0]), S, jnp.zeros(())),
    "fast weights": (fast_weights, W, (jnp.zeros(N), jnp.zeros((N, N)))),
    "spikes": (spiking, W, (jnp.zeros(N), jnp.zeros(N))),
    "random dropout": (dropout, W, (jnp.zeros(N), jax.random.key(3), jnp.zeros((), jnp.int32))),
    "complex state": (phasor, W | B | S, (jnp.zeros(N, complex), jnp.zeros(N))),
}


def strange(name):
    """The model of a cell, with a loss that reads the state alone; every key gives the same numbers."""
    transition, shapes, *hidden = CELLS[name]

    def init(key):
        params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
        return random_like((params, hidden[0] if hidden else jnp.zeros(N)), seed=0)

    def loss(params, hidden, y):
        smooth = [leaf for leaf in jax.tree.leaves(hidden) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return sum(jnp.sum(jnp.sin(jnp.real(leaf) + jnp.imag(leaf) + y)) for leaf in smooth), ()

    return Model(init, transition, loss, (jnp.zeros(M), jnp.zeros(())))


def random_like(tree, seed):
    """Standard normal in every floating leaf; the others as they are, or zero where only shapes are known."""
    draw = np.random.default_rng(seed).normal

    def like(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
        imaginary = 1j * draw(size=leaf.shape) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 0
        return jnp.asarray(draw(size=leaf.shape) + imaginary, leaf.dtype)

    return jax.tree.map(like, tree)
