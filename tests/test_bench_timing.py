"""What a program that is timed reads and carries. No test looks at how long anything takes."""

import jax

from online_grads import ESTIMATORS
from online_grads.bench import learning
from online_grads.bench_model import model_of
from online_grads.bench_timing import looped, timed
from online_grads.bounds import Program


def test_every_step_takes_a_segment_and_the_carry_is_measured():
    model = model_of("gru", 4)
    params, hidden = model.init(jax.random.key(0))
    program = learning(model, ESTIMATORS["tbptt"].constructor(model))
    shapes = []

    def step(carry, xs, ys):
        shapes.append((xs.shape, ys.shape))
        return program.step(carry, xs, ys)

    loop = looped(Program(program.init, step), (params, hidden), (5,), 1e-3)
    timing = timed(loop, (params, hidden), 1)
    assert loop.data[0].shape == (loop.steps // 5, 5, 8)
    assert set(shapes) == {((5, 8), (5, 4))}
    assert timing.finite
    assert timing.carried_bytes[0] == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert timing.carried_bytes[2] == 4
