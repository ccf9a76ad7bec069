"""Networks: Flax modules behind `Network`, the one thing that an algorithm sees."""

from rljax.models.actor_critic import actor_critic, from_linen, from_nnx
from rljax.models.heads import Head, policy_head
from rljax.models.layers import ACTIVATIONS, CNN, MLP, Dense, orthogonal
from rljax.models.observations import normalizer

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "Dense",
    "Head",
    "actor_critic",
    "from_linen",
    "from_nnx",
    "normalizer",
    "orthogonal",
    "policy_head",
]
