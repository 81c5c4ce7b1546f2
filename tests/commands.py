"""What tests of the command line share: a small config, how the command refuses, what it leaves behind."""

import json
from pathlib import Path

import numpy as np

from online_grads.cli import main

CONFIG = """
[task]
name = "influence_balancing"
[run]
updates = 4000
chunk = 20
[optimizer]
name = "sgd"
learning_rate = 1e-5
[[estimator]]
name = "tbptt"
"""
SMALL = ["small.toml", "--set", "run.updates=100"]


def refused(capsys, *arguments):
    """The one line on stderr with which the command refuses."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("online-grads: ")
    assert err.count("\n") == 1
    return err


def equal_results(one: Path, other: Path):
    """Bitwise, but for times."""
    with np.load(one / "metrics.npz") as mine, np.load(other / "metrics.npz") as its:
        assert mine.files == its.files
        for name in mine.files:
            assert mine[name].dtype == its[name].dtype
            np.testing.assert_array_equal(mine[name], its[name])
    said = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for each in said:
        for row in each["estimators"].values():
            del row["seconds_per_step"], row["compile_seconds"]
    assert said[0] == said[1]
