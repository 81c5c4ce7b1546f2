"""Signals end a command when all is written, with the status that shells expect."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from online_grads import checkpoint
from online_grads.cli import main, places
from tests.commands import CONFIG, SMALL, equal_results, refused


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def test_signals_end_a_process(here, monkeypatch):
    """SIGTERM in the middle of a run with checkpoints, which then goes on; Ctrl-C in one without."""
    command = [sys.executable, "-m", "online_grads", "run", "small.toml", "--out"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    steps = here / "kept" / "checkpoints" / "0_tbptt"
    start = lambda *rest: subprocess.Popen(
        [*command, *rest], cwd=here, env=environment, stderr=subprocess.PIPE, text=True
    )
    with (
        start("kept", "--checkpoint-every", "1") as kept,
        start("lost", "--set", "run.updates=20000000") as lost,
    ):
        wait_for((here / "lost").exists)
        lost.send_signal(signal.SIGINT)
        assert lost.communicate(timeout=60)[1] == "online-grads: interrupted, nothing written\n"
        assert lost.returncode == 130
        assert not (here / "lost").exists()
        wait_for(lambda: (checkpoint.latest(steps) or steps).name >= "step_000000000040")
        kept.send_signal(signal.SIGTERM)
        said = "online-grads: interrupted; go on with: online-grads run --resume kept\n"
        assert kept.communicate(timeout=60)[1] == said
        assert kept.returncode == 143
    path = checkpoint.latest(steps)
    assert 40 <= checkpoint.notes(path)["steps"] < 4000
    assert main(["run", "small.toml", "--resume", "kept", "--checkpoint-every", "4000"]) == 0
    assert main(["run", "small.toml", "--out", "whole"]) == 0
    equal_results(here / "kept", here / "whole")


def wait_for(holds):
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.005)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_commands_without_checkpoints_end_at_once(here, capsys, monkeypatch, number, status):
    monkeypatch.setattr("online_grads.cli.run.train", lambda *args, **kwargs: signal.raise_signal(number))
    before = signal.getsignal(signal.SIGTERM)
    assert main(["run", *SMALL]) == status
    assert capsys.readouterr().err == "online-grads: interrupted, nothing written\n"
    assert signal.getsignal(signal.SIGTERM) is before
    assert not list(here.glob("runs/*"))


def test_a_folder_just_made_is_removed_again(here, monkeypatch):
    def made_and_stopped(folder, make=places._make):
        try:
            return make(folder)
        finally:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(places, "_make", made_and_stopped)
    assert main(["run", *SMALL]) == 130
    assert not list(here.glob("runs/*"))


def test_a_signal_waits_until_all_is_written(here, capsys, monkeypatch):
    def write(found, folder):
        signal.raise_signal(signal.SIGTERM)
        (folder / "results").touch()

    monkeypatch.setattr("online_grads.report.write", write)
    assert main(["run", *SMALL]) == 143
    assert capsys.readouterr().out.endswith("written to runs/small\n")
    assert (here / "runs" / "small" / "results").exists()


def test_one_command_starts_restarts_and_ends(here, capsys, monkeypatch):
    (here / "small.toml").write_text(CONFIG + "[fast.run]\nupdates = 100\n")
    command = ["run", "--checkpoint-every", "30", "--resume", "out", "small.toml", "--fast"]

    def at_once(*args, **kwargs):
        raise KeyboardInterrupt

    def saved(*args, save=checkpoint.save_step, **kwargs):
        path = save(*args, **kwargs)
        signal.raise_signal(signal.SIGTERM)
        return path

    (here / "out" / "checkpoints").mkdir(parents=True)  # of one that was killed at once
    with monkeypatch.context() as patch:
        patch.setattr("online_grads.experiment.drive", at_once)
        assert main(command) == 130
    said = "; go on with: online-grads run --resume out\n"
    assert capsys.readouterr().err == "online-grads: interrupted before anything was saved" + said
    shutil.rmtree(here / "out")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_step", saved)
        assert main(command) == 143
    assert capsys.readouterr().err == "online-grads: interrupted" + said
    assert main(["run", "--resume", "out"]) == 0  # its config has [fast] in it
    written = (here / "out" / "metrics.npz").stat()
    capsys.readouterr()
    for finished in (command, ["run", "--resume", "out"]):
        assert main(finished) == 0
        results = "out: this run is finished; its results are in out/summary.json\n"
        assert capsys.readouterr() == (results, "")
    assert (here / "out" / "metrics.npz").stat() == written
    error = refused(capsys, "run", "--resume", "out", "--set", "run.updates=200")
    assert "out/checkpoints: of another config: run.updates was 100, is 200" in error
