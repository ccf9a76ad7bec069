"""Adapters: what they change and what not, merged and attached, mapped over seeds with one base in memory."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.models import adapters
from rljax.models.adapters import Adaptation
from rljax.models.adapters.low_rank import pairs
from rljax.models.adapters.subsets import flatten, matches, unflatten
from rljax.models.recurrent import RecurrentConfig, recurrent
from rljax.models.seq2seq import Seq2SeqConfig, seq2seq
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.types import LanguageModel, PyTree

VOCABULARY = 37
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def model(**fields: object) -> LanguageModel:
    layers = Layer(), Layer(window=3)
    settings = {"num_kv_heads": 2, "head_dim": 6, "biases": ("qkv",), "tied": False} | fields
    return transformer(TransformerConfig(VOCABULARY, 16, 24, 4, layers, **settings))


def gru() -> LanguageModel:
    return recurrent(RecurrentConfig(VOCABULARY, 8, 12, num_layers=2))


def t5(**fields: str) -> LanguageModel:
    return seq2seq(Seq2SeqConfig(VOCABULARY, 16, 24, 4, 2, 2, head_dim=6, mlp="gated", **fields))


def parameters(lm: LanguageModel, seed: int = 0) -> PyTree:
    """With weights large enough for each layer to matter."""
    factor = 8 if isinstance(lm.config, TransformerConfig) else 1
    large = lambda path, x: x * factor if path.endswith("kernel") else x
    init = lambda key: {path: large(path, x) for path, x in flatten(lm.init(key)).items()}
    return unflatten(jax.jit(init)(jax.random.key(seed)))


def tokens(rows: int = 3, length: int = 9, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, VOCABULARY, (rows, length)), jnp.int32)


PROMPT, CONTINUATION = tokens(), tokens(length=4, seed=1)
VALID = jnp.arange(9)[None] >= jnp.asarray([[0], [3], [8]])


def moved(trained: PyTree, seed: int = 1, scale: float = 0.2) -> PyTree:
    """Adapters that change something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype), trained)


@partial(jax.jit, static_argnums=0)
def outputs(lm: LanguageModel, params: PyTree, more: PyTree = None) -> jax.Array:
    """Logits of tokens after a prompt with padding on the left."""
    return lm.logits(params, lm.completion(params, PROMPT, VALID, CONTINUATION, more))


def decoded(lm: LanguageModel, params: PyTree, more: PyTree = None) -> jax.Array:
    """The same logits from prefill and decode."""

    def run(params: PyTree, more: PyTree) -> jax.Array:
        def step(carry: tuple, token: jax.Array) -> tuple[tuple, jax.Array]:
            hidden, cache = carry
            return lm.decode(params, token, cache, more), hidden

        start = lm.prefill(params, PROMPT, VALID, 13, more)
        (last, _), before = jax.lax.scan(step, start, CONTINUATION[:, :3].T)
        return lm.logits(params, jnp.concatenate([before, last[None]]).swapaxes(0, 1))

    return jax.jit(run)(params, more)


MODELS = {
    "unrolled": model,
    "scanned": lambda: model(loop="scanned"),
    "plain": lambda: model(norm="layer", mlp="plain", biases=("qkv", "output", "mlp"), block="parallel"),
    "gru": gru,
    "t5": t5,
    "t5 scanned": lambda: t5(loop="scanned"),
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_prompt_that_completions_share_is_as_one_for_each(build: Callable) -> None:
    """With adapters."""
    lm = build()
    params = parameters(lm)
    trained = jax.jit(lambda key: adapters.init(key, params, ("*",), 3))(jax.random.key(1))
    more = adapters.scaled(moved(trained), 6.0)
    answers = tokens(rows=6, length=4, seed=2)
    several = lambda x: jnp.repeat(x, 2, axis=0)
    run = jax.jit(lm.completion)
    shared = run(params, PROMPT, VALID, answers, more)
    np.testing.assert_allclose(shared, run(params, several(PROMPT), several(VALID), answers, more), **CLOSE)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_lora_on_every_linear_layer(build: Callable) -> None:
    lm = build()
    params = parameters(lm)
    trained = jax.jit(lambda key: adapters.init(key, params, ("*",), 3))(jax.random.key(1))
    kernels = [path for path in flatten(params) if path.endswith("kernel")]
    assert sorted(pairs(trained)) == sorted(path.removesuffix("/kernel") for path in kernels)
    run = lambda trained: outputs(lm, params, adapters.scaled(trained, 6.0))
    before = outputs(lm, params)
    np.testing.assert_allclose(run(trained), before, rtol=1e-5, atol=1e-5)  # B starts at 0

    trained = moved(trained)
    after = run(trained)
    merged = jax.jit(adapters.merge)(params, trained, 6.0)
    assert jnp.abs(after - before).max() > 0.1
    np.testing.assert_allclose(after, outputs(lm, merged), **CLOSE)
    np.testing.assert_allclose(decoded(lm, params, adapters.scaled(trained, 6.0)), after, **CLOSE)
    for path, leaf in flatten(jax.jit(adapters.unmerge)(merged, trained, 6.0)).items():
        np.testing.assert_allclose(leaf, flatten(params)[path], rtol=1e-5, atol=1e-6)
    for path in pairs(trained):  # each one has an effect: none is at a layer that reads no adapters
        keep = lambda name, x, path=path: x if name.startswith(f"{path}/") else jnp.zeros_like(x)
        only = unflatten({name: keep(name, x) for name, x in flatten(trained).items()})
        assert jnp.abs(run(only) - before).max() > 1e-4, path


def test_lora_by_hand() -> None:
    rng = np.random.default_rng(0)
    kernel, a, b = (rng.normal(size=shape) for shape in [(5, 7), (5, 2), (2, 7)])
    as_array = lambda x: jnp.asarray(x, jnp.float32)
    adapter = {"query": {"a": as_array(a), "b": as_array(b)}}
    merged = adapters.merge({"query": {"kernel": as_array(kernel)}}, adapter, 16.0)
    np.testing.assert_allclose(merged["query"]["kernel"], kernel + 8 * a @ b, rtol=1e-5, atol=1e-5)


def test_lora_starts() -> None:
    params = {
        "query": {"kernel": jnp.zeros((400, 30))},
        "layers": {"up": {"kernel": jnp.zeros((2, 400, 30))}},
    }
    uniform = adapters.init(jax.random.key(0), params, ("*",), 50)
    a, b = pairs(uniform)["layers/up"]
    assert (a.shape, b.shape) == ((2, 400, 50), (2, 50, 30))
    assert (b == 0).all()
    assert 0.95 / 20 < jnp.abs(a).max() <= 1 / 20
    assert not (a[0] == a[1]).any()
    assert not (a[0] == pairs(uniform)["query"][0]).any()
    normal, _ = pairs(adapters.init(jax.random.key(0), params, ("query",), 50, "normal"))["query"]
    assert float(normal.std()) == pytest.approx(1 / 50, rel=0.05)


def test_layers_stacked_or_not_are_adapted_alike() -> None:
    scanned, unrolled = model(loop="scanned"), model()
    params = parameters(scanned)
    init = lambda key: adapters.init(key, params, ("attention", "mlp/up"), 2)
    trained = moved(jax.jit(init)(jax.random.key(1)))

    def unstack(tree: PyTree) -> PyTree:
        stacked = tree["layers"]
        rest = {name: x for name, x in tree.items() if name != "layers"}
        return rest | {f"layer_{i}": jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(2)}

    wanted = outputs(scanned, params, adapters.scaled(trained, 2.0))
    found = outputs(unrolled, unstack(params), adapters.scaled(unstack(trained), 2.0))
    np.testing.assert_allclose(found, wanted, **CLOSE)


def test_what_cannot_be_adapted_is_named() -> None:
    params = parameters(model())
    with pytest.raises(
        ValueError, match=r"pattern 'attention/qwery' matches nothing; there are attention/key, "
    ):
        adapters.init(jax.random.key(0), params, ("attention/value", "attention/qwery"), 2)
    with pytest.raises(ValueError, match="rank = 0: must be at least 1"):
        adapters.init(jax.random.key(0), params, ("*",), 0)
    trained = adapters.init(jax.random.key(0), params, ("layer_1/mlp/up",), 2)
    with pytest.raises(ValueError, match=r"\(16, 24\) at layer_1/mlp/up: .* does not exist"):
        adapters.merge({"layer_0": params["layer_0"]}, trained, 1.0)
    small = parameters(transformer(TransformerConfig(VOCABULARY, 16, 8, 4, (Layer(),) * 2)))
    with pytest.raises(ValueError, match=r"has shape \(16, 8\)"):
        adapters.merge(small, trained, 1.0)


@pytest.mark.parametrize(
    ("pattern", "path", "yes"),
    [
        ("*", "embedding", True),
        ("attention/query", "layer_0/attention/query/kernel", True),
        ("attention/query", "decoder/layers/cross_attention/query/kernel", False),
        ("*attention/query", "decoder/layers/cross_attention/query/kernel", True),
        ("attention/*", "layer_0/attention/query/kernel", True),
        ("layer_1", "layer_1/mlp/up/kernel", True),
        ("layer_1", "layer_11/mlp/up/kernel", False),
        ("layer_?/mlp", "layer_1/mlp/up/kernel", True),
        ("norm", "layer_0/mlp_norm/scale", False),
        ("*norm", "layer_0/mlp_norm/scale", True),
        ("kernel/more", "layer_0/mlp/up/kernel", False),
        ("layer_0/up", "layer_0/mlp/up/kernel", False),
    ],
)
def test_patterns(pattern: str, path: str, yes: bool) -> None:
    assert matches(path, (pattern,)) is yes
    assert matches(path, ("nothing", pattern)) is yes


def test_split_and_join() -> None:
    params = parameters(model())
    mask = adapters.trainable(params, ("*norm", "head"))
    chosen, rest = adapters.split(params, mask)
    norms = {f"layer_{i}/{name}/scale" for i in range(2) for name in ("attention_norm", "mlp_norm")}
    assert set(flatten(chosen)) == norms | {"head", "final_norm/scale"}
    assert not flatten(chosen).keys() & flatten(rest).keys()
    whole = adapters.join(chosen, rest)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, y: x is y, whole, params)))
    with pytest.raises(ValueError, match=r"pattern 'nrom' matches nothing; there are attention/key/bias"):
        adapters.trainable(params, ("nrom",))


# Attached: what is trained is the parameters, the base an argument


def loss(lm: LanguageModel, params: PyTree, batch: jax.Array) -> jax.Array:
    log_p = jax.nn.log_softmax(lm.logits(params, lm.forward(params, batch[:, :-1])))
    return -jnp.take_along_axis(log_p, batch[:, 1:, None], axis=-1).mean()


def descend(adaptation: Callable[[], Adaptation], lm: LanguageModel) -> Callable:
    """One step of gradient descent: (trained, base, learning rate, batch) -> (trained, loss)."""

    def step(trained: PyTree, base: PyTree, rate: jax.Array, batch: jax.Array) -> tuple[PyTree, jax.Array]:
        attached = adapters.attach(lm, base, adaptation())
        value, gradient = jax.value_and_grad(lambda p: loss(attached, p, batch))(trained)
        return jax.tree.map(lambda p, g: p - rate * g, trained, gradient), value

    return step


ADAPTATIONS = {
    "lora": lambda: adapters.lora(("attention/query", "attention/value"), 2, 4.0),
    "head": lambda: adapters.subset(("head",)),
    "norms and lora": lambda: adapters.together(
        norms=adapters.subset(("*norm", "head")), lora=adapters.lora(("mlp",), 2, 4.0)
    ),
    "prefix": lambda: adapters.prefix(model().config, 4),
}


@pytest.mark.parametrize("adaptation", ADAPTATIONS.values(), ids=ADAPTATIONS)
def test_training_moves_only_what_is_trained(adaptation: Callable) -> None:
    lm, base = model(), parameters(model())
    attached = adapters.attach(lm, base, adaptation())
    trained = attached.init(jax.random.key(1))
    batch, values = tokens(4, 12), []
    optimizer = optax.adam(0.03)

    @jax.jit
    def step(trained: PyTree, state: PyTree, base: PyTree) -> tuple[PyTree, PyTree, jax.Array]:
        attached = adapters.attach(lm, base, adaptation())
        value, gradient = jax.value_and_grad(lambda p: loss(attached, p, batch))(trained)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value

    state = optimizer.init(trained)
    for _ in range(60):
        trained, state, value = step(trained, state, base)
        values.append(float(value))
    assert values[-1] < values[0] - 0.05  # a prefix of random keys moves little
    np.testing.assert_allclose(decoded(attached, trained), outputs(attached, trained), **CLOSE)
    of_base = jax.grad(lambda base: loss(adapters.attach(lm, base, adaptation()), trained, batch))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(jax.jit(of_base)(base)))


@pytest.mark.parametrize("name", ["lora", "head", "norms and lora"])
def test_baked_parameters_are_the_adapted_model(name: str) -> None:
    lm, base, adaptation = model(), parameters(model()), ADAPTATIONS[name]()
    trained = moved(adaptation.init(jax.random.key(1), base))
    wanted = outputs(adapters.attach(lm, base, adaptation), trained)
    full = adapters.bake(trained, base, adaptation)
    assert jax.tree.structure(full) == jax.tree.structure(base)
    np.testing.assert_allclose(outputs(lm, full), wanted, **CLOSE)


def test_a_prefix_cannot_be_baked_and_no_layer_is_adapted_twice() -> None:
    lm, base = model(), parameters(model())
    prefix = ADAPTATIONS["prefix"]()
    with pytest.raises(ValueError, match="a prefix cannot be merged"):
        adapters.bake(prefix.init(jax.random.key(0), base), base, prefix)
    lora = ADAPTATIONS["lora"]()
    attached = adapters.attach(lm, base, lora)
    trained = attached.init(jax.random.key(0))
    with pytest.raises(ValueError, match="layer_0/attention/query/a is adapted twice"):
        outputs(attached, trained, trained)
    other = adapters.init(jax.random.key(0), base, ("mlp/up",), 2)
    assert outputs(attached, trained, other).shape == (3, 4, VOCABULARY)


def test_a_subset_shares_no_memory_with_the_base() -> None:
    base = parameters(model())
    trained = adapters.subset(("head",)).init(jax.random.key(0), base)
    jax.jit(lambda x: x, donate_argnums=0)(trained)
    assert not base["head"].is_deleted()
    assert (base["head"] == base["head"]).all()


# One base for many


def large() -> LanguageModel:
    return transformer(TransformerConfig(512, 128, 256, 4, (Layer(), Layer()), tied=False))


def many(values: Callable, members: int) -> PyTree:
    return jax.vmap(values)(jax.random.split(jax.random.key(2), members))


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_eight_members_share_one_base(loop: str) -> None:
    lm = large()
    remat = "full" if loop == "scanned" else "none"
    lm = transformer(TransformerConfig(**{**vars(lm.config), "loop": loop, "remat": remat}))
    base = jax.eval_shape(lm.init, jax.random.key(0))
    adaptation = lambda: adapters.lora(("*",), 2, 4.0)
    size = lambda tree: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
    trained = jax.eval_shape(lambda key: adaptation().init(key, base), jax.random.key(0))
    members = jax.tree.map(lambda x: jax.ShapeDtypeStruct((8, *x.shape), x.dtype), trained)
    batch, rates = jax.ShapeDtypeStruct((2, 16), jnp.int32), jax.ShapeDtypeStruct((8,), jnp.float32)
    step = jax.vmap(descend(adaptation, lm), (0, None, 0, None))
    lowered = jax.jit(step, donate_argnums=0).lower(members, base, rates, batch)
    memory = lowered.compile().memory_analysis()
    single = jax.jit(descend(adaptation, lm)).lower(trained, base, rates.update(shape=()), batch)
    assert memory.argument_size_in_bytes < size(base) + 8 * size(trained) * 1.1
    assert memory.output_size_in_bytes < 8 * size(trained) * 1.1
    # eight times the activations, but no base per member and no gradient of it
    temporary = single.compile().memory_analysis().temp_size_in_bytes
    assert memory.temp_size_in_bytes < 8 * temporary + size(base)


def test_a_mapped_step_is_the_single_steps() -> None:
    lm, base = model(), parameters(model())
    adaptation = ADAPTATIONS["norms and lora"]
    members = moved(many(lambda key: adaptation().init(key, base), 8), scale=0.05)
    rates, batch = jnp.logspace(-3, -1, 8), tokens(4, 12)
    step = descend(adaptation, lm)
    found, values = jax.jit(jax.vmap(step, (0, None, 0, None)))(members, base, rates, batch)
    single = jax.jit(step)
    for member in range(8):
        pick = lambda tree, member=member: jax.tree.map(lambda x: x[member], tree)
        wanted, value = single(pick(members), base, rates[member], batch)
        np.testing.assert_allclose(values[member], value, rtol=1e-5)
        for one, other in zip(*map(jax.tree.leaves, (pick(found), wanted)), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    assert len(set(values.tolist())) == 8


def test_members_of_different_alpha_need_one_program() -> None:
    lm, base = model(), parameters(model())
    trained = moved(adapters.init(jax.random.key(1), base, ("*",), 2))

    def value(alpha: jax.Array) -> jax.Array:
        return loss(adapters.attach(lm, base, adapters.lora(("*",), 2, alpha)), trained, tokens())

    alphas = jnp.asarray([0.0, 1.0, 8.0])
    mapped = jax.jit(jax.vmap(value))(alphas)
    plain = jax.jit(lambda params: loss(lm, params, tokens()))
    np.testing.assert_allclose(mapped[0], plain(base), rtol=1e-5)
    merged = jax.jit(adapters.merge)(base, trained, 8.0)
    np.testing.assert_allclose(mapped[2], plain(merged), rtol=1e-5)


# Sparsity masks


@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.5, 1.0])
def test_a_sparse_mask_holds_the_largest(fraction: float) -> None:
    rng = np.random.default_rng(0)
    scores = {
        "a": rng.normal(size=(31, 7)),
        "b": {"c": rng.normal(size=200) * 10.0 ** rng.integers(-30, 30, 200)},
    }
    scores = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), scores)
    mask = jax.jit(adapters.sparse_mask)(scores, fraction)
    flat = np.abs(np.concatenate([np.ravel(x) for x in jax.tree.leaves(scores)]))
    number = max(1, round(fraction * flat.size))
    wanted = np.zeros(flat.size, bool)
    wanted[np.argsort(-flat, kind="stable")[:number]] = True
    assert (np.concatenate([np.ravel(x) for x in jax.tree.leaves(mask)]) == wanted).all()


def test_ties_are_broken_so_that_the_number_is_exact() -> None:
    scores = {"a": jnp.asarray([1.0, 0.0, -2.0, 1.0]), "b": jnp.asarray([[1.0, -1.0], [0.0, 3.0]])}
    mask = adapters.sparse_mask(scores, 0.5)
    assert mask["a"].tolist() == [True, False, True, True]
    assert mask["b"].tolist() == [[False, False], [False, True]]
    nothing = adapters.sparse_mask(jax.tree.map(jnp.zeros_like, scores), 0.25)
    assert sum(int(x.sum()) for x in jax.tree.leaves(nothing)) == 2
    with pytest.raises(ValueError, match=r"fraction = 0: must be above 0 and at most 1"):
        adapters.sparse_mask(scores, 0)


def test_masked_training_leaves_the_rest_bit_for_bit() -> None:
    lm = model()
    start = params = parameters(lm)
    batch = tokens(4, 12)
    gradient = jax.jit(jax.grad(lambda p: loss(lm, p, batch)))
    mask = jax.jit(adapters.sparse_mask)(gradient(params), 0.01)
    optimizer = optax.adamw(1e-2, weight_decay=0.1)

    @jax.jit
    def step(params: PyTree, state: PyTree) -> tuple[PyTree, PyTree, jax.Array]:
        value, gradient = jax.value_and_grad(lambda p: loss(lm, p, batch))(params)
        updates, state = optimizer.update(adapters.keep(gradient, mask), state, params)
        return optax.apply_updates(params, adapters.keep(updates, mask)), state, value

    state, values = optimizer.init(params), []
    for _ in range(20):
        params, state, value = step(params, state)
        values.append(float(value))
    changed = jax.tree.map(lambda x, y: x != y, params, start)
    assert all((c == m).all() for c, m in zip(*map(jax.tree.leaves, (changed, mask)), strict=True))
    assert values[-1] < values[0] - 0.1
    masked = adapters.keep({"a": jnp.ones(2), "b": jnp.ones(2)}, {"a": True, "b": False})
    assert (masked["a"].tolist(), masked["b"].tolist()) == ([1, 1], [0, 0])


# Prefixes


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_a_prefix_from_tokens_is_those_tokens(loop: str) -> None:
    """Without windows, for a window would not reach them."""
    lm = transformer(TransformerConfig(VOCABULARY, 16, 24, 4, (Layer(),) * 2, num_kv_heads=2, loop=loop))
    params = parameters(lm)
    instruction, text = tokens(1, 5, seed=3), tokens(2, 7)
    whole = jnp.concatenate([jnp.repeat(instruction, 2, axis=0), text], axis=1)
    forward = jax.jit(lm.forward)
    wanted = forward(params, whole)[:, 5:]
    prefix = jax.jit(partial(adapters.from_tokens, lm))(params, instruction[0])
    positions = jnp.broadcast_to(jnp.arange(5, 12), (2, 7))
    found = forward(params, text, None, positions, prefix)
    np.testing.assert_allclose(found, wanted, **CLOSE)
    assert jnp.abs(found - forward(params, text)).max() > 0.1


def test_a_prefix_is_seen_by_every_query_and_decodes_like_the_whole() -> None:
    lm = model()  # with a window of 3 in one layer
    params = parameters(lm)
    prefix = moved(ADAPTATIONS["prefix"]().init(jax.random.key(0), params), scale=1.0)
    np.testing.assert_allclose(decoded(lm, params, prefix), outputs(lm, params, prefix), **CLOSE)
    windowed = {"layer_1": prefix["layer_1"]}
    difference = outputs(lm, params, windowed) - outputs(lm, params)  # also from the last, far behind
    assert (jnp.abs(difference).max(axis=(0, 2)) > 1e-3).all()
    with pytest.raises(ValueError, match="length = 0: must be at least 1"):
        adapters.prefix(lm.config, 0).init(jax.random.key(0), params)
    with pytest.raises(ValueError, match="RecurrentConfig: only decoder-only transformers have prefixes"):
        adapters.prefix(gru().config, 2).init(jax.random.key(0), params)
