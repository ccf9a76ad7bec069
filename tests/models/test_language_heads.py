"""Heads on hidden states: where they read, what they start as, where their gradients go."""

import jax
import jax.numpy as jnp
import numpy as np

from rljax.models import language_heads
from rljax.models.recurrent import RecurrentConfig, recurrent

HIDDEN = jax.random.normal(jax.random.key(0), (4, 5, 3))
VALID = jnp.array([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]], bool)
LAST = [4, 2, 4, 1]
PARAMS = {"kernel": jnp.array([[1.0], [-2.0], [0.5]]), "bias": jnp.array([3.0])}


def test_values_are_one_per_token() -> None:
    head = language_heads.value_head(3)
    expected = HIDDEN[..., 0] - 2 * HIDDEN[..., 1] + 0.5 * HIDDEN[..., 2] + 3
    np.testing.assert_allclose(head.apply(PARAMS, HIDDEN), expected, rtol=1e-5)
    np.testing.assert_allclose(head.apply(PARAMS, HIDDEN[:, 0]), expected[:, 0], rtol=1e-5)
    np.testing.assert_allclose(head.apply(PARAMS, HIDDEN[0, 0]), expected[0, 0], rtol=1e-5)


def test_values_start_at_zero() -> None:
    head = language_heads.value_head(3)
    np.testing.assert_array_equal(head.apply(head.init(jax.random.key(1)), HIDDEN), jnp.zeros((4, 5)))
    kernel = language_heads.value_head(10_000, scale=0.1).init(jax.random.key(1))["kernel"]
    np.testing.assert_allclose(kernel.std(), 0.1, rtol=0.03)


def test_a_reward_is_read_at_the_last_token() -> None:
    head = language_heads.reward_head(3)
    every = language_heads.value_head(3).apply(PARAMS, HIDDEN)
    expected = every[jnp.arange(4), jnp.array(LAST)]
    np.testing.assert_allclose(head.apply(PARAMS, HIDDEN, VALID), expected, rtol=1e-6)
    gradient = jax.grad(lambda hidden: head.apply(PARAMS, hidden, VALID).sum())(HIDDEN)
    rows, columns, _ = jnp.nonzero(gradient)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == set(enumerate(LAST))


def test_scores_start_with_the_deviation_of_the_literature() -> None:
    """1 / √(D + 1), so that hidden states of unit size have scores of about unit size."""
    params = language_heads.reward_head(10_000).init(jax.random.key(2))
    np.testing.assert_allclose(params["kernel"].std(), 10_001**-0.5, rtol=0.03)
    np.testing.assert_array_equal(params["bias"], 0.0)
    params = language_heads.classification_head(63, 400).init(jax.random.key(2))
    assert params["kernel"].shape == (63, 400)
    np.testing.assert_allclose(params["kernel"].std(), 1 / 8, rtol=0.03)


def test_classes_are_read_at_the_last_token() -> None:
    head = language_heads.classification_head(3, 6)
    params = {"kernel": jax.random.normal(jax.random.key(3), (3, 6)), "bias": jnp.arange(6.0)}
    expected = np.stack([np.asarray(HIDDEN)[row, column] for row, column in enumerate(LAST)])
    expected = expected @ np.asarray(params["kernel"]) + np.arange(6.0)
    np.testing.assert_allclose(head.apply(params, HIDDEN, VALID), expected, rtol=1e-4, atol=1e-5)


def test_outputs_are_float32_on_a_bfloat16_trunk() -> None:
    hidden = HIDDEN.astype(jnp.bfloat16)
    rounded = hidden.astype(jnp.float32)
    reward, value = language_heads.reward_head(3), language_heads.value_head(3)
    assert value.apply(PARAMS, hidden).dtype == jnp.float32
    np.testing.assert_array_equal(value.apply(PARAMS, hidden), value.apply(PARAMS, rounded))
    np.testing.assert_array_equal(reward.apply(PARAMS, hidden, VALID), reward.apply(PARAMS, rounded, VALID))


def test_a_row_of_padding_reads_something_finite() -> None:
    head = language_heads.reward_head(3)
    score = head.apply(PARAMS, HIDDEN, jnp.zeros_like(VALID))
    np.testing.assert_array_equal(score, language_heads.value_head(3).apply(PARAMS, HIDDEN)[:, 0])


def test_a_classifier_on_a_trunk_learns() -> None:
    """Which of two tokens came first, through 6 tokens of noise: the trunk learns through the head."""
    trunk = recurrent(RecurrentConfig(vocab_size=8, embedding_size=8, hidden_size=16))
    head = language_heads.classification_head(16, 2)
    keys = jax.random.split(jax.random.key(4), 4)
    tokens = jax.random.randint(keys[0], (256, 7), 2, 8)
    label = jax.random.bernoulli(keys[1], shape=(256,)).astype(jnp.int32)
    tokens, valid = tokens.at[:, 0].set(label), jnp.ones(tokens.shape, bool)
    params = {"trunk": trunk.init(keys[2]), "head": head.init(keys[3])}

    def loss(params: dict) -> jax.Array:
        logits = head.apply(params["head"], trunk.forward(params["trunk"], tokens), valid)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], axis=1).mean()

    def step(params: dict, _: None) -> tuple[dict, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 1.0 * g, params, gradients), value

    _, values = jax.jit(lambda params: jax.lax.scan(step, params, None, 150))(params)
    assert values[0] > 0.6
    assert values[-1] < 0.05
