"""The command: what it prints and writes, and how it refuses."""

import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import ESTIMATORS, cli, tasks
from online_grads.bench import Cost
from online_grads.cli import main
from online_grads.report import columns
from tests.commands import refused

CONFIG = """
[task]
name = "influence_balancing"
[run]
updates = 20
precision = "float64"
[optimizer]
name = "sgd"
learning_rate = [1e-4, 1e-5]
[[estimator]]
name = "rtrl"
[[estimator]]
name = "tbptt"
label = "cut"
window = 10
seeds = 2
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def test_run_prints_a_table_and_writes_its_files(here, capsys):
    assert main(["run", "small.toml", "--set", "run.updates=30", "--set", "estimator.1.updates=20"]) == 0
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "estimator"
    assert "loss [½(s₀ − 1)²]" in lines[0]
    assert lines[1].split()[0] == "rtrl"
    assert lines[2].split()[0] == "cut"
    assert any(line.startswith("θ stays at 0.5") and "8 ½" in line for line in lines)
    assert lines[-1] == "written to runs/small"
    folder = here / "runs" / "small"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("curves.pdf", "curves.png", "metrics.npz", "summary.json")
    ]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")

    refuse = lambda name: pytest.fail(f"{name} is no JSON")
    summary = json.loads((folder / "summary.json").read_text(), parse_constant=refuse)
    rtrl, cut = summary["estimators"]["rtrl"], summary["estimators"]["cut"]
    assert rtrl["updates"] == rtrl["steps"] == 30
    assert (cut["updates"], cut["steps"], cut["window"], cut["seeds"]) == (20, 200, 10, 2)
    assert {"loss_first", "loss_last", "diverged", "seconds_per_step", "state_bytes"} <= rtrl.keys()
    assert [score["learning_rate"] for score in rtrl["learning_rates"]] == [1e-4, 1e-5]
    assert summary["config"]["run"] == {"updates": 30, "precision": "float64"}
    assert summary["failure"] is None

    metrics = np.load(folder / "metrics.npz")
    assert metrics["rtrl/loss"].shape == (2, 1, 30)
    assert metrics["cut/step"].tolist() == list(range(10, 201, 10))
    best = [score["learning_rate"] for score in rtrl["learning_rates"]].index(rtrl["learning_rate"])
    np.testing.assert_allclose(rtrl["loss_first"], metrics["rtrl/loss"][best, 0, :3].mean())
    np.testing.assert_allclose(rtrl["loss_last"], metrics["rtrl/loss"][best, 0, -3:].mean())
    np.testing.assert_allclose(len(rtrl["params"]["theta"]), 1)
    assert cut["params"]["theta"][0] == cut["params"]["theta"][1] > 0.5


def test_nothing_is_overwritten(here, capsys):
    (here / "runs" / "small").mkdir(parents=True)
    (here / "runs" / "small" / "mine").write_text("precious")
    assert main(["run", "small.toml", "--set", "run.updates=2"]) == 0
    assert capsys.readouterr().out.endswith("written to runs/small-2\n")
    assert (here / "runs" / "small" / "mine").read_text() == "precious"
    error = refused(capsys, "run", "small.toml", "--out", "runs/small")
    assert "--out runs/small: not empty, and nothing is overwritten" in error
    assert "small.toml" in refused(capsys, "run", "small.toml", "--out", "small.toml")


def test_mistakes_are_one_line_and_leave_nothing(here, capsys):
    assert "the following arguments are required: CONFIG.toml" in refused(capsys, "run")
    assert "unrecognized arguments: --sett" in refused(capsys, "run", "small.toml", "--sett", "a.b=1")
    assert "invalid choice: 'rum'" in refused(capsys, "rum")
    assert "none.toml: No such file" in refused(capsys, "run", "none.toml")
    error = refused(capsys, "run", "small.toml", "--set", "estimator.0.name=rtlr")
    assert "small.toml: estimator.0.name: unknown name 'rtlr'; did you mean 'rtrl'? possible: " in error
    error = refused(capsys, "run", "small.toml", "--set", "estimator.1.history=-1")
    assert "small.toml: estimator.1 (tbptt): history must be at least 0" in error
    assert not list(here.glob("runs/*"))


def test_data_that_are_not_finite_leave_what_was_done(here, capsys, monkeypatch):
    def spoilt(**options):
        task = tasks.influence_balancing(**options)

        def draw(state, length):
            state, (xs, ys) = task.draw(state, length)
            steps = state - length + jnp.arange(length, dtype=jnp.int32)
            return state, (xs, jnp.where(steps == 13, jnp.nan, ys))

        return task._replace(draw=draw)

    monkeypatch.setitem(tasks.TASKS, "influence_balancing", spoilt)
    assert main(["run", "small.toml", "--set", "run.chunk=5", "--out", "out"]) == 1
    out, err = capsys.readouterr()
    assert err == "online-grads: stopped early: rtrl: ys is not finite at step 13 of the stream\n"
    assert "rtrl" in out
    assert "cut" not in out
    summary = json.loads((here / "out" / "summary.json").read_text())
    assert summary["failure"] == "rtrl: ys is not finite at step 13 of the stream"
    assert list(summary["estimators"]) == ["rtrl"]
    assert summary["estimators"]["rtrl"]["steps"] == 10
    assert np.load(here / "out" / "metrics.npz")["rtrl/loss"].shape == (2, 1, 10)
    assert (here / "out" / "curves.png").exists()


def test_a_diverging_estimator_is_reported(here, capsys):
    rates = "optimizer.learning_rate=1e4"
    assert main(["run", "small.toml", "--set", rates, "--set", "run.updates=200", "--out", "out"]) == 0
    out, _ = capsys.readouterr()
    assert "1 of 1" in out
    assert "2 of 2" in out
    cut = json.loads((here / "out" / "summary.json").read_text())["estimators"]["cut"]
    assert cut["diverged"] == 2
    assert cut["loss_last"] is None


FAST = """
[fast.run]
updates = 4
[fast.estimator]
window = 2
[compare]
at = [0, 4]
streams = 2
warmup = 2
steps = 4
keys = 2
[fast.compare]
at = [0]
"""


def test_compare_prints_tables_and_writes_its_files(here, capsys):
    (here / "small.toml").write_text(CONFIG.replace("window = 10", "window = 2") + FAST)
    assert main(["compare", "small.toml", "--set", "compare.lags=2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["estimator", "rtrl", "cut"]
    assert lines[-1] == "written to runs/small-compare"
    drawn = ("alignment_matrix", "alignment_over_training", "bias_variance", "credit_by_lag")
    folder = here / "runs" / "small-compare"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["diagnostics.npz", *(f"{name}.{suffix}" for name in drawn for suffix in ("pdf", "png"))]
    )
    assert (folder / "bias_variance.png").read_bytes().startswith(b"\x89PNG")
    packed = np.load(folder / "diagnostics.npz")
    np.testing.assert_allclose(packed["rtrl/alignment"], 1)
    assert packed["cut/credit"].shape == (2,)
    # the fast variant has one point and no lags; --set wins over it
    assert main(["compare", "small.toml", "--fast", "--out", "out", "--set", "compare.steps=2"]) == 0
    assert "Gradients of 2 steps after 0 steps of training" in capsys.readouterr().out
    assert sorted(path.stem for path in (here / "out").glob("*.png")) == ["alignment_matrix", "bias_variance"]
    error = refused(capsys, "compare", "small.toml", "--out", "out")
    assert "--out out: not empty, and nothing is overwritten" in error


def test_run_in_its_fast_variant(here, capsys):
    (here / "small.toml").write_text(CONFIG + FAST)
    assert main(["run", "small.toml", "--fast", "--set", "run.updates=6"]) == 0
    summary = json.loads((here / "runs" / "small" / "summary.json").read_text())
    assert [(row["updates"], row["window"]) for row in summary["estimators"].values()] == [(6, 2), (6, 2)]
    assert summary["config"]["run"]["fast"] is True


def test_mistakes_in_a_comparison_are_one_line_and_leave_nothing(here, capsys):
    assert "the following arguments are required: CONFIG.toml" in refused(capsys, "compare")
    for item, message in [
        ("compare.key=3", "small.toml: compare.key: unknown key; did you mean 'keys'? "),
        ("compare.by=cot", "small.toml: compare.by: unknown name 'cot'; did you mean 'cut'?"),
        (
            "compare.steps=15",
            "small.toml: compare.steps: cut has a window of 10 steps, which does not divide 15",
        ),
        ("estimator.0.model={leak=0.5}", "small.toml: estimator.0.model: there is no [model] to lay it over"),
        ("estimator.0.order=0", "small.toml: estimator.0.order: unknown key"),
        ("estimator.1.history=-1", "small.toml: estimator.1 (tbptt): history must be at least 0"),
    ]:
        assert message in refused(capsys, "compare", "small.toml", "--set", item)
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize(("command", "work"), [("run", "train"), ("compare", "compare")])
def test_an_interruption_leaves_no_folder_but_those_that_were_there(here, capsys, monkeypatch, command, work):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"online_grads.cli.run.{work}", interrupted)
    (here / "mine").mkdir()
    for out in ([], ["--out", "new"], ["--out", "mine"]):
        assert main([command, "small.toml", *out]) == 130
        assert capsys.readouterr().err == "online-grads: interrupted, nothing written\n"
    assert not list(here.glob("runs/*"))
    assert not (here / "new").exists()
    assert (here / "mine").is_dir()


def test_list_shows_the_registry(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["name", "family", "structure", "noise"]
    assert [line.split()[0] for line in lines[1:]] == list(ESTIMATORS)
    for line, row in zip(lines[1:], ESTIMATORS.values(), strict=True):
        assert all(fact in line for fact in (row.family, row.structure, row.bias, row.time, row.memory))


def test_help_prints_the_schema(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    out, _ = capsys.readouterr()
    assert "[[estimator]]" in out
    assert "learning_rate         a number, or a list" in out
    assert "  text: path" in out


def test_a_missing_extra_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert "tqdm missing: pip install online-grads[run]" in refused(capsys, "run", "small.toml")


def test_the_library_and_the_command_do_without_the_extras():
    code = "import sys, online_grads, online_grads.cli; print({'tqdm', 'matplotlib'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"


def test_python_dash_m():
    shown = subprocess.run(
        [sys.executable, "-m", "online_grads", "list"], capture_output=True, text=True, check=True
    )
    assert "rtrl" in shown.stdout


def test_columns():
    assert columns([("a", "bb"), ("long", "c")]) == ["a     bb", "long   c"]
    assert columns([("a", "bb"), ("long", "c")], right=False) == ["a     bb", "long  c"]
    assert columns([]) == []


def test_bench_prints_a_table_and_saves(here, capsys):
    command = "bench --cell vanilla_rnn --estimators tbptt rtrl --sizes 8 4 6 4 --repeats 1 --save out"
    assert main(command.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head, results, growth, written = out.strip().split("\n\n")
    assert "float32" in head
    assert [line.split()[:3] for line in results.splitlines()[1:]] == [
        ["vanilla_rnn", n, name] for n in "468" for name in ("tbptt", "rtrl")
    ]
    assert len(growth.splitlines()) == 3
    assert written == "written to out"
    read = json.loads((here / "out" / "bench.json").read_text(encoding="utf-8"))
    assert [(row["n"], row["estimator"]) for row in read["rows"]] == [
        (n, name) for n in (4, 6, 8) for name in ("tbptt", "rtrl")
    ]
    assert (here / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "--save out: not empty, and nothing is overwritten" in refused(capsys, *command.split())


@pytest.mark.parametrize("rows", [0, 1])
def test_an_interrupted_bench_keeps_what_it_measured(here, capsys, monkeypatch, rows):
    def costs(*args, **kwargs):
        yield from [Cost("gru", 32, "rtrl", "J·M", 4096, 2e-4, 0.5, 1e-4)][:rows]
        raise KeyboardInterrupt

    monkeypatch.setattr("online_grads.bench.costs", costs)
    assert main("bench --sizes 32 64 --cell gru --estimators rtrl --save out".split()) == 130
    out, err = capsys.readouterr()
    assert f"interrupted after {rows} of 2 rows" in err
    assert ("4 KiB" in out) == (rows == 1)
    assert "written to out" in out
    assert len(json.loads((here / "out" / "bench.json").read_text(encoding="utf-8"))["rows"]) == rows


@pytest.mark.parametrize("stop", [None, KeyboardInterrupt])
def test_a_bench_that_cannot_be_saved_is_still_printed(here, capsys, monkeypatch, stop):
    def costs(*args, **kwargs):
        yield Cost("gru", 32, "rtrl", "J·M", 4096, 2e-4, 0.5, 1e-4)
        if stop is not None:
            raise stop

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("online_grads.bench.costs", costs)
    monkeypatch.setattr("online_grads.bench_report.write", full)
    assert main(["bench", "--save", "out"]) == (2 if stop is None else 130)
    out, err = capsys.readouterr()
    assert "--save out: No space left on device; nothing saved" in err
    assert "4 KiB" in out
    assert "written" not in out
    assert not (here / "out").exists()


def test_bench_prints_what_fits_in_memory(capsys):
    assert main("bench --cell gru --cell lstm --estimators tbptt --memory 1e-6".split()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["gru", "tbptt", "5"], ["lstm", "tbptt", "4"]]


def test_bench_names_mistakes_before_it_begins(here, capsys, monkeypatch):
    monkeypatch.setattr("online_grads.bench.costs", lambda *args, **kwargs: pytest.fail("it began"))
    for arguments, said in [
        ("--cell gruu", "--cell: unknown cell 'gruu'; did you mean 'gru'? possible: alif,"),
        ("--estimators rtlr", "--estimators: unknown estimator 'rtlr'; did you mean 'rtrl'? possible: "),
        ("--sizes 4 0", "--sizes: expected an integer of at least 1, got '0'"),
        ("--sizes 4.5", "--sizes: expected an integer of at least 1, got '4.5'"),
        ("--repeats 0", "--repeats: expected an integer of at least 1, got '0'"),
        ("--window -1", "--window: expected an integer of at least 1, got '-1'"),
        ("--memory 0", "--memory: expected a number of GiB above 0, got '0'"),
        ("--memory nan", "--memory: expected a number of GiB above 0, got 'nan'"),
        ("--limit x", "--limit: expected a number of GiB above 0, got 'x'"),
        ("--memory 1 --save out", "leave one of them out"),
        ("--save small.toml", "small.toml"),
    ]:
        assert said in refused(capsys, "bench", *arguments.split())
    assert not (here / "out").exists()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "matplotlib missing: pip install online-grads[run]" in refused(capsys, "bench", "--save", "out")


@pytest.mark.parametrize("status", [0, 2, 130, 143])
def test_an_interrupted_process_is_not_torn_down(monkeypatch, status):
    class Left(BaseException):
        """Where the process would end."""

    def leave(code):
        raise Left(code)

    monkeypatch.setattr(cli, "main", lambda: status)
    monkeypatch.setattr(cli.os, "_exit", leave)
    with pytest.raises(Left if status >= 130 else SystemExit) as ended:
        cli.entry()
    assert ended.value.args == (status,)
