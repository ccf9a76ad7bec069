"""Control problems behind one `Env`: Gymnax by id, a user's own, wrappers, probes and MDPs of known value."""

from rljax.envs import probes, tabular, wrappers
from rljax.envs.gymnax import from_gymnax, make, names
from rljax.envs.kinds import kinds

__all__ = ["from_gymnax", "kinds", "make", "names", "probes", "tabular", "wrappers"]
