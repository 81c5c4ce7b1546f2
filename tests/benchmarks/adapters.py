"""The cells of flax and equinox through the adapters: one table of estimator × cell.

    python -m tests.benchmarks.adapters [CELL ...] [--keys N]

Every cell has 4 units (a stack 4 and 3), 3 inputs and a readout of its own framework to 2 outputs, on 5 steps
in float64. The gradient of the mean loss over all parameters is held against `jax.grad` through the framework
alone.

    rtrl, snap, eprop    relative error; snap of order 6, eprop with 4 hops, which drop nothing here
    uoro, kf_rtrl        max |z| over the parameters, from the mean over 4000 keys; in brackets the threshold
                         that an unbiased one passes once in ten thousand

Below it the refusals: of the estimators as they come, with the orders and hops of their papers.
"""

import argparse

import jax
import numpy as np

import tests.conftest  # noqa: F401  float64, strict dtypes, and programs that compile quickly
from online_grads import eprop, gradient, kf_rtrl, rtrl, snap, uoro
from tests.adapters.modules import CASES, STEPS, problem
from tests.models import relative_error
from tests.unbiased import flat, verdict

EXACT = {
    "rtrl": rtrl,
    "snap": lambda model: snap(model, order=STEPS + 1),
    "eprop": lambda model: eprop(model, hops=STEPS - 1),
}
UNBIASED = {"uoro": uoro, "kf_rtrl": kf_rtrl}
AS_IT_COMES = {"snap, order 1": snap, "eprop, 0 hops": eprop}


def error(estimator, given):
    """The relative error of one gradient."""
    one = lambda *args: gradient(estimator, *args, key=jax.random.key(0))
    return f"{relative_error(jax.jit(one)(*given.args), given.exact[STEPS]):.1e}"


def z(estimator, given, keys):
    """The largest |z| and its threshold."""
    one = lambda key: flat(gradient(estimator, *given.args, key=key))
    drawn = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), keys))
    found = verdict(np.asarray(drawn), np.asarray(flat(given.exact[STEPS])))
    return f"{found.worst:.1f} ({found.threshold:.1f})"


def row(name, keys, refused):
    """The entries of a cell; what an estimator refuses goes to `refused`, reason -> cells."""
    given, entries = problem(name), []
    for label, make in {**EXACT, **UNBIASED, **AS_IT_COMES}.items():
        try:
            estimator = make(given.model)
        except ValueError as reason:
            entries.append("refused")
            refused.setdefault(f"{label}: {reason}", []).append(name)
            continue
        if label in EXACT:
            entries.append(error(estimator, given))
        elif label in UNBIASED:
            entries.append(z(estimator, given, keys))
    return entries[: len(EXACT) + len(UNBIASED)]


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cells", nargs="*", default=list(CASES), metavar="CELL")
    parser.add_argument("--keys", type=int, default=4000)
    arguments = parser.parse_args()
    print(f"{'':24}" + "".join(f"{label:>12}" for label in (*EXACT, *UNBIASED)), flush=True)
    refused: dict = {}
    for name in arguments.cells:
        print(
            f"{name:24}" + "".join(f"{entry:>12}" for entry in row(name, arguments.keys, refused)), flush=True
        )
    for reason, names in refused.items():
        print(f"\n{', '.join(names)}\n  {reason}")


if __name__ == "__main__":
    main()
