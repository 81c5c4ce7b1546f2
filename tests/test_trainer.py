"""Several learning rates in one program, side by side or one after another."""

import jax
import numpy as np

from online_grads import trainer as module
from online_grads.config import parse
from online_grads.trainer import begin, trainer


def losses(monkeypatch, room: int, backend: str = "cpu", rates=(1e-6, 1e-5)):
    """Of 40 updates [40, rates, seeds], and how often a loop over the rates was traced."""
    loops = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "SIDE_BY_SIDE", room)
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
        _, metrics, _ = made.advance(made.init(begun[2]), 40)
    return np.asarray(metrics.loss), len(loops), made.state_bytes * len(rates) * 3


def test_points_side_by_side_are_the_points_one_after_another(monkeypatch):
    one_after_another, loops, carried = losses(monkeypatch, room=0)
    assert loops == 1
    side_by_side, loops, _ = losses(monkeypatch, room=carried)
    assert loops == 0
    assert losses(monkeypatch, room=carried - 1)[1] == 1
    np.testing.assert_allclose(side_by_side, one_after_another, rtol=1e-12)
    assert abs(side_by_side[:, 0] / side_by_side[:, 1] - 1).max() > 1e-4


def test_an_accelerator_has_them_side_by_side_and_a_single_one_is_by_itself(monkeypatch):
    assert losses(monkeypatch, room=0, backend="gpu")[1] == 0
    assert losses(monkeypatch, room=2**20, rates=[1e-6])[1] == 1
