"""Seconds of one GRPO cycle of rljax (prompts, completions, rewards, update) beside TRL's GRPOTrainer.

    python benchmarks/grpo.py --cores 0 --trl-python PYTHON [--models 4.5m] [--dtypes float32,bfloat16]
    python benchmarks/grpo.py --cores 0 --models 0.1m,4.5m,25m,100m --systems rljax
    python benchmarks/grpo.py --gpu --systems rljax,seeds --seeds 8

Llamas with random weights (language_models.py): 8 prompts of 14 tokens × 8 completions of 64, temperature 1,
no KL penalty, one epoch, AdamW, a reward that counts tokens. "rljax" is one program, "parts" the same cycle
as two, sampling and learning, "seeds" one program of --seeds members, whose time is per member. TRL generates
with transformers, and its reward is a function on the host. "bfloat16" says in what products are computed.
The systems take turns (side_by_side.py); compiling is apart.

FLOPs are the model's own, nothing that is computed again counted: a prompt runs once for its completions, in
sampling and in the update, as in rljax (TRL runs it for each).
They are set beside the rate of one large product of the same dtype, measured in the same rounds.

A result is written per case to results/grpo_HARDWARE.json, beside those already there.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import language_models
import side_by_side
import tables
from language_models import MODELS, Shape
from side_by_side import ratio

HERE = Path(__file__).parent
NAMES = {"rljax": "rljax", "parts": "rljax, two programs", "seeds": "rljax, seeds", "trl": "TRL"}
PROMPTS, GROUP, PROMPT, NEW = 8, 8, 14, 64
PARTS = ("prefill", "decode", "reward", "update")


class Case(NamedTuple):
    model: str
    dtype: str

    @property
    def name(self) -> str:
        return f"{self.model}/{self.dtype}"


def main(words: list[str] | None = None) -> int:
    return language_models.command("grpo", parse(words), table, run)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    side_by_side.options(parser)
    language_models.options(parser, models="4.5m", dtypes="float32,bfloat16", systems="rljax,parts,trl")
    parser.add_argument(
        "--trl-python", type=Path, metavar="PATH", help="of an environment with TRL 1.16, JAX"
    )
    parser.add_argument("--cycles", type=int, default=3, help="cycles of one timing; default: 3")
    parser.add_argument("--seeds", type=int, default=4, help='members of "seeds"; default: 4')
    found = language_models.check(parser, parser.parse_args(words), systems=NAMES)
    if min(found.cycles, found.seeds) < 1:
        parser.error("--cycles and --seeds must be positive")
    found.torch_python = found.trl_python  # whose workers are torch's
    return found


def run(arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.out
    for model in arguments.models:
        for dtype in arguments.dtypes:
            case = Case(model, dtype)
            hardware, result = measure(case, arguments)
            path = side_by_side.keep(path, "grpo", hardware, case.name, result)
            print(table({"hardware": hardware, "cases": {case.name: result}}), flush=True)
    print(f"\nwritten to {path}")


def measure(case: Case, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One case with every system. Returns: the hardware's name, and what the results file says of it."""
    pinned, shape = arguments.cores or [], MODELS[case.model]
    sizes = {"prompts": PROMPTS, "group": GROUP, "prompt": PROMPT, "new": NEW}
    asked = case._asdict() | sizes | {"shape": shape, "cycles": arguments.cycles, "seeds": arguments.seeds}
    print(f"{case.name}: {PROMPTS} x {GROUP} completions, {arguments.cycles} cycles a timing", flush=True)
    contest, limits = language_models.race(
        arguments.systems,
        NAMES,
        lambda name: "trl_grpo.py" if name == "trl" else "rljax_grpo.py",
        asked,
        language_models.limit(shape, case.dtype, not pinned),
        arguments,
    )
    hardware, width, affinity = contest.where(pinned)
    cycles = {
        name: arguments.cycles * (arguments.seeds if name == "seeds" else 1) for name in arguments.systems
    }
    systems = side_by_side.summarise(contest.found, contest.described, cycles)
    flops = cycle_flops(shape)
    peak = language_models.median(limits, "flops_per_second")
    for name, system in systems.items():
        if parts := system.pop("measured", None):
            system["parts"] = parts
        if "steps_per_second" in system:  # here a step is a cycle
            del system["steps_per_second"]
            seconds = statistics.median(system["seconds"]) / cycles[name]
            system["seconds_per_cycle"] = round(seconds, 4)
            system["of_matmul"] = round(flops / seconds / peak, 4)
    return hardware, {
        **case._asdict(),
        "settings": shape | sizes,
        "cycles": arguments.cycles,
        "seeds": arguments.seeds,
        "width": width,
        "affinity": affinity,
        "rounds": arguments.rounds,
        "flops_per_cycle": flops,
        "matmul_flops_per_second": round(peak),
        "revision": side_by_side.revision(HERE.parent),
        "systems": systems,
    }


def cycle_flops(shape: Shape) -> float:
    """Of the matrix products of one cycle: prompts, completions, and the update of both, whose head is at the
    places of completions alone.
    """
    body, head = language_models.weights(shape)
    rows = PROMPTS * GROUP
    per_column = shape["num_hidden_layers"] * shape["hidden_size"]
    prompts = PROMPTS * (2 * body * PROMPT + 2 * head + 4 * per_column * PROMPT * PROMPT / 2)
    columns = sum(PROMPT + step for step in range(1, NEW))
    decode = rows * ((2 * body + 2 * head) * (NEW - 1) + 4 * per_column * columns)
    return 4 * (prompts + decode)  # three times in the update


def table(content: dict[str, Any]) -> str:
    """The hardware, then a row per case: seconds of a cycle, rljax's ratios, parts, utilisation."""
    cases = content["cases"].values()
    names = [name for name in NAMES if any(name in each["systems"] for each in cases)]
    columns = ["model, dtype"]
    for name in names:
        columns += [f"{NAMES[name]}, s/cycle", *["rljax is faster by"] * (name != "rljax")]
    columns += [f"of rljax: {', '.join(PARTS)}", "of one product's rate", "compile s", "peak GB"]
    rows = []
    for each in cases:
        rows.append([f"{each['model']}, {each['dtype']}"])
        for name in names:
            system = each["systems"].get(name)
            seconds = (system or {}).get("seconds_per_cycle")
            rows[-1].append("–" if system is None else f"{seconds:.3g}" if seconds else "failed")
            rows[-1] += [ratio((system or {}).get("rljax_is_faster_by"))] * (name != "rljax")
        ours = each["systems"].get("rljax", {})
        parts = ours.get("parts") or {}
        rows[-1] += [
            " / ".join(f"{parts[part]:.3g}" for part in PARTS) if parts else "–",
            f"{ours['of_matmul']:.0%}" if "of_matmul" in ours else "–",
            f"{ours['compile_seconds'][0]:.0f}" if "compile_seconds" in ours else "–",
            f"{ours['peak_bytes'] / 1e9:.2f}" if ours.get("peak_bytes") else "–",
        ]
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
