"""T5: what its functions promise each other, its buckets in exact arithmetic, and torch as the oracle."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models import huggingface
from rljax.models.huggingface import files, t5
from rljax.models.seq2seq import Seq2SeqConfig, encoder, logical_axes, seq2seq
from rljax.models.seq2seq.layers import distance_buckets, relative_bias
from rljax.types import LanguageModel, PyTree
from tests.models.checkpoints import T5_CASES, build

FIXTURES = Path(__file__).parent / "fixtures"
RELU = Seq2SeqConfig(37, 24, 40, 3, 2, 3, head_dim=5, buckets=8, max_distance=12)  # 3 × 5 is not 24
GATED = replace(RELU, num_layers=3, num_decoder_layers=2, activation="gelu_tanh", mlp="gated", tied=False)
CONFIGS = {"relu, tied": RELU, "gated, untied": GATED, "scanned": replace(GATED, loop="scanned")}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def jittered(params: PyTree, seed: int = 7) -> PyTree:
    """Parameters away from their start: norms that are not 1, position biases that matter."""
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda p: np.asarray(p) + 0.2 * draw.normal(size=p.shape).astype(p.dtype), params)


def compiled(model: LanguageModel) -> LanguageModel:
    """The same, each function one program."""
    return model._replace(
        init=jax.jit(model.init),
        logits=jax.jit(model.logits),
        prefill=jax.jit(model.prefill, static_argnums=3),
        decode=jax.jit(model.decode),
        completion=jax.jit(model.completion),
        fork=jax.jit(model.fork, static_argnums=1),
    )


@cache
def made(config: Seq2SeqConfig) -> tuple[LanguageModel, PyTree]:
    """A model and its parameters, compiled once for all tests."""
    model = compiled(seq2seq(config))
    return model, jittered(model.init(jax.random.key(0)))


def prompts(lengths: tuple[int, ...] = (9, 4, 1), columns: int = 9) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(1).integers(0, 37, (len(lengths), columns)).astype(np.int32)
    return tokens, np.arange(columns)[None] >= columns - np.array(lengths)[:, None]


# longer than max_distance
COMPLETION = np.random.default_rng(2).integers(0, 37, (3, 15)).astype(np.int32)


def decoded(model: LanguageModel, params: PyTree, prompt: jax.Array, valid: jax.Array) -> jax.Array:
    """Hidden states (B, T, D) of COMPLETION, one token at a time."""
    columns = prompt.shape[1] + COMPLETION.shape[1]
    hidden, cache = model.prefill(params, prompt, valid, columns)
    _, rest = jax.lax.scan(
        lambda cache, token: model.decode(params, token, cache)[::-1], cache, COMPLETION.T[:-1]
    )
    return jnp.concatenate([hidden[:, None], rest.swapaxes(0, 1)], axis=1)


@configs
def test_decoding_gives_what_teacher_forcing_gives(config: Seq2SeqConfig) -> None:
    model, params = made(config)
    prompt, valid = prompts()
    whole = model.completion(params, prompt, valid, COMPLETION)
    steps = jax.jit(lambda params: decoded(model, params, prompt, valid))(params)
    np.testing.assert_allclose(steps, whole, atol=2e-5)
    assert model.logits(params, whole).shape == (3, 15, 37)


@configs
def test_the_state_before_a_token_does_not_know_it(config: Seq2SeqConfig) -> None:
    model, params = made(config)
    prompt, valid = prompts()
    one = model.completion(params, prompt, valid, COMPLETION)
    changed = COMPLETION.copy()
    changed[:, 6] = (changed[:, 6] + 1) % 37
    one, other = np.asarray(one), np.asarray(model.completion(params, prompt, valid, changed))
    np.testing.assert_array_equal(one[:, :7], other[:, :7])
    assert np.all(np.abs(one - other)[:, 7:].max(axis=-1) > 1e-4)


@configs
def test_padding_changes_nothing_on_either_side(config: Seq2SeqConfig) -> None:
    model, params = made(config)
    prompt, valid = prompts()
    expected = model.completion(params, prompt, valid, COMPLETION)
    wider = np.pad(prompt, [(0, 0), (5, 0)], constant_values=3), np.pad(valid, [(0, 0), (5, 0)])
    rolled = lambda x: np.stack(
        [np.roll(row, count, axis=0) for row, count in zip(x, (0, 4, 1), strict=True)]
    )
    right = rolled(prompt), np.arange(9)[None] < np.array([9, 4, 1])[:, None]
    for tokens, here in (wider, right):
        np.testing.assert_allclose(model.completion(params, tokens, here, COMPLETION), expected, atol=2e-5)
    alone = model.completion(params, prompt[1:2, 5:], valid[1:2, 5:], COMPLETION[1:2])
    np.testing.assert_allclose(alone[0], expected[1], atol=2e-5)
    junk = np.where(valid, prompt, 36 - prompt)
    np.testing.assert_array_equal(model.completion(params, junk, valid, COMPLETION), expected)


@configs
def test_a_forked_cache_is_that_of_repeated_prompts(config: Seq2SeqConfig) -> None:
    model, params = made(config)
    prompt, valid = prompts()
    repeat = lambda x: np.repeat(x, 2, axis=0)
    _, cache = model.prefill(params, prompt, valid, 12)
    _, expected = model.prefill(params, repeat(prompt), repeat(valid), 12)
    forked = model.fork(cache, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), forked, expected)
    token = np.arange(6, dtype=np.int32)
    hidden, after = model.decode(params, token, forked)
    np.testing.assert_allclose(hidden, model.decode(params, token, expected)[0], atol=1e-5)
    hidden = np.asarray(hidden)
    assert np.abs(hidden[0] - hidden[1]).max() > 1e-3  # two tokens after the same prompt
    assert int(after.index) == 2


def test_scanned_layers_are_the_unrolled_ones() -> None:
    model, params = made(GATED)
    scanned, _ = made(replace(GATED, loop="scanned"))
    stacked = dict(params)
    for stack in ("encoder", "decoder"):
        layers = [params[stack][name] for name in sorted(params[stack]) if name.startswith("layer_")]
        rest = {name: leaf for name, leaf in params[stack].items() if not name.startswith("layer_")}
        stacked[stack] = {**rest, "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
        jnp.shape, jax.eval_shape(scanned.init, jax.random.key(0))
    )
    prompt, valid = prompts()
    np.testing.assert_allclose(
        scanned.completion(stacked, prompt, valid, COMPLETION),
        model.completion(params, prompt, valid, COMPLETION),
        atol=2e-5,
    )


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_rematerialisation_leaves_gradients_alone(loop: Any) -> None:
    config = replace(GATED, loop=loop)
    _, params = made(config)
    prompt, valid = prompts()

    def gradients(config: Seq2SeqConfig) -> PyTree:
        model = seq2seq(config)
        loss = lambda params: jnp.square(
            model.logits(params, model.completion(params, prompt, valid, COMPLETION))
        ).mean()
        return jax.jit(jax.grad(loss))(params)

    expected, again = gradients(config), gradients(replace(config, remat="full"))
    assert all(bool(np.any(np.asarray(leaf) != 0)) for leaf in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, expected)


def test_adapters_are_low_rank_changes_of_kernels() -> None:
    model, params = made(RELU)
    prompt, valid = prompts()
    draw = np.random.default_rng(3)
    a, b = (draw.normal(size=shape).astype(np.float32) for shape in ((24, 2), (2, 15)))
    place = lambda leaf: {"decoder": {"layer_1": {"cross_attention": {"key": leaf}}}}
    adapters = place({"a": a, "b": b})
    merged = jax.tree.map(lambda x: x, params)
    kernel = params["decoder"]["layer_1"]["cross_attention"]["key"]["kernel"]
    merged["decoder"]["layer_1"]["cross_attention"]["key"]["kernel"] = kernel + a @ b
    expected = np.asarray(model.completion(merged, prompt, valid, COMPLETION))
    adapted = model.completion(params, prompt, valid, COMPLETION, adapters)
    np.testing.assert_allclose(adapted, expected, atol=2e-5)
    assert np.abs(expected - model.completion(params, prompt, valid, COMPLETION)).max() > 1e-2
    hidden, cache = model.prefill(params, prompt, valid, 12, adapters)
    np.testing.assert_allclose(hidden, expected[:, 0], atol=2e-5)
    hidden, _ = model.decode(params, COMPLETION[:, 0], cache, adapters)
    np.testing.assert_allclose(hidden, expected[:, 1], atol=2e-5)


def test_bfloat16_stays_near_float32() -> None:
    model, params = made(GATED)
    half = compiled(seq2seq(replace(GATED, dtype=jnp.bfloat16)))
    prompt, valid = prompts()
    hidden = half.completion(params, prompt, valid, COMPLETION)
    assert hidden.dtype == jnp.bfloat16
    assert half.logits(params, hidden).dtype == jnp.float32
    expected = np.asarray(model.completion(params, prompt, valid, COMPLETION))
    error = np.abs(np.asarray(hidden, np.float32) - expected).mean() / np.abs(expected).mean()
    assert 1e-4 < error < 0.1


@pytest.mark.parametrize(("buckets", "max_distance"), [(16, 128), (32, 128), (4, 12), (8, 20), (16, 17)])
def test_buckets_against_exact_arithmetic(buckets: int, max_distance: int) -> None:
    """Bucket exact + k is for n with (n / exact) ** rest >= (max_distance / exact) ** k, in integers."""
    exact, rest = buckets // 2, buckets - buckets // 2
    table = distance_buckets(buckets, max_distance)
    assert table.shape == (max_distance + 1,)
    for distance, bucket in enumerate(table):
        if distance < exact:
            assert bucket == distance
            continue
        fits = [
            k for k in range(rest) if distance**rest * exact**k >= max_distance**k * exact**rest
        ]  # multiplied by exact ** (rest + k)
        assert bucket == exact + max(fits), distance


def test_an_encoder_looks_both_ways_and_a_decoder_back() -> None:
    weights = np.arange(8, dtype=np.float32)[:, None] + np.zeros((8, 3), np.float32)
    distance = np.array([[-40, -2, -1, 0, 1, 2, 40]])
    both = relative_bias(RELU, "encoder", weights, distance)
    assert both.shape == (3, 1, 7)
    np.testing.assert_array_equal(both[0, 0], [3, 2, 1, 0, 5, 6, 7])
    back = relative_bias(RELU, "decoder", weights, distance)
    np.testing.assert_array_equal(back[0, 0], [7, 2, 1, 0, 0, 0, 0])


def test_a_prompt_without_a_token_is_no_nan() -> None:
    model, params = made(RELU)
    prompt, valid = prompts((9, 0, 1))
    loss = lambda params: model.completion(params, prompt, valid, COMPLETION).sum()
    assert all(bool(np.isfinite(leaf).all()) for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))


def test_padding_has_no_gradient() -> None:
    model, params = made(GATED)
    prompt, valid = np.array([[5, 5, 1, 2], [5, 1, 2, 3]]), np.array([[0, 0, 1, 1], [0, 1, 1, 1]], bool)
    completion = np.array([[4, 6, 7], [4, 6, 7]])
    loss = lambda params: jnp.square(model.completion(params, prompt, valid, completion)).sum()
    rows = np.abs(jax.jit(jax.grad(loss))(params)["embedding"]).sum(axis=1)
    # Read by the encoder: 1, 2, 3; by the decoder: the start token 0, 4 and 6, but never the last token.
    np.testing.assert_array_equal(np.nonzero(rows)[0], [0, 1, 2, 3, 4, 6])


@configs
def test_every_axis_has_a_name(config: Seq2SeqConfig) -> None:
    _, params = made(config)
    axes = logical_axes(params)
    jax.tree.map(lambda leaf, names: (leaf.ndim == len(names)) or pytest.fail(f"{names}"), params, axes)
    layer = "layers" if config.loop == "scanned" else "layer_0"
    names = axes["decoder"][layer]["cross_attention"]["query"]["kernel"]
    assert names == (("layers",) if config.loop == "scanned" else ()) + ("embed", "heads")


def test_what_is_wrong_is_said_in_one_line() -> None:
    model, params = made(RELU)
    prompt, valid = prompts()
    with pytest.raises(ValueError, match=r"reads one sequence and writes another; use completion\("):
        model.forward(params, prompt)
    with pytest.raises(ValueError, match="columns = 4, but the prompts have 9"):
        model.prefill(params, prompt, valid, 4)
    for field, value, right in (
        ("num_heads", 0, "an integer of at least 1"),
        ("activation", "gelu_fast", "did you mean gelu"),
        ("max_distance", 4, "must be above 4"),
        ("start_token", 37, "below 37"),
    ):
        with pytest.raises(ValueError, match=rf"Seq2SeqConfig\.{field} = .*{right}"):
            seq2seq(replace(RELU, **{field: value}))


RAW = {"vocab_size": 37, "d_model": 16, "d_ff": 40, "d_kv": 5, "num_heads": 3, "num_layers": 2}


@pytest.mark.parametrize(
    ("said", "names", "expected"),
    [
        ({}, (), {"tied": True, "output_scale": 0.25, "num_decoder_layers": 2, "start_token": 0}),
        ({}, ("lm_head.weight",), {"tied": True, "output_scale": 0.25}),  # a copy of the embedding
        ({"tie_word_embeddings": False}, ("lm_head.weight",), {"tied": False, "output_scale": 1.0}),
        ({"scale_decoder_outputs": False}, ("lm_head.weight",), {"tied": False, "output_scale": 1.0}),
        ({"scale_decoder_outputs": False}, (), {"tied": True, "output_scale": 1.0}),
        ({"feed_forward_proj": "gated-gelu"}, (), {"activation": "gelu_tanh", "mlp": "gated"}),
        ({"decoder_start_token_id": 0, "pad_token_id": 5}, (), {"start_token": 0}),
        ({"decoder_start_token_id": None, "pad_token_id": 5}, (), {"start_token": 5}),
    ],
)
def test_what_a_config_json_says(said: dict, names: tuple[str, ...], expected: dict) -> None:
    config = t5.config_from({**RAW, **said}, names)
    assert {field: getattr(config, field) for field in expected} == expected
    assert t5.config_from(t5.config_to(config), names) == config


def test_what_no_config_json_can_say() -> None:
    for field, value in (("activation", "gelu"), ("output_scale", 0.5)):
        with pytest.raises(ValueError, match=rf"Seq2SeqConfig\.{field} = "):
            t5.config_to(replace(GATED, **{field: value}))
    with pytest.raises(ValueError, match=r"feed_forward_proj = 'gated-gelus': .*did you mean gated-gelu"):
        t5.config_from({**RAW, "feed_forward_proj": "gated-gelus"})


@pytest.mark.parametrize(
    ("name", "loop"),
    [
        ("t5", "unrolled"),
        ("t5_gated", "scanned"),
        # what a loop changes is in test_scanned_layers_are_the_unrolled_ones
        pytest.param("t5", "scanned", marks=pytest.mark.slow),
        pytest.param("t5_gated", "unrolled", marks=pytest.mark.slow),
    ],
)
def test_fixtures_give_what_torch_gave(name: str, loop: Any) -> None:
    expected = np.load(FIXTURES / name / "expected.npz")
    loaded = huggingface.load(FIXTURES / name, loop=loop)
    prompt, completion = (np.asarray(expected[part], np.int32) for part in ("prompt", "completion"))
    greedy = expected["greedy"]

    @jax.jit
    def run(params: PyTree, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        model = loaded.model
        logits = model.logits(params, model.completion(params, prompt, valid, completion))

        def step(carry: Any, _: None) -> Any:
            hidden, cache = carry
            token = model.logits(params, hidden).argmax(axis=-1).astype(jnp.int32)
            return model.decode(params, token, cache), token

        start = model.prefill(params, prompt, valid, prompt.shape[1] + greedy.shape[1])
        return logits, jax.lax.scan(step, start, None, length=greedy.shape[1])[1].T

    logits, tokens = run(loaded.params, jnp.asarray(expected["valid"]))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    np.testing.assert_array_equal(tokens, greedy)
    assert len(np.unique(greedy)) > 4  # no model that only repeats itself
    assert expected["logits"].std() > 0.3


@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_save_and_load_are_inverse(name: str, tmp_path: Path) -> None:
    loaded = huggingface.load(FIXTURES / name)
    kind = {"t5": (True, "relu", "plain"), "t5_gated": (False, "gelu_tanh", "gated")}[name]
    config = loaded.model.config
    assert (config.tied, config.activation, config.mlp) == kind
    generation = huggingface.Generation(stop_ids=(3, 7), pad_id=0, temperature=0.6, do_sample=True)
    huggingface.save(tmp_path, loaded.model, loaded.params, generation)
    again = huggingface.load(tmp_path)
    assert again.model.config == config
    assert again.generation == generation
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    # the tensors themselves are those that torch wrote
    theirs, ours = files.read_folder(FIXTURES / name), files.read_folder(tmp_path)
    assert theirs.keys() - ours.keys() <= t5.surplus(config)
    for tensor, values in ours.items():
        np.testing.assert_array_equal(values, theirs[tensor])


# Against torch ---------------------------------------------------------------------------------------------


def rights(valid: jax.Array, tokens: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Left-padded prompts as right-padded ones: tokens and mask."""
    lengths = np.asarray(valid.sum(axis=1))
    moved = np.zeros(tokens.shape, np.int64)
    for row, length in enumerate(lengths):
        moved[row, :length] = np.asarray(tokens)[row, tokens.shape[1] - length :]
    return moved, (np.arange(tokens.shape[1])[None] < lengths[:, None]).astype(np.int64)


@pytest.mark.parity
@pytest.mark.parametrize("name", T5_CASES)
def test_torch_agrees(name: str, tmp_path: Path) -> None:
    """Logits, greedy decoding, and the way there and back."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = build(name)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = huggingface.load(tmp_path / "theirs")
    model, params = compiled(loaded.model), loaded.params
    prompt, valid = prompts((17, 6, 1), 17)
    ids, mask = (torch.tensor(x) for x in rights(valid, prompt))
    inputs = {"input_ids": ids, "attention_mask": mask}
    read = np.concatenate([np.zeros((3, 1), np.int64), np.asarray(COMPLETION, np.int64)[:, :-1]], axis=1)

    def logits_of(theirs: Any) -> np.ndarray:
        with torch.no_grad():
            return theirs(**inputs, decoder_input_ids=torch.tensor(read)).logits.numpy()

    expected = logits_of(theirs)
    assert expected.std() > 0.1
    logits = model.logits(params, model.completion(params, prompt, valid, COMPLETION))
    np.testing.assert_allclose(logits, expected, atol=1e-4)

    # Each token once, for a random model with a tied head stays where it is; and without a cache, for that of
    # transformers 5.24 has no room for a decoder deeper than its encoder.
    settings = {"do_sample": False, "max_new_tokens": 16, "no_repeat_ngram_size": 1, "use_cache": False}
    generated = theirs.generate(**inputs, **settings).numpy()[:, 1:]
    hidden, cache = model.prefill(params, prompt, valid, 17 + 16)
    free, tokens = jnp.ones((3, 40), bool).at[:, 0].set(False), []  # the start token is one
    for _ in range(16):
        logits = jnp.where(free, model.logits(params, hidden), -jnp.inf)
        tokens.append(jnp.argmax(logits, axis=-1))
        free = free.at[jnp.arange(3), tokens[-1]].set(False)
        hidden, cache = model.decode(params, tokens[-1], cache)
    np.testing.assert_array_equal(jnp.stack(tokens, axis=1), generated)

    huggingface.save(tmp_path / "ours", model, params)
    back = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "ours").eval()
    assert isinstance(back, transformers.T5ForConditionalGeneration)
    np.testing.assert_array_equal(logits_of(back), expected)
    np.testing.assert_array_equal(back.generate(**inputs, **settings).numpy()[:, 1:], generated)
    again = huggingface.load(tmp_path / "ours")
    assert again.model.config == model.config
    jax.tree.map(np.testing.assert_array_equal, again.params, params)


@pytest.mark.parity
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 12), (16, 20), (32, 256)])
def test_torch_has_the_same_buckets(buckets: int, max_distance: int) -> None:
    torch = pytest.importorskip("torch")
    attention = pytest.importorskip("transformers.models.t5.modeling_t5").T5Attention
    config = replace(RELU, buckets=buckets, max_distance=max_distance)
    distance = np.arange(-400, 401)[None]
    weights = jnp.arange(float(buckets))[:, None]
    for kind in ("encoder", "decoder"):
        expected = attention._relative_position_bucket(
            torch.tensor(distance), kind == "encoder", buckets, max_distance
        )
        ours = relative_bias(config, kind, weights, jnp.asarray(distance))
        np.testing.assert_array_equal(ours[0], expected.numpy())


def test_the_encoder_alone() -> None:
    _, params = made(RELU)
    prompt, valid = prompts()
    encode = jax.jit(encoder(RELU))
    hidden = encode(params, prompt, valid)
    assert hidden.shape == (3, 9, 24)
    short = encode(params, prompt[1:2, 5:], valid[1:2, 5:])
    np.testing.assert_allclose(hidden[1, 5:], short[0], atol=2e-5)
