"""Every architecture against torch transformers, if installed: logits, greedy tokens, round trips."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from rljax.models.huggingface import load, save
from tests.models.checkpoints import CASES, build, expected
from tests.models.test_huggingface import answers, equal

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # of torch and transformers; ours are seen by the other tests
]


@pytest.mark.parametrize("name", CASES)
def test_logits_greedy_tokens_and_round_trip(name: str, tmp_path: Path) -> None:
    theirs = build(name)
    reference = expected(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    logits, greedy = answers(loaded, reference.prompt, reference.valid, reference.greedy.shape[1])
    error = np.abs(logits - reference.logits)[reference.valid].max()
    print(f"{name}: largest error of a logit {error:.1e}, of up to {np.abs(reference.logits).max():.1f}")
    assert error < 1e-4
    np.testing.assert_array_equal(greedy, reference.greedy)

    save(tmp_path / "ours", loaded.model, loaded.params, loaded.generation)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    state = again.state_dict()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    np.testing.assert_array_equal(expected(again).logits, reference.logits)
    equal(load(tmp_path / "ours").params, loaded.params)


@pytest.mark.parametrize("name", ["llama3", "gemma3", "gpt_neox", "mistral"])
def test_config_written_by_us_is_read_by_torch_as_its_own(name: str, tmp_path: Path) -> None:
    theirs = build(name)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    save(tmp_path / "ours", loaded.model, loaded.params)
    raw = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "rope_parameters" not in raw  # the layout that transformers 4 reads as well
    read: Any = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    own = theirs.config.rope_parameters
    assert {key: value for key, value in read.rope_parameters.items() if key in own} == own


def test_a_sharded_bfloat16_checkpoint_of_torch(tmp_path: Path) -> None:
    theirs = build("qwen3").to(torch.bfloat16)
    theirs.save_pretrained(tmp_path, max_shard_size="5KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = load(tmp_path)
    ours = np.asarray(loaded.params["layer_2"]["mlp"]["down"]["kernel"])
    np.testing.assert_array_equal(
        ours.T, theirs.model.layers[2].mlp.down_proj.weight.float().detach().numpy()
    )
    assert len(jax.tree.leaves(loaded.params)) == len(list(theirs.parameters()))
