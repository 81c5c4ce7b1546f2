"""Exact RTRL of cells whose weights act on few hidden entries: state and time against the parameters.

    python -m tests.benchmarks.linear_time [CELL ...]

Square layers (as many inputs as units) with a linear readout to 4 outputs, in float32: one exact gradient and
one step of gradient descent per step of the stream, for all parameters of cell and readout.

    p        parameters
    kept     hidden entries at which a weight keeps its influence
    bytes    of the estimator's state, and how often those of the row above
    µs       per step, the best of several calls, and how often that of the row above
    bound    µs to read and write every byte of influence and parameters once, in the same run

Every row has twice the parameters of the one above; the last line of a cell is the mean growth per doubling.
"""

import math
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from online_grads import cells, from_cell, losses, memory, readouts, rtrl
from online_grads.bench import learning
from online_grads.bench_model import DTYPE, OUTPUTS
from online_grads.bounds import stream

PARAMETERS = [10_000 * 2**doubling for doubling in range(8)]
CALL, REPEATS = 0.05, 15  # seconds of a call that are aimed at; calls of which the best is taken
CELLS = {
    "columnar_lstm": cells.columnar_lstm,
    "lru": cells.lru,
    "rtu": cells.rtu,
    "rtu_nonlinear": lambda inputs, n, **options: cells.rtu(inputs, n, nonlinear=True, **options),
    "elstm": cells.elstm,
    "low_pass": cells.low_pass,
}


def model_of(make, n):
    """A square layer of n units."""
    cell = make(n, n, dtype=DTYPE)
    readout = readouts.linear(cell.size, OUTPUTS, dtype=DTYPE)
    example = tuple(jax.ShapeDtypeStruct((size,), DTYPE) for size in (n, OUTPUTS))
    return from_cell(cell, readout, losses.squared_error, example=example)


def parameters(model):
    """p, of cell and readout."""
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[0]))


def sized(make, wanted):
    """The smallest square layer with at least so many parameters."""
    n = math.isqrt(wanted) // 3
    while parameters(model_of(make, n)) < wanted:
        n += 1
    return model_of(make, n)


def seconds(program, start, data):
    """Per step: the best call of a compiled loop, the carry donated."""

    def run(carry, steps):
        at = lambda step: jax.tree.map(lambda leaf: leaf[step % leaf.shape[0]], data)
        return jax.lax.fori_loop(0, steps, lambda step, carry: program.step(carry, *at(step)), carry)

    carry = jax.jit(program.init)(*jax.tree.map(jnp.copy, start))
    loop, steps, times = jax.jit(run, donate_argnums=0), 64, []
    for call in range(REPEATS + 2):
        begin = time.perf_counter()
        carry = jax.block_until_ready(loop(carry, steps))
        took = time.perf_counter() - begin
        if call < 2:  # the first compiles, the second tells how many steps to take
            steps = max(1, round(CALL / took * steps)) if call else steps
        else:
            times.append(took / steps)
    return min(times)


def measured(make, wanted):
    """(p, kept, bytes, µs, the bound's µs) of one size."""
    model = sized(make, wanted)
    estimator, start = rtrl(model), jax.jit(model.init)(jax.random.key(0))
    program = learning(model, estimator)
    inputs = model.example[0].shape[0]
    draw = lambda key, *shape: jax.random.normal(jax.random.key(key), (16, *shape), DTYPE)
    _, state, _ = jax.eval_shape(program.init, *start)
    segment = draw(1, 1, inputs), draw(2, 1, OUTPUTS)
    begun = estimator.init(*start, key=jax.random.key(3))
    info = estimator.update(begun, start[0], *(leaf[0] for leaf in segment))[1].info
    taken = seconds(program, start, segment)
    bound = seconds(stream(model, state), start, (draw(1, inputs), draw(2, OUTPUTS)))
    return parameters(model), int(info["kept"]), memory(estimator, *start), taken * 1e6, bound * 1e6


def main(names):
    """Measure and print."""
    print(f"{'cell':14} {'p':>9} {'kept':>5} {'bytes':>11} {'×':>5} {'µs':>9} {'×':>5} {'bound':>8}")
    for name in names:
        rows = []
        for wanted in PARAMETERS:
            p, kept, size, taken, bound = measured(CELLS[name], wanted)
            rows.append((size, taken))
            grown = ["", ""] if len(rows) == 1 else [f"{x:.2f}" for x in np.divide(*rows[:-3:-1])]
            print(
                f"{name:14} {p:9} {kept:5} {size:11} {grown[0]:>5} {taken:9.1f} {grown[1]:>5} {bound:8.1f}",
                flush=True,
            )
        mean = np.divide(rows[-1], rows[0]) ** (1 / (len(rows) - 1))
        print(f"{name:14} {'mean':>9} {'':>17} {mean[0]:>5.2f} {'':>9} {mean[1]:>5.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CELLS))
