"""Tasks as pure streams that the compiled program draws for itself."""

from collections.abc import Callable

from online_grads.tasks.add import AddState, add
from online_grads.tasks.anbn import anbn
from online_grads.tasks.columnar_alignment import AlignmentState, columnar_alignment
from online_grads.tasks.copy import CopyState, Recall, copy
from online_grads.tasks.distant_brackets import distant_brackets
from online_grads.tasks.influence_balancing import influence_balancing
from online_grads.tasks.mimic import MimicState, mimic
from online_grads.tasks.pattern_generation import PatternState, pattern_generation
from online_grads.tasks.series import series
from online_grads.tasks.text import text
from online_grads.tasks.trace_conditioning import trace_conditioning
from online_grads.tasks.trace_patterning import trace_patterning
from online_grads.tasks.tracking import TrackingState, tracking
from online_grads.tasks.trials import TrialState
from online_grads.tasks.types import Task

# name -> constructor (**options), for configuration files
TASKS: dict[str, Callable[..., Task]] = {
    "add": add,
    "anbn": anbn,
    "columnar_alignment": columnar_alignment,
    "copy": copy,
    "distant_brackets": distant_brackets,
    "influence_balancing": influence_balancing,
    "mimic": mimic,
    "pattern_generation": pattern_generation,
    "series": series,
    "text": text,
    "trace_conditioning": trace_conditioning,
    "trace_patterning": trace_patterning,
    "tracking": tracking,
}

__all__ = [
    "TASKS",
    "AddState",
    "AlignmentState",
    "CopyState",
    "MimicState",
    "PatternState",
    "Recall",
    "Task",
    "TrackingState",
    "TrialState",
    "add",
    "anbn",
    "columnar_alignment",
    "copy",
    "distant_brackets",
    "influence_balancing",
    "mimic",
    "pattern_generation",
    "series",
    "text",
    "trace_conditioning",
    "trace_patterning",
    "tracking",
]
