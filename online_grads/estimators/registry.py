"""Every estimator of the library, with its place in the taxonomy of Marschall, Cho & Savin (2020)."""

from collections.abc import Callable
from typing import NamedTuple

from online_grads.estimators.future_facing.adaptive_tbptt import adaptive_tbptt
from online_grads.estimators.future_facing.artbp import artbp
from online_grads.estimators.future_facing.dni import dni
from online_grads.estimators.future_facing.fbptt import fbptt
from online_grads.estimators.future_facing.tbptt import tbptt
from online_grads.estimators.past_facing.dodge import dodge
from online_grads.estimators.past_facing.eprop import eprop
from online_grads.estimators.past_facing.kernl import kernl
from online_grads.estimators.past_facing.kf_rtrl import kf_rtrl
from online_grads.estimators.past_facing.no_backtrack import no_backtrack
from online_grads.estimators.past_facing.optimal_kronecker import optimal_kronecker
from online_grads.estimators.past_facing.ostl import ostl
from online_grads.estimators.past_facing.reverse_kf_rtrl import reverse_kf_rtrl
from online_grads.estimators.past_facing.rflo import rflo
from online_grads.estimators.past_facing.rtrl import rtrl
from online_grads.estimators.past_facing.snap import snap
from online_grads.estimators.past_facing.uoro import uoro
from online_grads.estimators.perturbation.es import es
from online_grads.estimators.perturbation.es_single import es_single
from online_grads.estimators.perturbation.pes import pes


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
    bound: str  # what its time is measured against, one of `online_grads.bounds.BOUNDS`
    reference: str
    needs: str = "both modes"  # of differentiation, that the transition must offer
    delay: str = "none"  # by how many steps its gradients come late; what is owed, `flush` gives
    by_lag: bool = True  # False for a critic: it adds up all losses to come, so that no lag can be told apart


ESTIMATORS: dict[str, Row] = {
    "tbptt": Row(
        tbptt, "future-facing", "window", False, True, "truncated", "n² · (1 + history)", "n · (k + history)",
        "forward + backward", "Williams & Peng 1990", needs="reverse mode",
    ),
    "adaptive_tbptt": Row(
        adaptive_tbptt, "future-facing", "window", False, False, "truncated to a tolerance",
        "n² · (1 + K)", "n · (k + longest)", "forward + backward",
        "Aicher et al. 2019, arXiv:1905.07473", needs="reverse mode",
    ),
    "fbptt": Row(
        fbptt, "future-facing", "c[T, n]", False, True, "truncated", "n² T", "n T",
        "forward + backward", "Marschall et al. 2020, arXiv:1907.02649", needs="reverse mode",
        delay="horizon − 1",
    ),
    "dni": Row(
        dni, "future-facing", "A[n, features]", False, False, "biased", "n² + p", "n²",
        "forward + backward", "Jaderberg et al. 2017, arXiv:1608.05343", needs="reverse mode",
        by_lag=False,
    ),
    "artbp": Row(
        artbp, "future-facing", "random window", True, True, "unbiased while no cut is forced",
        "n²", "n · longest", "forward + backward", "Tallec & Ollivier 2017, arXiv:1705.08209",
        needs="reverse mode", delay="since the last cut",
    ),
    "rtrl": Row(
        rtrl, "past-facing", "M[n, p]", False, True, "exact", "n² p; n p + n³ at k = n; p on columns",
        "n p; p on columns",
        "J·M", "Williams & Zipser 1989; Schmidhuber 1992",
    ),
    "snap": Row(
        snap, "past-facing", "M[n, p], masked", False, True, "biased; exact for a large order",
        "p at order 1", "p at order 1", "stream", "Menick et al. 2021, arXiv:2006.07232",
    ),
    "ostl": Row(
        ostl, "past-facing", "M[n, p] per layer", False, True, "biased; exact for one layer",
        "Σ n² p of the layers", "Σ n p of the layers", "forward + backward",
        "Bohnstingl et al. 2020, arXiv:2007.12723",
    ),
    "uoro": Row(
        uoro, "past-facing", "s[n] θ[p]", True, True, "unbiased", "p", "n + p",
        "JVP + VJP", "Tallec & Ollivier 2017, arXiv:1702.05043",
    ),
    "no_backtrack": Row(
        no_backtrack, "past-facing", "s[n] θ[p]", True, True, "unbiased", "p", "n + p",
        "JVP + VJP", "Ollivier et al. 2015, arXiv:1507.07680",
    ),
    "kf_rtrl": Row(
        kf_rtrl, "past-facing", "u[pre] B[n, post]", True, True, "unbiased", "n³", "n²",
        "J·B", "Mujika et al. 2018, arXiv:1805.10842",
    ),
    "reverse_kf_rtrl": Row(
        reverse_kf_rtrl, "past-facing", "A[post] B[n, pre]", True, True, "unbiased", "n³", "n²",
        "J·B", "Marschall et al. 2020, arXiv:1907.02649",
    ),
    "optimal_kronecker": Row(
        optimal_kronecker, "past-facing", "Σ_r u[pre] B[n, post]", True, True,
        "unbiased; exact for a large rank", "r n³ + r² n²", "r n²", "J·B",
        "Benzing et al. 2019, arXiv:1902.03993",
    ),
    "dodge": Row(
        dodge, "past-facing", "(M u)[d, n] u[d, p]", True, True, "unbiased", "d p", "d (n + p)",
        "JVP + VJP", "Silver et al. 2022, ICLR",
    ),
    "eprop": Row(
        eprop, "past-facing", "B[p]", False, True, "biased; exact for many hops",
        "p at 0 hops", "p at 0 hops", "stream", "Bellec et al. 2020, Nat. Commun. 11:3625",
    ),
    "rflo": Row(
        rflo, "past-facing", "B[p]", False, True, "biased", "p", "p", "stream", "Murray 2019, eLife 8:e43299",
    ),
    "kernl": Row(
        kernl, "past-facing", "A[n, n] B[p]", True, False, "biased", "n² + p", "n² + p",
        "stream", "Roth et al. 2019, ICLR",
    ),
    "es": Row(
        es, "perturbation", "—", True, True, "truncated, smoothed", "N p", "n",
        "forward passes", "Metz et al. 2019, arXiv:1810.10180", needs="nothing",
    ),
    "pes": Row(
        pes, "perturbation", "h[2N, n] ξ[N, p]", True, True, "unbiased, smoothed", "N p", "N (n + p)",
        "forward passes", "Vicol et al. 2021, arXiv:2112.13835", needs="nothing",
    ),
    "es_single": Row(
        es_single, "perturbation", "h[2N, n] ε[N, p]", True, True, "unbiased, smoothed", "N p", "N (n + p)",
        "forward passes", "Vicol 2023, arXiv:2304.11153", needs="nothing",
    ),
}  # fmt: skip
