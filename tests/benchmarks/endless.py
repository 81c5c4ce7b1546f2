"""A stream that never ends: is memory constant, does the step time drift, is a live stream kept up with?

    python -m tests.benchmarks.endless [--steps 10_000_000] [--rate 1000] [--seconds 20] [--part memory|rate]

**memory**: `run` learns from a generator that makes one observation after the other on the host, with a tanh
network of 8 units and adam. Resident memory and step time by tenths of the stream. `first` is the memory
after the first chunk, `away` how far it ever is from that at a chunk's end. The drift is the slope of a
straight line through the step times of 100 equal parts, in % of their mean per 10⁶ steps, with its standard
error.

**rate**: observations come at a fixed rate, whether or not the learner, `stepper` with a GRU of 64 units, is
ready for them. The process is pinned to one core before it starts. Latency is from the arrival of an
observation until the state has learned from it; `step` is the part of it that the step itself takes.
"""

import argparse
import itertools
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from online_grads import cells, from_cell, learner, losses, readouts, run, snap, stepper, uoro

ESTIMATORS, PARTS, WARM, LAG = {"snap": snap, "uoro": uoro}, 100, 200, 2


def sensor(inputs: int):
    """Noise, and its first entry of two steps ago to be told: (x [inputs], y [1]), without end."""
    rng, earlier = np.random.default_rng(0), np.zeros((LAG, 1))
    while True:
        xs = rng.standard_normal((4096, inputs))
        ys = np.concatenate([earlier, xs[:, :1]])
        earlier = ys[-LAG:]
        yield from zip(xs, ys, strict=False)


def begun(estimator, cell, inputs: int, units: int, rate: float):
    """A learner and its state."""
    example = (jnp.zeros(inputs), jnp.zeros(1))
    model = from_cell(cell(inputs, units), readouts.linear(units, 1), losses.squared_error, example=example)
    online = learner(estimator(model), optax.adam(rate))
    return online, online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))


def resident() -> float:
    """MiB of this process that are in memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


class Watch:
    """A callback: memory and time at the ends of chunks, and whether all was finite."""

    def __init__(self, steps: int):
        self.marks = list(np.linspace(0, steps, PARTS + 1)[1:])
        self.finite = True
        self.first = self.low = self.high = 0.0
        self.seen: list[tuple[int, float, float]] = []  # steps, seconds, MiB at every hundredth

    def __call__(self, done: int, metrics) -> None:
        now, memory = time.perf_counter(), resident()
        self.finite &= bool(metrics.finite.all())
        if not self.seen:
            self.first = self.low = self.high = memory
            self.seen.append((done, now, memory))
        self.low, self.high = min(self.low, memory), max(self.high, memory)
        if done >= self.marks[0]:
            self.marks = [mark for mark in self.marks if mark > done] or [np.inf]
            self.seen.append((done, now, memory))

    @property
    def away(self) -> float:
        """The largest distance of memory from that after the first chunk, in %."""
        return 100 * max(self.high - self.first, self.first - self.low) / self.first

    def drift(self) -> tuple[float, float]:
        """Slope of the step time in % per 10⁶ steps, and its standard error."""
        steps, seconds, _ = np.array(self.seen).T
        each = np.diff(seconds) / np.diff(steps)
        at = (steps[1:] + steps[:-1]) / 2e6
        at -= at.mean()
        slope = (at * each).sum() / (at**2).sum()
        rest = each - each.mean() - slope * at
        error = np.sqrt((rest**2).sum() / (len(at) - 2) / (at**2).sum())
        return 100 * slope / each.mean(), 100 * error / each.mean()

    def tenths(self) -> list[tuple[int, float, float]]:
        """Steps done, MiB and µs per step of every tenth."""
        chosen = self.seen[:: PARTS // 10]
        return [
            (after[0], after[2], 1e6 * (after[1] - before[1]) / (after[0] - before[0]))
            for before, after in itertools.pairwise(chosen)
        ]


def memory(steps: int) -> None:
    found = {}
    for name, estimator in ESTIMATORS.items():
        online, state = begun(estimator, cells.vanilla_rnn, 4, 8, 1e-3)
        found[name] = watch = Watch(steps)
        state, _ = run(online, state, sensor(4), steps=steps, callback=watch)
        is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
        watch.finite &= all(
            bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state) if is_float(leaf)
        )
        print(f"{name}: {watch.first:.1f} MiB after the first chunk")
        print("       steps    MiB  µs/step")
        for done, size, each in watch.tenths():
            print(f"{done:12,}  {size:5.1f}  {each:7.2f}", flush=True)
    print("\nestimator  first MiB  away %   drift, % per 10⁶ steps  finite")
    for name, watch in found.items():
        slope, error = watch.drift()
        finite = "yes" if watch.finite else "NO"
        print(f"{name:9}  {watch.first:9.1f}  {watch.away:6.2f}   {slope:+9.3f} ± {error:<9.3f}  {finite:>8}")


def rate(per_second: float, seconds: float) -> None:
    online, state = begun(snap, cells.gru, 8, 64, 1e-3)
    step, observations = stepper(online), sensor(8)
    step.compile(state, *next(observations))
    for x, y in itertools.islice(observations, WARM):
        state, metrics = step(state, x, y)
    offered = round(per_second * seconds)
    latencies, own, behind = np.zeros(offered), np.zeros(offered), 0
    start = time.perf_counter() + 0.01
    for number, (x, y) in enumerate(itertools.islice(observations, offered)):
        arrival = start + number / per_second
        begin = time.perf_counter()
        if begin < arrival:
            time.sleep(arrival - begin)
            begin = time.perf_counter()
        behind = max(behind, int((begin - arrival) * per_second))
        if begin > start + seconds:
            break
        state, metrics = step(state, x, y)
        end = time.perf_counter()
        latencies[number], own[number] = end - arrival, end - begin
    processed = int((own > 0).sum())
    cores = ", ".join(map(str, os.sched_getaffinity(0)))
    print(f"\nGRU-64 snap, {per_second:g} observations per second for {seconds:g} s, on core {cores}")
    backlog = f"backlog {offered - processed}, at most {behind} on the way"
    print(f"offered {offered}, processed {processed}, {backlog}")
    print("µs           p50     p99   worst")
    for name, times in (("latency", latencies[:processed]), ("step", own[:processed])):
        p50, p99, worst = 1e6 * np.quantile(times, [0.5, 0.99, 1])
        print(f"{name:8}  {p50:6.0f}  {p99:6.0f}  {worst:6.0f}")
    print(f"finite: {'yes' if bool(metrics.finite) else 'NO'}")


def pinned(arguments: list[str]) -> None:
    """This file again, on the last of the cores that are allowed."""
    core = max(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "tests.benchmarks.endless", "--pinned", *arguments]
    subprocess.run(["taskset", "-c", str(core), *command], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000_000, help="of the stream of the part `memory`")
    parser.add_argument("--rate", type=float, default=1000, help="observations per second")
    parser.add_argument("--seconds", type=float, default=20, help="of the part `rate`")
    parser.add_argument("--part", choices=["memory", "rate"], help="only this")
    parser.add_argument("--pinned", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.pinned:
        return rate(chosen.rate, chosen.seconds)
    if chosen.part != "rate":
        memory(chosen.steps)
    if chosen.part != "memory":
        pinned(["--rate", str(chosen.rate), "--seconds", str(chosen.seconds)])


if __name__ == "__main__":
    main()
