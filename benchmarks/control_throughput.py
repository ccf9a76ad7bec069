"""Environment steps per second of whole PPO training runs: rljax, Rejax and PureJaxRL on the same cores.

    python benchmarks/control_throughput.py --cores 0 --seeds 1,8 --rejax-python PYTHON --purejaxrl CHECKOUT

PPO on CartPole-v1 at PureJaxRL's hyper-parameters (separate 64-64 tanh networks, 4 epochs x 4 minibatches,
learning rate 2.5e-4 falling to 0, clip 0.2, γ 0.99, λ 0.95, entropy 0.01, value 0.5, gradient norm 0.5,
clipped value loss) for every system; peers/*.py say what could not be made equal. Each system is a process
of its own in its own environment, one per case, pinned to the same cores and kept alive; they take turns,
in the opposite order each second round, so that a slow minute of a shared machine hits all. One timing is a
whole training run (initialising included, compiling not) of equally many iterations for all, as many as
make the fastest take --seconds. Ratios are of medians, and in brackets the lowest and the highest of the
rounds.

A result is written per case to results/control_throughput_HARDWARE.json, beside the cases already there.
Peak memory is the process's (CPU; JAX itself about 0.25 GB) or the first device's. Compile seconds are
tracing and compiling in a fresh process, and again. The limit (one core only) is 227 kFLOP of matmul and
1,280 tanh per step, measured each round: once at the rate of a 1,024 x 1,024 product and once at that of the
products of the networks' own shapes alone, which no program on this core can beat.

Several seeds: the peers map them with vmap, as their READMEs do; rljax as `rljax train --seeds` does, one
after the other on each core, sharded over the cores. The systems rejax-pmap and purejaxrl-pmap shard too,
with pmap over as many host devices as there are cores.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import tables
from side_by_side import Contest, Failure, Worker, counts, keep, options, ratio, revision, summarise
from side_by_side import start as start_worker

HERE = Path(__file__).parent
SYSTEMS = ("rljax", "purejaxrl", "rejax", "purejaxrl-pmap", "rejax-pmap")
NAMES = {
    "rljax": "rljax",
    "purejaxrl": "PureJaxRL",
    "rejax": "Rejax",
    "purejaxrl-pmap": "PureJaxRL, pmap",
    "rejax-pmap": "Rejax, pmap",
}


class Case(NamedTuple):
    num_envs: int
    num_steps: int
    seeds: int

    @property
    def name(self) -> str:
        return f"{self.num_envs}x{self.num_steps}/{self.seeds}"

    @property
    def steps(self) -> int:
        """Of one iteration, over all seeds."""
        return self.num_envs * self.num_steps * self.seeds


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        if arguments.table:
            print(table(tables.read(arguments.table)))
        elif arguments.write_readme:
            found = [
                table(tables.read(path)) for path in sorted(tables.RESULTS.glob("control_throughput_*.json"))
            ]
            tables.write_readme("throughput", "\n\n".join(found) or "Not measured yet.")
        elif arguments.startup:
            startup(arguments)
        else:
            run(arguments)
    except (ValueError, FileNotFoundError, Failure) as error:
        print(f"control_throughput: error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=about[0], epilog=about[1].strip())
    parser.add_argument(
        "--shapes",
        type=shapes,
        default=shapes("64x128,4x128"),
        metavar="ENVSxSTEPS,...",
        help="default: 64x128,4x128",
    )
    parser.add_argument(
        "--seeds", type=counts, metavar="N,...", help="default: 1,8,64,512; a GPU: 1,64,256,2048"
    )
    options(parser)
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="that a timing of the fastest system lasts; default: 5"
    )
    parser.add_argument(
        "--systems",
        type=systems,
        metavar="NAME,...",
        help=f"of {', '.join(SYSTEMS)}; default: rljax and the peers given",
    )
    parser.add_argument("--purejaxrl", type=Path, metavar="PATH", help="a checkout of PureJaxRL")
    parser.add_argument("--purejaxrl-python", type=Path, metavar="PATH", help="its Python; default: Rejax's")
    parser.add_argument(
        "--purejaxrl-stubs",
        type=Path,
        metavar="PATH",
        help="put on its sys.path: stand-ins for brax and navix",
    )
    parser.add_argument(
        "--startup", action="store_true", help="seconds from the command `rljax train` to its first progress"
    )
    found = parser.parse_args(words)
    if found.rounds < 1 or found.seconds <= 0 or found.timeout <= 0:
        parser.error("--rounds, --seconds and --timeout must be positive")
    if found.gpu and found.cores:
        parser.error("--gpu measures unpinned: leave out --cores")
    if found.table or found.write_readme or found.startup:
        return found
    if not (found.gpu or found.cores):
        parser.error("name the cores to pin to, such as --cores 0, or --gpu")
    given = ["rljax", *(["purejaxrl"] if found.purejaxrl else []), *(["rejax"] if found.rejax_python else [])]
    found.systems = found.systems or given
    found.seeds = found.seeds or ([1, 64, 256, 2048] if found.gpu else [1, 8, 64, 512])
    found.purejaxrl_python = found.purejaxrl_python or found.rejax_python
    for name in found.systems:
        if name.startswith("rejax") and not found.rejax_python:
            parser.error(f"{name} needs --rejax-python")
        if name.startswith("purejaxrl") and not (found.purejaxrl and found.purejaxrl_python):
            parser.error(f"{name} needs --purejaxrl and --purejaxrl-python")
    return found


def shapes(text: str) -> list[tuple[int, int]]:
    found = [re.fullmatch(r"(\d+)x(\d+)", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ENVSxSTEPS, such as 64x128,4x128")
    return [(int(each[1]), int(each[2])) for each in found if each]


def systems(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [name for name in found if name not in SYSTEMS]:
        raise argparse.ArgumentTypeError(f"no system {unknown[0]!r}: there are {', '.join(SYSTEMS)}")
    return found


def start(name: str, arguments: argparse.Namespace) -> Worker:
    """The worker of a system (or of the limit), in its environment."""
    kind = name.removesuffix("-pmap")
    python = {"rejax": arguments.rejax_python, "purejaxrl": arguments.purejaxrl_python}.get(kind)
    pinned = arguments.cores or []
    paths = []
    if kind == "purejaxrl":
        checkout = arguments.purejaxrl
        paths += [checkout / "purejaxrl" if (checkout / "purejaxrl").is_dir() else checkout]
        paths += [arguments.purejaxrl_stubs] if arguments.purejaxrl_stubs else []
    return start_worker(
        "limit.py" if kind == "limit" else f"{kind}_ppo.py",
        python,
        pinned,
        arguments.timeout,
        devices=(len(pinned) or 1) if name.endswith("-pmap") else 0,
        paths=paths,
    )


def run(arguments: argparse.Namespace) -> None:
    path: Path | None = arguments.out
    for num_envs, num_steps in arguments.shapes:
        for seeds in arguments.seeds:
            case = Case(num_envs, num_steps, seeds)
            hardware, result = measure(case, arguments)
            path = keep(path, "control_throughput", hardware, case.name, result)
            print(table({"hardware": hardware, "cases": {case.name: result}}), flush=True)
    print(f"\nwritten to {path}")


def measure(case: Case, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One case with every system. Returns: the hardware's name, and what the results file says of it."""
    names: list[str] = list(arguments.systems)
    limited = not arguments.gpu and len(arguments.cores) == 1
    limits: list[dict[str, float]] = []
    print(
        f"{case.name}: {case.num_envs} environments x {case.num_steps} steps, seeds: {case.seeds}", flush=True
    )
    with contextlib.ExitStack() as stack, Contest(names, NAMES) as contest:
        contest.start(lambda name: start(name, arguments))
        few = max(1, 65_536 // case.steps)
        pace = {}
        for name in names:
            contest.compile(name, **case._asdict(), iterations=few)
            for _ in range(2):  # the second without first-time costs
                if answer := contest.attempt(name, "time"):
                    pace[name] = answer["seconds"] / few
        if not pace:
            raise Failure(f"no system could run {case.name}: {contest.found}")
        iterations = max(1, -int(-arguments.seconds // min(pace.values())))
        print(f"  {iterations} iterations of {case.steps:,} steps per timing", flush=True)
        for name in names:
            contest.compile(name, **case._asdict(), iterations=iterations)
        measure_limit = None
        if limited:
            worker = start("limit", arguments)
            stack.callback(worker.close)
            worker.ask("compile")
            measure_limit = lambda: limits.append(worker.ask("measure")["value"])
        contest.rounds(arguments.rounds, measure_limit)
        for name in contest.running:
            contest.found[name]["peak_bytes"] = contest.workers[name].ask("memory")["bytes"]
            if case.seeds <= 8:
                with contextlib.suppress(Failure):  # it has been timed all the same
                    mean = contest.workers[name].ask("measure")["value"]
                    contest.found[name]["mean_return"] = round(mean, 2)
    device, width, affinity = contest.where(arguments.cores or [])
    result: dict[str, Any] = case._asdict() | {
        "iterations": iterations,
        "steps": iterations * case.steps,
        "affinity": affinity,
        "rounds": arguments.rounds,
        "seconds_wanted": arguments.seconds,
        "revision": revision(HERE.parent),
        "systems": summarise(contest.found, contest.described, iterations * case.steps),
    }
    if arguments.purejaxrl:
        result["purejaxrl_revision"] = revision(arguments.purejaxrl)
    if limits:
        result["limit"] = limit(limits, result["systems"].get("rljax", {}).get("steps_per_second"))
    return f"{device}, {width}", result


def work(observation: int = 4, actions: int = 2, hidden: int = 64, epochs: int = 4) -> tuple[int, int]:
    """FLOP of matmul and number of tanh that PPO with separate two-layer networks needs per environment step.

    One forward in the rollout, and per epoch a forward, a backward to the weights and one to the inputs of
    all but the first layer.
    """
    forward = backward = 0
    for outputs in (actions, 1):
        layers = [2 * a * b for a, b in ((observation, hidden), (hidden, hidden), (hidden, outputs))]
        forward += sum(layers)
        backward += sum(layers) + sum(layers[1:])
    return forward + epochs * (forward + backward), (1 + epochs) * 2 * 2 * hidden


def limit(measured: list[dict[str, float]], reached: float | None) -> dict[str, float]:
    """The most environment steps per second that matmul and tanh on the core allow, and rljax's share."""
    flops, tanh = work()
    middle = lambda name: statistics.median(each[name] for each in measured)
    found = {name: float(f"{middle(name):.4g}") for name in measured[0]}
    for kind in ("matmul", "network"):
        most = 1 / (flops / found[f"{kind}_flops_per_second"] + tanh * found["tanh_seconds"])
        found[f"{kind}_steps_per_second"] = round(most)
        if reached:
            found[f"{kind}_reached"] = round(reached / most, 4)
    return found


def table(content: dict[str, Any]) -> str:
    """A results file as Markdown: the hardware, then a row per case."""
    cases = sorted(
        content["cases"].values(), key=lambda case: (-case["num_envs"], case["num_steps"], case["seeds"])
    )
    names = [name for name in SYSTEMS if any(name in case["systems"] for case in cases)]
    limited = any("limit" in case for case in cases)
    columns = ["environments x steps", "seeds"]
    for name in names:
        columns += [f"{NAMES[name]}, steps/s"] + ([] if name == "rljax" else ["rljax is faster by"])
    columns += [
        *(["of the limit, square products / the network's"] if limited else []),
        "compile s, " + " / ".join(NAMES[name] for name in names),
    ]
    columns += ["peak GB, " + " / ".join(NAMES[name] for name in names)]
    rows = []
    for case in cases:
        row = [f"{case['num_envs']} x {case['num_steps']}", str(case["seeds"])]
        found = [case["systems"].get(name, {}) for name in names]
        for name, each in zip(names, found, strict=True):
            failed = "failed" if "error" in each else "–"
            row.append(f"{each['steps_per_second'] / 1e3:,.1f}k" if "steps_per_second" in each else failed)
            if name != "rljax":
                row.append(ratio(each.get("rljax_is_faster_by")))
        if limited:
            reached = [case.get("limit", {}).get(f"{kind}_reached") for kind in ("matmul", "network")]
            row.append(" / ".join("–" if share is None else f"{share:.0%}" for share in reached))
        row.append(
            " / ".join(
                f"{each['compile_seconds'][0]:.1f}" if "compile_seconds" in each else "–" for each in found
            )
        )
        row.append(
            " / ".join(f"{each['peak_bytes'] / 1e9:.2f}" if each.get("peak_bytes") else "–" for each in found)
        )
        rows.append(row)
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


def startup(arguments: argparse.Namespace) -> None:
    """Seconds from `rljax train ppo --env CartPole-v1` on a terminal to its first progress."""
    import pty

    if arguments.cores:
        os.sched_setaffinity(0, arguments.cores)  # the command inherits it
    seconds = []
    for _ in range(arguments.rounds):
        terminal, inside = pty.openpty()
        with tempfile.TemporaryDirectory() as folder:
            words = f"-m rljax train ppo --env CartPole-v1 --steps 20e6 --out {folder}/run".split()
            environment = os.environ | {"PYTHONPATH": str(HERE.parent), "TERM": "xterm", "COLUMNS": "160"}
            begun = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, *words], stdin=inside, stdout=inside, stderr=inside, env=environment
            )
            os.close(inside)
            shown = b""
            try:
                while b"steps/s" not in shown:  # the bar says so from its first update
                    ready, _, _ = select.select([terminal], [], [], arguments.timeout)
                    if not ready:
                        raise Failure(f"no progress within {arguments.timeout:.0f} s")
                    try:
                        shown += os.read(terminal, 1 << 16)
                    except OSError:
                        raise Failure(f"rljax ended without progress: {shown[-300:]!r}") from None
                seconds.append(time.perf_counter() - begun)
            finally:
                process.kill()
                process.wait()
                os.close(terminal)
        print(f"  {seconds[-1]:.1f} s", flush=True)
    print(f"to the first progress: {statistics.median(seconds):.1f} s, median of {len(seconds)}")


if __name__ == "__main__":
    sys.exit(main())
