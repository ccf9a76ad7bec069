"""Generation against a plain loop over full forward passes, with a tiny model that needs no weights."""

import re
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.math import sampling
from rljax.models.transformer import TransformerConfig, transformer
from rljax.models.transformer.config import Layer
from rljax.runs.program import engine
from rljax.text import decoding
from rljax.text.batched_generation import decode_many
from rljax.text.decoding import Sampling, of_any_member
from rljax.text.generate import Completion, generate, stream
from rljax.text.score import score
from rljax.types import SIDE_BY_SIDE, LanguageModel

KEY = jax.random.key(0)
V, D, P, T = 23, 8, 5, 12
TRUNCATED = Sampling(
    temperature=0.7, top_k=12, top_p=0.95, min_p=0.02, repetition_penalty=1.3, max_new_tokens=T
)


class Config(NamedTuple):
    vocab_size: int = V
    max_positions: int = 40


class Cache(NamedTuple):
    total: jax.Array  # (B, D)
    index: jax.Array  # ()


def bag() -> LanguageModel:
    """Predicts from the last token and the sum of all valid ones: enough to notice padding and forks."""

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {"in": jax.random.normal(first, (V, D)), "out": 1.5 * jax.random.normal(second, (D, V))}

    def states(params: Any, tokens: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = params["in"][tokens] * valid[..., None]
        total = jnp.cumsum(x, axis=1)
        return jnp.sin(total + 2 * x), total

    def forward(
        params: Any, tokens: Any, segments: Any = None, positions: Any = None, adapters: Any = None
    ) -> Any:
        del positions, adapters
        valid = jnp.ones(tokens.shape, bool) if segments is None else segments > 0
        return states(params, tokens, valid)[0]

    def prefill(params: Any, tokens: Any, valid: Any, columns: int, adapters: Any = None) -> Any:
        del columns, adapters
        hidden, total = states(params, tokens, valid)
        return hidden[:, -1], Cache(total[:, -1], jnp.int32(tokens.shape[1]))

    def decode(params: Any, token: Any, cache: Cache, adapters: Any = None) -> Any:
        del adapters
        x = params["in"][token]
        return jnp.sin(cache.total + 3 * x), Cache(cache.total + x, cache.index + 1)

    def completion(params: Any, prompt: Any, valid: Any, completion: Any, adapters: Any = None) -> Any:
        tokens = jnp.concatenate([prompt, completion], axis=1)
        whole = jnp.concatenate([valid, jnp.ones(completion.shape, bool)], axis=1)
        return forward(params, tokens, whole, adapters=adapters)[:, prompt.shape[1] - 1 : -1]

    def fork(cache: Cache, group: int) -> Cache:
        return Cache(jnp.repeat(cache.total, group, axis=0), cache.index)

    logits = lambda params, hidden: hidden @ params["out"]
    return LanguageModel(Config(), init, forward, logits, prefill, decode, completion, fork)


def small_llama(loop: Any = "unrolled") -> LanguageModel:
    layers = (Layer(), Layer(window=4))
    return transformer(TransformerConfig(V, 16, 24, 4, layers, num_kv_heads=2, max_positions=40, loop=loop))


BAG, LLAMA = bag(), small_llama()
MODELS = {"bag": BAG, "llama": LLAMA, "scanned": small_llama("scanned")}


@cache
def params_of(model: LanguageModel) -> Any:
    params = jax.device_get(jax.jit(model.init)(jax.random.key(1)))
    return jax.tree.map(lambda x: jnp.asarray(3 * x if x.ndim > 1 else x), params)


PROMPT = np.asarray([[0, 0, 3, 1, 4], [1, 5, 9, 2, 6], [0, 0, 0, 0, 7]], np.int32)
VALID = np.asarray([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 1]], bool)


def generated(*given: Any, **more: Any) -> Completion:
    """What `generate` gives, as numpy: each cut of a JAX array would be one more program."""
    return jax.device_get(generate(*given, **more))


def draw(name: str, settings: Sampling = TRUNCATED, **more: Any) -> Completion:
    model = MODELS[name]
    return generated(model, params_of(model), KEY, PROMPT, VALID, settings, **more)


@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_a_loop_of_full_forward_passes_without_padding(name: str) -> None:
    model, params = MODELS[name], params_of(MODELS[name])
    found = draw(name, Sampling(temperature=0.0, max_new_tokens=T))
    predict = jax.jit(lambda tokens: model.logits(params, model.forward(params, tokens)[0]))
    for row in range(3):
        tokens = np.asarray(PROMPT[row])[np.asarray(VALID[row])].tolist()
        for _ in range(T):
            width = [tokens + [0] * (P + T - len(tokens))]  # one shape; attention is causal
            predicted = np.asarray(predict(np.asarray(width, np.int32)))
            tokens.append(int(np.argmax(predicted[len(tokens) - 1])))
        assert found.tokens[row].tolist() == tokens[-T:]
    assert found.mask.all()
    assert not found.log_prob.any()


@pytest.mark.parametrize(
    ("name", "group"),
    [
        *(("bag", 1), ("bag", 3), ("llama", 3), ("scanned", 3)),
        # a model serves each sample of a prompt alike, and forks its cache only where there are several
        *(pytest.param(name, 1, marks=pytest.mark.slow) for name in ("llama", "scanned")),
    ],
)
def test_log_probabilities_equal_those_of_one_forward_pass(name: str, group: int) -> None:
    """Temperature, every truncation, repetition penalty, left padding, several samples per prompt."""
    model, params = MODELS[name], params_of(MODELS[name])
    for settings in (TRUNCATED, Sampling(temperature=1.4, max_new_tokens=T)):
        found = draw(name, settings, group=group, stop_ids=(2, 11))
        again = score(model, params, PROMPT, VALID, found.tokens, settings, found.mask)
        np.testing.assert_allclose(found.log_prob, again, atol=1e-4)
        kept = score(model, params, PROMPT, VALID, found.tokens, settings, found.mask, outside="kept")
        np.testing.assert_allclose(found.log_prob, kept, atol=1e-4)
        assert (found.log_prob <= 0).all()
        assert (found.log_prob < -0.1).any()


def test_score_against_float64_one_token_at_a_time() -> None:
    params = params_of(BAG)
    found = draw("bag", group=2, processors=(never_after,))
    table, head = np.asarray(params["in"], np.float64), np.asarray(params["out"], np.float64)
    for row in range(6):
        tokens = np.asarray(PROMPT[row // 2])[np.asarray(VALID[row // 2])].tolist()
        for t in range(T):
            logits = np.sin(table[tokens].sum(0) + 2 * table[tokens[-1]]) @ head
            seen = np.isin(np.arange(V), tokens)
            logits = np.where(seen, np.where(logits > 0, logits / 1.3, logits * 1.3), logits)
            logits[(tokens[-1] + 1) % V] = -np.inf
            x = logits / 0.7
            x[x < np.sort(x)[-12]] = -np.inf
            p = np.exp(x - x.max()) / np.exp(x - x.max()).sum()
            order = np.argsort(-p)
            p[order[1 + np.searchsorted(np.cumsum(p[order]), 0.95) :]] = 0
            p[p < 0.02 * p.max()] = 0
            tokens.append(int(found.tokens[row, t]))
            np.testing.assert_allclose(found.log_prob[row, t], np.log(p[tokens[-1]] / p.sum()), atol=1e-4)


def never_after(logits: jax.Array, tokens: jax.Array, step: jax.Array) -> jax.Array:
    """A processor: token x is never followed by x + 1."""
    last = tokens[P + step - 1]
    return jnp.where(jnp.arange(V) == (last + 1) % V, -jnp.inf, logits)


def test_processors_see_prompt_and_completion_and_nothing_else() -> None:
    settings = Sampling(temperature=2.0, max_new_tokens=T)
    seen = []

    def look(logits: jax.Array, tokens: jax.Array, step: jax.Array) -> jax.Array:
        jax.debug.callback(lambda *values: seen.append(jax.tree.map(np.asarray, values)), tokens, step)
        return logits

    plain = draw("bag", settings)
    looked = draw("bag", settings, processors=(look,))
    jax.effects_barrier()
    np.testing.assert_array_equal(plain.tokens, looked.tokens)
    assert len(seen) == 3 * T
    for tokens, step in seen:
        row = [r for r in range(3) if (tokens[:P] == np.where(VALID[r], PROMPT[r], -1)).all()]
        assert len(row) == 1
        np.testing.assert_array_equal(tokens[P : P + step], plain.tokens[row[0], :step])
        assert (tokens[P + step :] == -1).all()
    found = draw("bag", settings, processors=(never_after,), group=40).tokens
    before = np.concatenate([np.repeat(PROMPT[:, -1:], 40, axis=0), found[:, :-1]], axis=1)
    assert not (found == (before + 1) % V).any()
    assert (draw("bag", settings, group=40).tokens != found).any()


def test_stop_tokens_end_a_row_and_are_part_of_it() -> None:
    free = draw("llama", Sampling(max_new_tokens=T), group=20)
    found = draw("llama", Sampling(max_new_tokens=T), group=20, stop_ids=jnp.asarray([2, 11]), pad_id=99)
    stop = np.isin(free.tokens, [2, 11])
    expected = np.cumsum(stop, axis=1) - stop == 0
    assert 0.2 < expected.mean() < 0.9
    np.testing.assert_array_equal(found.mask, expected)
    np.testing.assert_array_equal(found.tokens, np.where(expected, free.tokens, 99))
    np.testing.assert_allclose(found.log_prob, np.where(expected, free.log_prob, 0), atol=1e-6)
    assert found.tokens.dtype == jnp.int32


@pytest.mark.parametrize("name", MODELS)
def test_a_row_depends_on_its_own_key_and_prompt_alone(name: str) -> None:
    model, params = MODELS[name], params_of(MODELS[name])
    keys = jax.random.split(jax.random.key(7), 3)
    settings = Sampling(max_new_tokens=T)
    whole = generated(model, params, keys, PROMPT, VALID, settings, group=2)
    for row in (0, 2):
        alone = generated(
            model, params, keys[row : row + 1], PROMPT[row : row + 1], VALID[row : row + 1], settings
        )
        np.testing.assert_array_equal(whole.tokens[2 * row], alone.tokens[0])
    turned = generated(model, params, keys[::-1], PROMPT[::-1], VALID[::-1], settings, group=2)
    np.testing.assert_array_equal(turned.tokens, whole.tokens.reshape(3, 2, T)[::-1].reshape(6, T))
    longer = generated(model, params, keys, PROMPT, VALID, Sampling(max_new_tokens=T + 4), group=2)
    np.testing.assert_array_equal(longer.tokens[:, :T], whole.tokens)
    assert (whole.tokens[0] != whole.tokens[1]).any()
    one = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))(KEY, np.arange(3))
    np.testing.assert_array_equal(
        generated(model, params, one, PROMPT, VALID, settings).tokens, draw(name, settings).tokens
    )


def test_left_padding_changes_nothing() -> None:
    wide = lambda x: np.pad(x, ((0, 0), (3, 0)))
    for name, model in MODELS.items():
        found = generate(model, params_of(model), KEY, wide(PROMPT), wide(VALID), TRUNCATED)
        np.testing.assert_array_equal(found.tokens, draw(name).tokens)


def test_samples_have_the_distribution_of_the_model() -> None:
    from scipy import stats

    params = params_of(BAG)
    settings = Sampling(temperature=8.0, top_p=0.9, max_new_tokens=2)
    found = generated(BAG, params, KEY, PROMPT[:1], VALID[:1], settings, group=20_000)

    @jax.jit
    def told(tokens: Any, valid: Any) -> jax.Array:
        """Probabilities of the token after these, (V,)."""
        logits = BAG.logits(params, BAG.forward(params, tokens, valid)[0, -1])
        return jax.nn.softmax(sampling.top_p(logits / 8.0, 0.9))

    p = np.asarray(told(PROMPT[:1], VALID[:1]), np.float64)
    counts = np.bincount(found.tokens[:, 0], minlength=V)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], 20_000 * p[p > 0] / p.sum()).pvalue > 1e-3
    table = np.zeros((V, V))
    np.add.at(table, (found.tokens[:, 0], found.tokens[:, 1]), 1)
    for token in np.argsort(-counts)[:3]:  # given the first, the second has its own distribution
        following = np.asarray([[0, 3, 1, 4, token]], np.int32)  # padded, so that it is the same program
        p = np.asarray(told(following, np.arange(5)[None] > 0), np.float64)
        assert stats.chisquare(table[token][p > 0], counts[token] * p[p > 0] / p.sum()).pvalue > 1e-3


def test_both_loops_draw_the_same() -> None:
    for name in MODELS:
        for stop_ids in ((), (2, 11)):
            both = [draw(name, TRUNCATED.replace(loop=loop), stop_ids=stop_ids) for loop in ("while", "scan")]
            jax.tree.map(np.testing.assert_array_equal, *both)


def test_the_while_loop_ends_early_and_the_scan_does_not() -> None:
    steps = []

    def counted(params: Any, token: Any, cache: Any, adapters: Any = None) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return BAG.decode(params, token, cache, adapters)

    model = BAG._replace(decode=counted)
    everything = tuple(range(V))
    for loop, stop_ids, expected in (
        ("while", everything, 0),
        ("scan", everything, T - 1),
        ("while", (), T - 1),
        ("scan", (), T - 1),
    ):
        steps.clear()
        settings = Sampling(max_new_tokens=T, loop=loop)
        jax.block_until_ready(generate(model, params_of(BAG), KEY, PROMPT, VALID, settings, stop_ids))
        jax.effects_barrier()
        assert len(steps) == expected


def test_members_side_by_side_end_together_and_early() -> None:
    """Under a vmap with the name that runs give it: what each member draws alone, in as many steps as the
    longest of them takes.
    """
    steps = []

    def counted(params: Any, token: Any, cache: Any, adapters: Any = None) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return BAG.decode(params, token, cache, adapters)

    model, settings = BAG._replace(decode=counted), Sampling(max_new_tokens=T)
    one = lambda stop_ids: generate(model, params_of(BAG), KEY, PROMPT, VALID, settings, stop_ids)

    def run(function: Any, stop_ids: Any) -> tuple[Any, int]:
        steps.clear()
        found = jax.block_until_ready(function(stop_ids))
        jax.effects_barrier()
        return found, len(steps)

    stops = np.stack([np.arange(V), np.arange(V) // 2 * 2])  # every token, every other one
    alone = [run(one, stop_ids) for stop_ids in stops]
    counts = [count for _, count in alone]
    assert 0 == counts[0] < counts[1] < T - 1
    together, count = run(jax.jit(jax.vmap(one, axis_name=SIDE_BY_SIDE)), stops)
    assert count == max(counts)
    for member, (found, _) in enumerate(alone):
        np.testing.assert_array_equal(together.tokens[member], found.tokens)
        np.testing.assert_array_equal(together.mask[member], found.mask)


@pytest.mark.parametrize(("kind", "found"), [("vmap", [1, 1]), ("map", [1, 0])])
def test_runs_map_their_members_under_that_name(kind: str, found: list[int]) -> None:
    grid = jax.make_mesh((1,), ("member",), devices=jax.devices()[:1])
    over = engine._over_members(lambda shared, holds: of_any_member(holds), kind, grid)
    assert jax.jit(over)(None, jnp.array([True, False])).tolist() == found


def test_numbers_are_leaves_so_a_sweep_is_one_program() -> None:
    traces = []

    def counted(params: Any, token: Any, cache: Any, adapters: Any = None) -> Any:
        traces.append(1)
        return BAG.decode(params, token, cache, adapters)

    model, params = BAG._replace(decode=counted), params_of(BAG)
    run = lambda stop_ids, **fields: generate(
        model, params, KEY, PROMPT, VALID, Sampling(max_new_tokens=T, **fields), stop_ids
    )
    for temperature in (0, 0.5, 1, np.float32(2), jnp.float32(3)):
        run((1, 2), temperature=temperature, top_k=5, top_p=0.5)
        run(jnp.asarray([3, 4]), temperature=temperature, top_k=7.0, top_p=1)
    assert len(traces) == 1

    sweep = Sampling(temperature=jnp.asarray([0.0, 0.7, 1.5]), max_new_tokens=T, loop="scan")
    swept = jax.vmap(lambda s: generate(model, params, KEY, PROMPT, VALID, s))(sweep)
    for i in range(3):
        single = run((), temperature=np.asarray(sweep.temperature)[i])
        np.testing.assert_array_equal(swept.tokens[i], single.tokens)
        np.testing.assert_allclose(swept.log_prob[i], single.log_prob, atol=1e-5)
    seeds = jax.vmap(lambda p: generate(LLAMA, p, KEY, PROMPT, VALID, TRUNCATED.replace(loop="scan")))(
        jax.tree.map(lambda x: np.stack([x, 2 * x]), params_of(LLAMA))
    )
    np.testing.assert_array_equal(seeds.tokens[0], draw("llama").tokens)


def test_the_cache_is_not_copied_in_the_loop() -> None:
    """XLA writes a column in place: within the compiled loop nothing copies an array of the cache's size."""
    run = jax.jit(partial(generate, LLAMA))
    text = run.lower(params_of(LLAMA), KEY, PROMPT, VALID, Sampling(max_new_tokens=T)).compile().as_text()
    shape = f"f32[3,2,{P + T},4]"
    assert shape in text
    entry = text.index("\nENTRY")
    lines = text[:entry].splitlines()
    assert any("dynamic-update-slice" in line and shape in line for line in lines)
    assert [line for line in lines if re.search(rf"= {re.escape(shape)}\S* copy", line)] == []


def test_stream_is_generate_one_token_at_a_time() -> None:
    traces = []

    def counted(params: Any, token: Any, cache: Any, adapters: Any = None) -> Any:
        traces.append(1)
        return LLAMA.decode(params, token, cache, adapters)

    model, params = LLAMA._replace(decode=counted), params_of(LLAMA)
    for temperature, prompt in ((1.0, [3, 1, 4]), (0.3, [1, 5, 9, 2, 6])):
        settings = TRUNCATED.replace(temperature=temperature)
        tokens = np.asarray([prompt], np.int32)
        for stop_ids in ((2, 11), (99, 98)):
            whole = generated(LLAMA, params, KEY, tokens, tokens >= 0, settings, stop_ids)
            found = list(stream(model, params, KEY, prompt, settings, stop_ids))
            assert found == whole.tokens[0][whole.mask[0]].tolist()
    assert len(traces) == 1


def test_score_never_holds_the_logits_of_all_tokens_and_has_their_gradient() -> None:
    rng = np.random.default_rng(0)
    prompt, completion = (jnp.asarray(rng.integers(V, size=(4, n)), jnp.int32) for n in (3, 300))
    valid = jnp.ones((4, 3), bool)
    params = params_of(BAG)
    settings = Sampling(temperature=0.7, max_new_tokens=300)

    def plain(params: Any) -> jax.Array:
        hidden = BAG.completion(params, prompt, valid, completion)
        log_p = jax.nn.log_softmax(BAG.logits(params, hidden) / 0.7)
        return jnp.take_along_axis(log_p, completion[..., None], axis=-1)[..., 0]

    chunked = lambda params: score(BAG, params, prompt, valid, completion, settings)
    np.testing.assert_allclose(chunked(params), jax.jit(plain)(params), atol=1e-5)
    weight = rng.normal(size=(4, 300)).astype(np.float32)
    both = [jax.jit(jax.grad(lambda params, f=f: jnp.sum(weight * f(params)))) for f in (chunked, plain)]
    gradient = [of(params) for of in both]
    # sums of 4 * 300 terms in another order: errors of up to 1200 * 2**-24 of the terms' size, that of random
    # signs about sqrt(1200) of 2**-24, 2e-6
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * largest), *gradient)
    text = jax.jit(jax.grad(lambda params: chunked(params).sum())).lower(params).compile().as_text()
    assert "[4,128,23]" in text
    assert "[4,300,23]" not in text
    assert "[4,384,23]" not in text


def test_tokens_outside_the_truncation() -> None:
    params = params_of(BAG)
    settings = Sampling(top_k=1, max_new_tokens=T)
    best = draw("bag", settings).tokens
    other = (best + 1) % V
    impossible = np.asarray(score(BAG, params, PROMPT, VALID, other, settings))
    assert (impossible[:, 0] == -jnp.inf).all()
    mask = put(np.ones(other.shape, bool), (slice(None), 0), False)
    assert (np.asarray(score(BAG, params, PROMPT, VALID, other, settings, mask))[:, 0] == 0).all()
    loss = lambda params: score(BAG, params, PROMPT, VALID, other, settings, outside="kept").sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradient))


def put(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    """A copy with another value at a place."""
    array = array.copy()
    array[place] = value
    return array


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"settings": Sampling(temperature=-1)}, "Sampling.temperature = -1: must be at least 0"),
        ({"settings": Sampling(temperature=None)}, "temperature = None"),
        ({"settings": Sampling(top_p=1.1)}, "top_p = 1.1"),
        ({"settings": Sampling(top_k=-2)}, "top_k = -2"),
        ({"settings": Sampling(min_p=float("nan"))}, "min_p = nan"),
        ({"settings": Sampling(repetition_penalty=0)}, "repetition_penalty = 0: must be above 0"),
        ({"settings": Sampling(max_new_tokens=0)}, "max_new_tokens = 0"),
        ({"settings": Sampling(loop="for")}, "must be one of while, scan"),  # pyright: ignore
        ({"settings": Sampling(max_new_tokens=37)}, "a prompt of 5 tokens and 37 new ones.*40 positions"),
        ({"prompt": PROMPT[:, :0], "valid": VALID[:, :0]}, r"shape \(3, 0\)"),
        ({"valid": put(VALID, 2, False)}, "prompt 2 has no valid token"),
        ({"valid": put(VALID, (1, 4), False)}, "prompt 1 has padding after a token"),
        ({"valid": VALID[:2]}, "the same shape"),
        ({"prompt": put(PROMPT, (1, 1), V)}, "tokens 1 to 23.*vocab_size 23"),
        ({"key": jax.random.split(KEY, 2)}, r"keys of shape \(2,\)"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "jax.random.key"),
        ({"group": 0}, "group = 0"),
    ],
)
def test_bad_input_is_one_clear_line(change: dict[str, Any], complaint: str) -> None:
    given = {"key": KEY, "prompt": PROMPT, "valid": VALID, "settings": Sampling(max_new_tokens=4)} | change
    with pytest.raises(ValueError, match=complaint) as error:
        generate(BAG, params_of(BAG), **given)
    assert "\n" not in str(error.value)


def test_the_last_position_is_used() -> None:
    """Of T new tokens the last is read by nothing: P + T − 1 positions are enough."""
    longer, full = (
        transformer(TransformerConfig(V, 16, 24, 4, (Layer(None),), positions="learned", max_positions=size))
        for size in (16, 10)
    )
    params = params_of(longer)
    short = {**params, "position_embedding": params["position_embedding"][:10]}
    settings = Sampling(temperature=0.0, max_new_tokens=6)
    wanted = generated(longer, params, KEY, PROMPT, VALID, settings).tokens
    np.testing.assert_array_equal(generated(full, short, KEY, PROMPT, VALID, settings).tokens, wanted)
    assert list(stream(full, short, KEY, PROMPT[1].tolist(), settings)) == wanted[1].tolist()
    many = decode_many(full, short, KEY, [PROMPT[1].tolist()], settings, batch=1)
    assert many[0].tokens.tolist() == wanted[1].tolist()
    with pytest.raises(ValueError, match="a prompt of 5 tokens and 7 new ones, for a model of 10 positions"):
        stream(full, short, KEY, PROMPT[1].tolist(), Sampling(max_new_tokens=7))


def test_bad_input_of_the_other_functions() -> None:
    params = params_of(BAG)
    with pytest.raises(ValueError, match=r"shape \(1, 0\)"):
        stream(BAG, params, KEY, [], Sampling())
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        decode_many(BAG, params, KEY, [[1], []], Sampling(max_new_tokens=4))
    with pytest.raises(ValueError, match="batch = 2, group = 3"):
        decode_many(BAG, params, KEY, [[1]], Sampling(max_new_tokens=4), batch=2, group=3)
    with pytest.raises(ValueError, match="as many for each prompt"):
        score(BAG, params, PROMPT, VALID, PROMPT[:2], Sampling())
    with pytest.raises(ValueError, match="outside = 'out'"):
        score(BAG, params, PROMPT, VALID, PROMPT, Sampling(), outside="out")  # pyright: ignore


@pytest.mark.parametrize(("name", "group", "batch"), [("bag", 1, 8), ("llama", 2, 9), ("scanned", 3, 3)])
def test_many_prompts_give_what_one_batch_gives(name: str, group: int, batch: int) -> None:
    model, params = MODELS[name], params_of(MODELS[name])
    rng = np.random.default_rng(0)
    prompts = [rng.integers(V, size=n).tolist() for n in rng.integers(1, 20, size=21)]
    settings = Sampling(temperature=1.3, repetition_penalty=1.1, max_new_tokens=20)
    tokens, valid = np.zeros((21, 20), np.int32), np.zeros((21, 20), bool)
    for row, prompt in enumerate(prompts):
        tokens[row, -len(prompt) :], valid[row, -len(prompt) :] = prompt, True
    whole = generated(model, params, KEY, tokens, valid, settings, (2, 11), group)
    found = decode_many(
        *(model, params, KEY, prompts, settings, (2, 11), group), batch=batch, lengths=2, chunk=4
    )
    assert len(found) == 21 * group
    assert len({len(sample.tokens) for sample in found}) > 3
    for row, sample in enumerate(found):
        np.testing.assert_array_equal(sample.tokens, whole.tokens[row][whole.mask[row]])
        np.testing.assert_allclose(sample.log_prob, whole.log_prob[row][whole.mask[row]], atol=1e-4)


def test_many_prompts_take_fewer_steps_than_padded_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows times steps of the decoder on completions of mixed lengths, against batches in the given order."""
    import rljax.text.batched_generation as buckets

    work = []

    def counted(model: Any, params: Any, state: decoding.Decoding, *rest: Any) -> decoding.Decoding:
        rows, before = len(state.token), int(state.step)
        after = decoding.advance(model, params, state, *rest)
        work.append(rows * (int(after.step) - before))
        return after

    monkeypatch.setattr(buckets, "advance", counted)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(V, size=n).tolist() for n in rng.integers(1, 8, size=96)]
    settings, params = Sampling(temperature=2.0, max_new_tokens=32), params_of(BAG)
    found = decode_many(BAG, params, KEY, prompts, settings, (2,), batch=16, lengths=2, chunk=4)
    lengths = np.asarray([len(sample.tokens) for sample in found])
    padded = sum(16 * (lengths[i : i + 16].max() - 1) for i in range(0, 96, 16))
    assert padded > 1.4 * sum(work)
    assert decode_many(BAG, params, KEY, [], settings) == []
