"""Networks in tests."""

import jax

from rljax.types import Network


def compiled(network: Network) -> Network:
    """The network with its functions compiled whole: a program for each, not for each of their operations."""
    return Network(jax.jit(network.init), jax.jit(network.apply))
