"""Several learning rates in one program, side by side or one after another."""

import jax
import numpy as np

from online_grads import trainer as module
from online_grads.config import parse
from online_grads.leaves import size_in_bytes
from online_grads.trainer import begin, trainer


def losses(monkeypatch, *, on_cpu=0, on_accelerator=0, backend="cpu", rates=(1e-6, 1e-5)):
    """Of 40 updates [40, rates, seeds], how often a loop over the rates was traced, and the state's bytes."""
    loops = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "ON_CPU", on_cpu)
        patch.setattr(module, "ON_ACCELERATOR", on_accelerator)
        patch.setattr(jax, "default_backend", lambda: backend)
        patch.setattr(jax.lax, "map", lambda *args, map=jax.lax.map: loops.append(args) or map(*args))
        config = parse(
            {
                "task": {"name": "influence_balancing"},
                "run": {"updates": 40, "seeds": 3, "precision": "float64"},
                "optimizer": {"name": "sgd", "learning_rate": [*rates]},
                "estimator": [{"name": "uoro"}],
            }
        )
        begun = begin(config)
        made = trainer(config, *begun, config.estimators[0])
        state = made.init(begun[2])
        size = size_in_bytes(state)
        _, metrics, _ = made.advance(state, 40)
    return np.asarray(metrics.loss), len(loops), size


def test_points_side_by_side_are_the_points_one_after_another(monkeypatch):
    one_after_another, loops, size = losses(monkeypatch)
    assert loops == 1
    side_by_side, loops, _ = losses(monkeypatch, on_cpu=size)
    assert loops == 0
    assert losses(monkeypatch, on_cpu=size - 1, on_accelerator=size)[1] == 1
    np.testing.assert_allclose(side_by_side, one_after_another, rtol=1e-12)
    assert abs(side_by_side[:, 0] / side_by_side[:, 1] - 1).max() > 1e-4


def test_an_accelerator_has_a_limit_of_its_own_and_a_single_point_is_by_itself(monkeypatch):
    assert losses(monkeypatch, backend="gpu", on_accelerator=2**20)[1] == 0
    assert losses(monkeypatch, backend="gpu", on_cpu=2**20)[1] == 1
    assert losses(monkeypatch, on_cpu=2**20, rates=[1e-6])[1] == 1
