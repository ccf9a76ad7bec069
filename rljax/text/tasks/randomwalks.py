"""Shortest paths by language: walks on a random graph, as in trlx's example of that name (CarperAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from string import ascii_lowercase

import jax.numpy as jnp
import numpy as np

from rljax.text.problem import Problem, problem, ragged
from rljax.text.rewards import of_tokens
from rljax.text.tasks.build import at_least, ordered
from rljax.text.tokenizer import Tokenizer, character_tokenizer
from rljax.types import Array, Preferences, PyTree, Reward

GOAL = 0
Walk = list[int]  # nodes


def randomwalks(
    *,
    nodes: int = 21,
    max_length: int = 10,
    edge_probability: float = 0.1,
    train: int = 2000,
    pairs: int = 2000,
    held_out: int = 200,
    temperature: float = 0.1,
    seed: int = 0,
) -> Problem:
    """The prompt is a node, a letter; a completion goes on along edges to the node a and stops there.

    The reward `optimality` is the length of the shortest path over that of the path found, in edges, and 0
    for what is no path to a of at most `max_length` letters; so 1 is the optimum of every prompt. (trlx
    measures (max_length − found) / (max_length − shortest).) The graph is drawn again until each node leads
    to a within that length; a has no way out.

    All stages of RLHF: `text` is `train` walks that choose each edge at random and may never arrive; the
    demonstrations of the `train` prompts are such walks that did; preferences are `pairs` of completions of
    one prompt (walks that arrived, walks that did not, shortest paths, and walks with a step that is no
    edge), of which the first was preferred with probability σ((its optimality − the other's) /
    `temperature`). There are nodes − 1 prompts, so the held-out ones are not new: each once, with a
    shortest path. Held-out text and pairs (`held_out` of each) are.
    """
    at_least("randomwalks", 3, nodes=nodes, max_length=max_length)
    at_least("randomwalks", 1, train=train, pairs=pairs, held_out=held_out)
    if nodes > len(ascii_lowercase) or not 0 < edge_probability <= 1 or not temperature > 0:
        raise ValueError(
            f"the task randomwalks: nodes = {nodes}, edge_probability = {edge_probability}, temperature = "
            f"{temperature}: must be at most 26, above 0 and at most 1, and above 0"
        )
    generator = np.random.default_rng(seed)
    edges, distance = graph(generator, nodes, max_length, edge_probability)
    tokenizer = character_tokenizer(ascii_lowercase[:nodes])
    spell = lambda walk: "".join(ascii_lowercase[node] for node in walk)

    def stroll(start: int) -> Walk:
        walk = [start]
        while walk[-1] != GOAL and len(walk) < max_length:
            walk.append(int(generator.choice(np.flatnonzero(edges[walk[-1]]))))
        return walk

    def arrives(start: int) -> Walk:
        while (walk := stroll(start))[-1] != GOAL:
            pass
        return walk

    def shortest(start: int) -> Walk:
        walk = [start]
        while walk[-1] != GOAL:
            nearer = np.flatnonzero(edges[walk[-1]] & (distance == distance[walk[-1]] - 1))
            walk.append(int(generator.choice(nearer)))
        return walk

    def astray(start: int) -> Walk:
        walk = stroll(start)
        at = generator.integers(1, len(walk))
        walk[at] = int(generator.choice(np.flatnonzero(~edges[walk[at - 1]])))
        return walk

    def anything(start: int) -> Walk:
        kinds = (arrives, stroll, shortest, astray)
        return kinds[generator.choice(len(kinds), p=[0.5, 0.2, 0.15, 0.15])](start)

    starts = lambda count: generator.integers(1, nodes, count).tolist()
    walks = [stroll(start) for start in starts(train + held_out)]
    shown = [arrives(start) for start in starts(train)] + [shortest(start) for start in range(1, nodes)]
    records = [{"prompt": spell(walk[:1]), "completion": spell(walk[1:])} for walk in shown]
    reward = optimality(edges, distance, tokenizer)
    made = problem("randomwalks", tokenizer, records, reward, max_new_tokens=max_length, held_out=nodes - 1)

    compared = []
    for start in starts(pairs + held_out):
        one = other = anything(start)
        while other == one:
            other = anything(start)
        compared.append((one, other))
    worth = np.array([[_worth(walk, edges, distance) for walk in pair] for pair in compared])
    worse = ordered(generator, worth, temperature)
    compared = [pair[::-1] if swap else pair for pair, swap in zip(compared, worse, strict=True)]
    tokens = lambda walk: [*tokenizer.encode(spell(walk)), tokenizer.eos_id]
    preferences = lambda some: _preferences([[tokens(walk) for walk in pair] for pair in some], max_length)
    text = lambda some: jnp.asarray(np.concatenate([tokens(walk) for walk in some]), jnp.int32)
    return made._replace(
        preferences=(preferences(compared[:pairs]), preferences(compared[pairs:])),
        text=(text(walks[:train]), text(walks[train:])),
    )


def graph(
    generator: np.random.Generator, nodes: int, max_length: int, probability: float
) -> tuple[np.ndarray, np.ndarray]:
    """(edges (n, n) bool from row to column, distance (n,) to the goal in edges). Raises: ValueError."""
    for _ in range(10_000):
        edges = generator.random((nodes, nodes)) < probability
        np.fill_diagonal(edges, False)
        edges[GOAL] = False
        distance = np.where(np.arange(nodes) == GOAL, 0, nodes)
        for _ in range(nodes):
            distance = np.minimum(distance, np.where(edges, distance[None], nodes).min(1) + 1)
        if distance.max() < max_length:
            return edges, distance
    raise ValueError(
        f"the task randomwalks: edge_probability = {probability}: no graph of {nodes} nodes was found in "
        f"which all paths are of at most {max_length} letters: must be larger"
    )


def optimality(edges: np.ndarray, distance: np.ndarray, tokenizer: Tokenizer) -> Reward:
    """As `randomwalks` says; the graph is a constant of a few hundred bytes."""
    first, nodes, stop = tokenizer.encode("a")[0], len(edges), tokenizer.eos_id

    def optimal(prompt: Array, completion: Array, reference: PyTree) -> Array:
        del reference
        path = jnp.concatenate([prompt[-1:], completion]) - first
        steps = jnp.argmax(completion == stop)  # before the stop token
        known = (path >= 0) & (path < nodes)
        inside = jnp.clip(path, 0, nodes - 1)
        right = known[1:] & jnp.asarray(edges)[inside[:-1], inside[1:]]
        walked = jnp.all(right | (jnp.arange(completion.shape[0]) >= steps))
        arrived = jnp.any(completion == stop) & (path[steps] == GOAL) & known[0] & (steps > 0)
        shortest = jnp.asarray(distance)[inside[0]]
        return jnp.where(walked & arrived, shortest / jnp.maximum(steps, 1), 0.0)

    return of_tokens(optimal, "optimality")


def _worth(walk: Walk, edges: np.ndarray, distance: np.ndarray) -> float:
    fine = walk[-1] == GOAL and all(edges[a, b] for a, b in pairwise(walk))
    return distance[walk[0]] / (len(walk) - 1) if fine else 0.0


def _preferences(pairs: Sequence[Sequence[list[int]]], length: int) -> Preferences:
    """Of walks as tokens, the better one first; the prompt is the first token of both."""
    prompts = jnp.asarray([pair[0][:1] for pair in pairs], jnp.int32)
    rows = ragged([walk[1:] for pair in pairs for walk in pair], length).reshape(len(pairs), 2, length)
    ones = jnp.ones(len(pairs), jnp.float32)
    return Preferences(prompts, jnp.ones(prompts.shape, bool), jnp.asarray(rows), ones, 0 * ones)
