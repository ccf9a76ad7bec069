"""Models over a mesh of devices: where parameters go, and that nothing else changes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from rljax.models import seq2seq, transformer
from rljax.models.seq2seq import Seq2SeqConfig
from rljax.models.transformer import Layer, TransformerConfig
from rljax.runs.program import layout

ROOT = Path(__file__).parents[2]
LLAMA = TransformerConfig(
    vocab_size=42,
    hidden_size=16,
    intermediate_size=24,
    num_heads=4,
    num_kv_heads=1,
    head_dim=6,
    layers=(Layer(),) * 2,
    tied=False,
)


def grid(sizes: dict[str, int], kind: AxisType = AxisType.Auto) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes), axis_types=(kind,) * len(sizes))


def specs(sizes: dict[str, int], axes: Any, params: Any, **options: Any) -> Any:
    found = layout.shardings(grid(sizes), axes, params, **options)
    return jax.tree.map(lambda sharding: sharding.spec, found)


@pytest.fixture
def llama() -> Any:
    return jax.eval_shape(transformer.transformer(LLAMA).init, jax.random.key(0))


def test_names_become_mesh_axes(llama: Any) -> None:
    found = specs({"fsdp": 2, "tensor": 4}, transformer.logical_axes(llama), llama)
    assert jax.tree.structure(found) == jax.tree.structure(llama)
    layer = found["layer_1"]
    assert layer["attention"]["query"]["kernel"] == PartitionSpec("fsdp", "tensor")
    assert layer["attention"]["output"]["kernel"] == PartitionSpec("tensor", "fsdp")
    assert layer["mlp"]["down"]["kernel"] == PartitionSpec("tensor", "fsdp")
    assert layer["mlp_norm"]["scale"] == PartitionSpec("fsdp")
    # what 4 does not divide stays whole: 42 tokens, and 6 columns of the one key
    assert found["embedding"] == PartitionSpec(None, "fsdp")
    assert found["head"] == PartitionSpec("fsdp", None)
    assert layer["attention"]["key"]["kernel"] == PartitionSpec("fsdp", None)


def test_axes_that_the_mesh_or_the_rules_do_not_have_stay_whole(llama: Any) -> None:
    axes = transformer.logical_axes(llama)
    found = specs({"tensor": 2, "data": 3}, axes, llama)
    assert found["embedding"] == PartitionSpec("tensor", None)
    assert found["layer_0"]["mlp"]["up"]["kernel"] == PartitionSpec(None, "tensor")
    found = specs({"tensor": 2, "data": 2}, axes, llama, rules={"mlp": "data"})
    assert found["embedding"] == PartitionSpec(None, None)
    assert found["layer_0"]["mlp"]["up"]["kernel"] == PartitionSpec(None, "data")
    # one mesh axis shares one axis of a parameter
    found = specs({"fsdp": 2}, axes, llama, rules={"mlp": "fsdp", "embed": "fsdp"})
    assert found["layer_0"]["mlp"]["up"]["kernel"] == PartitionSpec("fsdp", None)
    assert found["layer_0"]["mlp"]["down"]["kernel"] == PartitionSpec("fsdp", None)


def test_scanned_layers_and_encoder_decoders() -> None:
    config = Seq2SeqConfig(37, 24, 40, 3, 2, 3, head_dim=6, loop="scanned")
    params = jax.eval_shape(seq2seq.seq2seq(config).init, jax.random.key(0))
    found = specs({"fsdp": 2, "tensor": 2}, seq2seq.logical_axes(params), params)
    cross = found["decoder"]["layers"]["cross_attention"]
    assert cross["key"]["kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert found["decoder"]["relative_bias"] == PartitionSpec(None, None)


def test_a_wrong_mesh_and_wrong_names_are_one_line(llama: Any) -> None:
    axes = transformer.logical_axes(llama)
    with pytest.raises(ValueError, match=r"mesh axis 'tensor' is .*Explicit: make the mesh with axis_types"):
        layout.shardings(grid({"tensor": 2}, AxisType.Explicit), axes, llama)
    with pytest.raises(ValueError, match=r"the axes \('embed',\) for a parameter of shape \(42, 16\)"):
        layout.shardings(grid({"tensor": 2}), {**axes, "embedding": ("embed",)}, llama)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from rljax import sft, text
from rljax.learning import maximum_likelihood, trainable
from rljax.models import huggingface
from rljax.models.transformer import logical_axes
from rljax.runs.program import layout

FOLDER = "tests/models/fixtures/llama"
assert jax.device_count() == 4
grid = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
place = lambda shapes: layout.shardings(grid, logical_axes(shapes), shapes)
sizes = lambda tree: [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(tree)]
model, alone, *_ = huggingface.load(FOLDER, loop="scanned")
params = huggingface.load(FOLDER, loop="scanned", sharding=place).params
jax.tree.map(lambda leaf, there: np.testing.assert_(leaf.sharding == there), params, place(alone))
jax.tree.map(np.testing.assert_array_equal, params, alone)
assert set(sizes(params)) == {0.25, 0.5}, sizes(params)  # norms are shared over fsdp alone

# A gradient's entry is a sum over 48 tokens of products of a few tens of terms, each below 1: in float32 in
# another order it is another by at most (48 + 100) * 2**-24, about 1e-5. Adam's first step moves a weight by
# learning_rate * g / (|g| + epsilon), which makes of a difference in g at most learning_rate / epsilon of it:
# once with these numbers. (With an epsilon of 1e-3 it was a hundred times.)
config = sft.Config(
    batch_size=4, length=12, num_micro=2, chunk=5, total_steps=480, learning_rate=0.1, adam_epsilon=0.1
)
draw = np.random.default_rng(0)
tokens = draw.integers(0, 40, (4, 12)).astype(np.int32)
rows = maximum_likelihood.Rows(tokens, np.ones_like(tokens), draw.random((4, 12)) < 0.7)
rows.mask[:, 0] = False
over = NamedSharding(grid, PartitionSpec("fsdp"))

def train(params, rows):
    state = trainable.optimizer(config).init(params)
    found = jax.jit(lambda *arguments: maximum_likelihood.update(model, *arguments, config))(
        params, state, rows, jax.random.key(0), jnp.int32(3)
    )
    return state, found

state, found = train(params, jax.device_put(rows, over))
_, expected = train(alone, rows)
assert sorted(sizes(state))[:-1] == sorted(2 * sizes(params)), "Adam's moments lie where parameters do"
assert set(sizes(found[0])) == {0.25, 0.5}
assert max(abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (expected[0], alone)))) > 0.01
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
jax.tree.map(close, found, expected)

prompt = draw.integers(2, 40, (4, 7)).astype(np.int32)
valid = np.arange(7)[None] >= np.array([0, 3, 1, 6])[:, None]
settings = text.Sampling(temperature=0.0, max_new_tokens=16)
write = lambda params, *prompts: text.generate(model, params, jax.random.key(0), *prompts, settings)
completion, whole = write(params, *jax.device_put((prompt, valid), over)), write(alone, prompt, valid)
np.testing.assert_array_equal(completion.tokens, whole.tokens)
assert len(np.unique(whole.tokens)) > 8
np.testing.assert_allclose(completion.log_prob, whole.log_prob, rtol=1e-5, atol=1e-5)
print("the same")
"""


def test_over_a_mesh_training_and_generation_are_what_they_are_on_one_device() -> None:
    environment = {key: value for key, value in os.environ.items() if key != "RLJAX_HOST_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        cwd=ROOT,
        env=environment | {"JAX_NUM_CPU_DEVICES": "4", "JAX_PLATFORMS": "cpu"},
        timeout=250,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "the same", done.stderr
