"""Every test runs in float64, and no shape or dtype is promoted silently."""

import atexit
import gc
import os
import shutil
import signal
import tempfile
from importlib.metadata import version

# The programs are tiny and most of the suite's time is their compilation: leave machine code unoptimised and
# in one piece, and where XLA still has its older emitters, which compile in half the time, use those.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if [*map(int, version("jaxlib").split(".")[:2])] <= [0, 10]
        else ""
    )
)
# What one process compiled the others read: workers, command lines and notebooks inherit these.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    os.environ |= {
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }

# A shell lets what it runs in the background ignore Ctrl-C, which children inherit; tests of signals send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# nobody reads from which lines of Python a program came
jax.config.update("jax_traceback_in_locations_limit", 0)


def pytest_addoption(parser):
    parser.addoption(
        "--keys", type=int, default=20_000, help="random keys of a test of unbiasedness; 100_000 in full"
    )


def pytest_configure(config):
    # an entry that another process is just writing; it is compiled then
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache:UserWarning")


def pytest_collection_finish():
    """What there is by now stays: the garbage collector need not look through it again and again."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker gets neighbouring tests, which share what they compiled, until the other has none left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.option.dist == "load" else None


@pytest.fixture(autouse=True, scope="module")
def forgotten_programs():
    """One file's programs are of no use to the next; thousands would exhaust the process's memory maps."""
    yield
    jax.clear_caches()


@pytest.fixture
def handled():
    """SIGTERM is noted, in place of ending the process."""
    noted = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: noted.append(number))
    yield noted
    signal.signal(signal.SIGTERM, before)
