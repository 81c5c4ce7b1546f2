"""The configs that ship: the fast variant of each trains, and is compared where it says how."""

import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from online_grads import compare_report, report
from online_grads.compare import compare
from online_grads.config import load
from online_grads.experiment import train
from online_grads.scores import scores

CONFIGS = Path(__file__).parents[1] / "configs"
PATHS = sorted(CONFIGS.glob("*.toml"))


def tables(path):
    """As written, [fast] included."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


COMPARED = [path for path in PATHS if "compare" in tables(path)]


@pytest.fixture(autouse=True)
def as_a_user(monkeypatch):
    """From where the configs name their data; optax's Adam promotes its count."""
    monkeypatch.chdir(CONFIGS.parent)
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_every_config_has_a_fast_variant(path):
    whole, fast = load(path), load(path, ["run.fast=true"])
    assert "fast" in tables(path)
    assert fast.run.fast
    assert not whole.run.fast
    labels = [row.label for row in whole.estimators]
    # a few of them, so that the tests compile less
    assert [row.label for row in fast.estimators] == [name for name in labels if name in fast.run.only]
    assert len(fast.estimators) > 1
    assert max(row.steps for row in fast.estimators) < min(row.steps for row in whole.estimators)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_the_fast_variant_trains(path):
    config = load(path, ["run.fast=true"])
    found = train(config)
    assert found.failure is None
    assert [result.config.label for result in found.results] == [row.label for row in config.estimators]
    for result in found.results:
        rates = len(result.config.optimizer.learning_rate)
        updates = result.config.steps // result.config.window
        assert result.loss.shape == (rates, result.config.seeds, updates)
        assert result.finite.all()
        assert np.isfinite(result.loss).all()
        assert np.isfinite(result.grad_norm).all()
        assert all(score.loss_last is not None for score in scores(result))
        assert (result.levels is None) == (found.task.level is None)
    said = report.table(found)
    assert all(row.label in said for row in config.estimators)


@pytest.mark.parametrize("path", COMPARED, ids=lambda path: path.stem)
def test_the_fast_variant_is_compared(path):
    config = load(path, ["run.fast=true"])
    found = compare(config)
    assert found.at == config.compare.at
    assert [row.config.label for row in found.rows] == [row.label for row in config.estimators]
    for row in found.rows:
        assert all(np.isfinite(q.alignment[0]) and np.isfinite(q.variance[0]) for q in row.quality)
        assert all(np.isfinite([d.first, d.second]).all() for d in row.decrease)
    np.testing.assert_allclose(found.alignment[0, 0], 1)
    packed = compare_report.arrays(found)
    assert all(f"{row.label}/alignment" in packed for row in config.estimators)
