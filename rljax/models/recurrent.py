"""GRU and LSTM language models: the smallest policies that text reinforcement learning runs on.

    GRU (Cho et al. 2014, arXiv:1406.1078)           LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000)
    r = σ(W_r x + b_r + U_r h + c_r)                 i, o = σ(W x + b + U h)
    z = σ(W_z x + b_z + U_z h + c_z)                 f    = σ(W_f x + b_f + U_f h + 1)
    n = tanh(W_n x + b_n + r ⊙ (U_n h + c_n))        g    = tanh(W_g x + b_g + U_g h)
    h' = (1 − z) ⊙ n + z ⊙ h                         c'   = f ⊙ c + i ⊙ g,   h' = o ⊙ tanh(c')

Differs from the papers: the GRU's reset gate acts after the product with U_n, as in cuDNN and torch; the LSTM
has no peepholes, and its forget gate starts open (the 1; Jozefowicz et al. 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from rljax import checks
from rljax.models.transformer.layers import Linear, dropped
from rljax.models.transformer.model import together
from rljax.models.transformer.products import along, product
from rljax.types import Array, Dropout, Key, LanguageModel, PyTree

Carry = tuple[Array, ...]  # of one layer, each (B, H) float32: (h,) of a GRU, (h, c) of an LSTM


@dataclass(frozen=True)
class RecurrentConfig:
    """A stack of recurrent layers between an embedding and a head."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_layers: int = 1
    cell: Literal["gru", "lstm"] = "gru"
    # The head is the embedding, transposed, of hidden states times hidden_size ** -0.5: both sizes are equal.
    tied: bool = False
    head_bias: bool = False  # whether the head adds a number to each logit
    dtype: Any = jnp.float32  # of hidden states and the inputs of matmuls; the carry is float32
    param_dtype: Any = jnp.float32


def gru(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    """W x + b and U h + c, both (B, 3 H) with the gates r, z, n side by side, to the next carry."""
    (h,) = carry
    x_r, x_z, x_n = jnp.split(inputs, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return ((1.0 - z) * n + z * h,)


def lstm(inputs: Array, recurrent: Array, carry: Carry) -> Carry:
    """W x + b and U h, both (B, 4 H) with the gates i, f, g, o side by side, to the next carry."""
    _, c = carry
    i, f, g, o = jnp.split(inputs + recurrent, 4, axis=-1)
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


class Cell(NamedTuple):
    step: Callable[[Array, Array, Carry], Carry]
    gates: int
    parts: int  # of the carry
    bias: bool  # c, with which U h comes


CELLS = {"gru": Cell(gru, 3, 1, True), "lstm": Cell(lstm, 4, 2, False)}


def linear(config: Any, features: int, bias: bool, name: str, scale: float) -> Linear:
    """A linear layer whose kernel starts with standard deviation `scale`."""
    return Linear(features, bias, config, scale, name=name)


class Layer(nn.Module):
    """One recurrent layer over x (B, T, in): hidden states (B, T, H) and the carry after the last column.

    `start` (B, T) bool: here the carry is forgotten first; where `valid` (B, T) is false it stays as it was.
    """

    config: RecurrentConfig

    @nn.compact
    def __call__(self, x: Array, start: Array, valid: Array, carry: Carry) -> tuple[Array, Carry]:
        config, cell = self.config, CELLS[self.config.cell]
        features = cell.gates * config.hidden_size
        # The product with the inputs is one for all columns; only that with the carry has to wait for it.
        inputs = linear(config, features, True, "input", x.shape[-1] ** -0.5)(x)
        recurrent = linear(config, features, cell.bias, "recurrent", config.hidden_size**-0.5)

        def step(recurrent: Linear, carry: Carry, now: tuple[Array, Array, Array]) -> tuple[Carry, Array]:
            inputs, start, valid = now
            carry_in = tuple(jnp.where(start[:, None], 0.0, part) for part in carry)
            products = inputs.astype(jnp.float32), recurrent(carry_in[0]).astype(jnp.float32)
            new = cell.step(*products, carry_in)
            new = tuple(jnp.where(valid[:, None], *parts) for parts in zip(new, carry, strict=True))
            return new, new[0].astype(config.dtype)

        scan = nn.scan(
            step,
            variable_broadcast=("params", "adapters"),
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        carry, hidden = scan(recurrent, carry, (inputs, start, valid))
        return hidden, carry


class Stack(nn.Module):
    """Tokens (B, T) to the hidden states (B, T, H) of the last layer, and the carries of all."""

    config: RecurrentConfig

    @nn.compact
    def __call__(
        self,
        tokens: Array,
        start: Array,
        valid: Array,
        carries: tuple[Carry, ...],
        dropout: Dropout | None = None,
    ) -> tuple[Array, tuple[Carry, ...]]:
        config = self.config
        shape = config.vocab_size, config.embedding_size
        table = self.param("embedding", nn.initializers.normal(1.0), shape, config.param_dtype)
        if not config.tied:  # made here, so that it is initialised with the rest; used by `logits`
            deviation = nn.initializers.normal(config.hidden_size**-0.5)
            self.param("head", deviation, (config.hidden_size, config.vocab_size), config.param_dtype)
        if config.head_bias:
            self.param("head_bias", nn.initializers.zeros, (config.vocab_size,), config.param_dtype)
        x, after = table[tokens].astype(config.dtype), []
        for number, carry in enumerate(carries):  # noise between layers, never in time (Zaremba et al. 2014)
            x, carry = Layer(config, name=f"layer_{number}")(dropped(x, dropout, number), start, valid, carry)
            after.append(carry)
        return dropped(x, dropout, len(carries)), tuple(after)


def recurrent(config: RecurrentConfig) -> LanguageModel:
    """The functions of a recurrent language model; see `rljax.types.LanguageModel`.

    A cache is the carries of the layers and does not grow, so `columns` of `prefill` means nothing here, and
    neither do `positions`.

    Raises: ValueError naming the field of `config` that is wrong.
    """
    checks.count(config, "vocab_size", "embedding_size", "hidden_size", "num_layers")
    checks.choice(config, "cell", CELLS)
    if config.tied and config.embedding_size != config.hidden_size:
        checks.complain(config, "embedding_size", f"must be hidden_size = {config.hidden_size} if tied")
    module = Stack(config)

    def run(
        params: PyTree, adapters: PyTree, *inputs: Array | tuple[Carry, ...] | Dropout | None
    ) -> tuple[Array, tuple[Carry, ...]]:
        variables = {"params": params} if adapters is None else {"params": params, "adapters": adapters}
        output: Any = module.apply(variables, *inputs)
        return output

    def zeros(batch: int) -> tuple[Carry, ...]:
        part = jnp.zeros((batch, config.hidden_size), jnp.float32)
        return ((part,) * CELLS[config.cell].parts,) * config.num_layers

    def init(key: Key) -> PyTree:
        true = jnp.ones((1, 1), bool)
        return module.init(key, jnp.zeros((1, 1), jnp.int32), true, true, zeros(1))["params"]

    def whole(
        params: PyTree,
        tokens: Array,
        segments: Array | None,
        adapters: PyTree,
        dropout: Dropout | None = None,
    ) -> tuple[Array, tuple[Carry, ...]]:
        if segments is None:
            segments = jnp.ones_like(tokens)
        before = jnp.pad(segments[:, :-1], [(0, 0), (1, 0)])
        start = segments != before
        return run(params, adapters, tokens, start, segments > 0, zeros(tokens.shape[0]), dropout)

    def forward(
        params: PyTree,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        del positions
        return whole(params, tokens, segments, adapters, dropout)[0]

    def logits(params: PyTree, hidden: Array) -> Array:
        hidden = hidden.astype(config.dtype)
        if config.tied:
            hidden, kernel = hidden * config.hidden_size**-0.5, params["embedding"].T
        else:
            kernel = params["head"]
        found = product(hidden, kernel, config.dtype, jnp.float32)
        if not config.head_bias:
            return found
        return found + along(params["head_bias"].astype(jnp.float32), found)

    def prefill(
        params: PyTree, tokens: Array, valid: Array, columns: int, adapters: PyTree = None
    ) -> tuple[Array, tuple[Carry, ...]]:
        del columns
        hidden, carries = whole(params, tokens, valid.astype(jnp.int32), adapters)
        return hidden[:, -1], carries

    def decode(
        params: PyTree, token: Array, cache: tuple[Carry, ...], adapters: PyTree = None
    ) -> tuple[Array, tuple[Carry, ...]]:
        valid = jnp.ones((token.shape[0], 1), bool)
        hidden, carries = run(params, adapters, token[:, None], ~valid, valid, cache)
        return hidden[:, 0], carries

    def completion(
        params: PyTree,
        prompt: Array,
        valid: Array,
        completion: Array,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        group = len(completion) // len(prompt)
        if group == 1 or completion.shape[1] == 1 or dropout is not None:
            rows = together(prompt, valid, completion)
            hidden = forward(params, *rows, adapters=adapters, dropout=dropout)
            return hidden[:, prompt.shape[1] - 1 : -1]
        first, carries = jax.tree.map(
            lambda x: jnp.repeat(x, group, axis=0), prefill(params, prompt, valid, 0, adapters)
        )
        tokens = completion[:, :-1]
        here = jnp.ones(tokens.shape, bool)
        return jnp.concatenate(
            [first[:, None], run(params, adapters, tokens, ~here, here, carries)[0]], axis=1
        )

    def fork(cache: tuple[Carry, ...], group: int) -> tuple[Carry, ...]:
        return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), cache)

    return LanguageModel(config, init, forward, logits, prefill, decode, completion, fork)
