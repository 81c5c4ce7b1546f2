"""Online gradient estimators for recurrent computation, as pure (init, update) pairs over pytrees."""

from online_grads import (
    adapters,
    cells,
    checkpoint,
    control,
    diagnostics,
    logs,
    losses,
    meta,
    plots,
    readouts,
    tasks,
    td,
)
from online_grads.estimators import feedback
from online_grads.estimators.future_facing.adaptive_tbptt import adaptive_tbptt
from online_grads.estimators.future_facing.artbp import artbp
from online_grads.estimators.future_facing.dni import dni
from online_grads.estimators.future_facing.fbptt import fbptt
from online_grads.estimators.future_facing.tbptt import TbpttState, tbptt
from online_grads.estimators.past_facing.base import Influence, PastFacingState, past_facing
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
from online_grads.estimators.perturbation.es_single import es_single, nres
from online_grads.estimators.perturbation.pes import pes
from online_grads.estimators.registry import ESTIMATORS
from online_grads.estimators.transforms import averaged, batched, hidden_of
from online_grads.fptt import FpttState, fptt, fptt_restart
from online_grads.learned import learned
from online_grads.learner import gradient, learner, memory, scan
from online_grads.loop import DataError, StreamError
from online_grads.model import from_cell, with_resets
from online_grads.run import run
from online_grads.sharding import sharded
from online_grads.signals import Interrupted, deferred
from online_grads.stepper import Latency, stepper
from online_grads.sweep import sweep
from online_grads.types import Estimate, Estimator, Learner, LearnerState, Metrics, Model

__all__ = [
    "ESTIMATORS",
    "DataError",
    "Estimate",
    "Estimator",
    "FpttState",
    "Influence",
    "Interrupted",
    "Latency",
    "Learner",
    "LearnerState",
    "Metrics",
    "Model",
    "PastFacingState",
    "StreamError",
    "TbpttState",
    "adapters",
    "adaptive_tbptt",
    "artbp",
    "averaged",
    "batched",
    "cells",
    "checkpoint",
    "control",
    "deferred",
    "diagnostics",
    "dni",
    "dodge",
    "eprop",
    "es",
    "es_single",
    "fbptt",
    "feedback",
    "fptt",
    "fptt_restart",
    "from_cell",
    "gradient",
    "hidden_of",
    "kernl",
    "kf_rtrl",
    "learned",
    "learner",
    "logs",
    "losses",
    "memory",
    "meta",
    "no_backtrack",
    "nres",
    "optimal_kronecker",
    "ostl",
    "past_facing",
    "pes",
    "plots",
    "readouts",
    "reverse_kf_rtrl",
    "rflo",
    "rtrl",
    "run",
    "scan",
    "sharded",
    "snap",
    "stepper",
    "sweep",
    "tasks",
    "tbptt",
    "td",
    "uoro",
    "with_resets",
]
