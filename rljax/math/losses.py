"""Per-step losses over arrays of any one shape of steps; which mean is taken is visible at the call site.

Log-probabilities are natural logarithms of probabilities or densities. Gradients flow through `log_prob` and
`value` and through everything else as well: advantages, targets and old quantities are constants because the
caller computed them outside the differentiated function (or wrapped them in `stop_gradient`), not because of
anything here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from rljax.math.masked import masked_mean


def policy_gradient(log_prob: Float[Array, "*S"], advantage: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """−log π(a|s) A: its gradient is minus the policy gradient (Williams 1992; Sutton et al. 2000).

    REINFORCE where the advantage is a return, A2C where it is `gae`.
    """
    return -log_prob * advantage


def surrogate(
    log_prob: Float[Array, "*S"], log_prob_old: Float[Array, "*S"], advantage: Float[Array, "*S"]
) -> Float[Array, "*S"]:
    """−ρ A with ρ = exp(log_prob − log_prob_old), the importance-weighted objective of TRPO (Schulman et al.
    2015, eq. 14). At ρ = 1 the gradient is that of `policy_gradient`.
    """
    return -jnp.exp(log_prob - log_prob_old) * advantage


def clipped_surrogate(
    log_prob: Float[Array, "*S"],
    log_prob_old: Float[Array, "*S"],
    advantage: Float[Array, "*S"],
    clip: float | Float[Array, ""],
    clip_high: float | Float[Array, ""] | None = None,
    dual_clip: float | Float[Array, ""] | None = None,
) -> Float[Array, "*S"]:
    """−min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) with ρ = exp(log_prob − log_prob_old).

    The clipped objective of PPO (Schulman et al. 2017, eq. 7), ε = clip. `clip_high` is the separate upper
    bound of DAPO (Yu et al. 2025), ε itself where None. At ρ = 1 the gradient is that of `policy_gradient`.
    ρ overflows where log_prob exceeds log_prob_old by more than 88 in float32, and NaN follows.

    `dual_clip` c bounds the loss of a bad action, −max(min(…), c A) where A < 0, so that an action that has
    become much likelier pulls no further than c |A| (dual-clip PPO, Ye et al. 2020; c > 1 + ε_high). It
    is `clip_ratio_c` in verl, 3 by default, and `delta` in TRL.
    """
    ratio = jnp.exp(log_prob - log_prob_old)
    clipped = jnp.clip(ratio, 1 - clip, 1 + (clip if clip_high is None else clip_high))
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    # where A > 0 the loss is negative and the bound does nothing
    return loss if dual_clip is None else jnp.minimum(loss, dual_clip * jnp.abs(advantage))


def without_gradient(
    ratio: Float[Array, "*S"],
    advantage: Float[Array, "*S"],
    clip: float | Float[Array, ""],
    clip_high: float | Float[Array, ""] | None = None,
    dual_clip: float | Float[Array, ""] | None = None,
) -> Bool[Array, "*S"]:
    """Where `clipped_surrogate` with these arguments cuts the gradient off: ρ has left its interval on the
    side to which A drives it, or with A < 0 is above `dual_clip`. Its mean is the fraction that is clipped.
    """
    high = 1 + (clip if clip_high is None else clip_high)
    bad = ratio < 1 - clip
    if dual_clip is not None:
        bad |= ratio > dual_clip
    return jnp.where(advantage > 0, ratio > high, (advantage < 0) & bad)


def cispo(
    log_prob: Float[Array, "*S"],
    log_prob_old: Float[Array, "*S"],
    advantage: Float[Array, "*S"],
    clip_high: float | Float[Array, ""],
    clip_low: float | Float[Array, ""] | None = None,
) -> Float[Array, "*S"]:
    """−w A log_prob with the constant w = clip(ρ, 1 − ε_low, 1 + ε_high), ρ = exp(log_prob − log_prob_old).

    The policy gradient with a bounded importance weight: no token loses its gradient to the clip (CISPO,
    MiniMax 2025, arXiv:2506.13585). No lower bound where `clip_low` is None, as in the paper's experiments.
    TRL's `epsilon_high` is the bound itself, 1 + ours. At ρ = 1 it is `policy_gradient`.
    """
    low = 0.0 if clip_low is None else 1 - clip_low
    weight = jnp.clip(jnp.exp(log_prob - log_prob_old), low, 1 + clip_high)
    return policy_gradient(log_prob, jax.lax.stop_gradient(weight) * advantage)


def sequence_log_ratio(
    log_prob: Float[Array, "T"], log_prob_old: Float[Array, "T"], mask: Bool[Array, "T"]
) -> Float[Array, "T"]:
    """The mean of log_prob − log_prob_old over the mask, at every place; 0 where nothing is kept.

    The logarithm of GSPO's ratio of one sequence (Zheng et al. 2025, arXiv:2507.18071): give it to
    `clipped_surrogate` as `log_prob`, zeros as `log_prob_old`, and a clip of about 3e-4.
    """
    return jnp.broadcast_to(masked_mean(log_prob - log_prob_old, mask), log_prob.shape)


def value_loss(value: Float[Array, "*S"], target: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """½ (v − target)², in squared units of the return; its gradient in v is the error v − target."""
    return 0.5 * jnp.square(value - target)


def clipped_value_loss(
    value: Float[Array, "*S"],
    value_old: Float[Array, "*S"],
    target: Float[Array, "*S"],
    clip: float | Float[Array, ""],
) -> Float[Array, "*S"]:
    """½ max((v − target)², (v_old + clip(v − v_old, ±ε) − target)²) with ε = clip, in units of the return.

    The value loss of OpenAI's baselines ppo2, not in the PPO paper (Huang et al. 2022, detail 9). It is
    `value_loss` while |v − v_old| ≤ ε, and its gradient vanishes where v has moved further than ε towards
    the target.
    """
    near = value_old + jnp.clip(value - value_old, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(near - target))


VALUE_LOSSES: dict[str, Callable[..., Array]] = {  # (value, value_old, target, clip) -> loss
    "plain": lambda value, old, target, clip: value_loss(value, target),
    "clipped": clipped_value_loss,
}


def cross_entropy(
    logits: Float[Array, "*S V"],
    target: Int[Array, "*S"],
    smoothing: float | Float[Array, ""] = 0.0,
    z_loss: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*S"]:
    """log Z − z_target with log Z = log Σ exp z, the negative log-likelihood of each target in nats.

    `smoothing` ε puts ε of the target's weight on all classes alike (Szegedy et al. 2016, arXiv:1512.00567,
    section 7). `z_loss` adds z_loss · (log Z)², which keeps the logits from drifting (Chowdhery et al. 2022,
    arXiv:2204.02311, section 5). Logits must be finite where ε > 0. A target outside 0 .. V − 1 gives log Z,
    for a mask to leave out.
    """
    log_z = jax.nn.logsumexp(logits, axis=-1)
    index = jax.lax.broadcasted_iota(target.dtype, logits.shape, logits.ndim - 1)
    # a comparison, not a gather, whose backward pass would be a scatter
    chosen = jnp.sum(jnp.where(index == target[..., None], logits, 0), axis=-1)
    if not _is_zero(smoothing):
        chosen = (1 - smoothing) * chosen + smoothing * jnp.mean(logits, axis=-1)
    return log_z - chosen if _is_zero(z_loss) else log_z - chosen + z_loss * jnp.square(log_z)


def _is_zero(coefficient: float | Array) -> bool:
    """A coefficient known to be 0 costs no pass over the classes; a traced one does."""
    return not isinstance(coefficient, jax.Array) and coefficient == 0
