"""Tasks as pure streams that the compiled program draws for itself."""

from collections.abc import Callable

from online_grads.tasks.add import AddState, add
from online_grads.tasks.influence_balancing import influence_balancing
from online_grads.tasks.text import text
from online_grads.tasks.types import Task

# name -> constructor (**options), for configuration files
TASKS: dict[str, Callable[..., Task]] = {"add": add, "influence_balancing": influence_balancing, "text": text}

__all__ = ["TASKS", "AddState", "Task", "add", "influence_balancing", "text"]
