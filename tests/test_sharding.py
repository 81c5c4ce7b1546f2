"""The influence over eight simulated devices: what each holds, computes and exchanges, and the results."""

import jax
import numpy as np
import pytest

from online_grads import memory, rtrl, tbptt
from online_grads.sharding import sharded
from tests import distributed
from tests.distributed import DEVICES, HIDDEN, INPUTS, METHODS, PROGRAMS, tanh_model

# J, or the gradient of all weights of the cell
QUADRATIC = HIDDEN * (HIDDEN + INPUTS + 1)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What the process with eight devices measured."""
    return distributed.report("sharding", tmp_path_factory)


def largest(collectives):
    return max(entries for _, entries, _ in collectives)


def multiplied(program):
    """The flops of J·M on one device."""
    return 2 * HIDDEN * program["entries"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_device_holds_an_eighth(found, name):
    program, alone = found["programs"][name], found["one device"][name]
    assert program["entries"] == HIDDEN * QUADRATIC
    assert set(program["held"]) == {1 / DEVICES}
    assert set(alone["held"]) == {1}


@pytest.mark.parametrize("name", PROGRAMS)
def test_each_device_computes_an_eighth(found, name):
    """Of all flops of a segment; those of a step are within a tenth of J·M's alone."""
    program, alone = found["programs"][name], found["one device"][name]
    assert program["flops"] <= 1.1 * alone["flops"] / DEVICES
    bound = 1.1 * multiplied(program) / DEVICES
    if PROGRAMS[name] == 1:
        assert program["flops"] <= bound
    assert alone["flops"] > bound


@pytest.mark.parametrize("name", PROGRAMS)
def test_traffic_is_quadratic(found, name):
    """No exchange is as large as a device's share of the influence; the largest is J or a gradient."""
    program = found["programs"][name]
    assert program["collectives"]
    assert largest(program["collectives"]) <= QUADRATIC < program["entries"] / DEVICES
    assert sum(entries for _, entries, _ in program["collectives"]) <= 5 * QUADRATIC
    assert not found["one device"][name]["collectives"]


def test_a_dense_mask_is_divided_by_drives(found):
    """SnAp of order 2 keeps as much as RTRL, in arrays [drives, kept, pre]."""
    program = found["dense mask"]
    assert max(program["held"]) == 1 / DEVICES
    assert largest(program["collectives"]) <= QUADRATIC < program["entries"] / DEVICES


def test_traffic_inside_a_loop_is_quadratic(found):
    assert 0 < largest(found["training"]) <= QUADRATIC


def test_rows_would_exchange_the_influence(found):
    """The control: divided along the hidden entries, every device gathers all of it."""
    program = found["along rows"]
    assert set(program["held"]) == {1 / DEVICES}
    assert largest(program["collectives"]) > program["entries"] / DEVICES


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_gradient_is_the_same(found, name):
    got, expected = (np.array(found[where][name]["gradient"]) for where in ("programs", "one device"))
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_the_same(found, name):
    differences = found["methods"][name]
    assert differences["held"] == 1 / DEVICES
    assert differences["learned"] > 1e-2
    assert max(differences[part] for part in ("params", "influence", "loss")) < 1e-10


def test_streams_around_it(found):
    assert found["streams"] < 1e-10


def test_some_axes_of_the_mesh(found):
    """A mesh of 2 by 4 devices."""
    assert found["two axes"] == {"None": 1 / 8, "a": 1 / 2, "b": 1 / 4, "('b', 'a')": 1 / 8}


def test_what_cannot_be_divided_is_refused(found):
    assert found["indivisible"].startswith("ValueError: the largest array of the influence, (10, 1, 10, ")
    assert "8 devices" in found["indivisible"]
    assert found["no influence"].startswith("TypeError: only a past-facing estimator")
    assert "BatchedState" in found["no influence"]


def test_arguments_are_checked():
    mesh = jax.make_mesh((1,), ("params",))
    with pytest.raises(TypeError, match=r"must be a jax.sharding.Mesh, got \['cpu'\]"):
        sharded(rtrl(tanh_model(4)), ["cpu"])
    for axis in ("data", ("params", "data"), ()):
        with pytest.raises(ValueError, match="axis must name axes of the mesh"):
            sharded(rtrl(tanh_model(4)), mesh, axis=axis)
    model = tanh_model(4)
    with pytest.raises(TypeError, match="state like TbpttState"):
        sharded(tbptt(model), mesh).init(*model.init(jax.random.key(0)), key=jax.random.key(1))


def test_memory_is_that_of_all_devices():
    model = tanh_model(4)
    params, hidden = model.init(jax.random.key(0))
    over = sharded(rtrl(model), jax.make_mesh((1,), ("params",)))
    assert memory(over, params, hidden) == memory(rtrl(model), params, hidden)
