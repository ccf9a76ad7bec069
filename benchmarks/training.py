"""Tokens per second of training steps of rljax's `pretrain` beside a plain PyTorch training loop.

    python benchmarks/training.py --cores 0 [--torch-python PYTHON] [--models 4.5m] [--dtypes bfloat16]
    python benchmarks/training.py --gpu --models 1b --remat full --loop scanned --num-micro 2

Llamas with random weights (language_models.py) on rows of random tokens: the forward and the backward pass,
gradients clipped to norm 1, AdamW. Parameters, gradients and the optimizer's state are float32; "bfloat16"
says in what products are computed (autocast in PyTorch). The systems take turns (side_by_side.py); compiling,
and the first step, are apart.

FLOPs are the model's own, nothing that is computed again counted: 6 per weight of a matrix product and token,
and half of attention. They are set beside the rate of one large product of the same dtype, measured in the
same rounds, and on a GPU beside the 989 TFLOP/s that NVIDIA gives for dense bfloat16 on an H100 or H200.

A result is written per case to results/training_HARDWARE.json, beside those already there.
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
NAMES = {"rljax": "rljax", "torch": "PyTorch", "torch-compiled": "PyTorch, torch.compile"}
ROWS = {  # rows, tokens of each
    "0.1m": (8, 64),
    "0.8m": (32, 256),
    "4.5m": (8, 256),
    "25m": (8, 256),
    "100m": (8, 256),
    "1b": (8, 2048),
}
TEXT = 1 << 20  # tokens of the text that rows are drawn from
DATASHEET = 989e12  # FLOP/s of dense bfloat16 on NVIDIA's H100 and H200


class Case(NamedTuple):
    model: str
    dtype: str
    remat: str = "none"
    loop: str = "unrolled"
    chunk: int = 128
    num_micro: int = 0  # parts of a batch; 0: pretrain's own choice

    @property
    def changed(self) -> dict[str, Any]:
        """Options of rljax that are not the defaults."""
        default = Case(self.model, self.dtype)._asdict()
        return {name: value for name, value in self._asdict().items() if value != default[name]}

    @property
    def name(self) -> str:
        return "/".join([self.model, self.dtype, *(f"{key}={value}" for key, value in self.changed.items())])

    @property
    def tokens(self) -> int:
        """Predicted in one step."""
        rows, length = ROWS[self.model]
        return rows * length


def main(words: list[str] | None = None) -> int:
    return language_models.command("training", parse(words), table, run)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    side_by_side.options(parser)
    language_models.options(parser, models="4.5m,0.8m", dtypes="float32,bfloat16", systems="rljax,torch")
    parser.add_argument("--steps", type=int, default=4, help="training steps of one timing; default: 4")
    usual = Case("", "")
    parser.add_argument("--remat", choices=("none", "full", "dots"), default=usual.remat)
    parser.add_argument("--loop", choices=("unrolled", "scanned"), default=usual.loop)
    parser.add_argument("--chunk", type=int, default=usual.chunk, help="positions of logits at one time")
    parser.add_argument(
        "--num-micro", type=int, default=usual.num_micro, help="parts of a batch; 0: pretrain chooses"
    )
    found = language_models.check(parser, parser.parse_args(words), systems=NAMES)
    if min(found.steps, found.chunk) < 1 or found.num_micro < 0:
        parser.error("--steps and --chunk must be positive, --num-micro not negative")
    if wrong := [model for model in found.models if found.num_micro and ROWS[model][0] % found.num_micro]:
        parser.error(f"--num-micro must divide the {ROWS[wrong[0]][0]} rows of {wrong[0]}")
    return found


def run(arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.out
    for model in arguments.models:
        for dtype in arguments.dtypes:
            chosen = arguments.remat, arguments.loop, arguments.chunk, arguments.num_micro
            case = Case(model, dtype, *chosen)
            hardware, result = measure(case, arguments)
            path = side_by_side.keep(path, "training", hardware, case.name, result)
            print(table({"hardware": hardware, "cases": {case.name: result}}), flush=True)
    print(f"\nwritten to {path}")


def measure(case: Case, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One case with every system. Returns: the hardware's name, and what the results file says of it."""
    pinned, shape, (batch, length) = arguments.cores or [], MODELS[case.model], ROWS[case.model]
    asked = case._asdict() | {"shape": shape, "batch": batch, "length": length}
    asked |= {"steps": arguments.steps, "text": TEXT}
    print(f"{case.name}: {batch} rows of {length} tokens, {arguments.steps} steps a timing", flush=True)
    contest, limits = language_models.race(
        arguments.systems,
        NAMES,
        lambda name: "rljax_training.py" if name == "rljax" else "torch_training.py",
        asked,
        language_models.limit(shape, case.dtype, not pinned),
        arguments,
    )
    hardware, width, affinity = contest.where(pinned)
    systems = side_by_side.summarise(contest.found, contest.described, case.tokens * arguments.steps)
    flops = language_models.training_flops(shape, length)
    peak = language_models.median(limits, "flops_per_second")
    for system in systems.values():
        if "measured" in system:
            system["loss"] = round(system.pop("measured"), 4)
        if "steps_per_second" in system:  # here a step is a token
            system["tokens_per_second"] = system.pop("steps_per_second")
            system |= utilisation(system["tokens_per_second"] * flops, peak, not pinned)
    return hardware, {
        **case._asdict(),
        "settings": shape | {"batch": batch, "length": length},
        "steps": arguments.steps,
        "width": width,
        "affinity": affinity,
        "rounds": arguments.rounds,
        "flops_per_token": flops,
        "matmul_flops_per_second": round(peak),
        "revision": side_by_side.revision(HERE.parent),
        "systems": systems,
    }


def utilisation(rate: float, peak: float, on_gpu: bool) -> dict[str, float]:
    """Model FLOP/s, of the measured peak, and on a GPU of the datasheet's."""
    found = {"flops_per_second": round(rate), "of_matmul": round(rate / peak, 4)}
    return found | ({"of_datasheet": round(rate / DATASHEET, 4)} if on_gpu else {})


def table(content: dict[str, Any]) -> str:
    """The hardware, then a row per case: tokens per second, rljax's ratios, utilisation, memory."""
    cases = content["cases"].values()
    names = [name for name in NAMES if any(name in each["systems"] for each in cases)]
    peers = [name for name in names if name != "rljax"]
    columns = ["model, rows x tokens, dtype"]
    for name in names:
        columns += [f"{NAMES[name]}, tokens/s", *["rljax is faster by"] * (name in peers)]
    listed = " / ".join(NAMES[name] for name in names)
    columns += [f"TFLOP/s, {listed}", f"of one product's, {listed}"]
    on_gpu = any("of_datasheet" in each for case in cases for each in case["systems"].values())
    columns += [f"of 989 TFLOP/s, {listed}"] * on_gpu + [f"compile s, {listed}", f"peak GB, {listed}"]
    rows = []
    for each in cases:
        systems = [each["systems"].get(name) for name in names]
        rows.append([f"{each['model']}, {shape(each)}, {each['dtype']}{options(each)}"])
        for name, system in zip(names, systems, strict=True):
            speed = (system or {}).get("tokens_per_second")
            rows[-1].append("–" if system is None else f"{speed:,.0f}" if speed else "failed")
            rows[-1] += [ratio((system or {}).get("rljax_is_faster_by"))] * (name in peers)
        rows[-1] += [
            " / ".join(form(system) if field in (system or {}) else "–" for system in systems)
            for field, form in FORMS.items()
            if on_gpu or field != "of_datasheet"
        ]
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


FORMS = {
    "flops_per_second": lambda each: f"{each['flops_per_second'] / 1e12:.3g}",
    "of_matmul": lambda each: f"{each['of_matmul']:.0%}",
    "of_datasheet": lambda each: f"{each['of_datasheet']:.0%}",
    "compile_seconds": lambda each: f"{each['compile_seconds'][0]:.1f}",
    "peak_bytes": lambda each: f"{each['peak_bytes'] / 1e9:.2f}" if each["peak_bytes"] else "–",
}


def shape(each: dict[str, Any]) -> str:
    return f"{each['settings']['batch']} x {each['settings']['length']}"


def options(each: dict[str, Any]) -> str:
    changed = Case(*(each[name] for name in Case._fields)).changed
    return "".join(f", {name.replace('_', ' ')} {value}" for name, value in changed.items())


if __name__ == "__main__":
    sys.exit(main())
