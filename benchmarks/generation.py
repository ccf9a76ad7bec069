"""Tokens per second of rljax's `generate` beside torch transformers', on the same weights and pinned core.

    python benchmarks/generation.py --cores 0 [--torch-python PYTHON] [--models 4.5m] [--batches 1,64]

A Llama with random weights, written once as a Hugging Face checkpoint that both load. "decode" is a prompt of
14 tokens and 64 new ones, sampled at temperature 1 from the whole vocabulary, by whole calls of `generate`
(prefill, loop and results); "prefill" a prompt of 512 and one new token. The systems take turns
(side_by_side.py); compiling is apart. The limit is the time of the matrix products at the core's measured
rate, or that of reading the weights once per step at its measured bandwidth, whichever is longer.

A result is written per case to results/generation_HARDWARE.json, beside those already there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import side_by_side
import tables
from side_by_side import Contest, Failure, ratio

HERE = Path(__file__).parent
NAMES = {"rljax": "rljax", "torch": "torch transformers"}
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
}
KINDS = {"decode": (14, 64), "prefill": (512, 1)}  # tokens of the prompt, new ones
REPEATS = {1: 8, 16: 4, 64: 2}  # calls of one timing; 1 for larger batches


class Case(NamedTuple):
    model: str
    kind: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.kind}/{self.batch}"

    @property
    def tokens(self) -> int:
        """That one call is measured by."""
        prompt, new = KINDS[self.kind]
        return self.batch * (new if self.kind == "decode" else prompt)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        if arguments.table:
            print(table(tables.read(arguments.table)))
        elif arguments.write_readme:
            paths = sorted(tables.RESULTS.glob("generation_*.json"))
            found = "\n\n".join(table(tables.read(path)) for path in paths)
            tables.write_readme("generation", found or "Not measured yet.")
        else:
            run(arguments)
    except (OSError, ValueError, Failure) as error:
        print(f"generation: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    side_by_side.options(parser)
    parser.add_argument("--models", default="4.5m,0.1m", help="of 4.5m and 0.1m; default: both")
    parser.add_argument("--batches", type=side_by_side.counts, default=[1, 16, 64, 256], metavar="N,...")
    parser.add_argument("--kinds", default="decode,prefill", help="of decode and prefill; default: both")
    parser.add_argument("--torch-python", type=Path, metavar="PATH", help="default: this interpreter")
    parser.add_argument("--systems", default="rljax,torch", help="of rljax and torch; default: both")
    found = parser.parse_args(words)
    for field, options in (("models", MODELS), ("kinds", KINDS), ("systems", NAMES)):
        values = getattr(found, field).split(",")
        setattr(found, field, values)
        if unknown := [value for value in values if value not in options]:
            parser.error(f"--{field}: no {unknown[0]!r}: there are {', '.join(options)}")
    if found.rounds < 1 or found.timeout <= 0:
        parser.error("--rounds and --timeout must be positive")
    if found.gpu and found.cores:
        parser.error("--gpu measures unpinned: leave out --cores")
    if not (found.table or found.write_readme or found.gpu or found.cores):
        parser.error("name the cores to pin to, such as --cores 0, or --gpu")
    return found


def run(arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.out
    with tempfile.TemporaryDirectory() as scratch:
        for model in arguments.models:
            folder = str(Path(scratch) / model)
            command = [str(arguments.torch_python or sys.executable), str(HERE / "peers/torch_generation.py")]
            subprocess.run([*command, "--write", folder, json.dumps(MODELS[model])], check=True)
            for kind in arguments.kinds:
                for batch in arguments.batches:
                    case = Case(model, kind, batch)
                    hardware, result = measure(case, folder, arguments)
                    path = side_by_side.keep(path, "generation", hardware, case.name, result)
                    print(table({"hardware": hardware, "cases": {case.name: result}}), flush=True)
    print(f"\nwritten to {path}")


def measure(case: Case, folder: str, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One case with every system. Returns: the hardware's name, and what the results file says of it."""
    pinned, repeats = arguments.cores or [], REPEATS.get(case.batch, 1)
    prompt, new = KINDS[case.kind]
    asked = {"folder": folder, "batch": case.batch, "prompt": prompt, "new": new, "temperature": 1.0}
    asked |= {"repeats": repeats, "vocab_size": MODELS[case.model]["vocab_size"]}
    flops, parameters = work(case)
    python = {"torch": arguments.torch_python}
    open_worker = lambda name: side_by_side.start(
        f"{name}_generation.py" if name in NAMES else "generation_limit.py",
        python.get(name),
        pinned,
        arguments.timeout,
    )
    limits: list[dict[str, float]] = []
    print(f"{case.name}: {prompt} + {new} tokens, {repeats} calls a timing", flush=True)
    with contextlib.ExitStack() as stack, Contest(arguments.systems, NAMES) as contest:
        contest.start(open_worker)
        for name in contest.running:
            contest.compile(name, **asked)
        limit = open_worker("limit")
        stack.callback(limit.close)
        limit.ask("compile", parameters=parameters)
        contest.rounds(arguments.rounds, lambda: limits.append(limit.ask("measure")["value"]))
        for name in contest.running:
            if answer := contest.attempt(name, "memory"):
                contest.found[name]["peak_bytes"] = answer["bytes"]
    hardware, width, affinity = contest.where(pinned)
    tokens = case.tokens * repeats
    systems = side_by_side.summarise(contest.found, contest.described, tokens)
    best = bound(case, flops, parameters, limits)
    for system in systems.values():
        if "steps_per_second" in system:  # here a step is a token
            system["tokens_per_second"] = system.pop("steps_per_second")
            system["of_limit"] = round(system["tokens_per_second"] / best, 4)
    return hardware, {
        **case._asdict(),
        "settings": MODELS[case.model] | {"prompt": prompt, "new": new},
        "repeats": repeats,
        "width": width,
        "affinity": affinity,
        "rounds": arguments.rounds,
        "limit_tokens_per_second": round(best, 1),
        "revision": side_by_side.revision(HERE.parent),
        "systems": systems,
    }


def work(case: Case) -> tuple[float, int]:
    """FLOPs of the matrix products of one call, and the model's weights.

    The head runs for one position of a prompt; attention reads half a prompt's columns on average.
    """
    shape = MODELS[case.model]
    hidden, layers, ffn = shape["hidden_size"], shape["num_hidden_layers"], shape["intermediate_size"]
    kv = hidden * shape["num_key_value_heads"] // shape["num_attention_heads"]
    body = layers * (2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * ffn)
    head = hidden * shape["vocab_size"]
    prompt, new = KINDS[case.kind]
    columns = prompt * prompt / 2 + sum(prompt + step for step in range(1, new))
    attention = 4 * layers * hidden * columns
    return case.batch * (2 * body * (prompt + new - 1) + 2 * head * new + attention), body + head


def bound(case: Case, flops: float, parameters: int, limits: list[dict[str, float]]) -> float:
    """Tokens per second at the medians of the measured rates."""
    rate = statistics.median(each["flops_per_second"] for each in limits)
    bandwidth = statistics.median(each["bytes_per_second"] for each in limits)
    reading = 4 * parameters * KINDS[case.kind][1] / bandwidth
    return case.tokens / max(flops / rate, reading)


def table(content: dict[str, Any]) -> str:
    """The hardware, then a row per case: tokens per second, rljax's ratio, part of the limit, memory."""
    names = [name for name in NAMES if any(name in each["systems"] for each in content["cases"].values())]
    columns = ["model, batch", *(f"{NAMES[name]}, tokens/s" for name in names), "rljax is faster by"]
    columns += ["of the limit", "compile s", "peak GB"]
    rows = []
    for each in content["cases"].values():
        systems = each["systems"]
        cells = [f"{each['model']} {each['kind']}, {each['batch']}"]
        for name in names:
            speed = systems.get(name, {}).get("tokens_per_second")
            cells.append(f"{speed:,.0f}" if speed else "failed")
        cells.append(ratio(systems.get("torch", {}).get("rljax_is_faster_by")))
        ours = systems.get("rljax", {})
        cells.append(f"{ours['of_limit']:.0%}" if "of_limit" in ours else "–")
        cells.append(f"{ours['compile_seconds'][0]:.1f}" if "compile_seconds" in ours else "–")
        peaks = [systems.get(name, {}).get("peak_bytes") for name in names]
        rows.append([*cells, " / ".join(f"{peak / 1e9:.2f}" if peak else "–" for peak in peaks)])
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
