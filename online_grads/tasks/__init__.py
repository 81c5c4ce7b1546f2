"""Tasks as pure streams that the compiled program draws for itself."""

from collections.abc import Callable

from online_grads.tasks.add import AddState, add
from online_grads.tasks.anbn import anbn
from online_grads.tasks.distant_brackets import distant_brackets
from online_grads.tasks.influence_balancing import influence_balancing
from online_grads.tasks.mimic import MimicState, mimic
from online_grads.tasks.text import text
from online_grads.tasks.types import Task

# name -> constructor (**options), for configuration files
TASKS: dict[str, Callable[..., Task]] = {
    "add": add,
    "anbn": anbn,
    "distant_brackets": distant_brackets,
    "influence_balancing": influence_balancing,
    "mimic": mimic,
    "text": text,
}

__all__ = [
    "TASKS",
    "AddState",
    "MimicState",
    "Task",
    "add",
    "anbn",
    "distant_brackets",
    "influence_balancing",
    "mimic",
    "text",
]
