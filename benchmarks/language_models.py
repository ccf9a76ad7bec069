"""The language models that training.py and generation.py measure, and what they cost: weights, FLOPs, limits.

All are Llamas with tied embeddings, random weights and no stop token, named by their number of parameters;
their fields have Hugging Face's names. A multiplication with the addition after it counts as two FLOPs.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import side_by_side
import tables
from side_by_side import Contest, Failure

MODELS = {
    "4.5m": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 688,
        "vocab_size": 6400,
    },
    "0.1m": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 172,
        "vocab_size": 64,
    },
    "0.8m": {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 352,
        "vocab_size": 65,
    },
    "25m": {
        "hidden_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 1376,
        "vocab_size": 12800,
    },
    "100m": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "intermediate_size": 2048,
        "vocab_size": 24000,
    },
    "1b": {  # Llama-3.2-1B's
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
    },
}
BYTES = {"float32": 4, "bfloat16": 2}  # of a number of each dtype
Shape = dict[str, int]


def weights(shape: Shape) -> tuple[int, int]:
    """Numbers in the matrices of the layers, and in that of the head (the embedding, which is the same)."""
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn
    return shape["num_hidden_layers"] * layer, hidden * shape["vocab_size"]


def generation_flops(shape: Shape, batch: int, prompt: int, new: int) -> float:
    """Of the matrix products of one call of `generate`.

    The head runs for one position of a prompt; attention reads half a prompt's columns on average.
    """
    body, head = weights(shape)
    columns = prompt * prompt / 2 + sum(prompt + step for step in range(1, new))
    attention = 4 * shape["num_hidden_layers"] * shape["hidden_size"] * columns
    return batch * (2 * body * (prompt + new - 1) + 2 * head * new + attention)


def training_flops(shape: Shape, length: int) -> float:
    """Of a token in rows of `length`, forwards and backwards: the model's own, nothing computed again.

    6 per weight of a matrix product, and causal attention over half of the columns.
    """
    attention = 6 * shape["num_hidden_layers"] * shape["hidden_size"] * length
    return 6.0 * sum(weights(shape)) + attention


def limit(shape: Shape, dtype: str, on_gpu: bool) -> dict[str, Any]:
    """What peers/language_limit.py is asked to measure."""
    return {
        "size": 8192 if on_gpu else 1024,
        "dtype": dtype,
        "bytes": 2**31 if on_gpu else sum(weights(shape)) * BYTES[dtype],
    }


def race(
    names: list[str],
    titles: dict[str, str],
    script: Callable[[str], str],
    asked: dict[str, Any],
    limit: dict[str, Any] | None,
    arguments: argparse.Namespace,
) -> tuple[Contest, list[dict[str, float]]]:
    """One case with every system, each asked for `asked`, and the limit measured after every round.

    Returns: the contest, in whose `found` "measured" is what a system's worker measured; the limits.
    """
    pinned, limits = arguments.cores or [], []
    open_worker = lambda name: side_by_side.start(
        "language_limit.py" if name == "limit" else script(name),
        arguments.torch_python if name.startswith(("torch", "trl")) else None,
        pinned,
        arguments.timeout,
    )
    with contextlib.ExitStack() as stack, Contest(names, titles) as contest:
        worker = open_worker("limit") if limit else None
        if worker:
            stack.callback(worker.close)
        contest.start(open_worker)
        if worker:
            worker.ask("compile", **(limit or {}))
        for name in contest.running:
            contest.compile(name, **asked, system=name)
        after = (lambda: limits.append(worker.ask("measure")["value"])) if worker else None
        contest.rounds(arguments.rounds, after)
        for name in contest.running:
            for do, key, field in (("memory", "bytes", "peak_bytes"), ("measure", "value", "measured")):
                if answer := contest.attempt(name, do):
                    contest.found[name][field] = answer[key]
    return contest, limits


def median(limits: list[dict[str, float]], name: str) -> float:
    """Of what the limit's worker measured in each round."""
    return statistics.median(each[name] for each in limits)


def command(
    benchmark: str,
    arguments: argparse.Namespace,
    table: Callable[[dict[str, Any]], str],
    run: Callable[[argparse.Namespace], None],
) -> int:
    """Measure, print the table of a results file or put all into README.md. Returns: the exit status."""
    try:
        if arguments.table:
            print(table(tables.read(arguments.table)))
        elif arguments.write_readme:
            paths = sorted(tables.RESULTS.glob(f"{benchmark}_*.json"))
            found = "\n\n".join(table(tables.read(path)) for path in paths)
            tables.write_readme(benchmark, found or "Not measured yet.")
        else:
            run(arguments)
    except (OSError, ValueError, Failure) as error:
        print(f"{benchmark}: {error}", file=sys.stderr)
        return 1
    return 0


def options(parser: argparse.ArgumentParser, models: str, dtypes: str, systems: str) -> None:
    """What both benchmarks can be asked, with these defaults."""
    parser.add_argument("--models", default=models, help=f"of {', '.join(MODELS)}; default: {models}")
    parser.add_argument("--dtypes", default=dtypes, help=f"of {', '.join(BYTES)}; default: {dtypes}")
    parser.add_argument("--systems", default=systems, metavar="NAME,...", help=f"default: {systems}")
    parser.add_argument("--torch-python", type=Path, metavar="PATH", help="default: this interpreter")


def check(
    parser: argparse.ArgumentParser, found: argparse.Namespace, **more: dict[str, Any]
) -> argparse.Namespace:
    """The options common to both, split at commas. Ends the program with one line where one is wrong."""
    for field, allowed in {"models": MODELS, "dtypes": BYTES, **more}.items():
        values = getattr(found, field).split(",")
        setattr(found, field, values)
        if unknown := [value for value in values if value not in allowed]:
            parser.error(f"--{field}: no {unknown[0]!r}: there are {', '.join(allowed)}")
    if found.rounds < 1 or found.timeout <= 0:
        parser.error("--rounds and --timeout must be positive")
    if found.gpu and found.cores:
        parser.error("--gpu measures unpinned: leave out --cores")
    if not (found.table or found.write_readme or found.gpu or found.cores):
        parser.error("name the cores to pin to, such as --cores 0, or --gpu")
    return found
