"""Strict for every test: no implicit rank promotion, and shapes of `rljax.math` checked by jaxtyping.

Most tests compile more than they compute, so XLA is told to be quick about it, and what it compiled is kept
between runs (`rljax.backend`). `--dist loadfile` gives each file to one worker, so that what its tests share
is compiled once.
"""

import gc
import os
import resource
import sys
from collections.abc import Iterator
from importlib.metadata import version

# Before JAX starts, and for subprocesses too.
QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"  # jaxlib 0.10's own
WORKER = "PYTEST_XDIST_WORKER" in os.environ  # it inherits what its parent has set
ASKED = "slow" in sys.argv or "fusion_emitters" in os.environ.get("XLA_FLAGS", "")
if version("jaxlib").startswith("0.10.") and not WORKER and not ASKED:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}".strip()

import rljax  # noqa: E402, F401, I001  (its settings come before JAX)
import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Tracing makes many objects and few cycles: with Python's thresholds 18 % of the time went into looking for
# them. The oldest are looked through after a file, where memory asks for it.
gc.set_threshold(100_000, 50, 1_000)
MEMORY = 3 * 2**20  # KiB of a worker, above which compiled programs of earlier files are let go

jax.config.update("jax_numpy_rank_promotion", "raise")
# For modules imported after it, so before any test imports them; only tests pay for the checks.
install_import_hook("rljax.math", "beartype.beartype")


LONGEST = (
    *("test_contract", "test_fields", "test_readme", "test_probes"),
    *("test_backend", "test_preferences", "test_generate"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker waits for the other at the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    """Learning runs, `-m slow`, are compiled as a user's are."""
    if config.option.markexpr != "slow":
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    elif config.option.timeout is None:
        config.option.timeout = 1800  # seconds


@pytest.fixture(scope="module", autouse=True)
def fresh_caches() -> Iterator[None]:
    """Compiled programs of a test file do not pile up in the memory of those that follow."""
    yield
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def optimized(request: pytest.FixtureRequest) -> Iterator[None]:
    """Files marked so run longer than they compile, and are compiled as a user's programs are."""
    if not request.node.get_closest_marker("optimized"):
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
