"""RTRL against its bound, on a tanh cell in float32:

    python tests/benchmarks/rtrl_bound.py [HIDDEN]

prints, all from one process,
  * µs per step of stepwise `rtrl` and of the bare matrix product J·M that it cannot do without;
  * µs per step of `rtrl` on segments of n steps, and the factor that they gain;
  * the bytes of compiled temporaries (without the streams and outputs) of training on one stream in
    segments of n and of 16 n steps.
"""

import sys
import time

import jax
import jax.numpy as jnp
import optax

from online_grads import cells, from_cell, learner, losses, readouts, rtrl, scan

INPUTS, OUTPUTS, SEGMENTS, REPEATS = 8, 4, 32, 5


def best(function, *args):
    """Seconds of the fastest of five calls, compilation apart."""
    compiled = jax.jit(function).lower(*args).compile()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def main(n):
    """Measure and print."""
    cell, readout = cells.vanilla_rnn(INPUTS, n), readouts.linear(n, OUTPUTS)
    example = jnp.zeros(INPUTS), jnp.zeros((), jnp.int32)
    model = from_cell(cell, readout, losses.softmax_cross_entropy, example=example)
    params, hidden = model.init(jax.random.key(0))
    estimator = rtrl(model)
    state = estimator.init(params, hidden, key=jax.random.key(1))

    def stream(segments, k):
        xs = jax.random.normal(jax.random.key(2), (segments, k, INPUTS))
        return xs, jax.random.randint(jax.random.key(3), (segments, k), 0, OUTPUTS)

    def learn(params, state, xs, ys):
        def body(carry, xy):
            params, state = carry
            state, estimate = estimator.update(state, params, *xy)
            return (jax.tree.map(lambda p, g: p - 1e-4 * g, params, estimate.grads), state), estimate.loss

        return jax.lax.scan(body, (params, state), (xs, ys))

    def product(transfer, influence):
        step = lambda m, _: ([transfer @ leaf for leaf in m], None)
        return jax.lax.scan(step, influence, length=steps)[0]

    steps = SEGMENTS * 4
    transfer = jax.random.orthogonal(jax.random.key(4), n)
    gemm = best(product, transfer, [m.reshape(n, -1) for m in state.influence]) / steps
    single = best(learn, params, state, *stream(steps, 1)) / steps
    blocks = best(learn, params, state, *stream(SEGMENTS, n)) / (SEGMENTS * n)
    print(f"tanh, n = {n}, {jax.__version__}, {jax.devices()[0].platform}")
    print(f"J·M alone            {gemm * 1e6:10.1f} µs/step")
    print(f"rtrl, k = 1          {single * 1e6:10.1f} µs/step   {single / gemm:.2f} × J·M")
    print(f"rtrl, k = {n:<10d} {blocks * 1e6:10.1f} µs/step   {single / blocks:.1f} × faster than k = 1")
    online = learner(estimator, optax.sgd(1e-4))
    start = online.init(params, hidden, key=jax.random.key(1))
    xs, ys = (leaf.reshape(-1, *leaf.shape[2:]) for leaf in stream(SEGMENTS, n))
    for k in (n, 16 * n):
        train = jax.jit(lambda state, xs, ys, k=k: scan(online, state, xs, ys, window=k))
        used = train.lower(start, xs, ys).compile().memory_analysis().temp_size_in_bytes
        print(f"temporaries, k = {k:<6d} {used:10d} bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 128)
