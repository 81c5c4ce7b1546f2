"""A z-test of unbiasedness that estimators share, and what it could have seen."""

from statistics import NormalDist
from typing import NamedTuple

import jax
import numpy as np

from online_grads import gradient

STEPS, CHUNK = 8, 500
flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]


class Verdict(NamedTuple):
    """Of a z-test over all parameters."""

    worst: float  # the largest |z|
    threshold: float  # Bonferroni's, for one false alarm in ten thousand runs
    visible: float  # the bias of the median entry that would have shown, in parts of the largest entry

    @property
    def unbiased(self):
        return self.worst < self.threshold


def samples(estimator, given, window, copies):
    """[copies, p] independent estimates of the summed loss's gradient, and the exact one [p].

    `estimator` makes an estimator from a model, `given` is a problem of `tests.models` over STEPS.
    """
    made = estimator(given.model)
    one = lambda key: STEPS * flat(gradient(made, *given.args, key=key, window=window))
    keys = jax.random.split(jax.random.key(1), copies)
    drawn = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=min(copies, CHUNK)))(keys)
    return np.asarray(drawn), np.asarray(STEPS * flat(given.exact))


def verdict(drawn, exact):
    """Whether the mean of `drawn` [copies, p] is `exact` [p] up to its own noise."""
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    bias = np.abs(np.mean(drawn, axis=0) - exact)
    # where the estimate has no variance it must be exact
    assert np.all(bias[spread < 1e-12] < 1e-10)
    noisy = spread >= 1e-12
    threshold = NormalDist().inv_cdf(1 - 0.00005 / max(noisy.sum(), 1))
    visible = threshold * np.median(spread[noisy]) / np.abs(exact).max()
    return Verdict(np.max(bias[noisy] / spread[noisy], initial=0.0), threshold, visible)


def variance(drawn):
    """The total variance of the estimates."""
    return float(np.var(drawn, axis=0).sum())
