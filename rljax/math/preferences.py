"""Losses of human preferences: one value per comparison, from scores or from log-probabilities.

Nothing is averaged here. A weight per label, for annotators of different reliability, is a factor at the call
site. Scores are logits of the Bradley–Terry model: a difference of 1 means odds of e : 1. Log-probabilities
are in nats, sums over the tokens of a completion unless a function asks for means. β, margins and weights may
be traced.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Scalar = float | Float[Array, ""]


def bradley_terry(
    chosen: Float[Array, "*S"],
    rejected: Float[Array, "*S"],
    margin: Scalar | Float[Array, "*S"] = 0.0,
) -> Float[Array, "*S"]:
    """−log σ(chosen − rejected − margin), the loss of a reward model (Bradley & Terry 1952).

    `margin` asks for a distance, larger where the annotator was surer (Touvron et al. 2023, section 3.2.2).
    """
    return -jax.nn.log_sigmoid(chosen - rejected - margin)


def choice(scores: Float[Array, "*S K"], margin: Scalar | Float[Array, "*S"] = 0.0) -> Float[Array, "*S"]:
    """−log softmax(scores)₀: the first of K completions was preferred to the others, whose scores count
    `margin` more.

    The reward model's loss of Ziegler et al. 2019, eq. 1. K = 2 is `bradley_terry`. A score of −∞ stands for
    a completion that was not shown.
    """
    others = scores[..., 1:] + jnp.broadcast_to(margin, scores.shape[:-1])[..., None]
    whole = jnp.concatenate([scores[..., :1], others], axis=-1)
    return jax.nn.logsumexp(whole, axis=-1) - scores[..., 0]


def centring(scores: Float[Array, "*S K"]) -> Float[Array, "*S"]:
    """(Σₖ scores)²: keeps the scores near 0, which no comparison does.

    Eisenstein et al. 2023, arXiv:2312.09244; K = 2 is what TRL's `center_rewards_coefficient` multiplies.
    """
    return jnp.square(jnp.sum(scores, axis=-1))


def dpo(difference: Float[Array, "*S"], beta: Scalar, label_smoothing: Scalar = 0.0) -> Float[Array, "*S"]:
    """−(1 − ε) log σ(β Δ) − ε log σ(−β Δ) with ε = label_smoothing (Rafailov et al. 2023, eq. 7).

    `difference` Δ = [log π(c) − log π_ref(c)] − [log π(r) − log π_ref(r)] of the chosen c and the rejected r.
    ε is the probability that a label is the wrong way round (Mitchell 2023, the conservative form).
    """
    logits = beta * difference
    right, wrong = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(1 - label_smoothing) * right - label_smoothing * wrong


def hinge(difference: Float[Array, "*S"], beta: Scalar) -> Float[Array, "*S"]:
    """max(0, 1 − β Δ), Δ as in `dpo`: no gradient beyond the margin (Zhao et al. 2023, SLiC)."""
    return jax.nn.relu(1 - beta * difference)


def ipo(difference: Float[Array, "*S"], beta: Scalar) -> Float[Array, "*S"]:
    """(Δ − 1/(2β))²: a target for Δ instead of an urge to grow (Azar et al. 2023, eq. 17, their τ is β).

    Δ as in `dpo`, of sums in the paper; TRL takes means over the tokens, which the caller may pass as well.
    """
    return jnp.square(difference - 1 / (2 * beta))


def simpo(difference: Float[Array, "*S"], beta: Scalar, margin: Scalar) -> Float[Array, "*S"]:
    """−log σ(β Δ − γ) with γ = margin, in logits (Meng et al. 2024, eq. 6).

    Here Δ = mean log π(c) − mean log π(r), means over the tokens, and there is no reference model.
    """
    return -jax.nn.log_sigmoid(beta * difference - margin)


def _log_odds(log_prob: Array) -> Array:
    """log p/(1 − p) of log p. Beyond the square of the precision p is 1, where the odds would be infinite."""
    log_prob = jnp.minimum(log_prob, -(jnp.finfo(log_prob.dtype).eps ** 2))
    return log_prob - jnp.log(-jnp.expm1(log_prob))


def orpo(chosen: Float[Array, "*S"], rejected: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """−log σ(log odds(chosen) − log odds(rejected)) with odds = p/(1 − p) (Hong et al. 2024, eq. 7).

    `chosen` and `rejected` are means of log-probabilities over the tokens. This is the preference term alone:
    add it, times λ, to the negative log-likelihood of the chosen completion. Finite up to p = 1, where its
    gradient is 0.
    """
    return -jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def kto(
    log_ratio: Float[Array, "*S"],
    desirable: Bool[Array, "*S"],
    kl: Scalar,
    beta: Scalar,
    desirable_weight: Scalar = 1.0,
    undesirable_weight: Scalar = 1.0,
) -> Float[Array, "*S"]:
    """λ_D (1 − σ(β (r − z))) where desirable, else λ_U (1 − σ(β (z − r))) (Ethayarajh et al. 2024, eq. 7).

    One completion each, no pairs. `log_ratio` r = log π(y) − log π_ref(y). `kl` is the reference point z, an
    estimate of KL(π ‖ π_ref): the caller takes it from mismatched pairs, clamps it at 0 and stops its
    gradient.
    """
    gain = jnp.where(desirable, log_ratio - kl, kl - log_ratio)
    return jnp.where(desirable, desirable_weight, undesirable_weight) * jax.nn.sigmoid(-beta * gain)
