"""What a config is once it is read and checked: a frozen dataclass for each of its tables."""

from dataclasses import dataclass, field
from typing import Any

from online_grads.optimizers import OptimizerConfig


@dataclass(frozen=True)
class TaskConfig:
    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    cell: str
    hidden: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    seeds: int
    seed: int
    precision: str
    axis: str
    chunk: int
    only: tuple[str, ...]
    fast: bool


@dataclass(frozen=True)
class EstimatorConfig:
    name: str
    label: str
    window: int
    steps: int
    seeds: int
    optimizer: OptimizerConfig
    options: dict[str, Any]
    frozen: tuple[str, ...] = ()  # parameters that are not trained
    model: dict[str, Any] = field(default_factory=dict)  # cell options in place of [model]'s
    feedback: str | None = None  # None where the estimator takes none
    inner_optimizer: OptimizerConfig | None = None
    jacobian_optimizer: OptimizerConfig | None = None
    index: int = 0  # its place in the file


@dataclass(frozen=True)
class CompareConfig:
    by: str
    at: tuple[int, ...]
    streams: int
    keys: int
    warmup: int
    steps: int
    lags: int


@dataclass(frozen=True)
class Config:
    task: TaskConfig
    model: ModelConfig | None
    run: RunConfig
    estimators: tuple[EstimatorConfig, ...]
    compare: CompareConfig
    source: str  # what error messages call it
    tables: dict[str, Any]  # as read, overrides applied
