"""How well a representation is meta-learned through a readout that learns online, as columns are linked ever
more densely:

    python -m tests.benchmarks.representation [--runs RUNS]

The networks and data of `tests.benchmarks.columnar_alignment` (20 columns of 5 features, 50 random bits in,
one episode of 50 steps, targets U(-50, 50), readout weights N(0, 0.1²), float64), with two changes of the
paper's meta-test: the readout learns by LMS with step size α while the episode lasts, and the columns do not
carry their state on, h_i(t) = tanh(...). Links still lead to the states of the step before. The gradient is
that of the summed loss with respect to the columns, through the readout's learning; the exact one is
`jax.grad` through the whole episode. Beside it stand

    recursion  `snap` of columns with local=True: the paper's, with v(t) (its code has v(t+1) in one place)
    rtrl       of columns with local=True: Master-User, but nothing of the readout's learning is dropped
    snap       of the columns as they are: it keeps every column that a weight reaches within the step
    no meta    `rtrl` of columns with local=True that takes the readout weights as given: plain Master-User

with the median relative error. The agreement of signs is the share of the
parameters with |g ĝ| > 1e-10 whose g and ĝ have the same sign.

Reference: Javed, White & Sutton (2021), arXiv:2103.05787; its step size is in its code's configuration.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import cells, gradient, meta, rtrl, snap, tasks
from online_grads.flat import flatten
from tests.benchmarks.columnar_alignment import COLUMNS, LINKS, PLAIN, STEPS, WIDTH, agreement, linked

RATES = (1e-3, 1e-2, 1e-1)
NAMES = ("recursion", "rtrl", "snap", "no meta")


def network(task, rate, *, local):
    """Columns that are linked completely and read once, below a readout that learns."""
    cell = cells.columnar_rnn(
        *task.example[0].shape, COLUMNS, width=WIDTH, density=LINKS / WIDTH, local=local
    )
    adding = cell.step
    forgetting = cell._replace(step=lambda params, h, x: adding(params, h, x) - h)
    readout = task.readout(COLUMNS, task.outputs)
    return meta.online_readout(forgetting, readout, task.loss, optax.sgd(rate), example=task.example)


def untaught(model):
    """The same model; no gradient passes through the readout's learning."""

    def transition(params, hidden, x):
        moved = model.transition(params, hidden, x)
        return moved._replace(readout=jax.lax.stop_gradient(moved.readout))

    return model._replace(transition=transition)


def gradients(task):
    """(keys [runs], density [], rate []) -> those of `NAMES` and the exact one, [runs, p] each."""

    def one(key, density, rate):
        whole, user = (network(task, rate, local=local) for local in (False, True))
        for_params, for_data, for_links = jax.random.split(key, 3)
        params, hidden = whole.init(for_params)
        mask = linked(for_links, density, {"cell": params})["cell"]
        params = jax.tree.map(jnp.multiply, params, mask)
        (xs, _), ys = task.draw(task.init(for_data), STEPS)[1]
        stream = meta.taught(xs, ys)

        def loss(params):
            def step(h, xy):
                h = whole.transition(params, h, xy[0])
                return h, whole.loss(params, h, xy[1])[0]

            return jnp.sum(jax.lax.scan(step, hidden, stream)[1])

        online = lambda make, model: gradient(make(model), params, hidden, *stream, key=key)
        found = online(snap, user), online(rtrl, user), online(snap, whole), online(rtrl, untaught(user))
        masked = lambda tree: flatten(params).split(jax.tree.map(jnp.multiply, tree, mask))[0]
        return [STEPS * masked(each) for each in found], masked(jax.grad(loss)(params))

    return jax.jit(jax.vmap(one, (0, None, None)))


def main():
    parser = argparse.ArgumentParser(description="Agreement of the meta-gradient of a representation.")
    parser.add_argument("--runs", type=int, default=30)
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    compiled = gradients(tasks.columnar_alignment(episode=STEPS))
    print("α       density  of         signs            cosine           relative error  seconds")
    for rate in RATES:
        for i, density in enumerate(PLAIN):
            begin = time.perf_counter()
            found, exact = compiled(jax.random.split(jax.random.key(i), chosen.runs), density, rate)
            for name, each in zip(NAMES, found, strict=True):
                measured = agreement(np.asarray(each), np.asarray(exact))
                shown = "  ".join(f"{mean:.4f} ± {se:.4f}" for mean, se in measured)
                apart = np.linalg.norm(each - exact, axis=1) / np.linalg.norm(exact, axis=1)
                seconds = time.perf_counter() - begin
                print(
                    f"{rate:<6g}  {density:7g}  {name:9}  {shown}  {np.median(apart):14.2g}  {seconds:7.1f}"
                )


if __name__ == "__main__":
    main()
