"""The decoder against itself: with and without a cache, padded and packed, unrolled and scanned."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.adapters import low_rank, prefixes
from rljax.models.transformer import Layer, Rotary, TransformerConfig, logical_axes, transformer
from rljax.models.transformer.attention import stored

FULL, NARROW = Layer(), Layer(window=3)
LLAMA = TransformerConfig(
    vocab_size=23, hidden_size=16, intermediate_size=20, num_heads=4, num_kv_heads=2, layers=(FULL, FULL)
)
NARROW_LLAMA = replace(LLAMA, layers=(NARROW, FULL))
GEMMA = replace(
    LLAMA,
    layers=(NARROW, Layer(Rotary(1e6, scaling="linear", factor=8.0))),
    head_dim=10,
    norm="rms_offset",
    block="sandwich",
    head_norm="query_key",
    activation="gelu_tanh",
    embedding_scale=4.0,
    attention_scale=0.2,
    attention_softcap=5.0,
    final_softcap=3.0,
)
NEOX = replace(
    LLAMA,
    layers=(Layer(Rotary(fraction=0.25)),),
    head_dim=8,
    norm="layer",
    block="parallel",
    mlp="plain",
    activation="gelu",
    biases=("qkv", "output", "mlp", "head"),
    tied=False,
)
GPT2 = replace(
    LLAMA,
    layers=(Layer(None),),
    positions="learned",
    max_positions=16,
    num_kv_heads=None,
    norm="layer",
    mlp="plain",
    activation="gelu_tanh",
    biases=("qkv", "output", "mlp"),
)
NOPE = replace(LLAMA, layers=(FULL, Layer(None)))
LLAMA3 = replace(LLAMA, layers=(Layer(Rotary(5e5, scaling="llama3", factor=8.0, original_positions=16)),))
CONFIGS = {
    "llama": LLAMA,
    "narrow": NARROW_LLAMA,
    "gemma": GEMMA,
    "neox": NEOX,
    "gpt2": GPT2,
    "nope": NOPE,
    "llama3": LLAMA3,
}
every_config = pytest.mark.parametrize("name", CONFIGS)


def random(config: TransformerConfig, seed: int = 0, deviation: float = 0.3) -> Any:
    """Parameters all of which are random, norms and biases too, so that none is where it hides a mistake."""
    draw = np.random.default_rng(seed)
    centre = lambda path: float(path[-1].key == "scale" and config.norm != "rms_offset")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (centre(path) + deviation * draw.normal(size=leaf.shape)).astype(
            config.param_dtype
        ),
        jax.eval_shape(transformer(config).init, jax.random.key(0)),
    )


@cache
def build(config: TransformerConfig) -> tuple[Any, Any]:
    """The model with its functions compiled, and random parameters; shared by the tests."""
    model = transformer(config)
    compiled = model._replace(
        forward=jax.jit(model.forward),
        logits=jax.jit(model.logits),
        prefill=jax.jit(model.prefill, static_argnums=3),
        decode=jax.jit(model.decode),
        completion=jax.jit(model.completion),
        fork=jax.jit(model.fork, static_argnums=1),
    )
    return compiled, random(config)


def stacked(params: Any, layers: int) -> Any:
    """Parameters of an unrolled model as those of a scanned one."""
    rest = {name: value for name, value in params.items() if not name.startswith("layer_")}
    each = [params[f"layer_{number}"] for number in range(layers)]
    return {**rest, "layers": jax.tree.map(lambda *x: np.stack(x), *each)}


TOKENS = np.random.default_rng(0).integers(0, 23, (2, 9)).astype(np.int32)
ONES = np.ones((2, 9), np.int32)


def padded(tokens: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with `columns` more on their left, and where they are valid."""
    wide = np.pad(tokens, [(0, 0), (columns, 0)], constant_values=7)
    return wide, np.broadcast_to(np.arange(wide.shape[1]) >= columns, wide.shape)


@pytest.mark.parametrize(
    ("name", "loop"),
    [*((name, "unrolled") for name in CONFIGS), ("gemma", "scanned"), ("gpt2", "scanned")],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_prefill_and_decode_equal_forward(name: str, loop: Any, padding: int) -> None:
    """Padded on the left or not: prompts are 7 columns wide, so that both are one program."""
    model, params = build(replace(CONFIGS[name], loop=loop))
    whole = model.logits(params, model.forward(params, TOKENS))
    prompt, valid = padded(TOKENS[:, : 7 - padding], padding)
    hidden, cache = model.prefill(params, prompt, valid, 12)
    for column in range(7 - padding, 9):
        np.testing.assert_allclose(logits_of(name, params, hidden), whole[:, column - 1], atol=1e-5)
        hidden, cache = model.decode(params, TOKENS[:, column], cache)
    np.testing.assert_allclose(logits_of(name, params, hidden), whole[:, -1], atol=1e-5)
    assert whole.dtype == jnp.float32


def logits_of(name: str, params: Any, hidden: Any) -> Any:
    """Of hidden states (2, D), in the program that serves (2, 9, D)."""
    model, _ = build(CONFIGS[name])
    return model.logits(params, np.repeat(np.asarray(hidden)[:, None], 9, axis=1))[:, 0]


@every_config
def test_scanned_layers_equal_unrolled_ones(name: str) -> None:
    config = CONFIGS[name]
    model, params = build(config)
    scanned, _ = build(replace(config, loop="scanned"))
    expected = jax.eval_shape(scanned.init, jax.random.key(0))
    inner = stacked(params, config.num_layers)
    assert jax.tree.map(jnp.shape, inner) == jax.tree.map(jnp.shape, expected)
    np.testing.assert_allclose(scanned.forward(inner, TOKENS), model.forward(params, TOKENS), atol=1e-5)


@every_config
def test_left_padding_changes_nothing(name: str) -> None:
    model, params = build(CONFIGS[name])
    tokens, valid = padded(TOKENS, 3)
    found = model.forward(params, tokens, valid.astype(np.int32))
    np.testing.assert_allclose(found[:, 3:], model.forward(params, TOKENS), atol=1e-5)


@every_config
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model, params = build(CONFIGS[name])
    segments = np.asarray([[1] * 4 + [2] * 5 + [0] * 3] * 2, np.int32)
    packed = model.forward(params, np.pad(TOKENS, [(0, 0), (0, 3)]), segments)
    # what stands behind a token is nothing to it, so rows of nine tokens begin with the documents alone
    first = model.forward(params, TOKENS)[:, :4]
    second = model.forward(params, np.pad(TOKENS[:, 4:], [(0, 0), (0, 4)]))[:, :5]
    np.testing.assert_allclose(packed[:, :4], first, atol=1e-5)
    np.testing.assert_allclose(packed[:, 4:9], second, atol=1e-5)
    assert np.isfinite(packed).all()


def test_a_window_reaches_back_exactly_that_far() -> None:
    model, params = build(replace(LLAMA, layers=(NARROW,)))
    before = model.forward(params, TOKENS)
    other = TOKENS.copy()
    other[:, 2] = (other[:, 2] + 1) % 23
    changed = np.abs(np.asarray(model.forward(params, other)) - before).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(changed), [2, 3, 4])


def test_completion_predicts_each_token_from_those_before() -> None:
    model, params = build(GEMMA)
    prompt, answer = TOKENS[:, :4], TOKENS[:, 4:]
    valid = np.asarray([[True] * 4, [False] + [True] * 3])
    hidden = model.completion(params, prompt, valid, answer)
    # three columns of padding more: the programs of other tests
    state, cache = model.prefill(params, *(np.pad(x, [(0, 0), (3, 0)]) for x in (prompt, valid)), 12)
    for step in range(5):
        np.testing.assert_allclose(hidden[:, step], state, atol=1e-5)
        state, cache = model.decode(params, answer[:, step], cache)


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_a_forked_cache_serves_every_sample(loop: Any) -> None:
    model, params = build(replace(LLAMA, loop=loop))
    valid = np.asarray([[True] * 7, [False] * 4 + [True] * 3])
    _, cache = model.prefill(params, TOKENS[:, :7], valid, 12)
    tokens = np.asarray([1, 2, 3, 4, 5, 6], np.int32)
    forked, _ = model.decode(params, tokens, model.fork(cache, 3))
    for sample in range(3):
        single, _ = model.decode(params, tokens[[sample, 3 + sample]], cache)
        np.testing.assert_allclose(np.asarray(forked)[[sample, 3 + sample]], single, atol=1e-5)


def shared_prompts() -> list[Any]:
    """(name, loop) of every model; scanned, all but two are slow: the loop asks nothing of a layer's kind."""
    quick = [(name, "unrolled") for name in CONFIGS] + [("gemma", "scanned"), ("gpt2", "scanned")]
    rest = [(name, "scanned") for name in CONFIGS if name not in ("gemma", "gpt2")]
    return [*quick, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in rest)]


@pytest.mark.parametrize(("name", "loop"), shared_prompts())
def test_a_prompt_that_completions_share_is_as_one_for_each(name: str, loop: Any) -> None:
    """Hidden states and gradients; the prompt runs once then."""
    model, params = build(replace(CONFIGS[name], loop=loop))
    prompt, answers = TOKENS[:, :4], np.tile(TOKENS[:, 4:], (3, 1))
    answers[:, 1] = np.arange(6)
    valid = np.asarray([[True] * 4, [False] * 2 + [True] * 2])
    weights = np.random.default_rng(0).normal(size=(6, 5, 16)).astype(np.float32)

    def run(params: Any, prompt: Any, valid: Any) -> tuple[Any, Any]:
        hidden = model.completion(params, prompt, valid, answers)
        return (hidden * weights).sum(), hidden

    @jax.jit
    def both(params: Any) -> Any:
        """Hidden states, gradients and those of one token, each with a prompt for all and for each."""
        found = []
        for given in ((prompt, valid), (np.repeat(prompt, 3, axis=0), np.repeat(valid, 3, axis=0))):
            (_, hidden), gradient = jax.value_and_grad(run, has_aux=True)(params, *given)
            found.append((hidden, gradient, model.completion(params, *given, answers[:, :1])))
        return found

    (shared, gradient, one), (each, expected, one_each) = both(params)
    np.testing.assert_allclose(shared, each, atol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
    close = lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5 * largest)
    jax.tree.map(close, gradient, expected)
    np.testing.assert_allclose(one, one_each, atol=1e-5)


def loss(model: Any, params: Any, segments: Any) -> jax.Array:
    scores = model.logits(params, model.forward(params, TOKENS, segments))[:, :-1]
    chosen = jnp.take_along_axis(jax.nn.log_softmax(scores), TOKENS[:, 1:, None], axis=-1)[..., 0]
    return -(chosen * (segments[:, 1:] > 0)).sum()


@cache
def gradient_of(config: TransformerConfig) -> Any:
    """(params, segments) -> the gradient of `loss`, compiled once for the tests that read it."""
    return jax.jit(jax.grad(partial(loss, transformer(config))))


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_does_not_change_the_gradient(loop: Any, remat: Any) -> None:
    config = replace(GEMMA, loop=loop)
    _, params = build(config)
    expected = gradient_of(config)(params, ONES)
    found = gradient_of(replace(config, remat=remat))(params, ONES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


@every_config
def test_gradients_are_finite_and_blind_to_rows_of_padding(name: str) -> None:
    _, params = build(CONFIGS[name])
    segments = np.asarray([[0] * 2 + [1] * 7, [0] * 9], np.int32)
    with_row = gradient_of(CONFIGS[name])(params, segments)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(with_row))
    assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(with_row))


def test_a_prefix_is_seen_by_every_query_and_never_moves() -> None:
    """A prefix that holds the keys and values of tokens acts as those tokens do."""
    for loop in ("unrolled", "scanned"):
        model, params = build(replace(LLAMA, loop=loop))
        _, cache = jax.device_get(model.prefill(params, TOKENS[:1, :3], np.ones((1, 3), bool), 3))
        # a cache has the columns of keys last
        at = lambda pair: {"attention": {"prefix_key": pair[0].swapaxes(-1, -2), "prefix_value": pair[1]}}
        if loop == "scanned":
            prefix = {"layers": at([part[:, 0] for part in cache.layers])}
        else:
            prefix = {f"layer_{n}": at([part[0] for part in pair]) for n, pair in enumerate(cache.layers)}
        rest = np.broadcast_to(TOKENS[:1, 3:], (2, 6))
        expected = model.forward(params, TOKENS)[:1, 3:]
        positions = np.broadcast_to(np.arange(3, 9, dtype=np.int32), (2, 6))
        found = model.forward(params, rest, positions=positions, adapters=prefix)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-5)
        plain = model.forward(params, rest, adapters=prefix)
        state, cache = model.prefill(params, rest[:, :2], np.ones((2, 2), bool), 3, prefix)
        np.testing.assert_allclose(state, plain[:, 1], atol=1e-5)
        state, _ = model.decode(params, rest[:, 2], cache, prefix)
        np.testing.assert_allclose(state, plain[:, 2], atol=1e-5)


def test_the_gradient_of_a_product_is_that_of_matmul() -> None:
    model, params = build(NEOX)
    direction = random(NEOX, 2, 1.0)
    f = jax.jit(partial(loss, model))
    at = lambda step: f(jax.tree.map(lambda p, d: p + np.float32(step) * d, params, direction), ONES)
    gradient = gradient_of(NEOX)(params, ONES)
    slope = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
    np.testing.assert_allclose(slope, (at(1e-3) - at(-1e-3)) / 2e-3, rtol=1e-2)


def test_adapters_add_a_low_rank_product() -> None:
    for loop in ("unrolled", "scanned"):
        model, params = build(replace(LLAMA, loop=loop))
        lead = (2,) if loop == "scanned" else ()
        draw = np.random.default_rng(3)
        a, b = (0.3 * draw.normal(size=(*lead, *shape)).astype(np.float32) for shape in ((16, 2), (2, 20)))
        name = "layers" if loop == "scanned" else "layer_1"
        adapters = {name: {"mlp": {"up": {"a": a, "b": b}}}}
        merged = jax.tree.map(lambda x: x, params)  # its dicts are new
        merged[name]["mlp"]["up"]["kernel"] = params[name]["mlp"]["up"]["kernel"] + a @ b
        adapted = model.forward(params, TOKENS, adapters=adapters)
        np.testing.assert_allclose(adapted, model.forward(merged, TOKENS), atol=1e-5)
        state, cache = model.prefill(params, TOKENS[:, :5], jnp.ones((2, 5), bool), 6, adapters)
        np.testing.assert_allclose(state, adapted[:, 4], atol=1e-5)
        state, _ = model.decode(params, TOKENS[:, 5], cache, adapters)
        np.testing.assert_allclose(state, adapted[:, 5], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma", "neox"])
def test_bfloat16_is_near_float32(name: str) -> None:
    model, params = build(CONFIGS[name])
    half, _ = build(replace(CONFIGS[name], dtype=jnp.bfloat16))
    exact = model.logits(params, model.forward(params, TOKENS))
    rounded = half.forward(params, TOKENS)
    assert rounded.dtype == jnp.bfloat16
    scores = half.logits(params, rounded)
    assert scores.dtype == jnp.float32
    assert 0 < np.abs(scores - exact).max() < 0.15 * np.abs(exact).max()
    gradient = gradient_of(replace(CONFIGS[name], dtype=jnp.bfloat16))(params, ONES)
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    _, cache = half.prefill(params, TOKENS[:, :4], np.ones((2, 4), bool), 9)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache.layers)} == {jnp.dtype(stored(jnp.bfloat16))}


@pytest.mark.parametrize("name", ["llama", "gemma", "neox"])
def test_bfloat16_decodes_what_it_is_trained_on(name: str) -> None:
    """A cache that is held wider holds the rounded numbers: what is left is the rounding of single sums."""
    model, params = build(replace(CONFIGS[name], dtype=jnp.bfloat16))
    whole = np.asarray(model.logits(params, model.forward(params, TOKENS)))
    state, cache = model.prefill(params, TOKENS[:, :4], np.ones((2, 4), bool), 9)
    for step in range(4, 9):
        near = np.abs(whole[:, step - 1] - model.logits(params, state)).max()
        assert near < 0.03 * np.abs(whole).max()
        state, cache = model.decode(params, TOKENS[:, step], cache)


def test_positions_of_a_table_are_those_computed() -> None:
    model, params = build(CONFIGS["llama"])
    given = np.broadcast_to(np.arange(9, dtype=np.int32), TOKENS.shape)
    exact = model.forward(params, TOKENS, None, given)
    np.testing.assert_allclose(model.forward(params, TOKENS), exact, rtol=1e-6, atol=1e-6)


def test_parameters_can_be_bfloat16() -> None:
    model = transformer(replace(LLAMA, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))
    params = jax.jit(model.init)(jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    gradient = gradient_of(replace(LLAMA, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16))(params, ONES)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}


def test_seeds_can_be_mapped() -> None:
    model, _ = build(LLAMA)
    params = jax.jit(lambda key: jax.vmap(model.init)(jax.random.split(key, 2)))(jax.random.key(0))
    params = jax.device_get(params)
    hidden = jax.jit(jax.vmap(lambda p: model.forward(p, TOKENS)))(params)
    for seed in range(2):
        single = model.forward(jax.tree.map(lambda leaf, seed=seed: leaf[seed], params), TOKENS)
        np.testing.assert_allclose(hidden[seed], single, atol=1e-5)


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_every_axis_of_a_parameter_has_a_name(loop: Any) -> None:
    for config in CONFIGS.values():
        config = replace(config, loop=loop)
        shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
        axes = logical_axes(shapes)
        sizes = {
            "vocabulary": 23,
            "embed": 16,
            "mlp": 20,
            "heads": 4 * config.head_size,
            "kv_heads": config.kv_heads * config.head_size,
            "layers": config.num_layers,
        }
        is_names = lambda x: isinstance(x, tuple)
        pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(axes, is_leaf=is_names), strict=True)
        for leaf, names in pairs:
            assert len(names) == leaf.ndim
            named = {name: size for name, size in zip(names, leaf.shape, strict=True) if name is not None}
            assert named == {name: sizes[name] for name in named}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads = 3: must divide num_heads = 4"),
        ({"hidden_size": 17}, "num_heads = 4: must divide hidden_size = 17"),
        ({"layers": ()}, "layers = .*: must hold at least one Layer"),
        ({"head_dim": 5}, "head_dim = 5: must be even .* 5 is odd"),
        ({"norm": "batch"}, "norm = 'batch': must be one of rms, rms_offset, layer"),
        ({"biases": ("query",)}, "biases = .*: must be a tuple of some of head, mlp, output, qkv"),
        ({"layers": (Layer(window=0),)}, "layers = .*: a window must be at least 1"),
        ({"positions": "learned"}, "positions = 'learned': needs layers with rotary=None"),
        ({"layers": (FULL, Layer(Rotary(fraction=0.5)))}, "must all turn the same number"),
    ],
)
def test_a_wrong_field_is_named(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transformer(replace(LLAMA, **change))


def test_more_tokens_than_learned_positions_are_refused() -> None:
    model, params = build(GPT2)
    with pytest.raises(ValueError, match="17 tokens: the model has 16 learned positions"):
        model.forward(params, np.zeros((1, 17), np.int32))
    with pytest.raises(ValueError, match="17 tokens"):
        model.prefill(params, TOKENS, np.ones((2, 9), bool), 18)


def test_llama3_scaling_keeps_high_frequencies_and_divides_low_ones() -> None:
    rotary = Rotary(5e5, scaling="llama3", factor=8.0, low_frequency_factor=1.0, high_frequency_factor=4.0)
    plain, scaled = Rotary(5e5).frequencies(64), rotary.frequencies(64)
    length = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[length < 8192 / 4], plain[length < 8192 / 4])
    np.testing.assert_allclose(scaled[length > 8192], plain[length > 8192] / 8)
    between = (length > 8192 / 4) & (length < 8192)
    assert between.any()
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_adapters_prefixes_and_trees_that_hold_some_have_names_too(loop: Any) -> None:
    config = replace(LLAMA, loop=loop)
    shapes = jax.eval_shape(transformer(config).init, jax.random.key(0))
    key = jax.random.key(1)
    lora = jax.eval_shape(lambda params: low_rank.init(key, params, ("mlp/*",), 2), shapes)
    prefix = jax.eval_shape(lambda: prefixes.init(key, config, 3))
    critic = {"kernel": jax.ShapeDtypeStruct((16, 1), float), "bias": jax.ShapeDtypeStruct((1,), float)}
    is_names = lambda x: isinstance(x, tuple)
    for tree in (lora, prefix, {"policy": shapes, "head": critic}):
        axes = logical_axes(tree)
        pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(axes, is_leaf=is_names), strict=True)
        assert all(len(names) == leaf.ndim for leaf, names in pairs)
