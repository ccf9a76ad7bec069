"""Decay masks, master weights, and gradient accumulation against the single batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rljax.math.losses import cross_entropy
from rljax.models import adapters
from rljax.models.adapters.subsets import flatten
from rljax.models.optimization import accumulate, decay_mask, master_weights
from rljax.models.token_losses import per_token
from rljax.models.transformer import Layer, TransformerConfig, transformer
from rljax.types import PyTree


def config(*layers: Layer, **fields: object) -> TransformerConfig:
    return TransformerConfig(37, 16, 24, 4, layers or (Layer(), Layer()), **fields)


@pytest.mark.parametrize("loop", ["unrolled", "scanned"])
def test_only_matrices_decay(loop: str) -> None:
    switches = {"biases": ("qkv", "output", "mlp", "head"), "norm": "layer", "head_norm": "query_key"}
    lm = transformer(
        config(*[Layer(rotary=None)] * 2, loop=loop, tied=False, positions="learned", **switches)
    )
    params = jax.eval_shape(lm.init, jax.random.key(0))
    decayed = {path for path, yes in flatten(decay_mask(params)).items() if yes}
    matrices = {f"attention/{name}" for name in ("query", "key", "value", "output")}
    matrices |= {f"mlp/{name}" for name in ("gate", "up", "down")}
    layers = ["layers"] if loop == "scanned" else ["layer_0", "layer_1"]
    assert decayed == {"head"} | {f"{layer}/{name}/kernel" for layer in layers for name in matrices}
    jax.tree.map(lambda p, m: None, params, decay_mask(params))  # the same structure
    trained = adapters.init(jax.random.key(0), params, ("query",), 2)
    assert all(flatten(decay_mask(trained)).values())


def test_decay_reaches_no_norm() -> None:
    lm = transformer(config())
    params = jax.jit(lm.init)(jax.random.key(0))
    optimizer = optax.adamw(0.1, weight_decay=0.5, mask=decay_mask)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    for path, update in flatten(updates).items():
        wanted = -0.05 * flatten(params)[path] if path.endswith("kernel") else jnp.zeros_like(update)
        np.testing.assert_allclose(update, wanted, rtol=1e-6)


def test_master_weights_add_up_what_half_precision_loses() -> None:
    params = {"w": jnp.ones((3,), jnp.bfloat16)}
    gradients = {"w": jnp.full((3,), 1e-3, jnp.bfloat16)}

    def train(optimizer: optax.GradientTransformation, steps: int = 1000) -> PyTree:
        def step(carry: tuple, _: None) -> tuple[tuple, None]:
            params, state = carry
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=steps)[0][0])(params)

    lost, kept = train(optax.sgd(0.1)), train(master_weights(optax.sgd(0.1)))
    assert lost["w"].dtype == kept["w"].dtype == jnp.bfloat16
    assert (lost["w"] == 1).all()  # 1e-4 is less than half of the last bit
    exact = 1 - 1000 * 0.1 * float(gradients["w"][0])
    np.testing.assert_allclose(np.asarray(kept["w"], np.float32), exact, rtol=2**-8)


def test_parameters_are_their_masters_rounded() -> None:
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.normal(size=4000) * 10.0 ** rng.integers(-6, 3, 4000), jnp.bfloat16)}
    optimizer = master_weights(optax.adam(0.1))
    state = optimizer.init(params)
    for seed in range(5):
        gradients = {"w": jax.random.normal(jax.random.key(seed), (4000,), jnp.bfloat16)}
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        assert (params["w"] == state.master["w"].astype(jnp.bfloat16)).all()
    with pytest.raises(ValueError, match="needs params"):
        optimizer.update(params, state)


def batch(rows: int = 8, length: int = 10) -> dict:
    rng = np.random.default_rng(3)
    lengths = np.array([10, 1, 0, 3, 9, 2, 10, 5])[:rows, None]  # so that a mean of means is far off
    mask = np.arange(length)[None] < lengths
    tokens = rng.integers(0, 37, (rows, length + 1))
    return {"tokens": jnp.asarray(tokens, jnp.int32), "mask": jnp.asarray(mask)}


def losses(lm: object) -> Callable:
    def loss_sum(params: PyTree, batch: dict) -> tuple[jax.Array, jax.Array]:
        hidden = lm.forward(params, batch["tokens"][:, :-1])
        loss = per_token(lm, cross_entropy, params, hidden, batch["tokens"][:, 1:], chunk=4)
        return jnp.where(batch["mask"], loss, 0).sum(), batch["mask"].sum()

    return loss_sum


@pytest.mark.parametrize("num_micro", [1, 2, 4, 8])
def test_accumulation_equals_the_single_batch(num_micro: int) -> None:
    lm = transformer(config())
    params = jax.tree.map(lambda x: x * 5, jax.jit(lm.init)(jax.random.key(0)))
    loss_sum, data = losses(lm), batch()

    def mean(params: PyTree) -> jax.Array:
        total, count = loss_sum(params, data)
        return total / count

    value, gradient = jax.jit(jax.value_and_grad(mean))(params)
    total, count, found = jax.jit(lambda p, b: accumulate(loss_sum, p, b, num_micro))(params, data)
    assert count == 40
    np.testing.assert_allclose(total / count, value, rtol=1e-6)
    for path, wanted in flatten(gradient).items():
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(flatten(found)[path], wanted, rtol=1e-5, atol=1e-6 * scale)
    loss_sum = jax.jit(loss_sum)
    means = [mean_of(loss_sum, params, data, rows) for rows in np.arange(8).reshape(-1, 2)]
    assert abs(np.mean(means) - float(value)) > 1e-3 * float(value)  # the wrong mean would be seen


def mean_of(loss_sum: Callable, params: PyTree, data: dict, rows: np.ndarray) -> float:
    total, count = loss_sum(params, jax.tree.map(lambda x: x[rows], data))
    return float(total / count)


def test_nothing_counted_gives_no_gradient() -> None:
    lm = transformer(config())
    data = batch() | {"mask": jnp.zeros((8, 10), bool)}
    run = jax.jit(lambda params: accumulate(losses(lm), params, data, 2))
    total, count, gradient = run(jax.jit(lm.init)(jax.random.key(0)))
    assert (total, count) == (0, 0)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))
    with pytest.raises(ValueError, match=r"num_micro = 3 with a batch of \[8\] rows: must divide it"):
        accumulate(losses(lm), jax.jit(lm.init)(jax.random.key(0)), data, 3)


def test_accumulation_needs_the_memory_of_one_microbatch() -> None:
    lm = transformer(config())
    params = jax.eval_shape(lm.init, jax.random.key(0))
    data = jax.tree.map(lambda x: jnp.repeat(jnp.repeat(x, 8, 0), 8, 1), batch())
    data["tokens"] = data["tokens"][:, : data["mask"].shape[1] + 1]

    def bytes_of(num_micro: int) -> int:
        step = jax.jit(lambda p, b: accumulate(losses(lm), p, b, num_micro))
        return step.lower(params, data).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(8) < bytes_of(1) / 3


def test_bfloat16_products_have_float32_masters() -> None:
    """param_dtype float32 with dtype bfloat16: float32 gradients, near those of float32."""
    exact, rounded = transformer(config()), transformer(config(dtype=jnp.bfloat16))
    params = jax.jit(exact.init)(jax.random.key(0))
    data = batch()
    run = lambda lm: jax.jit(lambda params: accumulate(losses(lm), params, data, 2))(params)
    (_, _, wanted), (_, _, found) = run(exact), run(rounded)
    for path, gradient in flatten(found).items():
        assert gradient.dtype == jnp.float32
        difference = jnp.linalg.norm(gradient - flatten(wanted)[path])
        assert difference < 0.05 * jnp.linalg.norm(flatten(wanted)[path]), path
