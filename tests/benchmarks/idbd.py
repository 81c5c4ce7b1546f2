"""Step sizes learned online against the best ones chosen by hand, on a target that drifts:

    python -m tests.benchmarks.idbd [--seeds N] [--steps N] [--every STEPS] [--walk SIZE] [--noise STD]

The task `tracking`: 20 inputs, 5 of them relevant, one of their weights changing its sign every 20 steps, as
in Sutton's experiment; with --walk it is a random walk. Printed is the squared error of LMS on the next
example, mean and standard error over the seeds, in the second half of the stream:

    by hand    a grid of step sizes, the same for all inputs, or 0 for the irrelevant ones: the best of each,
               with what the mathematics of the task says
    learned    from 0.05 for all inputs, by descent on the log step sizes at several meta-rates, with the
               gradient of `snap` (by SGD: IDBD without its clip), `rtrl` and `uoro`; with the ratio to the
               best step sizes for each input, and where the step sizes went (mean over the last tenth)

Reference: Sutton (1992), Adapting bias by gradient descent, AAAI, section 4.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import learner, rtrl, scan, snap, tasks, uoro

RELEVANT = 5
BY_HAND = np.geomspace(0.01, 0.3, 18)
# (estimator, optimizer, meta-rates): SGD diverges at 0.03, with uoro at 1e-4
LEARNED = (
    (snap, optax.sgd, (3e-3, 1e-2)),
    (rtrl, optax.sgd, (3e-3, 1e-2)),
    (uoro, optax.sgd, (1e-5, 3e-5)),
    (snap, optax.adam, (1e-3, 3e-3)),
)


def fixed(task, steps):
    """(key, step sizes [inputs]) -> squared errors [steps]."""
    model = task.model

    def run(key, alpha):
        params, (_, (xs, ys)) = {"log_rate": jnp.log(alpha)}, task.draw(task.init(key), steps)

        def step(hidden, xy):
            hidden = model.transition(params, hidden, xy[0])
            return hidden, task.scale * model.loss(params, hidden, xy[1])[0]

        return jax.lax.scan(step, model.init(key)[1], (xs, ys))[1]

    return run


def learned(task, estimator, optimizer, steps):
    """(key, meta-rate) -> squared errors [steps], step sizes [steps, inputs]."""

    def run(key, rate):
        online = learner(estimator(task.model), optimizer(rate))
        state = online.init(*task.model.init(key), key=jax.random.fold_in(key, 1))
        _, data = task.draw(task.init(key), steps)

        def step(state, xy):
            state, metrics = scan(online, state, *jax.tree.map(lambda leaf: leaf[None], xy))
            return state, (task.scale * metrics.loss[0], jnp.exp(state.params["log_rate"]))

        return jax.lax.scan(step, state, data)[1]

    return run


def over(run, keys, values):
    """Of every value and every key."""
    return jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))(keys, values)


def late(errors):
    """(mean, its standard error) over the seeds, of errors [seeds, steps] in the second half."""
    with np.errstate(over="ignore", invalid="ignore"):
        each = np.asarray(errors)[:, errors.shape[1] // 2 :].mean(axis=1)
        return each.mean(), each.std(ddof=1) / math.sqrt(len(each))


def main():
    parser = argparse.ArgumentParser(description="IDBD against step sizes chosen by hand.")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60_000)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--walk", type=float, default=0.0)
    parser.add_argument("--noise", type=float, default=0.0)
    chosen = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    task = tasks.tracking(relevant=RELEVANT, every=chosen.every, walk=chosen.walk, noise=chosen.noise)
    keys = jax.random.split(jax.random.key(0), chosen.seeds)
    inputs = task.example[0][0].shape[0]
    masks = np.ones(inputs), np.arange(inputs) < RELEVANT
    best = math.inf
    print("by hand                         α       error            theory")
    for (name, theory), mask in zip(task.references.items(), masks, strict=True):
        found = [late(errors) for errors in over(fixed(task, chosen.steps), keys, BY_HAND[:, None] * mask)]
        mean, se, alpha = min(
            (*each, alpha) for each, alpha in zip(found, BY_HAND, strict=True) if each[0] < math.inf
        )
        best = min(best, mean)
        print(f"{name:30}  {alpha:.4f}  {mean:.3f} ± {se:.3f}    {theory:.3f}", flush=True)
    print("learned     meta-rate  error            ratio  α: relevant, the largest other  seconds")
    for estimator, optimizer, rates in LEARNED:
        begin, label = time.perf_counter(), f"{estimator.__name__}, {optimizer.__name__}"
        errors, alphas = over(learned(task, estimator, optimizer, chosen.steps), keys, jnp.array(rates))
        last = np.asarray(alphas)[:, :, -chosen.steps // 10 :].mean(axis=(1, 2))
        seconds = time.perf_counter() - begin
        for rate, error, alpha in zip(rates, errors, last, strict=True):
            mean, se = late(error)
            sizes = f"{alpha[:RELEVANT].mean():.4f}, {alpha[RELEVANT:].max():.4f}"
            measured = f"{mean:.3f} ± {se:.3f}    {mean / best:5.3f}"
            print(f"{label:10}  {rate:9g}  {measured}  {sizes:29}  {seconds:7.0f}", flush=True)


if __name__ == "__main__":
    main()
