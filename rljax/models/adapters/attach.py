"""Ways to train a model without changing most of it, and the model whose parameters are only what is trained.

    base = loaded.params                                           # the `frozen` argument of the program
    model = attach(model, base, lora(("attention/*",), rank=8, alpha=16.0))     # inside the program

The base must reach `attach` as an argument of the compiled function: many seeds or learning rates,
mapped by `vmap` with axis None for the base, then share one copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rljax.models.adapters import low_rank, prefixes
from rljax.models.adapters.subsets import flatten, join, split, trainable
from rljax.types import Array, Dropout, Key, LanguageModel, PyTree


class Adaptation(NamedTuple):
    """What is trained, and what it does to a base."""

    init: Callable[[Key, PyTree], PyTree]  # (key, base) -> what is trained
    apply: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (trained, base) -> (params, adapters or None)


def lora(
    patterns: Sequence[str], rank: int, alpha: float | Array, start: low_rank.Start = "uniform"
) -> Adaptation:
    """Low-rank adapters of the linear layers that a pattern holds of; see `low_rank.init`."""
    return Adaptation(
        init=lambda key, base: low_rank.init(key, base, patterns, rank, start),
        apply=lambda trained, base: (base, low_rank.scaled(trained, alpha)),
    )


def prefix(config: object, length: int) -> Adaptation:
    """Trained keys and values of `length` positions before every sequence; see `prefixes`."""
    return Adaptation(
        init=lambda key, base: prefixes.init(key, config, length),
        apply=lambda trained, base: (base, trained),
    )


def subset(patterns: Sequence[str]) -> Adaptation:
    """The leaves that a pattern holds of: ("head",), ("*norm", "*bias"), ("layer_11",).

    They start as copies of the base's; a donated state shares no memory with it.
    """
    return Adaptation(
        init=lambda key, base: jax.tree.map(jnp.copy, split(base, trainable(base, patterns))[0]),
        apply=lambda trained, base: (join(trained, base), None),
    )


def together(**adaptations: Adaptation) -> Adaptation:
    """Several at once: together(lora=lora(...), norms=subset(("*norm",))). Trained is a dict of theirs.

    Raises: ValueError, where it is applied, if two adapt the same layer.
    """

    def init(key: Key, base: PyTree) -> PyTree:
        keys = jax.random.split(key, len(adaptations))
        return {name: one.init(k, base) for (name, one), k in zip(adaptations.items(), keys, strict=True)}

    def apply(trained: PyTree, base: PyTree) -> tuple[PyTree, PyTree]:
        adapters = None
        for name, one in adaptations.items():
            base, more = one.apply(trained[name], base)
            adapters = union(adapters, more)
        return base, adapters

    return Adaptation(init, apply)


def union(first: PyTree, second: PyTree) -> PyTree:
    """The adapters of both; None is none.

    Raises: ValueError naming what both adapt.
    """
    if first is None or second is None:
        return second if first is None else first
    twice = sorted(flatten(first).keys() & flatten(second).keys())
    if twice:
        raise ValueError(f"adapters: {twice[0]} is adapted twice")
    return join(first, second)


def attach(model: LanguageModel, base: PyTree, adaptation: Adaptation) -> LanguageModel:
    """A LanguageModel whose parameters are what `adaptation` trains, on the frozen parameters `base`.

    No gradient flows to the base, whatever is differentiated. Further adapters enter the functions as before,
    for other layers.
    """
    frozen = jax.lax.stop_gradient(base)

    def resolve(params: PyTree, more: PyTree = None) -> tuple[PyTree, PyTree]:
        full, adapters = adaptation.apply(params, frozen)
        return full, union(adapters, more)

    def forward(
        params: PyTree,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        full, adapters = resolve(params, adapters)
        return model.forward(full, tokens, segments, positions, adapters, dropout)

    def logits(params: PyTree, hidden: Array) -> Array:
        return model.logits(resolve(params)[0], hidden)

    def prefill(
        params: PyTree, tokens: Array, valid: Array, columns: int, adapters: PyTree = None
    ) -> tuple[Array, PyTree]:
        full, adapters = resolve(params, adapters)
        return model.prefill(full, tokens, valid, columns, adapters)

    def decode(params: PyTree, token: Array, cache: PyTree, adapters: PyTree = None) -> tuple[Array, PyTree]:
        full, adapters = resolve(params, adapters)
        return model.decode(full, token, cache, adapters)

    def completion(
        params: PyTree,
        prompt: Array,
        valid: Array,
        completion: Array,
        adapters: PyTree = None,
        dropout: Dropout | None = None,
    ) -> Array:
        full, adapters = resolve(params, adapters)
        return model.completion(full, prompt, valid, completion, adapters, dropout)

    return model._replace(
        init=lambda key: adaptation.init(key, base),
        forward=forward,
        logits=logits,
        prefill=prefill,
        decode=decode,
        completion=completion,
    )


def bake(params: PyTree, base: PyTree, adaptation: Adaptation) -> PyTree:
    """Full parameters of the adapted model, to save or to serve without adapters.

    Raises: ValueError where there is a prefix, which no parameter of the model can hold.
    """
    full, adapters = adaptation.apply(params, base)
    lost = [path for path in flatten(adapters or {}) if not path.endswith(("/a", "/b"))]
    if lost:
        raise ValueError(f"adapters.bake: {lost[0]}: a prefix cannot be merged into the parameters")
    return low_rank.add(full, adapters or {})
