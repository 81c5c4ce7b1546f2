"""The variance of every unbiased estimator on one fixed tiny tanh network:

    python -m tests.benchmarks.variance [KEYS]

The network has 4 units, 3 inputs and a leak of 0.6, all parameters in one matrix that meets [a; x; 1], as in
the papers: 8 products are all of its influence. The gradient is that of the loss summed over 8 steps at
frozen parameters, its variance is summed over the entries, and taken over 20,000 keys. `late` is the papers'
form, direct=False.
"""

import sys
from functools import partial

import jax

from online_grads import averaged, dodge, kf_rtrl, no_backtrack, optimal_kronecker, reverse_kf_rtrl, uoro
from tests.models import joint, problem_of
from tests.unbiased import STEPS, flat, samples, variance

BOTH = {
    "uoro": uoro,
    "no_backtrack": no_backtrack,
    "reverse_kf_rtrl": reverse_kf_rtrl,
    "kf_rtrl": kf_rtrl,
    **{f"optimal_kronecker, r = {r}": partial(optimal_kronecker, rank=r) for r in (1, 2, 4, 8)},
    "dodge": dodge,
}
ROWS = {
    **BOTH,
    **{f"{name}, late": partial(make, direct=False) for name, make in BOTH.items()},
    "averaged(uoro, 8)": lambda model: averaged(uoro(model), 8),
    "averaged(kf_rtrl, 8)": lambda model: averaged(kf_rtrl(model), 8),
}


def variances(keys, names=tuple(ROWS)):
    """name -> total variance of the summed gradient."""
    given = problem_of(joint(), STEPS)
    return {name: variance(samples(ROWS[name], given, 1, keys)[0]) for name in names}


def main():
    jax.config.update("jax_enable_x64", True)
    keys = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    exact = STEPS * flat(problem_of(joint(), STEPS).exact)
    print(f"{'squared norm of the gradient':28} {exact @ exact:10.4g}")
    for name, value in variances(keys).items():
        print(f"{name:28} {value:10.4g}")


if __name__ == "__main__":
    main()
