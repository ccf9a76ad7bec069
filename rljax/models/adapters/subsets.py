"""Parts of a tree of parameters: by path pattern, and by the size of single entries.

Trees are nested dicts; the path of a leaf is its keys joined by "/". A pattern is one or more parts joined by
"/", each with the wildcards of a shell, and holds of a path in which as many consecutive parts match:
"attention/query" of layer_0/attention/query/kernel, "layer_1*" of all in layers 1 and 10 to 19, "*bias" of
every bias, "*" of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.core import Tracer

from rljax.types import Array, PyTree


def flatten(tree: PyTree) -> dict[str, Array]:
    """{path: leaf} of a nested dict."""
    flat: Any = flatten_dict(tree, sep="/")
    return flat


def unflatten(flat: Mapping[str, Any]) -> PyTree:
    """The nested dict of {path: leaf}."""
    return unflatten_dict(dict(flat), sep="/")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns holds of the path."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        for start in range(len(parts) - len(wanted) + 1):
            if all(fnmatchcase(*pair) for pair in zip(parts[start:], wanted, strict=False)):
                return True
    return False


def require(where: str, patterns: Sequence[str], paths: Iterable[str]) -> None:
    """Raises: ValueError naming the first pattern that holds of none of the paths, and what there is."""
    paths = list(paths)
    for pattern in patterns:
        if not any(matches(path, (pattern,)) for path in paths):
            kinds = sorted({"/".join(p for p in path.split("/") if not _numbered(p)) for path in paths})
            raise ValueError(f"{where}: pattern {pattern!r} matches nothing; there are {', '.join(kinds)}")


def _numbered(part: str) -> bool:
    return part == "layers" or part.rpartition("_")[2].isdigit()


def trainable(params: PyTree, patterns: Sequence[str]) -> PyTree:
    """A tree like params of Python booleans: whether a pattern holds of the path.

    Raises: ValueError naming a pattern that holds of nothing.
    """
    flat = flatten(params)
    require("adapters.trainable", patterns, flat)
    return unflatten({path: matches(path, patterns) for path in flat})


def split(params: PyTree, mask: PyTree) -> tuple[PyTree, PyTree]:
    """(the leaves where the mask is True, the others), two nested dicts that `join` puts together."""
    chosen = flatten(mask)
    pick = lambda want: unflatten({p: x for p, x in flatten(params).items() if chosen[p] is want})
    return pick(True), pick(False)


def join(trained: PyTree, rest: PyTree) -> PyTree:
    """One nested dict of the leaves of both; where both have one, that of `trained`."""
    return unflatten(flatten(rest) | flatten(trained))


def sparse_mask(scores: PyTree, fraction: float | Array) -> PyTree:
    """A tree like scores of bool arrays, true at the fraction · n entries of the largest |score| of all n.

    Scores that are parameters give the mask by magnitude (Han et al. 2015, arXiv:1506.02626), their gradients
    (summed over batches) that by sensitivity (Sung et al. 2021, arXiv:2111.09839, without the square, which
    does not change the order). Of equal scores the first are taken, so that the number is exact. NaN counts
    as largest.

    Raises: ValueError where there are more than 2³¹ − 1 entries, or a concrete fraction is not in (0, 1].
    """
    if not isinstance(fraction, Tracer) and not 0 < float(fraction) <= 1:
        raise ValueError(f"adapters.sparse_mask: fraction = {fraction}: must be above 0 and at most 1")
    leaves, structure = jax.tree.flatten(scores)
    total = sum(leaf.size for leaf in leaves)
    if total >= 2**31:
        raise ValueError(f"adapters.sparse_mask: {total} entries: at most 2³¹ − 1 can be ranked together")
    # The bits of a float that is not negative, as an integer, are in the order of the floats. The threshold
    # is found bit by bit, which needs no sort and no copy of all scores in one array.
    order = [jax.lax.bitcast_convert_type(jnp.abs(x).astype(jnp.float32), jnp.int32) for x in leaves]
    number = jnp.clip(jnp.round(fraction * total), 1, total).astype(jnp.int32)
    count = lambda level: jnp.sum(jnp.stack([jnp.sum(x >= level, dtype=jnp.int32) for x in order]))

    def refine(bit: Array, level: Array) -> Array:
        higher = level | jnp.left_shift(jnp.int32(1), 30 - bit)
        return jnp.where(count(higher) >= number, higher, level)

    level = jax.lax.fori_loop(0, 31, refine, jnp.int32(0))  # of the smallest score that is taken
    left = number - count(level + 1)  # how many of those that equal it are
    masks = []
    for x in order:
        ties = x == level
        rank = jnp.cumsum(ties.reshape(-1), dtype=jnp.int32).reshape(x.shape)
        masks.append((x > level) | (ties & (rank <= left)))
        left = left - jnp.sum(ties, dtype=jnp.int32)
    return structure.unflatten(masks)


def keep(updates: PyTree, mask: PyTree) -> PyTree:
    """The updates where the mask is true, else 0. The mask has Python booleans or bool arrays of their shape.

    Of gradients, before an optimizer whose norm or moments are to see none of the others; and of its updates,
    where it decays weights.
    """
    return jax.tree.map(lambda u, m: jnp.where(m, u, jnp.zeros_like(u)), updates, mask)
