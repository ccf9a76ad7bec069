"""Checkpoints: what torch transformers makes of them, as committed fixtures; round trips; what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import rljax
from rljax.models.huggingface import Generation, Loaded, configs, files, llama2c, load, save
from rljax.models.transformer import Layer, Rotary, TransformerConfig, logical_axes, transformer

FIXTURES = Path(__file__).parent / "fixtures"
ALL = sorted(path.name for path in FIXTURES.iterdir() if (path / "expected.npz").exists())
NAMES = [name for name in ALL if not name.startswith("t5")]  # those are in test_seq2seq.py
STORIES = Path(rljax.__file__).parents[2] / "shared" / "data" / "models" / "stories260K"


def answers(loaded: Loaded, prompt: Any, valid: Any, new: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, P, V) of left-padded prompts and `new` tokens after them, greedily."""
    model, params = loaded.model, loaded.params
    prompt, valid = np.asarray(prompt, np.int32), np.asarray(valid)

    @jax.jit
    def run(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.logits(params, model.forward(params, prompt, valid.astype(np.int32)))
        hidden, cache = model.prefill(params, prompt, valid, prompt.shape[1] + new)

        def step(carry: Any, _: None) -> Any:
            hidden, cache = carry
            token = model.logits(params, hidden).argmax(axis=-1).astype(jnp.int32)
            return model.decode(params, token, cache), token

        _, tokens = jax.lax.scan(step, (hidden, cache), None, length=new)
        return logits, tokens.T

    return jax.tree.map(np.asarray, run(params))


def equal(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def fixtures() -> list[Any]:
    """(name, loop): scanned, all but two are slow, since what a loop changes is in test_transformer.py."""
    quick = [(name, "unrolled") for name in NAMES] + [("gemma3", "scanned"), ("gpt2", "scanned")]
    rest = [(name, "scanned") for name in NAMES if name not in ("gemma3", "gpt2")]
    return [*quick, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in rest)]


@pytest.mark.parametrize(("name", "loop"), fixtures())
def test_fixtures_give_what_torch_gave(name: str, loop: Any) -> None:
    expected = np.load(FIXTURES / name / "expected.npz")
    loaded = load(FIXTURES / name, loop=loop)
    valid = expected["valid"]
    logits, greedy = answers(loaded, expected["prompt"], valid, expected["greedy"].shape[1])
    np.testing.assert_allclose(logits[valid], expected["logits"][valid], atol=1e-4)
    np.testing.assert_array_equal(greedy, expected["greedy"])
    assert loaded.model.config.dtype == jnp.float32
    assert np.abs(logits[valid]).max() > 0.5


def test_there_is_a_fixture_of_every_architecture() -> None:
    families = {json.loads((FIXTURES / name / "config.json").read_text())["model_type"] for name in ALL}
    assert families == {*configs.DEFAULTS, "t5"}
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file())
    assert size < 900_000


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_are_inverse(name: str, tmp_path: Path) -> None:
    loaded = load(FIXTURES / name)
    generation = Generation(stop_ids=(3, 7), pad_id=0, bos_id=1, temperature=0.6, top_k=20, do_sample=True)
    save(tmp_path / "copy", loaded.model, loaded.params, generation)
    again = load(tmp_path / "copy")
    assert configs.explicit(again.model.config) == configs.explicit(loaded.model.config)
    assert again.generation == generation
    equal(again.params, loaded.params)
    # the tensors themselves are those that torch wrote
    theirs, ours = files.read_folder(FIXTURES / name), files.read_folder(tmp_path / "copy")
    assert theirs.keys() - ours.keys() <= {"lm_head.weight"}
    equal({name: np.asarray(theirs[name]) for name in ours}, {name: np.asarray(ours[name]) for name in ours})


def test_layers_can_be_stacked_sharded_and_saved_again(tmp_path: Path) -> None:
    loaded = load(FIXTURES / "qwen2", loop="scanned")
    plain = load(FIXTURES / "qwen2")
    assert loaded.params["layers"]["mlp"]["up"]["kernel"].shape == (3, 16, 28)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, layer=layer: leaf[layer], loaded.params["layers"])
        equal(one, plain.params[f"layer_{layer}"])
    save(tmp_path, loaded.model, loaded.params, shard_bytes=10_000)
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 2
    equal(load(tmp_path).params, plain.params)
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert index["metadata"]["total_size"] == 4 * sum(leaf.size for leaf in jax.tree.leaves(plain.params))
    save(tmp_path, loaded.model, loaded.params)  # over the other: no shard is left
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    equal(load(tmp_path).params, plain.params)
    (tmp_path / "model.safetensors").unlink()
    save(tmp_path, loaded.model, loaded.params, shard_bytes=10_000)
    next(tmp_path.glob("model-00002-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-.*: there is no such file"):
        load(tmp_path)


def test_parameters_have_the_structure_that_init_gives() -> None:
    for name in ALL:
        for loop in ("unrolled", "scanned"):
            loaded = load(FIXTURES / name, loop=loop)
            expected = jax.eval_shape(loaded.model.init, jax.random.key(0))
            found = jax.eval_shape(lambda params: params, loaded.params)
            assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
                lambda leaf: (leaf.shape, leaf.dtype), expected
            )


def test_dtypes_are_the_ones_asked_for(tmp_path: Path) -> None:
    mixed = load(FIXTURES / "llama", dtype=jnp.bfloat16, param_dtype=jnp.float32)
    assert mixed.model.config.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(mixed.params)} == {jnp.dtype(jnp.float32)}
    half = load(FIXTURES / "llama", dtype=jnp.bfloat16)
    equal(half.params, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), mixed.params))
    save(tmp_path, half.model, half.params)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    equal(load(tmp_path, dtype=jnp.bfloat16).params, half.params)
    assert load(tmp_path).params["embedding"].dtype == jnp.float32


def test_parameters_go_where_the_sharding_says() -> None:
    device = jax.devices()[-1]
    loaded = load(FIXTURES / "qwen3", sharding=SingleDeviceSharding(device))
    assert {d for leaf in jax.tree.leaves(loaded.params) for d in leaf.devices()} == {device}

    mesh = Mesh(np.asarray(jax.devices()[:1]), ("model",))
    axes = {"heads": "model", "mlp": "model", "vocabulary": "model"}

    def shard(shapes: Any) -> Any:
        spec = lambda names: NamedSharding(mesh, PartitionSpec(*(axes.get(name) for name in names)))
        return jax.tree.map(spec, logical_axes(shapes), is_leaf=lambda x: isinstance(x, tuple))

    loaded = load(FIXTURES / "qwen3", sharding=shard, loop="scanned")
    kernel = loaded.params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, None, "model")
    assert loaded.params["embedding"].sharding.spec == PartitionSpec("model", None)


def test_the_file_may_change_once_it_is_read(tmp_path: Path) -> None:
    loaded = load(FIXTURES / "llama")
    save(tmp_path, loaded.model, loaded.params)
    again = load(tmp_path)
    save(tmp_path, loaded.model, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), loaded.params))
    equal(again.params, loaded.params)


def copy(name: str, tmp_path: Path, **changes: Any) -> Path:
    """A fixture with other values in its config.json (None: without the key)."""
    folder = tmp_path / name
    shutil.copytree(FIXTURES / name, folder)
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw = {key: value for key, value in raw.items() if key not in changes or value is not None}
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def rewrite(folder: Path, change: Any) -> None:
    """Write a folder's tensors again after `change` has been made to the dict of them."""
    tensors = {name: np.array(values) for name, values in files.read_folder(folder).items()}
    change(tensors)
    files.write_folder(
        folder,
        [
            files.Pending(name, values.shape, values.dtype, lambda values=values: values)
            for name, values in tensors.items()
        ],
    )


def test_constants_copies_and_other_prefixes_do_not_matter(tmp_path: Path) -> None:
    def change(tensors: dict) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = np.ones((1, 1, 32, 32), np.uint8)
        tensors["h.0.attn.masked_bias"] = np.float32(-1e4)
        tensors["lm_head.weight"] = tensors["wte.weight"]

    folder = copy("gpt2", tmp_path)
    rewrite(folder, change)
    equal(load(folder).params, load(FIXTURES / "gpt2").params)

    def other(tensors: dict) -> None:
        tensors["lm_head.weight"] = tensors["wte.weight"] + 1

    rewrite(folder, other)
    with pytest.raises(ValueError, match=r"lm_head.weight is not the embedding: .* tie_word_embeddings"):
        load(folder)


def test_wrong_tensors_are_named(tmp_path: Path) -> None:
    folder = copy("llama", tmp_path)
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(ValueError, match=r"llama: missing tensors: model.layers.1.mlp.up_proj.weight$"):
        load(folder)
    rewrite(folder, lambda tensors: tensors.update({"model.extra": np.zeros(2, np.float32)}))
    with pytest.raises(
        ValueError, match=r"up_proj.weight; tensors that config.json has no place for: model.e"
    ):
        load(folder)
    folder = copy("qwen2", tmp_path, intermediate_size=27)
    with pytest.raises(
        ValueError, match=r"layers.0.mlp.gate_proj.weight has shape \(28, 16\), config.json says \(27, 16\)"
    ):
        load(folder)
    folder = copy("qwen3", tmp_path)
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": np.zeros(16, np.int8)}))
    with pytest.raises(ValueError, match=r"model.norm.weight is of int8: quantised"):
        load(folder)
    many = copy("gemma", tmp_path, num_hidden_layers=9)
    with pytest.raises(ValueError, match=r"missing tensors: .* and \d+ more$"):
        load(many)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, r"config.json: model_type = 'mamba': must be one of llama, mistral"),
        ({"model_type": "lama"}, "did you mean llama"),
        ({"model_type": None}, "model_type = None: must be one of"),
        ({"hidden_size": None}, "config.json: hidden_size is missing"),
        ({"hidden_act": "tanhshrink"}, "activation 'tanhshrink': must be one of silu"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type = 'yarn': must be one of"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"type": "linear", "factor": 4.0}},
            "rope_scaling = .* beside rope_parameters = .*: two rotary scalings",
        ),
        ({"quantization_config": {"bits": 4}}, "quantization_config = .* not supported"),
        ({"num_key_value_heads": 3}, "num_kv_heads = 3: must divide num_heads = 4"),
    ],
)
def test_wrong_configs_are_named(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(copy("llama", tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    def refused(folder: Path, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            load(folder)
        assert "\n" not in str(caught.value)

    refused(tmp_path, r"config.json: there is no such file")
    folder = copy("llama", tmp_path)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for broken, message in (
        (b"", "corrupt safetensors"),
        (whole[:5], "corrupt safetensors: shorter than its header"),
        (whole[:100], "corrupt safetensors: cut off within its header"),
        (whole[:-10], r"corrupt safetensors: cut off: \S+ should end at byte"),
        (whole[:8] + b"x" * 50 + whole[58:], "corrupt safetensors: "),
        (whole.replace(b'"F32"', b'"F99"'), r"corrupt safetensors: \S+ has the dtype F99"),
    ):
        weights.write_bytes(broken)
        refused(folder, "model.safetensors: " + message)
    weights.unlink()
    refused(folder, r"llama: holds no \*.safetensors$")
    (folder / "pytorch_model.bin").write_bytes(b"")
    refused(folder, r"holds no \*.safetensors: pickled weights are never read")
    (folder / "config.json").write_text("{")
    refused(folder, r"config.json: not readable as JSON")
    (folder / "config.json").write_text("[]")
    refused(folder, r"config.json: must hold a JSON object")
    with pytest.raises(ValueError, match="nowhere: there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no such folder"):
        load("./nowhere/at/all")


def test_a_repository_without_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def offline(*_: Any, **__: Any) -> str:
        raise OSError("no route to host\nand more lines")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(
        ValueError, match=r"some/model: no such folder, .*no route.*: pass a local folder"
    ) as caught:
        load("some/model")
    assert "\n" not in str(caught.value)
    asked = {}

    def online(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(FIXTURES / "llama")

    monkeypatch.setattr(hub, "snapshot_download", online)
    assert load("some/model", revision="main").source == FIXTURES / "llama"
    assert asked["name"] == "some/model"
    assert asked["revision"] == "main"
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_stop_ids_come_from_the_generation_config(tmp_path: Path) -> None:
    folder = copy("llama", tmp_path, eos_token_id=5, pad_token_id=6)
    path = folder / "generation_config.json"
    path.unlink(missing_ok=True)
    assert load(folder).generation == Generation(stop_ids=(5,), pad_id=6, bos_id=1)
    path.write_text(
        json.dumps({"eos_token_id": [7, 8], "temperature": 0.7, "do_sample": True, "top_p": None})
    )
    expected = Generation(stop_ids=(7, 8), pad_id=6, bos_id=1, temperature=0.7, do_sample=True)
    assert load(folder).generation == expected
    path.write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(ValueError, match=r"generation_config.json: stop_ids = .*: tokens must be integers"):
        load(folder)


def test_what_a_family_cannot_say_is_refused(tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_heads=2, layers=(Layer(),) * 2
    )
    params = jax.jit(transformer(config).init)(jax.random.key(0))
    for change, message in (
        ({"norm": "layer"}, "norm = 'layer': a llama checkpoint always has 'rms'"),
        ({"family": "qwen3"}, "head_norm = 'none': a qwen3 checkpoint always has 'query_key'"),
        ({"family": "bert"}, "family = 'bert': must be one of llama"),
        ({"layers": (Layer(window=3),) * 2}, "a llama checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            save(tmp_path / "no", transformer(replace(config, **change)), params)
    with pytest.raises(ValueError, match=r"params has no layer_1/attention/query/kernel, which .*q_proj"):
        save(tmp_path / "no", transformer(config), {**params, "layer_1": {}})
    wrong = {**params, "embedding": jnp.zeros((9, 8))}
    with pytest.raises(ValueError, match=r"embedding has shape \(9, 8\), the config says \(8, 8\)"):
        save(tmp_path / "no", transformer(config), wrong)
    assert not (tmp_path / "no").exists()


SIZES = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 8}
HEADS = {"num_hidden_layers": 4, "num_attention_heads": 8}


def test_configs_of_both_layouts_say_the_same() -> None:
    """Keys as they are in files of transformers 4 on the hub, and as transformers 5 writes the same."""
    scaling = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 8192, "rope_type": "llama3"}
    llama = {"model_type": "llama", **SIZES, **HEADS}
    old = configs.config_from({**llama, "rope_theta": 5e5, "rope_scaling": scaling})
    assert old == configs.config_from({**llama, "rope_parameters": {**scaling, "rope_theta": 5e5}})
    both = {"rope_parameters": {**scaling, "rope_theta": 5e5}, "rope_scaling": scaling}
    assert old == configs.config_from({**llama, **both})
    rotary = Rotary(5e5, 1.0, "llama3", 32.0, 1.0, 4.0, 8192)
    assert old.layers == (Layer(rotary),) * 4

    gemma = {"model_type": "gemma3_text", **SIZES, **HEADS, "sliding_window": 512}
    linear = {"rope_type": "linear", "factor": 8.0}
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2}
    old = {**gemma, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 2}
    old = configs.config_from({**old, "rope_scaling": linear})
    nested = {"full_attention": {**linear, "rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    assert old == configs.config_from({**gemma, **kinds, "rope_parameters": nested})
    assert old.layers[:2] == (Layer(Rotary(1e4), 512), Layer(Rotary(1e6, scaling="linear", factor=8.0)))
    assert configs.config_from(gemma).layers[0] == Layer(Rotary(1e4), 512)
    assert [layer.window for layer in configs.config_from({**gemma, "num_hidden_layers": 6}).layers] == [
        *[512] * 5,
        None,
    ]

    neox = {"model_type": "gpt_neox", **SIZES, **HEADS}
    old = configs.config_from({**neox, "rotary_pct": 0.5, "rotary_emb_base": 100})
    assert old == configs.config_from(
        {**neox, "rope_parameters": {"rope_theta": 100, "partial_rotary_factor": 0.5}}
    )
    assert configs.config_from(neox).layers[0] == Layer(Rotary(1e4, 0.25))


def test_defaults_are_those_of_each_architecture() -> None:
    read = lambda family, **more: configs.config_from({"model_type": family, **SIZES, **HEADS, **more})
    assert not read("llama").tied
    assert read("llama", head_dim=None, num_key_value_heads=None).kv_heads == 8
    assert [layer.window for layer in read("mistral").layers] == [4096] * 4
    assert read("mistral", sliding_window=None).layers == (Layer(),) * 4
    assert read("qwen2", num_key_value_heads=2).biases == ("qkv",)
    qwen = read(
        "qwen2", num_key_value_heads=2, use_sliding_window=True, sliding_window=5, max_window_layers=3
    )
    assert [layer.window for layer in qwen.layers] == [None, None, None, 5]
    assert read("qwen3", num_key_value_heads=2).head_size == 128
    smol = read("smollm3")
    assert smol.tied
    assert [layer.rotary for layer in smol.layers] == [Rotary(2e6)] * 3 + [None]
    assert read("gemma", num_key_value_heads=1, hidden_act="gelu").activation == "gelu_tanh"
    gemma = read("gemma2")
    assert [layer.window for layer in gemma.layers] == [4096, None] * 2
    assert (gemma.attention_softcap, gemma.final_softcap, gemma.scale) == (50.0, 30.0, 1 / 16)
    assert gemma.embedding_scale == 8.0
    small = configs.config_from({"model_type": "gpt2", "vocab_size": 50257})
    assert (small.hidden_size, small.intermediate_size, small.num_layers) == (768, 3072, 12)
    assert small.tied


def test_stories260k_continues_as_llama2c_does() -> None:
    if not STORIES.is_dir():
        pytest.skip(f"the real weights are not at {STORIES}")
    loaded = load(STORIES)
    assert loaded.model.config.kv_heads == 4
    assert loaded.model.config.tied
    assert loaded.generation == Generation(stop_ids=(2, 1), bos_id=1)
    _, tokens = answers(loaded, [[1]], [[True]], 256)
    pieces, scores = llama2c.read_tokenizer(STORIES / "tok512.bin")
    assert len(pieces) == len(scores) == 512
    spell = lambda token: bytes([token - 3]) if 3 <= token < 259 else pieces[token]
    text = b"".join(map(spell, tokens[0])).decode()
    known = (STORIES / "UPSTREAM_stories260K.md").read_text()
    known = known[known.index("Once upon a time, there was a little girl named Lily.") :]
    known = known[: known.index("\n```")]
    assert len(known) > 500
    assert text.strip() == known


def test_stories260k_can_be_saved_as_a_llama(tmp_path: Path) -> None:
    if not STORIES.is_dir():
        pytest.skip(f"the real weights are not at {STORIES}")
    loaded = load(STORIES, loop="scanned")
    save(tmp_path, loaded.model, loaded.params, loaded.generation)
    again = load(tmp_path, loop="scanned")
    equal(again.params, loaded.params)
    assert again.generation == loaded.generation


def write_llama2c(folder: Path, tied: bool = True) -> dict[str, np.ndarray]:
    """A random llama2.c model of 2 layers and its tokenizer."""
    draw = np.random.default_rng(0)
    shapes = {"embedding": (9, 8), "norm": (2, 8), "q": (2, 8, 8), "k": (2, 4, 8), "v": (2, 4, 8)}
    shapes |= {"o": (2, 8, 8), "norm2": (2, 8), "w1": (2, 12, 8), "w2": (2, 8, 12), "w3": (2, 12, 8)}
    shapes |= {"final": (8,), "angles": (2, 16, 2)}
    shapes |= {} if tied else {"head": (9, 8)}
    parts = {name: draw.normal(size=shape).astype("<f4") for name, shape in shapes.items()}
    header = np.asarray([8, 12, 2, 2, 1, 9 if tied else -9, 16], "<i4")
    (folder / "model.bin").write_bytes(header.tobytes() + b"".join(part.tobytes() for part in parts.values()))
    llama2c.write_tokenizer(folder / "tok9.bin", [b"a", b"bc", "é".encode()] * 3, np.arange(9.0))
    return parts


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_turns_neighbouring_pairs(tied: bool, tmp_path: Path) -> None:
    """Against the first layer's attention scores of llama2.c, written with its own pairs."""
    parts = write_llama2c(tmp_path, tied)
    loaded = load(tmp_path)
    assert loaded.model.config.tied == tied
    x = np.random.default_rng(1).normal(size=(5, 8)).astype(np.float32)

    def turned(rows: np.ndarray) -> np.ndarray:  # (T, H, 4)
        angles = np.arange(5)[:, None] * 1e4 ** -(np.arange(0, 4, 2) / 4)
        z = (rows[..., 0::2] + 1j * rows[..., 1::2]) * np.exp(1j * angles)[:, None]
        return np.stack([z.real, z.imag], axis=-1).reshape(rows.shape)

    query, key = (
        turned((x @ parts["q"][0].T).reshape(5, 2, 4)),
        turned((x @ parts["k"][0].T).reshape(5, 1, 4)),
    )
    from rljax.models.transformer.layers import rotate

    frequencies = Rotary().frequencies(4)
    angles = jnp.arange(5.0)[None, :, None] * frequencies[None, None]
    ours = {}
    for name, heads in (("query", 2), ("key", 1)):
        rows = x @ loaded.params["layer_0"]["attention"][name]["kernel"]
        ours[name] = rotate(rows.reshape(1, 5, heads, 4), jnp.cos(angles), jnp.sin(angles))[0]
    np.testing.assert_allclose(
        jnp.einsum("thd,sd->hts", ours["query"], ours["key"][:, 0]),
        np.einsum("thd,sd->hts", query, key[:, 0]),
        atol=1e-4,
    )
    pieces, scores = llama2c.read_tokenizer(tmp_path / "tok9.bin")
    assert pieces[:3] == (b"a", b"bc", "é".encode())
    np.testing.assert_array_equal(scores, np.arange(9.0))


def test_broken_llama2c_files_are_named(tmp_path: Path) -> None:
    write_llama2c(tmp_path)
    path = tmp_path / "model.bin"
    whole = path.read_bytes()
    for broken, message in (
        (whole[:-4], r"model.bin: \d+ bytes, a model with this header has"),
        (whole[:10], "model.bin: not a llama2.c model"),
        ((0x616B3432).to_bytes(4, "little") + whole[4:], "a versioned llama2.c file"),
    ):
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)
    tokens = tmp_path / "tok9.bin"
    tokens.write_bytes(tokens.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"tok9.bin: cut off"):
        llama2c.read_tokenizer(tokens)
