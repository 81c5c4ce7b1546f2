"""What the future-facing and the perturbation estimators cost beside what they are made of:

    python -m tests.benchmarks.families

A tanh network of n units, n inputs of 8, in float32, frozen parameters; µs per step, the best of several
runs of one compiled scan, all in this process. A VJP is one step forwards and one cotangent back to θ and h.
Forward passes are those of as many particles with parameters of their own, in one vmapped program.
"""

import time

import jax
import jax.numpy as jnp

from online_grads import cells, es_single, fbptt, from_cell, losses, pes, readouts, tbptt

INPUTS, OUTPUTS, REPEATS = 8, 4, 15


def model_of(n):
    cell, readout = cells.vanilla_rnn(INPUTS, n), readouts.linear(n, OUTPUTS)
    example = jnp.zeros(INPUTS), jnp.zeros(OUTPUTS)
    return from_cell(cell, readout, losses.squared_error, example=example)


def per_step(function, steps, *args):
    """Microseconds per step."""
    compiled = jax.jit(function).lower(*args).compile()
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - begin)
    return 1e6 * min(times) / steps


def stream(steps):
    keys = jax.random.split(jax.random.key(3))
    return jax.random.normal(keys[0], (steps, INPUTS)), jax.random.normal(keys[1], (steps, OUTPUTS))


def of_estimator(estimator, model, segments, k):
    params, hidden = model.init(jax.random.key(0))
    state = estimator.init(params, hidden, key=jax.random.key(1))
    split = lambda leaf: leaf.reshape(segments, k, *leaf.shape[1:])
    xs, ys = jax.tree.map(split, stream(segments * k))

    def go(state, params, xs, ys):
        def body(carry, xy):
            state, total = carry
            state, estimate = estimator.update(state, params, *xy)
            return (state, jax.tree.map(jnp.add, total, estimate.grads)), estimate.loss

        return jax.lax.scan(body, (state, jax.tree.map(jnp.zeros_like, params)), (xs, ys))

    return per_step(go, segments * k, state, params, xs, ys)


def of_vjps(model, steps):
    params, hidden = model.init(jax.random.key(0))
    xs, _ = stream(steps)

    def go(params, hidden, xs):
        def body(carry, x):
            h, credit, total = carry
            moved, pull = jax.vjp(lambda p, h: model.transition(p, h, x), params, h)
            grads, credit = pull(credit)
            return (moved, credit, jax.tree.map(jnp.add, total, grads)), None

        return jax.lax.scan(body, (hidden, hidden + 1, jax.tree.map(jnp.zeros_like, params)), xs)

    return per_step(go, steps, params, hidden, xs)


def of_particles(model, particles, steps):
    params, hidden = model.init(jax.random.key(0))
    many = lambda leaf: leaf + 0.01 * jax.random.normal(jax.random.key(4), (particles, *leaf.shape))
    params, hidden = jax.tree.map(many, (params, hidden))
    xs, ys = stream(steps)

    def go(params, hidden, xs, ys):
        def one(params, hidden):
            def body(h, xy):
                h = model.transition(params, h, xy[0])
                return h, model.loss(params, h, xy[1])[0]

            return jax.lax.scan(body, hidden, (xs, ys))

        return jax.vmap(one)(params, hidden)

    return per_step(go, steps, params, hidden, xs, ys)


def main():
    for n in (64, 256):
        model = model_of(n)
        vjp = of_vjps(model, 2000)
        print(f"n = {n}")
        print(f"  one VJP {vjp:29.2f} µs")
        print(f"  tbptt, k = 1 {of_estimator(tbptt(model), model, 2000, 1):24.2f} µs")
        for horizon in (2, 10, 50):
            for k in (1, 10):
                cost = of_estimator(fbptt(model, horizon=horizon), model, 500 // k, k)
                ratio = cost / horizon / vjp
                print(f"  fbptt({horizon:2}), k = {k:2} {cost:19.2f} µs = {ratio:.2f} × {horizon} VJPs")
        for pairs in (8, 32):
            forward = of_particles(model, 2 * pairs, 1000)
            print(f"  {2 * pairs} forward passes {forward:19.2f} µs")
            for make, name in ((pes, "pes"), (es_single, "es_single")):
                for k in (1, 100, 1000):
                    segments = max(1, 1000 // k) if k > 1 else 100
                    cost = of_estimator(make(model, particles=2 * pairs), model, segments, k)
                    print(f"  {name}, {pairs} pairs, k = {k:4} {cost:15.2f} µs = {cost / forward:.2f} ×")


if __name__ == "__main__":
    main()
