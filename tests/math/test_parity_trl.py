"""TRL's own loss code as an oracle (read at 1.16), values and gradients, where `trl` is installed.

Its losses are methods of trainers, but they ask little of `self`: a namespace with the fields that they read
stands in for a trainer, and a function that returns the log-probabilities for a model.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math import groups, losses, preferences
from rljax.math.aggregation import AGGREGATIONS
from rljax.math.divergences import k3

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # their imports warn; what they compute is what counts here
    warnings.simplefilter("ignore")
    pytest.importorskip("trl")
    from trl import DPOTrainer, GRPOTrainer, KTOTrainer
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer
    from trl.trainer.utils import nanstd

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
B, T = 6, 9
rng = np.random.default_rng(0)
LENGTHS = np.array([9, 1, 4, 7, 2, 5])
MASK = np.arange(T) < LENGTHS[:, None]
OLD = -rng.exponential(size=(B, T))
NEW = OLD + rng.normal(size=(B, T))
REFERENCE = OLD + 0.3 * rng.normal(size=(B, T))
ADVANTAGE = np.array([1.5, -0.7, 0.3, -2.0, 0.0, 0.9])


def f32(array: np.ndarray) -> jax.Array:
    return jnp.asarray(array, jnp.float32)


def tensor(array: np.ndarray, **options: Any) -> Any:
    return torch.tensor(array, dtype=torch.float32 if array.dtype == float else None, **options)


def trainer(**fields: Any) -> SimpleNamespace:
    same = lambda x, **_: x
    accelerator = SimpleNamespace(
        device="cpu", gather=same, gather_for_metrics=same, reduce=same, num_processes=1
    )
    return SimpleNamespace(
        accelerator=accelerator,
        model=SimpleNamespace(training=False),
        aux_loss_enabled=False,
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
        **fields,
    )


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=2e-5, atol=1e-6)


def grpo(beta: float, level: str, delta: float | None, loss_type: str) -> tuple[Any, Any]:
    """The loss of one batch by TRL, and its gradient in the log-probabilities."""
    new = tensor(NEW, requires_grad=True)
    stand_in = trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (new, torch.zeros(B, T), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=delta),
        loss_type=loss_type,
        epsilon_low=0.2,
        epsilon_high=1.28 if loss_type == "cispo" else 0.28,
        max_completion_length=T,
        use_vllm=False,
        _entropy_bonus_enabled=False,
    )
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :2],
        "prompt_mask": ids[:, :2] + 1,
        "completion_ids": ids,
        "completion_mask": tensor(MASK).long(),
        "advantages": tensor(ADVANTAGE),
        "old_per_token_logps": tensor(OLD),
        "ref_per_token_logps": tensor(REFERENCE),
        "num_items_in_batch": tensor(MASK).sum(),
    }
    loss = GRPOTrainer._compute_loss(stand_in, None, inputs)
    loss.backward()
    return loss, new.grad


NAMES = {"token_mean": "dapo", "sequence_mean": "grpo", "constant": "dr_grpo"}


@pytest.mark.parametrize("aggregation", list(NAMES))
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("beta", "delta"), [(0.0, None), (0.1, None), (0.0, 3.0)])
def test_grpo(aggregation: str, level: str, beta: float, delta: float | None) -> None:
    """Token and sequence ratios, separate clips, the dual clip, k3 in the loss, every aggregation."""
    old, mask, weight = f32(OLD), jnp.asarray(MASK), AGGREGATIONS[aggregation](jnp.asarray(MASK))
    advantage = jnp.broadcast_to(f32(ADVANTAGE)[:, None], (B, T))

    def loss(new: jax.Array) -> jax.Array:
        if level == "token":
            values = losses.clipped_surrogate(new, old, advantage, 0.2, 0.28, delta)
        else:
            ratio = jax.vmap(losses.sequence_log_ratio)(new, old, mask)
            values = losses.clipped_surrogate(ratio, jnp.zeros((B, T)), advantage, 0.2, 0.28, delta)
        return jnp.sum(weight * (values + beta * k3(new, f32(REFERENCE))))

    value, gradient = jax.value_and_grad(loss)(f32(NEW))
    their_value, their_gradient = grpo(beta, level, delta, NAMES[aggregation])
    close(value, their_value)
    close(gradient, their_gradient)


def test_cispo() -> None:
    advantage = jnp.broadcast_to(f32(ADVANTAGE)[:, None], (B, T))
    weight = AGGREGATIONS["token_mean"](jnp.asarray(MASK))
    value, gradient = jax.value_and_grad(
        lambda new: jnp.sum(weight * losses.cispo(new, f32(OLD), advantage, 0.28))
    )(f32(NEW))
    their_value, their_gradient = grpo(0.0, "token", None, "cispo")
    close(value, their_value)
    close(gradient, their_gradient)


def test_the_deviation_of_a_group() -> None:
    reward = rng.normal(size=(5, 8))
    scored = rng.random((5, 8)) < 0.8
    reward[~scored] = np.nan
    theirs = tensor(reward)
    advantage = (theirs - torch.nanmean(theirs, dim=1, keepdim=True)) / (
        nanstd(theirs, dim=1, keepdim=True) + 1e-4
    )
    close(
        jax.vmap(groups.standardised)(f32(reward), jnp.asarray(scored)), torch.nan_to_num(advantage, nan=0.0)
    )


def model(log_prob: Any) -> Any:
    shape = log_prob.shape
    outputs = SimpleNamespace(
        log_probs=log_prob,
        entropy=torch.zeros(shape),
        mean_logits=torch.zeros(shape),
        is_top1=torch.zeros(shape, dtype=torch.bool),
    )
    return lambda **_: outputs


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "ipo", "sigmoid_norm"])
def test_dpo(name: str) -> None:
    """Three chosen completions, then their three rejected ones; "ipo" and "sigmoid_norm" by means."""
    completion = np.pad(MASK, ((0, 0), (1, 0)))  # one token of prompt
    new = tensor(np.where(MASK, NEW, 0.0), requires_grad=True)
    reference = np.where(MASK, REFERENCE, 0).sum(1)
    stand_in = trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[name],
        loss_weights=[1.0],
        beta=0.3,
        use_weighting=False,
    )
    inputs = {
        "input_ids": torch.zeros(completion.shape, dtype=torch.long),
        "completion_mask": tensor(completion).long(),
        "attention_mask": torch.ones(completion.shape, dtype=torch.long),
        "ref_chosen_logps": tensor(reference[:3]),
        "ref_rejected_logps": tensor(reference[3:]),
    }
    theirs = DPOTrainer._compute_loss(stand_in, model(new), inputs, False)
    theirs.backward()

    def loss(new: jax.Array) -> jax.Array:
        ratio = jnp.sum(jnp.where(jnp.asarray(MASK), new - f32(REFERENCE), 0), axis=1)
        if name in ("ipo", "sigmoid_norm"):
            ratio = ratio / f32(LENGTHS)
        function = {"hinge": preferences.hinge, "ipo": preferences.ipo}.get(name, preferences.dpo)
        return jnp.mean(function(ratio[:3] - ratio[3:], 0.3))

    value, gradient = jax.value_and_grad(loss)(f32(NEW))
    close(value, theirs)
    close(gradient, new.grad * tensor(MASK))


@pytest.mark.parametrize("name", ["sigmoid", "simpo", "hinge", "ipo"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_without_a_reference(name: str, smoothing: float) -> None:
    chosen, rejected = NEW[:3].mean(1), NEW[3:].mean(1)
    stand_in = trainer(alpha=0.0, loss_type=name, beta=2.0, simpo_gamma=0.5, label_smoothing=smoothing)
    theirs, *_ = CPOTrainer.cpo_loss(stand_in, tensor(chosen), tensor(rejected))
    difference = f32(chosen - rejected)
    if name == "sigmoid":
        close(preferences.dpo(difference, 2.0, smoothing), theirs)
    elif name == "simpo" and smoothing == 0:
        close(preferences.simpo(difference, 2.0, 0.5), theirs)
    elif name == "simpo":
        close(preferences.dpo(2.0 * difference - 0.5, 1.0, smoothing), theirs)
    else:
        close({"hinge": preferences.hinge, "ipo": preferences.ipo}[name](difference, 2.0), theirs)


def test_orpo() -> None:
    chosen, rejected = -rng.exponential(size=(2, 50)) * np.array([[1.0], [0.01]])
    c, r = tensor(chosen, requires_grad=True), tensor(rejected, requires_grad=True)
    theirs, *_ = ORPOTrainer.odds_ratio_loss(trainer(beta=1.0), c, r)
    (-theirs).sum().backward()
    close(preferences.orpo(f32(chosen), f32(rejected)), -theirs)
    slopes = jax.grad(lambda c, r: preferences.orpo(c, r).sum(), (0, 1))(f32(chosen), f32(rejected))
    for actual, expected in zip(slopes, (c.grad, r.grad), strict=True):
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, -5.0])
def test_kto(shift: float) -> None:
    """The second shift makes their estimate of the KL negative, so that it is clamped at 0."""
    completion = np.pad(MASK, ((0, 0), (1, 0)))
    desirable = np.array([True, False, True, True, False, False])
    new = tensor(np.where(MASK, NEW, 0.0), requires_grad=True)
    mismatched = rng.normal(size=B) + shift
    stand_in = trainer(
        _compute_kl_logps=lambda *_: tensor(mismatched),
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.8,
    )
    inputs = {
        "input_ids": torch.zeros(completion.shape, dtype=torch.long),
        "completion_mask": tensor(completion).long(),
        "attention_mask": torch.ones(completion.shape, dtype=torch.long),
        "label": tensor(desirable),
        "ref_logps": tensor(np.where(MASK, REFERENCE, 0).sum(1)),
        "ref_KL_logps": torch.zeros(B),
    }
    theirs = KTOTrainer._compute_loss(stand_in, model(new), inputs, False)
    theirs.backward()

    def loss(new: jax.Array) -> jax.Array:
        ratio = jnp.sum(jnp.where(jnp.asarray(MASK), new - f32(REFERENCE), 0), axis=1)
        kl = jnp.float32(max(mismatched.mean(), 0))
        return jnp.mean(preferences.kto(ratio, jnp.asarray(desirable), kl, 0.3, 1.5, 0.8))

    value, gradient = jax.value_and_grad(loss)(f32(NEW))
    close(value, theirs)
    close(gradient, new.grad * tensor(MASK))
