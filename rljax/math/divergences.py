"""Estimators of KL(p ‖ q) from the log-probabilities of one sample x ~ p (Schulman 2020, "Approximating KL
divergence"), elementwise over arrays of any one shape, in nats.

With d = log p(x) − log q(x), p the sampled policy and q the reference:

          estimate        value             gradient in p's parameters of the mean over fixed x ~ p
    k1    d               unbiased          0 in expectation: never a loss
    k2    ½ d²            biased, O(d³)     unbiased for ∇KL(p ‖ q)
    k3    exp(−d) − 1 + d unbiased, ≥ 0     unbiased for ∇KL(q ‖ p), the reverse

(Tang & Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL".) k3 is unbiased only if
p > 0 wherever q > 0. So: report k3, penalise a loss with k2, subtract k1 from a reward. Where x comes from
an older policy than p, weight each term by the ratio p / p_old.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def k1(log_prob: Float[Array, "*S"], log_prob_reference: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """d = log p − log q: unbiased, of either sign, of high variance; the per-token penalty in a reward."""
    return log_prob - log_prob_reference


def k2(log_prob: Float[Array, "*S"], log_prob_reference: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """½ (log p − log q)²: biased as a value, but its gradient is unbiased for that of KL(p ‖ q)."""
    return 0.5 * jnp.square(log_prob - log_prob_reference)


def k3(log_prob: Float[Array, "*S"], log_prob_reference: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """q/p − 1 − log(q/p): unbiased, never negative, of low variance while p ≈ q; the penalty of GRPO.

    Grows like q/p where p has lost a sample that q likes, and overflows beyond a log-ratio of 88 in float32.
    """
    log_ratio = log_prob_reference - log_prob
    return jnp.expm1(log_ratio) - log_ratio
