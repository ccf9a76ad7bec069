"""All forms of attention are one function, against softmax attention in float64 and each other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax.models.transformer import attention
from rljax.models.transformer.attention import attend
from rljax.models.transformer.layers import rotate
from rljax.models.transformer.products import along, matmul, product, swapped

B, H, KV, D = 6, 4, 2, 8


def sample(length: int, columns: int, seed: int = 0) -> tuple[Any, Any, Any, Any]:
    rng = np.random.default_rng(seed)
    shapes = (B, length, H, D), (B, KV, D, columns), (B, KV, columns, D)
    query, key, value = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    ahead = np.arange(columns)[None, :] - np.arange(length)[:, None] > columns - length
    mask = (rng.random((B, length, columns)) < 0.7) & ~ahead[None]
    mask[:, :, 0] = True
    return query, key, value, mask


def by_hand(query: Any, key: Any, value: Any, mask: Any, scale: float, softcap: Any, bias: Any) -> np.ndarray:
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    out = np.zeros(query.shape)
    for head in range(H):
        scores = np.einsum("btd,bds->bts", query[:, :, head], key[:, head // (H // KV)]) * scale
        if softcap is not None:
            scores = softcap * np.tanh(scores / softcap)
        if bias is not None:
            scores = scores + np.asarray(bias)[None, head]
        scores = np.where(mask, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[:, :, head] = np.einsum("bts,bsd->btd", weights, value[:, head // (H // KV)])
    return out.reshape(*query.shape[:2], H * D)


CASES = {
    "causal": {},
    "softcap": {"softcap": 2.0},
    "bias": {"bias": True},
    "both ways": {"causal": False},
    "prefix": {"columns": 9},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("form", ["whole", "blocks"])
@pytest.mark.parametrize("rows", [1, 2, 6])  # of a group
def test_the_forms_are_softmax_attention(
    name: str, form: Any, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    length, case = 7, dict(CASES[name])
    columns = case.pop("columns", length)
    monkeypatch.setattr(attention, "QUERIES", 3)  # several blocks, the last one shorter
    monkeypatch.setattr(attention, "SCORES", rows * H * 3 * columns)
    query, key, value, mask = sample(length, columns)
    if not case.get("causal", True):
        mask = np.random.default_rng(2).random(mask.shape) < 0.7
        mask[:, :, 0] = True
    bias = np.random.default_rng(3).normal(size=(H, length, columns)).astype(np.float32)
    bias = bias if case.pop("bias", False) else None
    found = jax.jit(lambda *x: attend(*x, mask, scale=0.3, dtype=jnp.float32, bias=bias, form=form, **case))(
        query, key, value
    )
    expected = by_hand(query, key, value, mask, 0.3, case.get("softcap"), bias)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blocks_have_the_gradient_of_the_whole(dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "QUERIES", 3)
    monkeypatch.setattr(attention, "SCORES", 2 * H * 3 * 7)
    query, key, value, mask = sample(7, 7)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(B, 7, H * D)), jnp.float32)

    def gradients(form: Any) -> Any:
        loss = lambda *x: (attend(*x, mask, scale=0.3, dtype=dtype, form=form) * weight).sum()
        return jax.jit(jax.grad(loss, (0, 1, 2)))(*(x.astype(dtype) for x in (query, key, value)))

    tolerance = 1e-5 if dtype == jnp.float32 else 0.1
    for found, expected in zip(gradients("blocks"), gradients("whole"), strict=True):
        assert found.dtype == dtype
        found, expected = found.astype(jnp.float32), expected.astype(jnp.float32)
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_without_a_mask_a_query_sees_all_that_is_not_ahead() -> None:
    query, key, value, _ = sample(5, 8)
    behind = np.broadcast_to(np.arange(8)[None] <= np.arange(5)[:, None] + 3, (B, 5, 8))
    for form in ("whole", "blocks"):
        run = jax.jit(lambda *x, form=form: attend(*x, None, scale=1.0, dtype=jnp.float32, form=form))
        none = run(query, key, value)
        np.testing.assert_allclose(none, by_hand(query, key, value, behind, 1.0, None, None), atol=1e-5)


@pytest.mark.parametrize(("length", "columns"), [(5, 8), (4, 7), (5, 9), (4, 8)])
def test_the_fused_kernel_never_sees_odd_sizes_beside_a_mask(
    length: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses them; here JAX's own form stands in for it."""
    inner, seen = jax.nn.dot_product_attention, []

    def stand_in(query: Any, key: Any, value: Any, **rest: Any) -> Any:
        seen.append((query.shape[1], key.shape[1]))
        return inner(query, key, value, **rest | {"implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    query, key, value, mask = sample(length, columns)

    def run(form: Any) -> Any:
        loss = lambda *x: jnp.sin(attend(*x, mask, scale=0.3, dtype=jnp.float32, form=form)).sum()
        return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)

    for one, other in zip(*map(jax.tree.leaves, (run("cudnn"), run("whole"))), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert all(size % 2 == 0 for sizes in seen for size in sizes)


def test_a_row_that_sees_nothing_has_no_nan() -> None:
    query, key, value, mask = sample(4, 4)
    mask[2] = False
    loss = lambda *x: attend(*x, mask, scale=1.0, dtype=jnp.float32).sum()
    value_, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)
    assert np.isfinite(value_)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_are_those_of_rounded_inputs_forwards_and_backwards(dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((3, 5, 4), (3, 4, 6)))
    weight = jnp.asarray(rng.normal(size=(3, 5, 6)), jnp.float32)
    rounded = lambda a: np.asarray(a.astype(dtype), np.float64)
    found, pull = jax.vjp(lambda x, y: matmul(x, y, dtype), x, y)
    np.testing.assert_allclose(found, rounded(x) @ rounded(y), rtol=1e-5, atol=1e-5)
    to_x, to_y = pull(weight)
    np.testing.assert_allclose(to_x, rounded(weight) @ rounded(y).swapaxes(1, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(to_y, rounded(x).swapaxes(1, 2) @ rounded(weight), rtol=1e-5, atol=1e-5)


def test_the_gradient_of_a_vector_along_rows_is_their_sum() -> None:
    rng = np.random.default_rng(0)
    rows, weight = (jnp.asarray(rng.normal(size=(3, 5, 4)), jnp.float32) for _ in range(2))
    found, pull = jax.vjp(lambda vector: along(vector, rows), weight[0, 0])
    np.testing.assert_array_equal(found, np.broadcast_to(weight[0, 0], rows.shape))
    np.testing.assert_allclose(pull(weight)[0], np.sum(weight, axis=(0, 1)), rtol=1e-5)


@pytest.mark.parametrize("half", [0, 1, 3])
def test_the_gradient_of_a_rotation_is_that_of_its_formula(half: int) -> None:
    rng = np.random.default_rng(0)
    x, weight = (jnp.asarray(rng.normal(size=(2, 5, 3, 6)), jnp.float32) for _ in range(2))
    angle = jnp.asarray(rng.normal(size=(2, 5, half)), jnp.float32)

    def formula(x: jax.Array) -> jax.Array:
        cos, sin = jnp.cos(angle)[:, :, None], jnp.sin(angle)[:, :, None]
        first, second = x[..., :half], x[..., half : 2 * half]
        return jnp.concatenate(
            [first * cos - second * sin, second * cos + first * sin, x[..., 2 * half :]], -1
        )

    found, pull = jax.vjp(lambda x: rotate(x, jnp.cos(angle), jnp.sin(angle)), x)
    exact, exact_pull = jax.vjp(formula, x)
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pull(weight)[0], exact_pull(weight)[0], rtol=1e-5, atol=1e-6)


def test_a_transpose_that_lies_in_memory_is_a_transpose_under_every_transformation() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.bfloat16)
    np.testing.assert_array_equal(jax.jit(jax.vmap(swapped))(x), x.swapaxes(1, 2))
    loss = lambda k: product(jnp.ones((2, 4), jnp.bfloat16), k, jnp.bfloat16, jnp.float32).T.sum()
    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x[0]), np.full((4, 5), 2.0))
