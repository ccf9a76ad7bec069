"""Tokens per second of rljax's `generate` beside torch transformers', at the same shapes on the same device.

    python benchmarks/generation.py --cores 0 [--torch-python PYTHON] [--models 4.5m] [--batches 1,64]
    python benchmarks/generation.py --gpu --models 4.5m,1b --dtypes bfloat16 --batches 64

Llamas with random weights (language_models.py). "decode" is a prompt of 14 tokens and 64 new ones, sampled at
temperature 1 from the whole vocabulary, by whole calls of `generate` (prefill, loop and results); "prefill" a
prompt of 512 and one new token. "mixed" is a dataset of 8 batches of prompts of 8 to 256 tokens whose
completions end after 32 tokens on average and after 128 at the latest: rljax's `decode_many` beside its own
`generate` in padded batches, in tokens of completions. The systems take turns (side_by_side.py); compiling
is apart. The limit is the time of the matrix products at the measured rate of their dtype, or that of reading
the weights once per step at the measured bandwidth, whichever is longer.

A result is written per case to results/generation_HARDWARE.json, beside those already there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import language_models
import side_by_side
import tables
from language_models import MODELS
from side_by_side import ratio

HERE = Path(__file__).parent
NAMES = {"rljax": "rljax", "torch": "torch transformers"}
MIXED = {"rljax": "decode_many", "padded": "padded batches"}  # what "mixed" compares, both of rljax
KINDS = {"decode": (14, 64), "prefill": (512, 1), "mixed": (256, 128)}  # tokens of the prompt, new ones
REPEATS = {1: 8, 16: 4, 64: 2}  # calls of one timing; 1 for larger batches
BATCHES, MEAN = 8, 32  # of a mixed dataset: batches, and tokens after which a completion ends on average


class Case(NamedTuple):
    model: str
    kind: str
    batch: int
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.model}/{self.kind}/{self.batch}/{self.dtype}"

    @property
    def tokens(self) -> int:
        """That one call is measured by."""
        prompt, new = KINDS[self.kind]
        return self.batch * (new if self.kind == "decode" else prompt)


def main(words: list[str] | None = None) -> int:
    return language_models.command("generation", parse(words), table, run)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    side_by_side.options(parser)
    language_models.options(parser, models="4.5m,0.1m", dtypes="float32", systems="rljax,torch")
    parser.add_argument("--batches", type=side_by_side.counts, default=[1, 16, 64, 256], metavar="N,...")
    parser.add_argument(
        "--kinds", default="decode,prefill", help=f"of {', '.join(KINDS)}; default: decode,prefill"
    )
    return language_models.check(parser, parser.parse_args(words), kinds=KINDS, systems=NAMES)


def run(arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.out
    for model in arguments.models:
        for dtype in arguments.dtypes:
            for kind in arguments.kinds:
                for batch in arguments.batches:
                    case = Case(model, kind, batch, dtype)
                    hardware, result = measure(case, arguments)
                    path = side_by_side.keep(path, "generation", hardware, case.name, result)
                    print(table({"hardware": hardware, "cases": {case.name: result}}), flush=True)
    print(f"\nwritten to {path}")


def measure(case: Case, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One case with every system. Returns: the hardware's name, and what the results file says of it."""
    pinned, mixed, shape = arguments.cores or [], case.kind == "mixed", MODELS[case.model]
    prompt, new = KINDS[case.kind]
    repeats = 1 if mixed else REPEATS.get(case.batch, 1)
    asked = case._asdict() | {"shape": shape, "prompt": prompt, "new": new, "repeats": repeats}
    asked |= {"prompts": BATCHES * case.batch, "mean": MEAN} if mixed else {}
    print(f"{case.name}: {prompt} + {new} tokens, {repeats} calls a timing", flush=True)
    contest, limits = language_models.race(
        list(MIXED) if mixed else arguments.systems,
        MIXED if mixed else NAMES,
        lambda name: "torch_generation.py" if name == "torch" else "rljax_generation.py",
        asked,
        None if mixed else language_models.limit(shape, case.dtype, not pinned),
        arguments,
    )
    hardware, width, affinity = contest.where(pinned)
    # completions of a mixed case differ a little between its systems, by rounding
    drawn = {name: contest.found[name]["measured"] for name in contest.running}
    tokens = drawn if mixed else case.tokens * repeats
    systems = side_by_side.summarise(contest.found, contest.described, tokens)
    content = {"limit_tokens_per_second": round(bound(case, limits), 1)} if limits else {}
    for system in systems.values():
        if "steps_per_second" in system:  # here a step is a token
            system["tokens_per_second"] = system.pop("steps_per_second")
            if limits:
                system["of_limit"] = round(system["tokens_per_second"] / bound(case, limits), 4)
    return hardware, {
        **case._asdict(),
        "settings": shape | {"prompt": prompt, "new": new},
        "repeats": repeats,
        "width": width,
        "affinity": affinity,
        "rounds": arguments.rounds,
        **content,
        "revision": side_by_side.revision(HERE.parent),
        "systems": systems,
    }


def bound(case: Case, limits: list[dict[str, float]]) -> float:
    """Tokens per second at the medians of the measured rates."""
    shape, (prompt, new) = MODELS[case.model], KINDS[case.kind]
    flops = language_models.generation_flops(shape, case.batch, prompt, new)
    read = sum(language_models.weights(shape)) * language_models.BYTES[case.dtype] * new
    return case.tokens / max(
        flops / language_models.median(limits, "flops_per_second"),
        read / language_models.median(limits, "bytes_per_second"),
    )


def table(content: dict[str, Any]) -> str:
    """The hardware, a table of single lengths and one of mixed lengths, each where there are such cases."""
    cases = content["cases"].values()
    found = [
        part(chosen, titles, peer)
        for chosen, titles, peer in (
            ([each for each in cases if each["kind"] != "mixed"], NAMES, "torch"),
            ([each for each in cases if each["kind"] == "mixed"], MIXED, "padded"),
        )
        if chosen
    ]
    return "\n\n".join([f"**{content['hardware']}**", *found])


def part(cases: list[dict[str, Any]], titles: dict[str, str], peer: str) -> str:
    """A row per case: tokens per second, rljax's ratio, part of the limit, memory."""
    names = [name for name in titles if any(name in each["systems"] for each in cases)]
    columns = ["model, kind, batch, dtype", *(f"{titles[name]}, tokens/s" for name in names)]
    columns += ["rljax is faster by" if peer == "torch" else "gain", "of the limit", "compile s", "peak GB"]
    rows = []
    for each in cases:
        systems = each["systems"]
        cells = [f"{each['model']} {each['kind']}, {each['batch']}, {each['dtype']}"]
        for name in names:
            speed = systems.get(name, {}).get("tokens_per_second")
            cells.append(f"{speed:,.0f}" if speed else "failed")
        cells.append(ratio(systems.get(peer, {}).get("rljax_is_faster_by")))
        ours = systems.get("rljax", {})
        cells.append(f"{ours['of_limit']:.0%}" if "of_limit" in ours else "–")
        cells.append(f"{ours['compile_seconds'][0]:.1f}" if "compile_seconds" in ours else "–")
        peaks = [systems.get(name, {}).get("peak_bytes") for name in names]
        rows.append([*cells, " / ".join(f"{peak / 1e9:.2f}" if peak else "–" for peak in peaks)])
    return tables.markdown(columns, rows)


if __name__ == "__main__":
    sys.exit(main())
