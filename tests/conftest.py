"""Strict for every test: no implicit rank promotion, and shapes of `rljax.math` checked by jaxtyping."""

from collections.abc import Iterator

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# For modules imported after it, so before any test imports them; only tests pay for the checks.
install_import_hook("rljax.math", "beartype.beartype")


@pytest.fixture(scope="module", autouse=True)
def fresh_caches() -> Iterator[None]:
    """Compiled programs of one test file do not pile up in the memory of the next."""
    yield
    jax.clear_caches()
