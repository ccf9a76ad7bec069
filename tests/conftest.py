"""Strict for every test: no implicit rank promotion, and shapes of `rljax.math` checked by jaxtyping."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")
# For modules imported after it, so before any test imports them; only tests pay for the checks.
install_import_hook("rljax.math", "beartype.beartype")
