"""Several learning rates in one program, side by side and one after another: where the limit of a CPU lies.

    python -m tests.benchmarks.side_by_side

It prints the bytes of all states and the µs per step of all points, trained both ways, on the add task.
`online_grads.trainer` chooses by the bytes.
"""

import time

import jax

from online_grads import trainer as chosen
from online_grads.config import parse
from online_grads.leaves import size_in_bytes
from online_grads.trainer import begin, trainer

RATES = [10 ** (-6 + number / 3) for number in range(7)]
CASES = [("uoro", 8), ("uoro", 32), ("uoro", 128), ("kf_rtrl", 32), ("kf_rtrl", 128)]
CASES += [("rtrl", 8), ("rtrl", 16), ("rtrl", 32), ("tbptt", 32), ("tbptt", 128)]


def measured(estimator: str, hidden: int, seeds: int, room: int) -> tuple[float, int]:
    """(seconds per step of all points, bytes of their states), with this limit of bytes."""
    chosen.ON_CPU = room
    updates = 400 if hidden > 32 or estimator == "rtrl" else 2000
    config = parse(
        {
            "task": {"name": "add"},
            "model": {"cell": "vanilla_rnn", "hidden": hidden},
            "run": {"updates": updates, "seeds": seeds, "chunk": updates, "precision": "float32"},
            "optimizer": {"name": "sgd", "learning_rate": RATES},
            "estimator": [{"name": estimator}],
        }
    )
    begun = begin(config)
    made = trainer(config, *begun, config.estimators[0])
    state, best = made.init(begun[2]), float("inf")
    for _ in range(4):
        start = time.perf_counter()
        state, _, _ = jax.block_until_ready(made.advance(state, updates))
        best = min(best, time.perf_counter() - start)
    return best / updates, size_in_bytes(state)


def main() -> None:
    print("estimator units seeds     KiB  one by one  side by side  ratio")
    for estimator, hidden in CASES:
        for seeds in (1, 8):
            one_by_one, size = measured(estimator, hidden, seeds, 0)
            side_by_side, _ = measured(estimator, hidden, seeds, 2**60)
            times = f"{1e6 * one_by_one:12.1f}{1e6 * side_by_side:14.1f}{one_by_one / side_by_side:7.2f}"
            print(f"{estimator:<10}{hidden:5}{seeds:6}{size / 1024:8.0f}{times}", flush=True)


if __name__ == "__main__":
    main()
