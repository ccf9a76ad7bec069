"""Adapters in PEFT's format: back and forth by ourselves, and the same logits in PEFT on the torch model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models import adapters, huggingface
from rljax.models.adapters import peft as ours
from rljax.models.adapters.low_rank import pairs
from rljax.models.adapters.subsets import flatten
from rljax.models.huggingface import configs, t5
from rljax.models.recurrent import RecurrentConfig
from rljax.models.seq2seq import seq2seq
from rljax.models.transformer import transformer
from rljax.types import LanguageModel, PyTree

LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "tie_word_embeddings": False,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 37, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rotary_pct": 0.5,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 37,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
}
FAMILIES = {"llama": LLAMA, "gpt2": GPT2, "gpt_neox": NEOX, "t5": T5}
family = pytest.mark.parametrize("raw", FAMILIES.values(), ids=FAMILIES)
TOKENS = np.random.default_rng(0).integers(1, 37, (2, 7))


def model(raw: dict[str, Any], loop: str = "unrolled") -> LanguageModel:
    if raw["model_type"] == "t5":
        return seq2seq(replace(t5.config_from(raw, ("lm_head.weight",)), loop=loop))
    return transformer(replace(configs.config_from(raw), loop=loop))


def drawn(params: PyTree, patterns: tuple[str, ...], rank: int = 2) -> PyTree:
    """Adapters that change something."""
    init = lambda key: adapters.init(key, params, patterns, rank)
    rng = np.random.default_rng(2)
    draw = lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(init, jax.random.key(1)))


def parameters(lm: LanguageModel) -> PyTree:
    rng = np.random.default_rng(1)
    draw = lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32)
    return jax.tree.map(draw, jax.eval_shape(lm.init, jax.random.key(0)))


merge = jax.jit(adapters.merge)


def logits(lm: LanguageModel, params: PyTree, more: PyTree) -> np.ndarray:
    tokens = jnp.asarray(TOKENS, jnp.int32)

    def run(params: PyTree, more: PyTree) -> jax.Array:
        if hasattr(lm.config, "num_decoder_layers"):
            hidden = lm.completion(params, tokens, jnp.ones(tokens.shape, bool), tokens, more)
        else:
            hidden = lm.forward(params, tokens, adapters=more)
        return lm.logits(params, hidden)

    return np.asarray(jax.jit(run)(params, more))


def by_layer(tree: PyTree) -> dict[str, np.ndarray]:
    return {f"{path}/{i}": x for path, pair in ours.unstack(pairs(tree)).items() for i, x in enumerate(pair)}


@family
@pytest.mark.parametrize("patterns", [("*",), ("*attention/query", "*mlp/down")], ids=["all", "some"])
@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_back_and_forth(raw: dict, patterns: tuple[str, ...], loop: str, tmp_path: Path) -> None:
    lm = model(raw, loop)
    params = parameters(lm)
    trained = drawn(params, patterns)
    adapters.save_peft(tmp_path, lm.config, trained, 5.0)
    loaded, alpha = adapters.load_peft(tmp_path, lm.config)
    found = merge(params, loaded, alpha)
    wanted = merge(params, trained, 5.0)
    for path, leaf in flatten(wanted).items():
        np.testing.assert_allclose(flatten(found)[path], leaf, rtol=1e-5, atol=1e-6)
    # once more: what shares its A stays as small as it was
    adapters.save_peft(tmp_path / "again", lm.config, loaded, alpha)
    again, same = adapters.load_peft(tmp_path / "again", lm.config)
    assert same == alpha
    for path, leaf in by_layer(again).items():
        np.testing.assert_allclose(leaf, by_layer(loaded)[path], rtol=1e-6, atol=1e-7)


def test_layers_of_different_rank_and_scale(tmp_path: Path) -> None:
    lm = model(GPT2)
    params = parameters(lm)
    first = drawn(params, ("layer_0/attention/key", "layer_1"), 2)
    trained = adapters.join(first, drawn(params, ("layer_0/attention/query", "layer_0/mlp/up"), 3))
    adapters.save_peft(tmp_path, lm.config, trained, 7.0)
    loaded, alpha = adapters.load_peft(tmp_path, lm.config)
    wanted = flatten(merge(params, trained, 7.0))
    for path, leaf in flatten(merge(params, loaded, alpha)).items():
        np.testing.assert_allclose(leaf, wanted[path], rtol=1e-5, atol=1e-6)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["rank_pattern"]["transformer.h.0.attn.c_attn"] == 5


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    lm = model(LLAMA)
    params = parameters(lm)
    trained = drawn(params, ("attention/query",))
    adapters.save_peft(tmp_path, lm.config, trained, 4.0)
    config = tmp_path / "adapter_config.json"
    good = json.loads(config.read_text())
    assert good["target_modules"] == ["q_proj"]

    def rejected(match: str, **fields: object) -> None:
        config.write_text(json.dumps(good | fields))
        with pytest.raises(ValueError, match=match) as caught:
            adapters.load_peft(tmp_path, lm.config)
        assert "\n" not in str(caught.value)

    rejected("peft_type = 'IA3': must be 'LORA'", peft_type="IA3")
    rejected("use_dora = True is not supported", use_dora=True)
    rejected(r"modules_to_save = \['lm_head'\] is not supported", modules_to_save=["lm_head"])
    rejected("bias = 'all'", bias="all")
    rejected("init_lora_weights = 'pissa_niter_4' changes the base", init_lora_weights="pissa_niter_4")
    rejected("lora_alpha = 0: must be a number, not 0", lora_alpha=0)
    config.write_text(json.dumps(good))
    small = model(LLAMA | {"hidden_size": 12})
    with pytest.raises(
        ValueError, match=r"q_proj has adapters of shapes \(2, 16\) and \(24, 2\); this model's"
    ):
        adapters.load_peft(tmp_path, small.config)
    with pytest.raises(ValueError, match=r"base_model\.model\.model\.layers\.0\.self_attn\.q_proj.*no layer"):
        adapters.load_peft(tmp_path, model(GPT2).config)
    with pytest.raises(ValueError, match="gate: no layer of this model"):
        adapters.save_peft(tmp_path / "x", model(GPT2).config, drawn(params, ("layer_0/mlp/gate",)), 1.0)
    mapped = jax.tree.map(lambda x: jnp.stack([x, x]), trained)
    with pytest.raises(ValueError, match=r"A has shape \(2, 16, 2\): save one member at a time"):
        adapters.save_peft(tmp_path / "x", lm.config, mapped, 1.0)
    with pytest.raises(ValueError, match="RecurrentConfig is no model that PEFT has"):
        adapters.save_peft(tmp_path / "x", RecurrentConfig(37, 8, 8), trained, 1.0)
    adapters.save_peft(tmp_path, lm.config, drawn(params, ("layer_1/attention/query",)), 4.0)
    with pytest.raises(ValueError, match="layers/attention/query is not adapted alike in all layers"):
        adapters.load_peft(tmp_path, model(LLAMA, "scanned").config)
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: corrupt safetensors"):
        adapters.load_peft(tmp_path, lm.config)
    with pytest.raises(ValueError, match=r"adapter_config\.json: there is no such file"):
        adapters.load_peft(tmp_path / "nothing", lm.config)


# Beside PEFT


def torch_model(raw: dict[str, Any], folder: Path) -> Any:
    """A random torch model, saved in the folder."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**raw)
    kind = "AutoModelForSeq2SeqLM" if raw["model_type"] == "t5" else "AutoModelForCausalLM"
    lm = getattr(transformers, kind).from_config(config).eval()
    with torch.no_grad():
        for name, x in lm.named_parameters():
            if x.ndim == 2 and "embed" not in name and "shared" not in name:
                x.normal_(0, 0.2)
    lm.save_pretrained(folder)
    return lm


def torch_logits(lm: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tokens = torch.tensor(TOKENS)
    with torch.no_grad():
        if lm.config.is_encoder_decoder:
            return lm(input_ids=tokens, labels=tokens).logits.numpy()
        return lm(input_ids=tokens).logits.numpy()


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@family
@pytest.mark.parametrize("patterns", [("*",), ("*attention/query", "*attention/value")], ids=["all", "some"])
def test_peft_loads_what_we_save(raw: dict, patterns: tuple[str, ...], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch_lm = torch_model(raw, tmp_path / "base")
    loaded = huggingface.load(tmp_path / "base", loop="scanned")
    trained = drawn(loaded.params, patterns)
    adapters.save_peft(tmp_path / "lora", loaded.model.config, trained, 6.0, str(tmp_path / "base"))
    before = torch_logits(torch_lm)
    adapted = peft.PeftModel.from_pretrained(torch_lm, tmp_path / "lora").eval()
    wanted = torch_logits(adapted)
    assert np.abs(wanted - before).max() > 0.05
    found = logits(loaded.model, loaded.params, adapters.scaled(trained, 6.0))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@family
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_we_load_what_peft_saves(raw: dict, rslora: bool, loop: Any, tmp_path: Path) -> None:
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    torch_lm = torch_model(raw, tmp_path / "base")
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_proj"], "t5": ["q", "wo"]}
    targets = targets.get(raw["model_type"], ["query_key_value", "dense"])
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=targets, use_rslora=rslora, alpha_pattern={targets[0]: 11}
    )
    adapted = peft.get_peft_model(torch_lm, settings).eval()
    with torch.no_grad():
        for name, x in adapted.named_parameters():
            if "lora_B" in name:
                x.normal_(0, 0.2)
    adapted.save_pretrained(tmp_path / "lora")
    loaded = huggingface.load(tmp_path / "base", loop=loop)
    trained, alpha = adapters.load_peft(tmp_path / "lora", loaded.model.config)
    assert alpha == 5
    found = logits(loaded.model, loaded.params, adapters.scaled(trained, alpha))
    np.testing.assert_allclose(found, torch_logits(adapted), rtol=1e-4, atol=1e-4)
