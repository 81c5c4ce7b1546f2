"""The README says what the code does."""

import doctest
import re
from pathlib import Path

import jax

from online_grads import ESTIMATORS
from online_grads.assembly import x64

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run_and_the_quickstart_is_short():
    text = README.read_text(encoding="utf-8").split("## Quickstart")[1].split("\n## ")[0]
    assert len(re.findall(r"^(?:>>>|\.\.\.) ", text, re.MULTILINE)) < 25
    # a user's own script, without the tests' strictness
    with x64(False), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        result = doctest.testfile(str(README), module_relative=False)
    assert result.attempted > 30
    assert result.failed == 0


def test_the_estimator_table_is_the_registry():
    text = README.read_text(encoding="utf-8").split("<!-- estimators -->")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()[2:]]
    assert rows == [
        [
            f"`{name}`",
            row.family,
            row.structure,
            "yes" if row.stochastic else "no",
            row.bias,
            row.time,
            row.memory,
        ]
        for name, row in ESTIMATORS.items()
    ]


def test_every_config_is_listed():
    text = README.read_text(encoding="utf-8").split("## The command line")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(configs/\w+\.toml)` \|", text, re.MULTILINE)
    root = README.parent
    assert sorted(listed) == sorted(str(path.relative_to(root)) for path in (root / "configs").glob("*.toml"))
