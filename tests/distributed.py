"""What needs more devices than a test's own process has, run in processes of its own:

    python -m tests.distributed sharding REPORT         8 simulated devices, measures of compiled programs
    python -m tests.distributed sweep REPORT            the same, results of sweeps
    python -m tests.distributed process I PORT REPORT   process I of 2, each with 2 simulated devices

REPORT is a file of JSON. `report` and `two_processes` start them; `collectives` reads a compiled program.
"""

import fcntl
import json
import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from online_grads import (
    ESTIMATORS,
    batched,
    cells,
    from_cell,
    gradient,
    learner,
    losses,
    readouts,
    rtrl,
    scan,
    snap,
)
from online_grads.sharding import sharded
from online_grads.sweep import sweep

DEVICES, INPUTS, HIDDEN, STEPS = 8, 7, 64, 12
METHODS = {
    "rtrl, blocks of 2": ("rtrl", {"block": 2}),
    "snap": ("snap", {}),
    "snap, order 2": ("snap", {"order": 2}),
    "eprop": ("eprop", {}),
    "uoro": ("uoro", {}),
    "kf_rtrl": ("kf_rtrl", {}),
}
PROGRAMS = {"a step": 1, "a segment of n": HIDDEN}  # name -> k


class Collective(NamedTuple):
    """One exchange between devices in a compiled program."""

    kind: str
    entries: int  # of its operands or its results, whichever are more
    bytes: int


_ARRAY = re.compile(r"\b(pred|[su]\d+|bf16|f\d+\w*|c\d+)\[([\d,]*)\]")
_DEFINITION = re.compile(r"%?(\S+) = (\(.*?\)|\S+) ")
_KINDS = r"all-gather|all-reduce|reduce-scatter|(?:ragged-)?all-to-all|collective-(?:permute|broadcast)"
_COLLECTIVE = re.compile(rf" = (\(.*?\)|\S+) ({_KINDS})(?:-start)?\((.*?)\)")


def collectives(text: str) -> list[Collective]:
    """The exchanges between devices in a compiled program's text; those in a loop appear once.

    >>> line = "%g = f64[8,4]{1,0} all-gather(%x), channel_id=1, dimensions={0}"
    >>> collectives("%x = f64[2,4]{1,0} parameter(0)" + chr(10) + line)
    [Collective(kind='all-gather', entries=32, bytes=256)]
    """
    lines = [line.strip().removeprefix("ROOT ") for line in text.splitlines()]
    types = {m[1]: m[2] for m in map(_DEFINITION.match, lines) if m}
    found = []
    for match in filter(None, map(_COLLECTIVE.search, lines)):
        operands = " ".join(types.get(name, "") for name in re.findall(r"%([^\s,)]+)", match[3]))
        sizes = max(_sizes(match[1]), _sizes(operands))
        found.append(Collective(match[2], *sizes))
    return found


def _sizes(types: str) -> tuple[int, int]:
    """Entries and bytes of all arrays in a type."""
    counts = [math.prod(map(int, dims.split(","))) if dims else 1 for _, dims in _ARRAY.findall(types)]
    bits = [8 if name == "pred" else int(re.search(r"\d+", name)[0]) for name, _ in _ARRAY.findall(types)]
    return sum(counts), sum(c * b for c, b in zip(counts, bits, strict=True)) // 8


def tanh_model(hidden=HIDDEN, inputs=INPUTS):
    """A plain tanh network with one output."""
    cell, readout = cells.vanilla_rnn(inputs, hidden), readouts.linear(hidden, 1)
    return from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(inputs), jnp.zeros(1)))


def stream(steps, inputs=INPUTS):
    """Random xs, ys."""
    return jax.random.normal(jax.random.key(1), (steps, inputs)), jnp.sin(jnp.arange(steps))[:, None]


def along_rows(estimator, mesh):
    """The estimator with its influence divided along the hidden entries: what `sharded` must not do."""

    def divided(state):
        place = lambda leaf: jax.lax.with_sharding_constraint(
            leaf, NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        )
        return state._replace(influence=jax.tree.map(place, state.influence))

    def update(state, params, xs, ys):
        state, estimate = estimator.update(divided(state), params, xs, ys)
        return divided(state), estimate

    return estimator._replace(update=update)


def trained(estimator, model, window=3):
    """What is learned from a short stream, and the state at its end."""
    online = learner(estimator, optax.sgd(0.1))
    start = online.init(*model.init(jax.random.key(0)), key=jax.random.key(2))
    return jax.jit(lambda state, xs, ys: scan(online, state, xs, ys, window=window))(start, *stream(STEPS))


def losses_of(key, rate):
    """The losses of a small network in training, for a sweep."""
    model = tanh_model(4)
    online = learner(rtrl(model), optax.sgd(rate))
    state = online.init(*model.init(key), key=key)
    return {"values": scan(online, state, *stream(STEPS), window=4)[1].loss, "key": key}


def walk(key, rate):
    """A random walk of three steps and another key, for a sweep."""
    return {"values": rate + jnp.cumsum(jax.random.normal(key, 3)), "key": jax.random.split(key)[0]}


def grid(seeds):
    """Seeds and learning rates."""
    return {"key": jax.random.split(jax.random.key(3), seeds), "rate": jnp.array([0.0, 0.1, 0.3])}


def sharding_report():
    """Programs of RTRL and the results of every method, over 8 devices and over one."""
    mesh = jax.make_mesh((DEVICES,), ("params",))
    estimator = rtrl(tanh_model())
    return {
        "programs": {name: _program(sharded(estimator, mesh), k) for name, k in PROGRAMS.items()},
        "one device": {name: _program(estimator, k) for name, k in PROGRAMS.items()},
        "dense mask": _program(sharded(snap(tanh_model(), order=2), mesh), 1),
        "along rows": _program(along_rows(estimator, jax.sharding.Mesh(mesh.devices, "p")), 1),
        "training": _collectives_of_training(sharded(estimator, mesh)),
        "methods": {name: _differences(*METHODS[name], mesh) for name in METHODS},
        "streams": _streams(mesh),
        "two axes": _two_axes(),
        "indivisible": _message(lambda model: sharded(rtrl(model), mesh)),
        "no influence": _message(lambda model: sharded(batched(rtrl(model), 2), mesh)),
    }


def _program(estimator, k):
    """What a segment of k steps costs each device, and the second segment's gradient."""
    params, hidden = tanh_model().init(jax.random.key(0))
    state = jax.jit(lambda *given: estimator.init(*given, key=jax.random.key(1)))(params, hidden)
    first, second = (jax.tree.map(lambda leaf, at=at: leaf[at : at + k], stream(2 * k)) for at in (0, k))
    state = jax.jit(estimator.update)(state, params, *first)[0]
    compiled = jax.jit(estimator.update).lower(state, params, *second).compile()
    state, estimate = compiled(state, params, *second)
    leaves = jax.tree.leaves(state.influence)
    return {
        "entries": sum(leaf.size for leaf in leaves),
        "held": [_held(leaf) for leaf in leaves],
        "flops": compiled.cost_analysis()["flops"],
        "collectives": collectives(compiled.as_text()),
        "gradient": jax.flatten_util.ravel_pytree(jax.device_get(estimate.grads))[0].tolist(),
    }


def _held(leaf):
    """The fraction of an array that one device holds."""
    return leaf.addressable_shards[0].data.size / leaf.size


def _collectives_of_training(estimator):
    """Of a whole `scan`, its loop's body included."""
    online = learner(estimator, optax.sgd(0.1, momentum=0.9))
    start = online.init(*tanh_model().init(jax.random.key(0)), key=jax.random.key(2))
    train = jax.jit(lambda state, xs, ys: scan(online, state, xs, ys))
    return collectives(train.lower(start, *stream(4)).compile().as_text())


def _differences(name, options, mesh):
    """Between training over the mesh and on one device."""
    model = tanh_model(16)
    estimator = ESTIMATORS[name].constructor(model, **options)
    (one, metrics), (other, others) = (trained(e, model) for e in (estimator, sharded(estimator, mesh)))
    largest = max(jax.tree.leaves(other.estimator.influence), key=lambda leaf: leaf.size)
    return {
        "params": _difference(one.params, other.params),
        "influence": _difference(one.estimator.influence, other.estimator.influence),
        "loss": _difference(metrics.loss, others.loss),
        "learned": _difference(model.init(jax.random.key(0))[0], one.params),
        "held": _held(largest),
    }


def _difference(one, other):
    """The largest between two trees, relative to the largest entry."""
    one, other = (jax.flatten_util.ravel_pytree(jax.device_get(tree))[0] for tree in (one, other))
    return float(np.max(np.abs(one - other)) / np.max(np.abs(one)))


def _streams(mesh):
    """`batched` around `sharded` beside `batched` alone."""
    model = tanh_model(16)
    xs, ys = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf], 1), stream(STEPS))
    both = [batched(estimator, 2) for estimator in (rtrl(model), sharded(rtrl(model), mesh))]
    params, hidden = model.init(jax.random.key(0))
    run = lambda e: gradient(e, params, hidden, xs, ys, key=jax.random.key(1), window=3)
    return _difference(*(jax.jit(run, static_argnums=0)(estimator) for estimator in both))


def _two_axes():
    """The fraction held, by the mesh axes over which it is divided."""
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    params, hidden = tanh_model().init(jax.random.key(0))
    held = lambda axis: _held(
        sharded(rtrl(tanh_model()), mesh, axis=axis).init(params, hidden, key=jax.random.key(1)).influence[0]
    )
    return {str(axis): held(axis) for axis in (None, "a", "b", ("b", "a"))}


def _message(make):
    """What `init` raises."""
    params, hidden = tanh_model(10).init(jax.random.key(0))
    try:
        make(tanh_model(10)).init(params, hidden, key=jax.random.key(1))
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def sweep_report():
    """Sweeps over 8 devices and over 4, and how their program exchanges results."""
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    program = jax.jit(lambda grid: sweep(walk, grid, mesh=mesh)).lower(grid(5)).compile().as_text()
    return {
        "whole": _plain(sweep(walk, grid(5), mesh=mesh)),
        "one by one": _plain(sweep(walk, grid(7), mesh=mesh, batch=1)),
        "in twos": _plain(sweep(walk, grid(7), mesh=mesh, batch=2)),
        "fewer than devices": _plain(sweep(walk, grid(1), mesh=mesh)),
        "over four": _plain(sweep(walk, grid(2), mesh=jax.sharding.Mesh(jax.devices()[:4], "a"))),
        "collectives": collectives(program),
    }


def _plain(results):
    """Lists that JSON can hold."""
    return {"values": results["values"].tolist(), "key": jax.random.key_data(results["key"]).tolist()}


def process_report(process, port):
    """Training and a sweep over all devices of two processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process, initialization_timeout=30)
    mesh = jax.make_mesh((4,), ("params",))
    everywhere = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))
    assert int(everywhere(jnp.arange(4))) == 6
    print("started", flush=True)
    return small_report(mesh)


def small_report(mesh=None):
    """Training and a sweep, over a mesh or on one device."""
    model = tanh_model(16)
    estimator = rtrl(model) if mesh is None else sharded(rtrl(model), mesh)
    state, metrics = trained(estimator, model)
    leaf = max(jax.tree.leaves(state.estimator.influence), key=lambda leaf: leaf.size)
    return {
        "held": sum(shard.data.size for shard in leaf.addressable_shards) / leaf.size,
        "params": jax.flatten_util.ravel_pytree(jax.device_get(state.params))[0].tolist(),
        "losses": metrics.loss.tolist(),
        "sweep": _plain(sweep(losses_of, grid(2), mesh=mesh)),
    }


def report(name, folders):
    """The report of a process with 8 simulated devices, made once for all workers of a run of the tests."""
    folder = folders.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / f"{name}.json"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            ended = subprocess.run(**_process(name, path), capture_output=True, timeout=300)
            assert ended.returncode == 0, ended.stderr
    return json.loads(path.read_text())


def two_processes(folder):
    """The reports of two processes that find each other on loopback; skips where they cannot."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    paths = [folder / f"{number}.json" for number in range(2)]
    start = lambda number: subprocess.Popen(
        **_process("process", number, port, paths[number]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    running = [start(number) for number in range(2)]
    try:
        ended = [process.communicate(timeout=90) for process in running]
    except subprocess.TimeoutExpired:
        for process in running:
            process.kill()
        ended = [process.communicate() for process in running]
    if not all("started" in output for output, _ in ended):
        reasons = [errors.strip().splitlines()[-1:] for _, errors in ended]
        pytest.skip(f"two JAX processes cannot work together here: {reasons}")
    assert [process.returncode for process in running] == [0, 0], ended
    return [json.loads(path.read_text()) for path in paths]


def _process(*arguments):
    """How this file is started, on CPU and as the tests run; `main` asks for the devices."""
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in flag]
    return {
        "args": [sys.executable, "-m", "tests.distributed", *map(str, arguments)],
        "cwd": Path(__file__).parents[1],
        "env": os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)},
        "text": True,
    }


def main(name, *arguments):
    """Write one report."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_num_cpu_devices", 2 if name == "process" else DEVICES)
    *numbers, path = arguments
    made = {"sharding": sharding_report, "sweep": sweep_report, "process": process_report}[name]
    found = made(*map(int, numbers))
    Path(path).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
