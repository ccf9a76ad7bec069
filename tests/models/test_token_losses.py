"""The head in chunks: the same values and gradients as all logits at once, in less memory."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math import losses
from rljax.models import token_losses
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.types import LanguageModel, PyTree

B, T, D = 2, 11, 16


def model(vocabulary: int = 37, **fields: object) -> LanguageModel:
    return transformer(TransformerConfig(vocabulary, D, 24, 4, (Layer(),), **fields))


def sample(vocabulary: int = 37, length: int = T) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    hidden = (rng.normal(size=(B, length, D)) * 3).astype(np.float32)
    return hidden, rng.integers(0, vocabulary, (B, length)).astype(np.int32)


def chunked_loss(
    model: LanguageModel, params: PyTree, hidden: jax.Array, targets: jax.Array, chunk: int
) -> jax.Array:
    return token_losses.per_token(model, losses.cross_entropy, params, hidden, targets, chunk=chunk)


def with_targets(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, dict]:
    """The loss of each token, and what a weighted sum does not differentiate."""
    loss = losses.cross_entropy(logits, targets)
    return loss, {"best": logits.max(-1), "loss": loss, "targets": targets}


def summed(model: LanguageModel, params: PyTree, *inputs: jax.Array, chunk: int = T) -> jax.Array:
    return token_losses.weighted_sum(model, with_targets, params, *inputs, chunk=chunk)[0]


def plain(model: LanguageModel, params: PyTree, hidden: jax.Array, targets: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(model.logits(params, hidden))
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]


HEADS = [{}, {"tied": False, "biases": ("head",)}, {"final_softcap": 5.0}]


@cache
def started(number: int) -> tuple[LanguageModel, PyTree]:
    """The model of HEADS[number] and parameters far from uniform, shared by the tests."""
    lm = model(**HEADS[number])
    return lm, jax.tree.map(lambda x: 20 * x, jax.device_get(jax.jit(lm.init)(jax.random.key(0))))


@cache
def expected_of(number: int) -> tuple[Any, Any]:
    """Losses of all tokens at once, and the gradient of their weighted sum."""
    (lm, params), (hidden, targets) = started(number), sample()
    weight = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)

    @jax.jit
    def both(params: PyTree, hidden: jax.Array) -> tuple[Any, Any]:
        total = lambda params, hidden: (plain(lm, params, hidden, targets) * weight).sum()
        return plain(lm, params, hidden, targets), jax.grad(total, (0, 1))(params, hidden)

    return both(params, hidden)


@pytest.mark.parametrize("head", range(3), ids=["tied", "untied with bias", "soft cap"])
@pytest.mark.parametrize("chunk", [1, 4, T - 1, T])
def test_chunks_change_neither_values_nor_gradients(head: int, chunk: int) -> None:
    lm, params = started(head)
    hidden, targets = sample()
    weight = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)

    chunked = lambda p, h: chunked_loss(lm, p, h, targets, chunk)
    total = lambda params, hidden: (chunked(params, hidden) * weight).sum()

    @jax.jit
    def both(params: PyTree, hidden: jax.Array) -> tuple[Any, Any]:
        return chunked(params, hidden), jax.grad(total, (0, 1))(params, hidden)

    value, gradient = both(params, hidden)
    whole, expected = expected_of(head)
    assert value.shape == (B, T)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, whole, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_all_logits_are_never_in_memory() -> None:
    vocabulary, length = 4096, 256
    lm = model(vocabulary)
    params = jax.jit(lm.init)(jax.random.key(0))
    hidden, targets = sample(vocabulary, length)
    everything = B * length * vocabulary * 4

    def bytes_of(function: Callable) -> int:
        loss = lambda params, hidden: function(params, hidden).sum()
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(params, hidden).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of(lambda p, h: plain(lm, p, h, targets)) > everything
    chunked = bytes_of(lambda p, h: chunked_loss(lm, p, h, targets, 8))
    assert chunked < everything / 4  # some copies of 1/32, and the gradient of the embedding


def test_any_function_of_each_tokens_logits() -> None:
    lm = model()
    params = jax.jit(lm.init)(jax.random.key(0))
    hidden, targets = sample()
    temperature = np.linspace(0.5, 2, B * T, dtype=np.float32).reshape(B, T)

    def function(logits: jax.Array, targets: jax.Array, extra: dict) -> dict:
        log_p = jax.nn.log_softmax(logits / extra["temperature"][..., None])
        return {
            "entropy": -(jnp.exp(log_p) * log_p).sum(-1),
            "top": jax.lax.top_k(log_p, 3)[0],
            "same": targets,
        }

    extra = {"temperature": temperature}
    whole = jax.jit(lambda params: function(lm.logits(params, hidden), targets, extra))(params)
    parts = jax.jit(
        lambda params: token_losses.per_token(lm, function, params, hidden, targets, extra, chunk=4)
    )(params)
    assert parts["top"].shape == (B, T, 3)
    assert (parts["same"] == targets).all()
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    lm = model()
    params = jax.jit(lm.init)(jax.random.key(0))
    hidden, targets = sample()
    with pytest.raises(ValueError, match=r"shape \(2, 10\).*must begin with \(B, T\) = \(2, 11\)"):
        chunked_loss(lm, params, hidden, targets[:, 1:], T)
    with pytest.raises(ValueError, match="chunk = 0: must be at least 1"):
        chunked_loss(lm, params, hidden, targets, 0)


def test_cross_entropy_by_hand() -> None:
    rng = np.random.default_rng(2)
    logits, target = rng.normal(size=(3, 5, 7)) * 4, rng.integers(0, 7, (3, 5))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    log_z = np.log(np.exp(logits).sum(-1))
    weight = 0.9 * np.eye(7)[target] + 0.1 / 7
    given = jnp.asarray(logits, jnp.float32), jnp.asarray(target, jnp.int32)
    hard = -np.log(p[np.arange(3)[:, None], np.arange(5)[None], target])
    np.testing.assert_allclose(losses.cross_entropy(*given), hard, rtol=1e-5, atol=1e-6)
    soft = -(weight * np.log(p)).sum(-1)
    np.testing.assert_allclose(losses.cross_entropy(*given, smoothing=0.1), soft, rtol=1e-5)
    both = jax.jit(losses.cross_entropy)(*given, jnp.float32(0.1), jnp.float32(0.01))
    np.testing.assert_allclose(both, soft + 0.01 * log_z**2, rtol=1e-5)
    # the gradient of a hard target: p − onehot
    gradient = jax.jit(jax.grad(lambda z: losses.cross_entropy(z, given[1]).sum()))(given[0])
    np.testing.assert_allclose(gradient, p - np.eye(7)[target], atol=1e-6)


def test_a_forbidden_class_and_a_target_outside() -> None:
    logits = jnp.asarray([[0.0, -jnp.inf, 1.0]] * 2, jnp.float32)
    loss = losses.cross_entropy(logits, jnp.asarray([2, -1], jnp.int32))
    log_z = np.log(1 + np.e)
    np.testing.assert_allclose(loss, [log_z - 1, log_z], rtol=1e-6)


@pytest.mark.parametrize("head", range(3), ids=["tied", "untied with bias", "soft cap"])
@pytest.mark.parametrize("chunk", [1, 4, T])
def test_a_weighted_sum_has_the_gradient_of_the_sum_of_its_tokens(head: int, chunk: int) -> None:
    lm, params = started(head)
    hidden, targets = sample()
    weight = np.random.default_rng(1).normal(size=(B, T)).astype(np.float32)
    weight[0, 3] = 0.0
    scale = np.float32(0.37)  # what the sum is multiplied with outside

    def fused(params: PyTree, hidden: jax.Array) -> jax.Array:
        inputs = hidden, weight, targets
        return scale * summed(lm, params, *inputs, chunk=chunk)

    whole = lambda p, h: scale * (plain(lm, p, h, targets) * weight).sum()
    both = lambda *x: (fused(*x), whole(*x), jax.grad(fused, (0, 1))(*x), jax.grad(whole, (0, 1))(*x))
    total, sum_of_all, found, expected = jax.jit(both)(params, hidden)
    np.testing.assert_allclose(total, sum_of_all, rtol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_weighted_sum_gives_what_else_the_function_knows_and_does_not_differentiate_it() -> None:
    lm = model()
    params, (hidden, targets) = jax.jit(lm.init)(jax.random.key(0)), sample()
    weights = np.ones((B, T), np.float32)

    def both(params: PyTree, scale: jax.Array) -> tuple[jax.Array, dict]:
        total, others = token_losses.weighted_sum(lm, with_targets, params, hidden, weights, targets, chunk=4)
        return scale * total + others["best"].sum(), others

    gradient, others = jax.jit(jax.grad(both, has_aux=True))(params, np.float32(1))
    whole = jax.jit(lambda p: (plain(lm, p, hidden, targets), lm.logits(p, hidden).max(-1)))(params)
    np.testing.assert_allclose(others["loss"], whole[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(others["best"], whole[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(others["targets"], targets)
    alone = jax.jit(jax.grad(lambda p: plain(lm, p, hidden, targets).sum()))(params)
    for one, other in zip(*map(jax.tree.leaves, (gradient, alone)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_weighted_sum_multiplies_with_the_head_three_times() -> None:
    lm = model()
    params, (hidden, targets) = jax.jit(lm.init)(jax.random.key(0)), sample()
    inputs = jnp.ones((B, T)), targets
    fused = lambda p, h: summed(lm, p, h, *inputs, chunk=4)
    again = lambda p, h: token_losses.per_token(lm, losses.cross_entropy, p, h, targets, chunk=4).sum()
    counts = [
        str(jax.make_jaxpr(jax.value_and_grad(function, (0, 1)))(params, hidden)).count("dot_general")
        for function in (fused, again)
    ]
    assert counts == [3, 4]


def test_a_weighted_sum_maps_over_seeds() -> None:
    lm = model()
    begun = jax.jit(lambda key: jax.vmap(lm.init)(jax.random.split(key, 3)))
    params = jax.device_get(begun(jax.random.key(0)))
    hidden, targets = sample()
    inputs = hidden, jnp.ones((B, T)), targets
    loss = lambda p: summed(lm, p, *inputs, chunk=4)
    mapped, single = jax.jit(jax.vmap(jax.grad(loss)))(params), jax.jit(jax.grad(loss))
    for seed in range(3):
        alone = single(jax.tree.map(lambda x, seed=seed: x[seed], params))
        for one, other in zip(*map(jax.tree.leaves, (mapped, alone)), strict=True):
            np.testing.assert_allclose(np.asarray(one)[seed], other, rtol=1e-4, atol=1e-6)


def test_an_input_of_the_wrong_shape_is_named() -> None:
    lm, (hidden, targets) = model(), sample()
    inputs = jnp.ones((B, T - 1)), targets
    with pytest.raises(ValueError, match=r"must begin with \(B, T\) = \(2, 11\)"):
        summed(lm, {}, hidden, *inputs)
