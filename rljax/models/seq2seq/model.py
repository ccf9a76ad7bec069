"""An encoder-decoder as pure functions: encode once, then decode with a cache, or teacher-forced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax.models.seq2seq.config import Seq2SeqConfig, check
from rljax.models.seq2seq.layers import Stack
from rljax.models.transformer.attention import stored
from rljax.models.transformer.model import logical_axes as transformer_axes
from rljax.models.transformer.products import product
from rljax.types import Array, Dropout, Key, LanguageModel, PyTree


class Cache(NamedTuple):
    """What the decoder remembers: column s of every row was written at the same time, none is padding."""

    # Per layer (key (B, H, D, S), value (B, H, S, D)) of what was written, and such a pair of the prompt;
    # scanned layers: stacked, with L before B.
    layers: PyTree
    valid: Array  # (B, P) bool: columns of the prompt that hold a token
    index: Array  # pyright: ignore[reportIncompatibleMethodOverride]  # () int32, column of the next token


class EncoderDecoder(nn.Module):
    """Both stacks and the embedding that they share."""

    config: Seq2SeqConfig

    def setup(self) -> None:
        config = self.config
        shape = config.vocab_size, config.hidden_size
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), shape, config.param_dtype)
        self.encoder = Stack(config, config.num_layers, "encoder")
        self.decoder = Stack(config, config.num_decoder_layers, "decoder")
        if not config.tied:  # made here, so that it is initialised with the rest; used by `logits`
            start = nn.initializers.normal(config.hidden_size**-0.5)
            self.head = self.param("head", start, shape[::-1], config.param_dtype)

    def encode(self, tokens: Array, valid: Array, dropout: Dropout | None = None) -> Array:
        """Tokens (B, P) to hidden states (B, P, D)."""
        columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        distance = columns[None, :] - columns[:, None]
        x = self.embedding[tokens].astype(self.config.dtype)
        return self.encoder(x, distance, valid[:, None, :], None, None, None, None, dropout)[0]

    def decode(
        self,
        tokens: Array,
        distance: Array,
        source: Array | None,
        valid: Array,
        caches: PyTree,
        index: Array | None,
        dropout: Dropout | None = None,
    ) -> tuple[Array, PyTree]:
        """Tokens (B, T), at distance (T, S) from what they may attend to, to hidden states (B, T, D)."""
        x = self.embedding[tokens].astype(self.config.dtype)
        return self.decoder(x, distance, (distance <= 0)[None], source, valid, caches, index, dropout)

    def __call__(self, tokens: Array, valid: Array) -> Array:
        """Only to make the parameters."""
        distance = jnp.zeros((tokens.shape[1], tokens.shape[1]), jnp.int32)
        return self.decode(tokens, distance, self.encode(tokens, valid), valid, None, None)[0]


def run(config: Seq2SeqConfig, method: Callable, params: PyTree, adapters: PyTree, *inputs: Any) -> Any:
    variables = {"params": params} if adapters is None else {"params": params, "adapters": adapters}
    return EncoderDecoder(config).apply(variables, *inputs, method=method)


def encoder(config: Seq2SeqConfig) -> Callable[..., Array]:
    """encode(params, tokens (B, P), valid (B, P), adapters=None, dropout=None) -> hidden (B, P, D), for heads
    on the encoder; where `valid` is false they mean nothing.
    """
    check(config)

    def encode(
        params: PyTree,
        tokens: Array,
        valid: Array,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        return run(config, EncoderDecoder.encode, params, adapters, tokens, valid, dropout)

    return encode


def seq2seq(config: Seq2SeqConfig) -> LanguageModel:
    """The functions of an encoder-decoder; see `rljax.types.LanguageModel`.

    `forward` raises a ValueError: one sequence is not enough for it, `completion` takes both.

    Raises: ValueError naming the field of `config` that is wrong.
    """
    encode = encoder(config)

    def init(key: Key) -> PyTree:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return EncoderDecoder(config).init(key, tokens, jnp.ones((1, 1), bool))["params"]

    def forward(params: PyTree, tokens: Array, *_: Any, **__: Any) -> Array:
        raise ValueError(
            "seq2seq forward: an encoder-decoder reads one sequence and writes another; "
            "use completion(params, prompt, valid, completion), or seq2seq.encoder for the encoder alone"
        )

    def logits(params: PyTree, hidden: Array) -> Array:
        kernel = params["embedding"].T if config.tied else params["head"]
        return product(hidden.astype(config.dtype) * config.head_scale, kernel, config.dtype, jnp.float32)

    def prefill(
        params: PyTree, tokens: Array, valid: Array, columns: int, adapters: PyTree = None
    ) -> tuple[Array, Cache]:
        spare = columns - tokens.shape[1]
        if spare < 0:
            raise ValueError(f"prefill: columns = {columns}, but the prompts have {tokens.shape[1]}")
        source = encode(params, tokens, valid, adapters)
        columns, size = spare + 1, config.head_dim  # one for the start token
        before = tokens.shape[0], config.num_heads
        if config.loop == "scanned":
            before = config.num_decoder_layers, *before
        shapes = (*before, size, columns), (*before, columns, size)
        empty = tuple(jnp.zeros(shape, stored(config.dtype)) for shape in shapes)
        caches = (empty, None) if config.loop == "scanned" else ((empty, None),) * config.num_decoder_layers
        start = jnp.full(tokens.shape[0], config.start_token, jnp.int32)
        return advance(params, start, source, valid, caches, jnp.int32(0), adapters)

    def advance(
        params: PyTree,
        token: Array,
        source: Array | None,
        valid: Array,
        caches: PyTree,
        index: Array,
        adapters: PyTree,
    ) -> tuple[Array, Cache]:
        columns = jnp.arange(jax.tree.leaves(caches)[0].shape[-1], dtype=jnp.int32)  # of keys
        inputs = token[:, None], (columns - index)[None], source, valid, caches, index
        hidden, layers = run(config, EncoderDecoder.decode, params, adapters, *inputs)
        return hidden[:, 0], Cache(layers, valid, index + 1)

    def decode(params: PyTree, token: Array, cache: Cache, adapters: PyTree = None) -> tuple[Array, Cache]:
        return advance(params, token, None, cache.valid, cache.layers, cache.index, adapters)

    def completion(
        params: PyTree,
        prompt: Array,
        valid: Array,
        completion: Array,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        first, second = split(dropout)
        group = len(completion) // len(prompt)
        several = lambda x: jnp.repeat(x, group, axis=0)
        if dropout is None:
            source = several(encode(params, prompt, valid, adapters))
        else:
            source = encode(params, several(prompt), several(valid), adapters, first)
        valid = several(valid)
        tokens = jnp.pad(completion[:, :-1], [(0, 0), (1, 0)], constant_values=config.start_token)
        columns = jnp.arange(tokens.shape[1], dtype=jnp.int32)
        inputs = tokens, columns[None, :] - columns[:, None], source, valid, None, None, second
        return run(config, EncoderDecoder.decode, params, adapters, *inputs)[0]

    def fork(cache: Cache, group: int) -> Cache:
        axis = 1 if config.loop == "scanned" else 0
        layers = jax.tree.map(lambda x: jnp.repeat(x, group, axis=axis), cache.layers)
        return Cache(layers, jnp.repeat(cache.valid, group, axis=0), cache.index)

    return LanguageModel(config, init, forward, logits, prefill, decode, completion, fork)


def split(dropout: Dropout | None) -> tuple[Dropout | None, Dropout | None]:
    """Noise of the encoder and of the decoder."""
    if dropout is None:
        return None, None
    keys = jax.vmap(jax.random.split)(dropout.keys)
    return Dropout(keys[:, 0], dropout.rate), Dropout(keys[:, 1], dropout.rate)


def logical_axes(params: PyTree) -> PyTree:
    """The name of every axis of every parameter, as `transformer.logical_axes`."""
    stacks = {"encoder", "decoder"}
    axes = transformer_axes({name: leaf for name, leaf in params.items() if name not in stacks})
    for stack in stacks:
        layers = {name: leaf for name, leaf in params[stack].items() if name != "relative_bias"}
        axes[stack] = {**transformer_axes(layers), "relative_bias": (None, None)}
    return axes
