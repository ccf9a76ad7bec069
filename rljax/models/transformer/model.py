"""A decoder-only transformer as pure functions: whole sequences, or prefill and decode with a cache."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rljax.models.transformer.attention import stored
from rljax.models.transformer.config import TransformerConfig, check
from rljax.models.transformer.layers import Block, Norm, dropped
from rljax.models.transformer.products import along, product
from rljax.types import Array, Dropout, Key, LanguageModel, PyTree

POLICIES = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
EVERYTHING = 2**30  # a window longer than any sequence


class Cache(NamedTuple):
    """Keys and values of left-padded sequences: column s of every row was written at the same time."""

    # per layer (key (B, KV, D, S), value (B, KV, S, D)); scanned layers: stacked, with L before B
    layers: PyTree
    valid: Array  # (B, S) bool: columns that hold a token
    position: Array  # (B,) int32, of the next token
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32, column of the next token


class Decoder(nn.Module):
    """Tokens (B, T) to hidden states (B, T, D) after the last norm, and where `keep` says so the layers' keys
    and values.
    """

    config: TransformerConfig
    keep: bool = False
    below: int | None = None  # positions are, where that is known

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        positions: Array,
        allowed: Array | None,
        distance: Array,
        caches: PyTree,
        index: Array | None,
        dropout: Dropout | None = None,
    ) -> tuple[Array, PyTree]:
        config = self.config
        shape = config.vocab_size, config.hidden_size
        table = self.param("embedding", nn.initializers.normal(0.02), shape, config.param_dtype)
        x = table[tokens].astype(config.dtype) * jnp.asarray(config.embedding_scale, config.dtype)
        if config.positions == "learned":
            shape = config.max_positions, config.hidden_size
            table = self.param("position_embedding", nn.initializers.normal(0.02), shape, config.param_dtype)
            x = x + table[positions].astype(config.dtype)
        x = dropped(x, dropout, 0)
        angles, kinds = rotations(config, positions, self.below)
        rest = angles, allowed, distance, index, dropout
        if config.loop == "scanned":
            scan: Any = nn.scan  # its type says that in_axes is one number
            loop = scan(
                rematerialized(config, Block),
                variable_axes={"params": 0, "adapters": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, 0, 0, *(nn.broadcast,) * len(rest)),
                length=config.num_layers,
            )
            windows = [layer.window for layer in config.layers]
            every = jnp.asarray([window or EVERYTHING for window in windows], jnp.int32)
            windows, numbers = every if any(windows) else None, jnp.arange(config.num_layers)
            x, written = loop(config, self.keep, name="layers")(
                x, numbers, jnp.asarray(kinds), windows, caches, *rest
            )
        else:
            written = []
            block = rematerialized(config, Block)
            for number, (layer, kind) in enumerate(zip(config.layers, kinds, strict=True)):
                cache = None if caches is None else caches[number]
                name = f"layer_{number}"
                x, cache = block(config, self.keep, name=name)(x, number, kind, layer.window, cache, *rest)
                written.append(cache)
            written = tuple(written)
        x = Norm(config, name="final_norm")(x)
        if not config.tied:  # made here, so that it is initialised with the rest; used by `logits`
            shape = config.hidden_size, config.vocab_size
            self.param("head", nn.initializers.normal(0.02), shape, config.param_dtype)
        if "head" in config.biases:
            self.param("head_bias", nn.initializers.zeros, (config.vocab_size,), config.param_dtype)
        return x, written


def rematerialized(config: TransformerConfig, block: Any) -> Any:
    """The block, with what its backward pass computes again."""
    if config.remat == "none":
        return block
    return nn.remat(block, policy=POLICIES[config.remat], prevent_cse=config.loop == "unrolled")


def rotations(
    config: TransformerConfig, positions: Array, below: int | None
) -> tuple[tuple[Array, Array], list[int]]:
    """cos and sin, (R, B, T, F), of the R different rotary embeddings, and which one each layer has.

    A layer without has an embedding that turns by nothing. Positions that are `below` a number are looked up
    in a table, whose entries are computed once: XLA computes a cosine again wherever it is used, for every
    head of every layer, forwards and backwards.
    """
    kinds = list(dict.fromkeys(layer.rotary for layer in config.layers))
    turning = [kind for kind in kinds if kind is not None]
    still = np.zeros_like(turning[0].frequencies(config.head_size)) if turning else np.zeros(0, np.float32)
    tables = [still if kind is None else kind.frequencies(config.head_size) for kind in kinds]
    frequencies = jnp.asarray(np.stack(tables))[:, None, None, :]
    each = positions if below is None else jnp.arange(below, dtype=jnp.int32)[None]
    angles = each[None, :, :, None].astype(jnp.float32) * frequencies
    found = jnp.cos(angles), jnp.sin(angles)
    if below is not None:
        found = jax.tree.map(lambda table: table[:, 0].at[:, positions].get(mode="clip"), found)
    return found, [kinds.index(layer.rotary) for layer in config.layers]


def transformer(config: TransformerConfig) -> LanguageModel:
    """The functions of a decoder-only transformer; see `rljax.types.LanguageModel`.

    Raises: ValueError naming the field of `config` that is wrong.
    """
    check(config)

    def run(
        keep: bool, below: int | None, params: PyTree, adapters: PyTree, *inputs: Any
    ) -> tuple[Array, PyTree]:
        variables = {"params": params} if adapters is None else {"params": params, "adapters": adapters}
        output: Any = Decoder(config, keep, below).apply(variables, *inputs)
        return output

    def init(key: Key) -> PyTree:
        tokens = jnp.zeros((1, 1), jnp.int32)
        allowed, distance = jnp.ones((1, 1, 1), bool), jnp.zeros((1, 1, 1), jnp.int32)
        return Decoder(config).init(key, tokens, tokens, allowed, distance, None, None)["params"]

    def fits(columns: int) -> None:
        if config.positions == "learned" and columns > config.max_positions:
            raise ValueError(f"{columns} tokens: the model has {config.max_positions} learned positions")

    def whole(
        keep: bool,
        params: PyTree,
        tokens: Array,
        segments: Array | None,
        positions: Array | None,
        adapters: PyTree,
        dropout: Dropout | None = None,
    ) -> tuple[Array, PyTree]:
        columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        distance = (columns[:, None] - columns[None, :])[None]
        if segments is None:
            fits(tokens.shape[1])
            allowed = None  # all that is not ahead
        else:
            same = segments[:, :, None] == segments[:, None, :]
            allowed = same & (distance >= 0) & (segments > 0)[:, None, :]
        below = tokens.shape[1] if positions is None else None
        if positions is None:
            positions = jnp.broadcast_to(columns, tokens.shape) if segments is None else places(segments)
        return run(keep, below, params, adapters, tokens, positions, allowed, distance, None, None, dropout)

    def forward(
        params: PyTree,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        return whole(False, params, tokens, segments, positions, adapters, dropout)[0]

    def logits(params: PyTree, hidden: Array) -> Array:
        kernel = params["embedding"].T if config.tied else params["head"]
        y = product(hidden, kernel, config.dtype, jnp.float32)
        if "head" in config.biases:
            y = y + along(params["head_bias"].astype(jnp.float32), y)
        if config.final_softcap is not None:
            y = config.final_softcap * jnp.tanh(y / config.final_softcap)
        return y

    def prefill(
        params: PyTree, tokens: Array, valid: Array, columns: int, adapters: PyTree = None
    ) -> tuple[Array, Cache]:
        fits(max(tokens.shape[1], columns - 1))  # the last of new tokens is never read
        hidden, layers = whole(True, params, tokens, valid.astype(jnp.int32), None, adapters)
        spare = columns - tokens.shape[1]
        before = [(0, 0)] * (3 if config.loop == "scanned" else 2)
        widths = [*before, (0, 0), (0, spare)], [*before, (0, spare), (0, 0)]  # of keys, of values
        held = stored(config.dtype)
        widen = lambda pair: tuple(jnp.pad(x.astype(held), w) for x, w in zip(pair, widths, strict=True))
        cache = Cache(
            layers=widen(layers) if config.loop == "scanned" else tuple(map(widen, layers)),
            valid=jnp.pad(valid, [(0, 0), (0, spare)]),
            position=valid.sum(axis=1, dtype=jnp.int32),
            index=jnp.int32(tokens.shape[1]),
        )
        return hidden[:, -1], cache

    def decode(params: PyTree, token: Array, cache: Cache, adapters: PyTree = None) -> tuple[Array, Cache]:
        columns = jnp.arange(cache.valid.shape[1], dtype=jnp.int32)
        valid = cache.valid | (columns == cache.index)[None]
        inputs = token[:, None], cache.position[:, None], valid[:, None], (cache.index - columns)[None, None]
        hidden, layers = run(True, columns.size, params, adapters, *inputs, cache.layers, cache.index)
        return hidden[:, 0], Cache(layers, valid, cache.position + 1, cache.index + 1)

    def completion(
        params: PyTree,
        prompt: Array,
        valid: Array,
        completion: Array,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        group, width = len(completion) // len(prompt), prompt.shape[1]
        if group == 1 or completion.shape[1] == 1 or dropout is not None:
            rows = together(prompt, valid, completion)
            hidden = forward(params, *rows, adapters=adapters, dropout=dropout)
            return hidden[:, width - 1 : -1]
        tokens = completion[:, :-1]
        length = tokens.shape[1]
        first, cache = prefill(params, prompt, valid, width + length, adapters)
        cache = fork(cache, group)
        seen = jnp.broadcast_to(cache.valid[:, None], (len(tokens), length, width + length))
        allowed = seen.at[:, :, width:].set(jnp.tri(length, dtype=bool))
        steps = jnp.arange(length, dtype=jnp.int32)
        distance = (width + steps)[:, None] - jnp.arange(width + length, dtype=jnp.int32)[None]
        inputs = tokens, cache.position[:, None] + steps[None], allowed, distance[None]
        rest = run(False, width + length, params, adapters, *inputs, cache.layers, cache.index)[0]
        return jnp.concatenate([jnp.repeat(first, group, axis=0)[:, None], rest], axis=1)

    def fork(cache: Cache, group: int) -> Cache:
        axis = 1 if config.loop == "scanned" else 0
        return Cache(
            layers=jax.tree.map(lambda x: jnp.repeat(x, group, axis=axis), cache.layers),
            valid=jnp.repeat(cache.valid, group, axis=0),
            position=jnp.repeat(cache.position, group, axis=0),
            index=cache.index,
        )

    return LanguageModel(config, init, forward, logits, prefill, decode, completion, fork)


def together(prompt: Array, valid: Array, completion: Array) -> tuple[Array, Array]:
    """Tokens (B, P + T) and their segments, of prompts (B / G, P) repeated for each of their completions."""
    group = len(completion) // len(prompt)
    prompt, valid = (jnp.repeat(x, group, axis=0) for x in (prompt, valid.astype(jnp.int32)))
    segments = jnp.concatenate([valid, jnp.ones_like(completion)], axis=1)
    return jnp.concatenate([prompt, completion], axis=1), segments


def places(segments: Array) -> Array:
    """Positions (B, T) that start at 0 where a segment starts, from segment numbers (B, T)."""
    columns = jnp.arange(segments.shape[1], dtype=jnp.int32)
    starts = jnp.concatenate(
        [jnp.ones_like(segments[:, :1], bool), segments[:, 1:] != segments[:, :-1]], axis=1
    )
    return columns[None] - jax.lax.cummax(jnp.where(starts, columns[None], 0), axis=1)


def logical_axes(params: PyTree) -> PyTree:
    """The name of every axis of every parameter (arrays or their shapes), as a like tree of tuples: of a
    model, of its adapters and prefixes, or of trees that hold some, such as {"policy", "head"}.

    Names: vocabulary, embed, heads (of queries, with their dimensions), kv_heads, mlp, layers; None for an
    axis that is too short to share among devices. `rljax.runs.program.layout.shardings` maps them to axes of
    a mesh.
    """

    def names(path: tuple, leaf: Any) -> tuple[str | None, ...]:
        del leaf
        where = [entry.key for entry in path]
        inner, outer = AXES.get(where[-2] if len(where) > 1 else "", ("embed", "embed"))
        of_layer = {"kernel": (inner, outer), "bias": (outer,), "scale": (outer,)}
        axes = {**of_layer, "a": (inner, None), "b": (None, outer), **TABLES}[where[-1]]
        return ("layers", *axes) if "layers" in where else axes

    return jax.tree_util.tree_map_with_path(names, params)


AXES = {
    "query": ("embed", "heads"),
    "key": ("embed", "kv_heads"),
    "value": ("embed", "kv_heads"),
    "output": ("heads", "embed"),
    "query_norm": (None, None),
    "key_norm": (None, None),
    "gate": ("embed", "mlp"),
    "up": ("embed", "mlp"),
    "down": ("mlp", "embed"),
}
TABLES = {
    "embedding": ("vocabulary", "embed"),
    "position_embedding": (None, "embed"),
    "head": ("embed", "vocabulary"),
    "head_bias": ("vocabulary",),
    "prefix_key": ("kv_heads", None, None),
    "prefix_value": ("kv_heads", None, None),
}
