"""Strict for every test: no implicit rank promotion, and shapes of `rljax.math` checked by jaxtyping."""

import os
from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# For modules imported after it, so before any test imports them; only tests pay for the checks.
install_import_hook("rljax.math", "beartype.beartype")


def pytest_configure(config: pytest.Config) -> None:
    """Most tests compile more than they compute: XLA optimises little, in their subprocesses too. Learning
    runs, `-m slow`, are compiled as a user's are.
    """
    if config.option.markexpr != "slow":
        jax.config.update("jax_disable_most_optimizations", True)
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"


@pytest.fixture(scope="module", autouse=True)
def fresh_caches() -> Iterator[None]:
    """Compiled programs of one test file do not pile up in the memory of the next."""
    yield
    jax.clear_caches()
