"""An interrupted experiment goes on as if nothing had happened, or says in one line why it cannot."""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import checkpoint, learned, tasks
from online_grads.cli import main
from online_grads.experiment import train
from online_grads.resume import ResumeError, Saved, config_of, newest, opened
from online_grads.versions import versions
from tests.commands import CONFIG, SMALL, equal_results, refused
from tests.test_experiment import climbing, settings, toy


@pytest.fixture
def interrupted(monkeypatch):
    """A signal at the end of the n-th checkpoint that is saved from now on."""

    def at(count, number=signal.SIGTERM):
        saved, save = [], checkpoint.save_step

        def save_step(*args, **kwargs):
            saved.append(save(*args, **kwargs))
            if len(saved) == count:
                signal.raise_signal(number)
            return saved[-1]

        monkeypatch.setattr(checkpoint, "save_step", save_step)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield at
    signal.signal(signal.SIGTERM, before)


def same(one, other):
    for left, right in zip(one.results, other.results, strict=True):
        for name in ("loss", "finite", "grad_norm", "params", "levels"):
            for mine, its in zip(
                *map(jax.tree.leaves, (getattr(left, name), getattr(right, name))), strict=True
            ):
                assert mine.dtype == its.dtype
                np.testing.assert_array_equal(mine, its)


def test_rates_seeds_and_a_curriculum_go_on_bitwise(tmp_path, monkeypatch, interrupted):
    monkeypatch.setitem(tasks.TASKS, "toy", lambda **options: climbing(limit=0.1, **options))
    uoro = {"name": "uoro", "window": 2, "steps": 56}
    config = lambda: settings(
        uoro, {"name": "tbptt", "label": "cut / it"}, rates=(0.1, 1.0), seeds=2, chunk=8
    )
    whole, folder = train(config()), tmp_path / "kept"
    # every 20 of chunks of 8 steps: saved after 24, 40 and, at the end, 56
    interrupted(2)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train(config(), checkpoints=folder, every=20)
    assert stopped.value.signal == signal.SIGTERM
    assert [path.name for path in sorted((folder / "0_uoro_2").iterdir())] == [
        f"step_{steps:012}" for steps in (24, 40)
    ]
    shutil.copytree(folder, tmp_path / "control")
    interrupted(2)  # at the end of the first estimator is the first
    with pytest.raises(KeyboardInterrupt):
        train(config(), checkpoints=folder, resume=True)
    assert [path.name for path in sorted(folder.iterdir())] == ["0_uoro_2", "1_cut_it", "run.json"]
    assert checkpoint.notes(checkpoint.latest(folder / "1_cut_it"))["steps"] == 24
    report = train(config(), checkpoints=folder, resume=True)
    same(report, whole)
    assert len(set(report.results[0].levels.reached[..., -1].flat)) > 1
    for result in report.results:
        np.testing.assert_array_equal(learned(folder)[result.config.label], result.params)
    # all is trained: what was spent then is still known, and nothing is added
    third = train(config(), checkpoints=folder, resume=True)
    same(third, whole)
    assert [result.seconds_per_step for result in third.results] == [
        result.seconds_per_step for result in report.results
    ]

    # of another state, other results come
    def forgotten(*args):
        found = newest(*args)
        if found is None:
            return None
        steps, (state, recorded), times = found
        blank = lambda leaf: 0 * leaf if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        anew = state[0]._replace(estimator=jax.tree.map(blank, state[0].estimator))
        return steps, Saved((anew, state[1]), recorded), times

    monkeypatch.setattr("online_grads.experiment.newest", forgotten)
    other = train(config(), checkpoints=tmp_path / "control", resume=True).results[0]
    np.testing.assert_array_equal(other.loss[..., :20], whole.results[0].loss[..., :20])
    assert (other.loss[..., 20:] != whole.results[0].loss[..., 20:]).any()


def test_what_train_refuses(tmp_path, monkeypatch):
    for name in ("toy", "other"):
        monkeypatch.setitem(tasks.TASKS, name, toy)
    config = settings("tbptt")
    for options, message in [
        ({"every": 5}, "every is given, but no folder for checkpoints"),
        ({"resume": True}, "resume is given, but no folder for checkpoints"),
        ({"checkpoints": tmp_path}, "every is missing"),
        ({"checkpoints": tmp_path, "every": 0}, "every must be at least 1, got 0"),
        ({"checkpoints": tmp_path, "resume": True}, "no checkpoints to go on with"),
    ]:
        with pytest.raises(ValueError, match=message):
            train(config, **options)
    with (
        opened(config, tmp_path, 5, resume=False).begun(config),
        pytest.raises(ResumeError, match="another process is training there now"),
    ):
        train(config, checkpoints=tmp_path, resume=True)
    with pytest.raises(ResumeError, match="there are checkpoints in it"):
        train(config, checkpoints=tmp_path, every=5)
    for change, message in [
        ({"rates": (0.1, 0.2)}, r"optimizer.learning_rate was \[0.1\], is \[0.1, 0.2\]$"),
        ({"updates": 40, "chunk": 9}, "run.updates was 30, is 40; run.chunk was not given, is 9$"),
        ({"task": "other", "seeds": 2, "seed": 3, "axis": "steps"}, "; and 1 more$"),
    ]:
        with pytest.raises(ResumeError, match=message):
            opened(settings("tbptt", **change), tmp_path, None, resume=True)
    assert opened(config, tmp_path, None, resume=True).every == 5
    assert opened(config, tmp_path, 7, resume=True).every == 7
    with pytest.raises(ResumeError, match=r"estimator.0.name was \"tbptt\", is \"rtrl\"$"):
        opened(settings("rtrl"), tmp_path, None, resume=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_the_command_goes_on_or_says_why_not(here, capsys, monkeypatch, interrupted):
    keep = ["--checkpoint-every", "30", "--out", "out"]
    assert "--checkpoint-every: expected an integer of at least 1" in refused(
        capsys, "run", *SMALL, "--checkpoint-every", "0"
    )
    (here / "foreign" / "checkpoints").mkdir(parents=True)
    described = here / "foreign" / "checkpoints" / "run.json"
    for content in ({}, {"computed with": 3}, {"config": None}, {"every": "x"}, {"every": 0}):
        whole = {"config": {}, "every": 5, "computed with": {}} if content else {}
        described.write_text(json.dumps(whole | content))
        with pytest.raises(ResumeError, match="not what a run has written"):
            config_of(described.parent)
    again = ["--checkpoint-every", "30", "--resume"]
    for arguments, message in [
        ([*SMALL, "--resume", "none"], "none: no checkpoints to go on with; with --checkpoint-every N a run"),
        ([*again, "none"], "no checkpoints to go on with; with CONFIG.toml a run begins there"),
        ([*SMALL, *again, "small.toml"], "Not a directory"),
        ([*SMALL, *again, "."], "--resume .: not empty, and nothing is overwritten"),
        ([*SMALL, "--resume", "foreign"], "foreign/checkpoints/run.json: not what a run has written"),
    ]:
        assert message in refused(capsys, "run", *arguments)
    assert not (here / "none").exists()
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_bytes", full)
        assert "No space left on device; no checkpoint can be saved" in refused(capsys, "run", *SMALL, *keep)
    assert not (here / "out").exists()

    go_on = "online-grads run --resume out\n"
    interrupted(2)
    assert main(["run", *SMALL, *keep]) == 143
    assert capsys.readouterr().err == f"online-grads: interrupted; go on with: {go_on}"
    assert [path.name for path in (here / "out").iterdir()] == ["checkpoints"]
    resume = ["run", *SMALL, "--resume", "out"]
    assert "--resume out writes there; leave --out new out" in refused(capsys, *resume, "--out", "new")
    error = refused(capsys, *resume, "--set", "run.updates=200")
    assert "out/checkpoints: of another config: run.updates was 100, is 200" in error

    shutil.copytree(here / "out", here / "damaged")
    damaged = here / "damaged" / "checkpoints" / "0_tbptt" / "step_000000000060" / "arrays.npz"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    error = refused(capsys, "run", *SMALL, "--resume", "damaged")
    assert "step_000000000040; remove step_000000000060 and resume to go on from there" in error
    shutil.rmtree(damaged.parent)
    for where in ("online_grads.checkpoint.write", "online_grads.report.write_whole"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            error = refused(capsys, "run", *SMALL, "--resume", "damaged")
        assert "No space left on device" in error
        assert error.endswith("; once that is mended, go on with: " + go_on.replace("out", "damaged"))
    assert main(["run", *SMALL]) == 0
    capsys.readouterr()
    now = versions()["jax"]
    for folder in ("damaged", "out"):
        described = here / folder / "checkpoints" / "run.json"
        described.write_text(described.read_text().replace(f'"jax": "{now}"', '"jax": "0.1"'))
        assert main(["run", "--resume", folder]) == 0
        out, err = capsys.readouterr()
        assert err.startswith(f"online-grads: note: jax was 0.1, is {now}: ")
        assert out.endswith(f"written to {folder}\n")
        equal_results(here / folder, here / "runs" / "small")
    assert learned("out")["tbptt"].keys() == learned("out/checkpoints")["tbptt"].keys() == {"theta"}


def test_data_that_are_not_finite_end_a_run_with_checkpoints(here, capsys, monkeypatch):
    def spoilt(at):
        def make(**options):
            task = tasks.influence_balancing(**options)

            def draw(state, length):
                state, (xs, ys) = task.draw(state, length)
                steps = state - length + jnp.arange(length, dtype=jnp.int32)
                return state, (xs, jnp.where(steps == at, jnp.nan, ys))

            return task._replace(draw=draw)

        return make

    monkeypatch.setitem(tasks.TASKS, "influence_balancing", spoilt(53))
    assert main(["run", *SMALL, "--checkpoint-every", "1000", "--out", "out"]) == 1
    assert json.loads((here / "out" / "summary.json").read_text())["estimators"]["tbptt"]["steps"] == 40
    # what comes before is saved, so that it goes on when the data are mended
    monkeypatch.setitem(tasks.TASKS, "influence_balancing", spoilt(-1))
    capsys.readouterr()
    assert main(["run", *SMALL, "--resume", "out"]) == 0
    assert main(["run", *SMALL]) == 0
    equal_results(here / "out", here / "runs" / "small")
