"""`online-grads list`: the estimators of the registry."""

import argparse

from online_grads import report
from online_grads.estimators.registry import ESTIMATORS


def add(commands) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser("list", help="list the estimators")
    parser.set_defaults(command=_list)


def _list(arguments: argparse.Namespace) -> int:
    header = "name family structure noise update bias time memory needs delay reference"
    rows = [tuple(header.split())]
    for name, row in ESTIMATORS.items():
        kinds = ("random" if row.stochastic else "none", "closed form" if row.closed_form else "numerical")
        costs = (row.time, row.memory, row.needs, row.delay)
        rows.append((name, row.family, row.structure, *kinds, row.bias, *costs, row.reference))
    print("\n".join(report.columns(rows, right=False)))
    return 0
