"""Every estimator of the library, with its place in the taxonomy of Marschall, Cho & Savin (2020)."""

from collections.abc import Callable
from typing import NamedTuple

from online_grads.estimators.future_facing.tbptt import tbptt
from online_grads.estimators.past_facing.rtrl import rtrl
from online_grads.estimators.past_facing.snap import snap
from online_grads.estimators.past_facing.uoro import uoro


class Row(NamedTuple):
    """What a user weighs when choosing an estimator. Costs are per step of a dense cell, k = 1."""

    constructor: Callable  # (model, **options) -> Estimator
    family: str  # past-facing, future-facing or perturbation
    structure: str  # tensor structure of what is carried
    stochastic: bool
    closed_form: bool  # no part of its own is learned
    bias: str  # with frozen parameters
    time: str
    memory: str
    reference: str
    delay: int = 0  # steps by which its gradients come late


ESTIMATORS: dict[str, Row] = {
    "tbptt": Row(
        tbptt, "future-facing", "window", False, True, "truncated", "n² · (1 + history)", "n · (k + history)",
        "Williams & Peng 1990",
    ),
    "rtrl": Row(
        rtrl, "past-facing", "M[n, p]", False, True, "exact", "n² p; n p + n³ at k = n", "n p",
        "Williams & Zipser 1989; Schmidhuber 1992",
    ),
    "snap": Row(
        snap, "past-facing", "M[n, p], masked", False, True, "biased; exact for a large order",
        "p at order 1", "p at order 1", "Menick et al. 2021, arXiv:2006.07232",
    ),
    "uoro": Row(
        uoro, "past-facing", "s[n] θ[p]", True, True, "unbiased", "p", "n + p",
        "Tallec & Ollivier 2017, arXiv:1702.05043",
    ),
}  # fmt: skip
