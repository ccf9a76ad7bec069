"""Control problems behind one `Env`: Gymnax by id, a user's own, wrappers, and probes with known answers."""

from rljax.envs import probes, wrappers
from rljax.envs.gymnax import from_gymnax, make, names

__all__ = ["from_gymnax", "make", "names", "probes", "wrappers"]
