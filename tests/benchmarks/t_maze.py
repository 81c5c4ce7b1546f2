"""Control with memory: the T-maze, by an actor-critic whose gradients go through the whole past, or do not.

    python -m tests.benchmarks.t_maze [CORRIDOR ...]

A sign at the entrance tells at which side of the junction, CORRIDOR steps on, the reward is. At every step
the agent goes left or right; before the junction that does nothing. Observations: [sign is left, sign is
right, corridor, junction]. Printed is the share of right turns in the last tenth of the steps, mean and least
over seeds; 0.5 is chance.

Columnar LSTM, TD(λ) with one trace for actor and critic (`online_grads.control`), Adam.
"""

import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import cells, control, hidden_of, readouts, rtrl, tbptt, td, uoro, with_resets
from online_grads.types import Array

UNITS, STEPS, SEEDS, DISCOUNT, TRACE_DECAY, RATE = 10, 200_000, 4, 0.95, 0.9, 1e-3
ESTIMATORS = {"rtrl": rtrl, "uoro": uoro, "tbptt, 1 step": tbptt, "tbptt, 4": partial(tbptt, history=3)}


class Maze(NamedTuple):
    """Where the agent stands."""

    position: Array  # [] int32, 0 at the sign
    left: Array  # [] bool, what the sign says


def seen(maze, corridor):
    """The observation [4]."""
    start, end = maze.position == 0, maze.position == corridor
    signs = [start & maze.left, start & ~maze.left, ~start & ~end, end]
    return jnp.stack(signs).astype(jnp.float32)


def moved(maze, action, corridor, key):
    """(the maze after an action, the reward, whether the episode is over)."""
    over = maze.position == corridor
    right = (action == 0) == maze.left
    reward = jnp.where(over, jnp.where(right, 1.0, -1.0), 0.0)
    following = Maze(
        jnp.where(over, 0, maze.position + 1), jnp.where(over, jax.random.bernoulli(key), maze.left)
    )
    return following, reward, over


def trained(make, corridor, key):
    """The rewards of all steps, 0 but at the junction."""
    cell, readout = cells.columnar_lstm(4, UNITS, forget_bias=2.0), readouts.linear(UNITS, 1 + 2)
    number, x = jnp.zeros(()), jnp.zeros(4)
    flag, action = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    y = td.TdTarget(number, x, discount=number, begins=flag, action=action)
    bare = control.actor_critic(cell, readout, discount=DISCOUNT, example=(x, y))
    start = cell.init(key)[1]
    model = with_resets(bare, start)
    online = td.td_learner(make(model), optax.adam(RATE), trace_decay=TRACE_DECAY)
    key, key_model, key_maze = jax.random.split(key, 3)
    params, hidden = model.init(key_model)
    maze = Maze(jnp.zeros((), jnp.int32), jax.random.bernoulli(key_maze))

    def step(carry, key):
        state, maze = carry
        key_action, key_maze = jax.random.split(key)
        begins, x = maze.position == 0, seen(maze, corridor)
        h = model.transition(state.params, hidden_of(state.estimator), (x, begins))
        logits = readout.apply(state.params["readout"], cell.output(h))[1:]
        action = jax.random.categorical(key_action, logits).astype(jnp.int32)
        following, reward, over = moved(maze, action, corridor, key_maze)
        y = td.TdTarget(
            reward,
            seen(following, corridor),
            discount=jnp.where(over, 0.0, DISCOUNT),
            begins=begins,
            action=action,
        )
        segment = jax.tree.map(lambda leaf: leaf[None], ((x, begins), y))
        state, _ = online.update(state, *segment)
        return (state, following), reward

    state = online.init(params, hidden, key=key)
    return jax.lax.scan(step, (state, maze), jax.random.split(key, STEPS))[1]


def main(corridors):
    """Measure and print."""
    print(f"{'corridor':>8} {'estimator':14} {'right turns':>11} {'least':>6}")
    for corridor in corridors:
        for name, make in ESTIMATORS.items():
            run = jax.jit(jax.vmap(partial(trained, make, corridor)))
            rewards = np.asarray(run(jax.random.split(jax.random.key(0), SEEDS)))[:, -STEPS // 10 :]
            shares = [np.mean(row[row != 0] > 0) for row in rewards]
            print(f"{corridor:8} {name:14} {np.mean(shares):11.3f} {min(shares):6.3f}", flush=True)


if __name__ == "__main__":
    main([int(corridor) for corridor in sys.argv[1:]] or [5, 15])
