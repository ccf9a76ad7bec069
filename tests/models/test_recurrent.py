"""GRU and LSTM language models against loops in float64, their gradients against finite differences."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.recurrent import RecurrentConfig, recurrent
from rljax.types import LanguageModel, PyTree

GRU = RecurrentConfig(vocab_size=7, embedding_size=3, hidden_size=4, num_layers=2)
CONFIGS = {
    "gru": GRU,
    "lstm": replace(GRU, cell="lstm", head_bias=True),
    "gru, tied": replace(GRU, embedding_size=4, num_layers=1, tied=True),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)

TOKENS = np.random.default_rng(1).integers(0, 7, (3, 9)).astype(np.int32)
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 5, 5, 6, 0, 0]])


def compiled(model: LanguageModel) -> LanguageModel:
    """The same, each function one program."""
    return model._replace(
        init=jax.jit(model.init),
        forward=jax.jit(model.forward),
        logits=jax.jit(model.logits),
        prefill=jax.jit(model.prefill, static_argnums=3),
        decode=jax.jit(model.decode),
        completion=jax.jit(model.completion),
        fork=jax.jit(model.fork, static_argnums=1),
    )


@cache
def made(config: RecurrentConfig) -> tuple[LanguageModel, PyTree]:
    """A model and its parameters, none of them near its start, compiled once for all tests."""
    model, draw = compiled(recurrent(config)), np.random.default_rng(7)
    params = jax.device_get(model.init(jax.random.key(0)))
    return model, jax.tree.map(lambda p: p + 0.3 * draw.normal(size=p.shape).astype(p.dtype), params)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def loop(config: RecurrentConfig, params: PyTree, tokens: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """Hidden states (B, T, H), one row, one token and one gate at a time."""
    size = config.hidden_size
    out = np.zeros((*tokens.shape, size))
    for row in range(tokens.shape[0]):
        x = params["embedding"][tokens[row]]
        for number in range(config.num_layers):
            layer, hidden = params[f"layer_{number}"], np.zeros((len(x), size))
            gate = lambda kind, k, y, layer=layer: (
                layer[kind]["kernel"].T[k * size : (k + 1) * size] @ y
                + (layer[kind]["bias"][k * size : (k + 1) * size] if "bias" in layer[kind] else 0.0)
            )
            h, c, document = np.zeros(size), np.zeros(size), 0
            for t, here in enumerate(segments[row]):
                if here != document:
                    document = here
                    if here > 0:
                        h, c = np.zeros(size), np.zeros(size)
                if here > 0 and config.cell == "gru":
                    r = sigmoid(gate("input", 0, x[t]) + gate("recurrent", 0, h))
                    z = sigmoid(gate("input", 1, x[t]) + gate("recurrent", 1, h))
                    n = np.tanh(gate("input", 2, x[t]) + r * gate("recurrent", 2, h))
                    h = (1 - z) * n + z * h
                elif here > 0:
                    i = sigmoid(gate("input", 0, x[t]) + gate("recurrent", 0, h))
                    f = sigmoid(gate("input", 1, x[t]) + gate("recurrent", 1, h) + 1)
                    g = np.tanh(gate("input", 2, x[t]) + gate("recurrent", 2, h))
                    o = sigmoid(gate("input", 3, x[t]) + gate("recurrent", 3, h))
                    c = f * c + i * g
                    h = o * np.tanh(c)
                hidden[t] = h
            x = hidden
        out[row] = x
    return out


def head(config: RecurrentConfig, params: PyTree, hidden: np.ndarray) -> np.ndarray:
    bias = params["head_bias"] if config.head_bias else 0.0
    if config.tied:
        return hidden @ params["embedding"].T / config.hidden_size**0.5 + bias
    return hidden @ params["head"] + bias


def loss64(config: RecurrentConfig, params: PyTree) -> float:
    """Cross-entropy of the next token within documents."""
    tokens, segments = np.asarray(TOKENS), np.asarray(SEGMENTS)
    logits = head(config, params, loop(config, params, tokens, segments))[:, :-1]
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    chosen = np.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]
    mask = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
    return -(chosen * mask).sum() / mask.sum()


def loss32(model: LanguageModel, params: PyTree) -> jax.Array:
    logits = model.logits(params, model.forward(params, TOKENS, SEGMENTS))[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[:, 1:, None], axis=-1)[..., 0]
    mask = (SEGMENTS[:, 1:] == SEGMENTS[:, :-1]) & (SEGMENTS[:, 1:] > 0)
    return -(chosen * mask).sum() / mask.sum()


def double(params: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


@configs
def test_forward_is_the_loop(config: RecurrentConfig) -> None:
    model, params = made(config)
    hidden = model.forward(params, TOKENS, SEGMENTS)
    expected = loop(config, double(params), np.asarray(TOKENS), np.asarray(SEGMENTS))
    np.testing.assert_allclose(hidden, expected, atol=1e-5)
    np.testing.assert_allclose(
        model.logits(params, hidden), head(config, double(params), expected), atol=1e-5
    )
    plain = model.forward(params, TOKENS)
    np.testing.assert_allclose(
        plain, loop(config, double(params), np.asarray(TOKENS), np.ones((3, 9))), atol=1e-5
    )


@configs
def test_gradients_are_those_of_the_loop(config: RecurrentConfig) -> None:
    """Every parameter's central difference in float64."""
    model, params = made(config)
    value, gradients = jax.jit(jax.value_and_grad(lambda params: loss32(model, params)))(params)
    doubles = double(params)
    np.testing.assert_allclose(value, loss64(config, doubles), rtol=1e-5)
    flat, _ = jax.tree_util.tree_flatten_with_path(gradients)
    for path, gradient in flat:
        leaf = doubles
        for entry in path:
            leaf = leaf[entry.key]
        expected = np.zeros(leaf.shape)
        for index in np.ndindex(*leaf.shape):
            before = leaf[index]
            leaf[index] = before + 1e-5
            above = loss64(config, doubles)
            leaf[index] = before - 1e-5
            expected[index] = (above - loss64(config, doubles)) / 2e-5
            leaf[index] = before
        np.testing.assert_allclose(gradient, expected, atol=2e-6, rtol=1e-4, err_msg=str(path))


@configs
def test_decoding_gives_what_forward_gives(config: RecurrentConfig) -> None:
    model, params = made(config)
    lengths = np.array([4, 2, 1])
    prompt, completion = TOKENS[:, :4], TOKENS[:, 4:]
    valid = np.arange(4)[None] >= 4 - lengths[:, None]
    segments = np.concatenate([valid.astype(np.int32), np.ones_like(completion)], axis=1)
    whole = np.asarray(model.forward(params, TOKENS, segments))[:, 3:-1]
    np.testing.assert_array_equal(model.completion(params, prompt, valid, completion), whole)
    hidden, cache = model.prefill(params, prompt, valid, 9)
    states = [hidden]
    for t in range(4):
        hidden, cache = model.decode(params, completion[:, t], cache)
        states.append(hidden)
    np.testing.assert_allclose(np.stack(states, axis=1), whole, atol=1e-6)


@configs
def test_left_padding_leaves_the_carry_untouched(config: RecurrentConfig) -> None:
    model, params = made(config)
    prompt = TOKENS[:1, :3]
    expected = model.prefill(params, prompt, np.ones((1, 3), bool), 3)
    padded = np.pad(prompt, [(0, 0), (4, 0)], constant_values=5)
    got = model.prefill(params, padded, np.arange(7)[None] >= 4, 7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    nothing, cache = model.prefill(params, padded, np.zeros((1, 7), bool), 7)
    assert all(bool(np.all(np.asarray(leaf) == 0)) for leaf in jax.tree.leaves((nothing, cache)))


@configs
def test_a_document_does_not_know_the_one_before(config: RecurrentConfig) -> None:
    model, params = made(config)
    hidden = model.forward(params, TOKENS, SEGMENTS)
    alone = model.forward(params, TOKENS[:1, 3:7])
    np.testing.assert_allclose(hidden[0, 3:7], alone[0], atol=1e-6)


@configs
def test_a_forked_cache_is_that_of_repeated_prompts(config: RecurrentConfig) -> None:
    model, params = made(config)
    repeat = lambda x: np.repeat(x, 3, axis=0)
    _, cache = model.prefill(params, TOKENS, SEGMENTS > 0, 9)
    _, expected = model.prefill(params, repeat(TOKENS), repeat(SEGMENTS > 0), 9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), model.fork(cache, 3), expected)


def test_the_lstm_remembers_at_the_start() -> None:
    """With all parameters at 0 the forget gate is σ(1)."""
    model = recurrent(replace(GRU, cell="lstm", num_layers=1))
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    carry = ((np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)),)
    _, ((_, c),) = jax.jit(model.decode)(params, np.zeros(1, np.int32), carry)
    np.testing.assert_allclose(c, 1 / (1 + np.exp(-1.0)), rtol=1e-6)


@pytest.mark.parametrize("place", ["input", "recurrent"])
def test_adapters_are_low_rank_changes_of_kernels(place: str) -> None:
    model, params = made(GRU)
    size_in = params["layer_1"][place]["kernel"].shape[0]
    draw = np.random.default_rng(3)
    a, b = (draw.normal(size=shape).astype(np.float32) for shape in ((size_in, 2), (2, 12)))
    merged = jax.tree.map(lambda leaf: leaf, params)
    merged["layer_1"][place]["kernel"] = params["layer_1"][place]["kernel"] + a @ b
    expected = np.asarray(model.forward(merged, TOKENS))
    adapted = model.forward(params, TOKENS, adapters={"layer_1": {place: {"a": a, "b": b}}})
    np.testing.assert_allclose(adapted, expected, atol=1e-5)
    assert np.abs(expected - model.forward(params, TOKENS)).max() > 1e-2


def test_bfloat16_keeps_a_float32_carry() -> None:
    model, params = made(GRU)
    half = compiled(recurrent(replace(GRU, dtype=jnp.bfloat16)))
    hidden, cache = half.prefill(params, TOKENS, TOKENS >= 0, 9)
    assert hidden.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.float32)}
    expected, _ = model.prefill(params, TOKENS, TOKENS >= 0, 9)
    np.testing.assert_allclose(np.asarray(hidden, np.float32), expected, atol=0.05)


def test_seeds_are_mapped() -> None:
    model, _ = made(GRU)
    params = jax.jit(lambda key: jax.vmap(model.init)(jax.random.split(key, 2)))(jax.random.key(0))
    both = jax.jit(jax.vmap(model.forward, (0, None)))(params, TOKENS)
    params = jax.device_get(params)
    for seed in range(2):
        one = model.forward(jax.tree.map(lambda leaf, seed=seed: leaf[seed], params), TOKENS)
        np.testing.assert_allclose(both[seed], one, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "rnn"}, "cell = 'rnn': must be one of gru, lstm"),
        ({"hidden_size": 0}, "hidden_size = 0: must be an integer of at least 1"),
        ({"tied": True}, "embedding_size = 3: must be hidden_size = 4 if tied"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recurrent(replace(GRU, **change))


@pytest.mark.parity
@pytest.mark.parametrize("config", [GRU, CONFIGS["lstm"]], ids=["gru", "lstm"])
def test_torch_agrees(config: RecurrentConfig) -> None:
    torch = pytest.importorskip("torch")
    model, params = made(config)
    kinds: dict[str, Callable] = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}
    theirs = kinds[config.cell](3, 4, num_layers=2, batch_first=True)
    tensor = lambda leaf: torch.tensor(np.asarray(leaf))
    with torch.no_grad():
        for number in range(2):
            layer = params[f"layer_{number}"]
            getattr(theirs, f"weight_ih_l{number}").copy_(tensor(layer["input"]["kernel"].T))
            getattr(theirs, f"weight_hh_l{number}").copy_(tensor(layer["recurrent"]["kernel"].T))
            getattr(theirs, f"bias_ih_l{number}").copy_(tensor(layer["input"]["bias"]))
            open_gate = jnp.zeros(16).at[4:8].set(1.0)
            other = layer["recurrent"]["bias"] if config.cell == "gru" else open_gate
            getattr(theirs, f"bias_hh_l{number}").copy_(tensor(other))
        expected, _ = theirs(tensor(params["embedding"][TOKENS]))
    np.testing.assert_allclose(model.forward(params, TOKENS), expected.numpy(), atol=1e-5)
