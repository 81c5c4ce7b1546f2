"""Sweeps: every point as if alone, on one device, on eight simulated ones, on two processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.sweep import sweep
from tests import distributed
from tests.distributed import grid, walk

# how the process with eight devices swept -> how many seeds
SWEEPS = {"whole": 5, "one by one": 7, "in twos": 7, "fewer than devices": 1, "over four": 2}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the process with eight devices measured."""
    return distributed.report("sweep", tmp_path_factory)


@pytest.fixture(scope="module")
def alone():
    """Every point by itself, for the most seeds of any sweep."""
    run, values = jax.jit(walk), grid(max(SWEEPS.values()))
    return [[jax.device_get(plain(run(key, rate))) for rate in values["rate"]] for key in values["key"]]


def plain(results):
    return results | {"key": jax.random.key_data(results["key"])}


def assert_same(got, alone, seeds):
    """Leading axes in the grid's order, and at every place the point's own result."""
    expected = jax.tree.map(
        lambda *leaves: np.stack(leaves),
        *(jax.tree.map(lambda *leaves: np.stack(leaves), *row) for row in alone[:seeds]),
    )
    for name, leaf in expected.items():
        assert np.shape(got[name]) == leaf.shape
        np.testing.assert_allclose(got[name], leaf, rtol=1e-10, atol=1e-12)
    # no two points are alike, so that a wrong order would show
    assert len(np.unique(np.round(expected["values"][..., -1], 8))) == 3 * seeds


@pytest.mark.parametrize("batch", [None, 1, 4, 100])
def test_every_point_as_if_alone(alone, batch):
    assert_same(plain(sweep(walk, grid(3), batch=batch)), alone, 3)


@pytest.mark.parametrize("name", SWEEPS)
def test_eight_devices_share_the_points(found, alone, name):
    """Numbers of points that the devices cannot share evenly."""
    assert_same(found[name], alone, SWEEPS[name])


def test_points_exchange_nothing(found):
    """Only the results are gathered, each once."""
    kinds = [kind for kind, _, _ in found["collectives"]]
    assert kinds
    assert set(kinds) == {"all-gather"}
    padded, per_point = 16, 3 + 2  # steps, and the words of a key
    assert sum(entries for _, entries, _ in found["collectives"]) <= padded * per_point


def test_one_by_one_runs_only_the_branch_taken():
    calls = []

    def function(x):
        slow = lambda x: jax.pure_callback(
            lambda x: calls.append(1) or x, jax.ShapeDtypeStruct((), x.dtype), x
        )
        return jax.lax.cond(x > 2, slow, lambda x: x, x)

    assert sweep(function, {"x": jnp.arange(4.0)}, batch=1).tolist() == [0, 1, 2, 3]
    assert len(calls) == 1


def test_inside_jit_and_with_plain_lists():
    function = lambda a, b: (a - b, jnp.stack([a, b]))
    difference, both = jax.jit(lambda a: sweep(function, {"b": [1.0, 2.0, 4.0], "a": a}))(jnp.arange(2.0))
    assert difference.tolist() == [[-1, 0], [-2, -1], [-4, -3]]
    assert both.shape == (3, 2, 2)


def test_one_compilation():
    """Of the function, however many points there are."""
    traced = []
    sweep(lambda x, y: traced.append(1) or x + y, {"x": jnp.arange(5.0), "y": jnp.arange(3.0)})
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((3, {"x": [1.0]}), {}, TypeError, "function must be callable, got 3"),
        ((len, [1.0]), {}, TypeError, "grid must map names to arrays"),
        ((len, {0: [1.0]}), {}, TypeError, "grid must map names to arrays"),
        ((len, {}), {}, ValueError, "the grid is empty"),
        ((len, {"x": 1.0}), {}, ValueError, r"grid\['x'\] needs a leading axis of values, got shape \(\)"),
        ((len, {"x": []}), {}, ValueError, r"grid\['x'\] needs .*\(0,\)"),
        ((len, {"x": ["adam"]}), {}, TypeError, r"grid\['x'\] must be an array"),
        ((len, {"x": [1.0]}), {"mesh": 8}, TypeError, "mesh must be a jax.sharding.Mesh"),
        ((len, {"x": [1.0]}), {"batch": 0}, ValueError, "batch must be at least 1"),
        ((len, {"x": [1.0]}), {"batch": 1.5}, TypeError, "batch must be an integer"),
    ],
)
def test_arguments_are_checked(arguments, options, error, message):
    with pytest.raises(error, match=message):
        sweep(*arguments, **options)


def test_two_processes(tmp_path):
    """Sharded training and a sweep over two processes give what one process gives."""
    expected = distributed.small_report()
    for got in distributed.two_processes(tmp_path):
        assert (got["held"], expected["held"]) == (0.5, 1)
        for name in ("params", "losses"):
            np.testing.assert_allclose(got[name], expected[name], rtol=1e-10, atol=1e-12)
        for name, values in expected["sweep"].items():
            np.testing.assert_allclose(got["sweep"][name], values, rtol=1e-10, atol=1e-12)
