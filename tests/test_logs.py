"""What a run is told to write down: numbers for any logger, lines that are whole, events of TensorBoard."""

import functools
import json
import resource
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import Estimate, Estimator, learner, run
from online_grads.logs import json_lines, read_json_lines, scalars, several, tensorboard
from online_grads.precision import x64
from online_grads.types import Metrics


def told(loss, /, **fields):
    """The metrics of a chunk with these losses."""
    loss = np.asarray(loss)
    return Metrics(loss, np.isfinite(loss), 2 * loss, None, {})._replace(**fields)


@functools.cache
def setting():
    """A learner of one number from 40 steps, with info."""

    def update(state, params, xs, ys):
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((p * xs - ys) ** 2))(params)
        info = {"kept[0]": jnp.size(xs), "vector": jnp.ones(3)}
        return state, Estimate(grads, loss, xs, jax.tree.map(jnp.asarray, info))

    online = learner(Estimator(lambda params, hidden, *, key: hidden, update), optax.sgd(0.1))
    xs = np.linspace(0.5, 1.5, 40)
    return online, online.init(jnp.ones(()), jnp.zeros(()), key=jax.random.key(0)), xs, 3 * xs


def logged(callback, steps=40):
    online, state, xs, ys = setting()
    return run(online, state, xs[:steps], ys[:steps], window=2, chunk=10, callback=callback)[1]


def test_a_logger_is_given_named_numbers():
    """As in README's recipes: of each chunk of 5 updates a mean, the last, a fraction, and info if scalar."""
    seen = []
    log = lambda values, step: seen.append((step, values))
    metrics = logged(lambda step, metrics: log(scalars(metrics), step=step))
    assert [step for step, _ in seen] == [10, 20, 30, 40]
    for number, (_, values) in enumerate(seen):
        part = slice(5 * number, 5 * number + 5)
        expected = {
            "loss": metrics.loss[part].mean(),
            "grad_norm": metrics.grad_norm[part][-1],
            "finite": 1,
            "info_kept_0": 2,
        }
        assert list(values) == list(expected)
        assert all(type(value) is float for value in values.values())
        np.testing.assert_allclose(list(values.values()), list(expected.values()), rtol=1e-14)


def test_numbers_of_what_is_kept_in_any_precision():
    assert scalars(told([1.0], loss=None, finite=None, grad_norm=None, info=None)) == {}
    assert scalars(told([1.0, 2.0], loss=None, finite=None)) == {"grad_norm": 4.0}
    assert scalars(told(3.0, info={"a": jnp.ones(()), "b": jnp.ones(1)})) == {
        "loss": 3.0,
        "grad_norm": 6.0,
        "finite": 1.0,
        "info_a": 1.0,
    }
    many = np.full(1000, jnp.bfloat16(1.0078125))  # a sum in bfloat16 would stop at 256
    assert scalars(told(many, finite=None, grad_norm=None)) == {"loss": 1.0078125}
    with x64(False):  # JAX warns there if asked for 64 bits
        assert scalars(told(1.0, loss=jnp.float32(0.5), info={"a": jnp.ones(())}))["loss"] == 0.5
    bad = scalars(told([np.inf, -np.inf, 1.0, np.nan]))
    assert np.isnan(bad["loss"])
    assert bad["finite"] == 0.25
    with pytest.raises(ValueError, match=r"one learner's metrics, .* got loss \[2, 3\], grad_norm \[2, 3\]"):
        scalars(told(np.ones((2, 3))))


def test_lines_say_what_the_run_said(tmp_path):
    path = tmp_path / "log.jsonl"
    began, seen = time.time(), []
    with json_lines(path) as log:
        metrics = logged(several(log, lambda step, _: seen.append(read_json_lines(path)["step"][-1])))
        assert seen == [10, 20, 30, 40]  # each line is there before the run goes on
    with pytest.raises(ValueError, match="closed file"):
        log(50, metrics)
    columns = read_json_lines(path)
    np.testing.assert_array_equal(columns["step"], [10, 20, 30, 40])
    np.testing.assert_allclose(columns["loss"], metrics.loss.reshape(4, 5).mean(1), rtol=1e-14)
    np.testing.assert_array_equal(columns["grad_norm"], metrics.grad_norm[4::5])
    assert np.all(columns["time"] >= began - 1e-3)
    assert np.all(np.diff(columns["time"]) >= 0)
    assert columns["step"].dtype == np.int64


def test_not_finite_is_null_and_what_is_missing_is_nan(tmp_path):
    path = tmp_path / "log.jsonl"
    log = json_lines(path)
    log(1, told([np.nan]))
    log(2, told([-np.inf], info={"kept": np.array([3])}))
    refuse = lambda name: pytest.fail(f"{name} is not JSON")
    rows = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert rows[0] | {"time": 0} == {"step": 1, "time": 0, "loss": None, "grad_norm": None, "finite": 0.0}
    assert rows[1]["loss"] is None
    np.testing.assert_array_equal(read_json_lines(path)["info_kept"], [np.nan, 3])


def test_a_line_at_every_so_many_steps(tmp_path):
    path = tmp_path / "log.jsonl"
    log = json_lines(path, every=10)
    for step in (4, 8, 12, 16, 20, 40, 49):
        log(step, told([1.0]))
    assert list(read_json_lines(path)["step"]) == [12, 20, 40]
    log = json_lines(path, every=10, resume_at=20)  # in step with what an uninterrupted log would say
    for step in (24, 28, 32):
        log(step, told([1.0]))
    assert list(read_json_lines(path)["step"]) == [12, 20, 32]
    with pytest.raises(
        ValueError, match="has come to step 32 already and is told of step 4; a run needs a log"
    ):
        log(4, told([1.0]))


@pytest.mark.parametrize(
    ("resume_at", "steps"), [(0, [25]), (10, [10, 25]), (15, [10, 25]), (20, [10, 20, 25])]
)
def test_resume_drops_later_lines_and_a_cut_one(tmp_path, resume_at, steps):
    path = tmp_path / "log.jsonl"
    with json_lines(path) as log:
        for step in (10, 20, 30):
            log(step, told([1.0]))
    whole = path.read_bytes()
    for cut in (whole[:-5], whole[:-1], whole[: whole.index(b'{"step": 30')] + b"\0\0"):
        path.write_bytes(cut)
        assert list(read_json_lines(path)["step"]) == [10, 20]
    with json_lines(path, resume_at=resume_at) as log:
        log(25, told([2.0]))
    assert list(read_json_lines(path)["step"]) == steps
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[: len(steps) - 1]))


def test_another_file_is_left_as_it_is(tmp_path):
    path = tmp_path / "log.jsonl"
    for content, line in (
        (b'{"step": 3}\n[1]\n{"step": 4}\n', 2),
        (b"my thesis", 1),
        (b'{"step": "x"}\n', 1),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"line {line} is none of a log of json_lines"):
            json_lines(path, resume_at=0)
        with pytest.raises(FileExistsError, match=r"there is a log already; go on with it .* by resume_at="):
            json_lines(path)
        assert path.read_bytes() == content
    path.write_bytes(b'{"step": 5, "ti')  # the control: a log that was killed within its first line
    assert list(json_lines(path, resume_at=7) and read_json_lines(path)["step"]) == []


def test_a_killed_process_leaves_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    # os.fork would take the threads of JAX along
    endless = (
        "import sys, itertools, numpy as np\n"
        "from online_grads import Metrics\n"
        "from online_grads.logs import json_lines\n"
        "log, ones = json_lines(sys.argv[1]), np.ones(1)\n"
        "for step in itertools.count(1): log(step, Metrics(ones, ones > 0, ones, None, {}))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", endless, path])
    try:
        while not path.exists() or path.stat().st_size < 100_000:
            assert child.poll() is None
            time.sleep(0.01)
        steps = [read_json_lines(path)["step"] for _ in range(5)]  # as it is being written
    finally:
        child.kill()
        child.wait()
    steps.append(read_json_lines(path)["step"])
    for column in steps:
        np.testing.assert_array_equal(column, np.arange(1, len(column) + 1))
    assert steps[0].size < steps[-1].size


@pytest.mark.parametrize("make", [json_lines, tensorboard])
def test_mistakes_show_before_the_run(tmp_path, make):
    for wrong, message in ((0, "every must be at least 1, got 0"), (-1, "every must be at least 1, got -1")):
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "log", every=wrong)
    with pytest.raises(TypeError, match=r"every must be an integer, got 1\.5"):
        make(tmp_path / "log", every=1.5)
    with pytest.raises(ValueError, match="resume_at must be at least 0, got -3"):
        make(tmp_path / "log", resume_at=-3)
    with pytest.raises(TypeError, match=r"expected functions of \(step, metrics\), got None"):
        several(print, None)
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; the log is a file"):
        json_lines(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"log.jsonl: there is no folder .*none"):
        json_lines(tmp_path / "none" / "log.jsonl")
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        read_json_lines(tmp_path / "log.jsonl")
    (tmp_path / "file").write_text("")
    pytest.importorskip("tensorboardX")
    with pytest.raises(NotADirectoryError, match="is a file; a log for TensorBoard is a folder"):
        tensorboard(tmp_path / "file")


def test_an_exception_ends_the_run_and_reaches_the_caller(tmp_path):
    online, state, xs, ys = setting()

    def fail(step, metrics):
        if step == 20:
            raise RuntimeError("no network")

    with json_lines(tmp_path / "log.jsonl") as log, pytest.raises(RuntimeError, match="no network"):
        logged(several(fail, log))
    assert list(read_json_lines(tmp_path / "log.jsonl")["step"]) == [10]
    assert run(online, state, xs, ys, window=2)[1].loss.shape == (20,)  # the caller's state is as it was


def test_a_full_disk_ends_the_run_and_no_line_is_lost(tmp_path):
    path = tmp_path / "log.jsonl"
    log = json_lines(path)
    log(1, told([1.0]))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log(2, told([1.0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(read_json_lines(path)["step"]) == [1]
    log(3, told([1.0]))
    assert list(read_json_lines(path)["step"]) == [1, 2, 3]


def test_events_of_tensorboard(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")

    def read(path):
        data = path.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            yield events.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]

    monkeypatch.setattr("time.time", lambda: 1e9)  # two files made in the same second
    folder = tmp_path / "runs" / "first"
    with tensorboard(folder, every=20) as log:
        metrics = logged(log)
        (path,) = folder.iterdir()
        assert len(list(read(path))) == 1 + 2  # all there before the end
    _, *said = read(path)
    losses = {e.step: v.simple_value for e in said for v in e.summary.value if v.tag == "loss"}
    assert losses == {n: np.float32(metrics.loss[(n - 10) // 2 : n // 2].mean()) for n in (20, 40)}
    assert {v.tag for e in said for v in e.summary.value} == {"loss", "grad_norm", "finite", "info_kept_0"}
    with pytest.raises(
        FileExistsError, match="there is a log already; go on with it from a step by resume_at"
    ):
        tensorboard(folder)
    tensorboard(folder, resume_at=20)(40, told([np.nan]))
    assert len(list(folder.iterdir())) == 2
    _, begun, *said = read(max(folder.iterdir()))
    assert (begun.step, begun.session_log.status) == (21, events.SessionLog.START)
    assert [(e.step, len(e.summary.value)) for e in said] == [(40, 3)]
    assert np.isnan(said[0].summary.value[0].simple_value)
    assert len(list(read(min(folder.iterdir())))) == 3


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    with pytest.raises(ImportError, match=r"needs tensorboardX: pip install online-grads\[tensorboard\]"):
        tensorboard(tmp_path / "log")
    assert not list(tmp_path.iterdir())
