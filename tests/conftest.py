"""Every test runs in float64, and no shape or dtype is promoted silently."""

import os
from importlib.metadata import version

# The programs are tiny and most of the suite's time is their compilation: leave machine code unoptimised, and
# where XLA still has its older emitters, which compile in half the time, use those.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if [*map(int, version("jaxlib").split(".")[:2])] <= [0, 10]
        else ""
    )
)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def pytest_addoption(parser):
    parser.addoption(
        "--keys", type=int, default=20_000, help="random keys of a test of unbiasedness; 100_000 in full"
    )


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """One file's programs are of no use to the next; thousands would exhaust the process's memory maps."""
    yield
    jax.clear_caches()
