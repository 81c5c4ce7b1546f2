"""The Jacobians of one step from diagonals, against dense ones."""

import jax
import numpy as np
import pytest

from online_grads.linearize import Segment
from online_grads.runs import RunJacobian, runs
from tests.one_step import case

# whether a step of these small cells is a sum of few diagonals
FEW = {
    "vanilla": True,
    "lstm": True,
    "gru": True,
    "gru_reset_before": True,
    "stacked": False,
    "columns": False,
    "normalised": True,
    "flax GRUCell": True,
    "synapse twice and directly": True,
    "complex state": True,
    "returned as it is": True,
}


def jacobians(name, way):
    _, structure, patterns, at, step_at = case(name, dense=True)
    arguments = at(1)

    def read(theta, h, rest, x):
        weights = structure.effective(theta)
        if way == "runs":
            return RunJacobian(structure, patterns)(weights, h, rest, x)
        return Segment(structure, weights, h, rest, jax.tree.map(lambda leaf: leaf[None], x), 1).jacobians()

    return structure, jax.jit(read)(*arguments), step_at(*arguments)


@pytest.mark.parametrize("name", FEW)
def test_equal_the_dense_jacobians(name):
    """From diagonals where there are few, from VJPs elsewhere: the same Φ, D and v."""
    structure, (transfer, factors), step = jacobians(name, "segment")
    assert structure.runs.few == FEW[name]
    close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)
    close(transfer, step.jacobian)
    for drive, (delta, vector) in zip(structure.trained_drives, factors, strict=True):
        expected = step.drives[drive.at].reshape(-1, drive.batch, drive.post)
        close(delta if vector is None else delta[0], expected)
        if vector is not None:
            close(vector[0], structure.gather(drive, step.presynaptic))


def test_many_diagonals_are_right_too():
    """Only slower: the limit is not what makes them right."""
    _, (transfer, reaches, _), step = jacobians("stacked", "runs")
    np.testing.assert_allclose(transfer, step.jacobian, rtol=1e-12, atol=1e-13)
    assert len(reaches) > 1


def test_a_missing_diagonal_is_noticed():
    """Negative control."""
    _, structure, patterns, at, step_at = case("gru", dense=True)
    prepared = RunJacobian(structure, patterns)
    prepared._drives[0] = prepared._drives[0][1:]
    theta, *rest = at(1)
    transfer, _, _ = jax.jit(lambda theta, *rest: prepared(structure.effective(theta), *rest))(theta, *rest)
    assert np.abs(transfer - step_at(theta, *rest).jacobian).max() > 1e-3


def test_runs_cover_a_pattern_once():
    pattern = np.random.default_rng(0).random((7, 5)) < 0.5
    covered = np.zeros(pattern.shape, int)
    for run in runs(pattern):
        covered[run.rows, run.columns] += 1
    np.testing.assert_array_equal(covered, pattern)
    assert runs(np.zeros((3, 2))) == []
