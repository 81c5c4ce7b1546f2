"""Whether a training that goes on in another process is the one that was never interrupted, to the last bit:

    python -m tests.benchmarks.resume [--steps N] [--all | --only NAME ...]

For every estimator of the registry, with --all in the further settings of `tests.test_conformance` too, on a
small GRU with Adam, three processes: one runs 2N steps; one runs N and saves a checkpoint; one restores it
and runs N more.
Compared are the SHA-256 of all bytes of the learner's state after 2N steps, keys and counters included, and
of the losses and gradient norms of the last N. In the control the estimator's part of the checkpoint is that
of a fresh start; its end must be another one. The exit status is 1 if a row is not as it must be.
"""

import argparse
import functools
import hashlib
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import optax

from online_grads import ESTIMATORS, checkpoint, learner, run
from tests import models
from tests.test_conformance import LINEAR_TIME, SETTINGS

WINDOW = 3


@functools.cache
def network(make):
    """A model, its parameters and hidden state."""
    model = make()
    return model, *jax.jit(model.init)(jax.random.key(0))


@functools.cache
def case(label, steps):
    """A learner, its state at the start, and a stream of so many steps."""
    name, options = SETTINGS[label]
    model, *begun = network(models.elstm if label in LINEAR_TIME else models.gru)
    online = learner(ESTIMATORS[name].constructor(model, **options), optax.adam(1e-2))
    return online, online.init(*begun, key=jax.random.key(1)), models.stream(model, steps)


def digest(tree):
    """The SHA-256 of every leaf's bytes."""
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        total.update(np.asarray(leaf).tobytes())
    return total.hexdigest()


def driven(label, steps, upto, folder=None, **options):
    """The digests of the state after so many steps, and of what was recorded in the last `steps`."""
    online, state, (xs, ys) = case(label, 2 * steps)
    state, metrics = run(
        online, state, xs[:upto], ys[:upto], window=WINDOW, chunk=steps, checkpoints=folder, **options
    )
    last = jax.tree.map(lambda leaf: leaf[-steps // WINDOW :], (metrics.loss, metrics.grad_norm))
    return [digest(state), digest(last)]


def whole(label, steps, folder):
    return driven(label, steps, 2 * steps)


def first(label, steps, folder):
    driven(label, steps, steps, folder / label)
    _, begun, _ = case(label, 2 * steps)
    state = checkpoint.restore(checkpoint.latest(folder / label), begun)
    forgotten = state._replace(estimator=begun.estimator)
    checkpoint.save_step(folder / "control" / label, steps, forgotten, notes={"steps": steps})
    return sum(file.stat().st_size for file in checkpoint.latest(folder / label).iterdir())


def second(label, steps, folder):
    on = lambda where: driven(label, steps, 2 * steps, where / label, resume=True)
    return on(folder), on(folder / "control")


PARTS = {"whole": whole, "first": first, "second": second}


def main():
    parser = argparse.ArgumentParser(description="Resuming is bitwise, estimator by estimator.")
    parser.add_argument("--steps", type=int, default=30, metavar="N")
    parser.add_argument("--only", nargs="+", default=list(ESTIMATORS), choices=SETTINGS, metavar="NAME")
    parser.add_argument("--all", action="store_const", dest="only", const=list(SETTINGS))
    parser.add_argument("--part", nargs=2, metavar=("PART", "DIR"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        part, folder = PARTS[chosen.part[0]], Path(chosen.part[1])
        print(json.dumps({label: part(label, chosen.steps, folder) for label in chosen.only}))
        return
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as side_by_side:

        def process(part):
            command = [sys.executable, "-m", "tests.benchmarks.resume", "--part", part, folder]
            command += ["--steps", str(chosen.steps), "--only", *chosen.only]
            return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

        found = dict(zip(("whole", "first"), side_by_side.map(process, ("whole", "first")), strict=True))
        found["second"] = process("second")
    width, wrong = max(map(len, chosen.only)), 0
    print(f"{'estimator':{width}}  bytes saved  state equal  metrics equal  control equal")
    for label in chosen.only:
        resumed, control = found["second"][label]
        equal = [one == other for one, other in zip(resumed, found["whole"][label], strict=True)]
        equal.append(control[0] == found["whole"][label][0])
        wrong += equal != [True, True, False]
        said = "  ".join(f"{'yes' if yes else 'no':>{n}}" for yes, n in zip(equal, (11, 13, 13), strict=True))
        print(f"{label:{width}}  {found['first'][label]:11,}  {said}")
    print(
        f"{len(chosen.only) - wrong} of {len(chosen.only)} as they must be, on {jax.devices()[0].device_kind}"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
