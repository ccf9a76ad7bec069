"""Networks: Flax modules behind `Network`, the one thing that an algorithm sees."""

from rljax.models import contract
from rljax.models.actor_critic import actor_critic, from_linen, from_nnx
from rljax.models.continuous import (
    ActorCritic,
    critic,
    deterministic_actor,
    ensemble,
    gaussian_actor,
    noisy_policy,
)
from rljax.models.heads import Head, continuous_actions, discrete_actions, policy_head
from rljax.models.layers import ACTIVATIONS, CNN, MLP, Dense, orthogonal
from rljax.models.observations import normalizer
from rljax.models.q_networks import implicit_quantile_network, q_network, q_policy
from rljax.models.token_actor_critic import token_actor_critic

__all__ = [
    "ACTIVATIONS",
    "CNN",
    "MLP",
    "ActorCritic",
    "Dense",
    "Head",
    "actor_critic",
    "continuous_actions",
    "contract",
    "critic",
    "deterministic_actor",
    "discrete_actions",
    "ensemble",
    "from_linen",
    "from_nnx",
    "gaussian_actor",
    "implicit_quantile_network",
    "noisy_policy",
    "normalizer",
    "orthogonal",
    "policy_head",
    "q_network",
    "q_policy",
    "token_actor_critic",
]
