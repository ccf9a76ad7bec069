"""Text into arrays: read, pack, batch, stream. What cannot be used is named and counted, never just gone."""

from rljax.text.data.batches import batch, batch_indices, buckets, pad_prompts
from rljax.text.data.examples import Example, example, pair
from rljax.text.data.pack import Counts, Loaded, Packed, load, pack
from rljax.text.data.pairs import LoadedPairs, Pairs, load_pairs
from rljax.text.data.read import Report, read
from rljax.text.data.streaming import Block, Position, Stream, block_batch, blocks, stream

__all__ = [
    "Block",
    "Counts",
    "Example",
    "Loaded",
    "LoadedPairs",
    "Packed",
    "Pairs",
    "Position",
    "Report",
    "Stream",
    "batch",
    "batch_indices",
    "block_batch",
    "blocks",
    "buckets",
    "example",
    "load",
    "load_pairs",
    "pack",
    "pad_prompts",
    "pair",
    "read",
    "stream",
]
