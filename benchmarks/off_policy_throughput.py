"""Environment steps per second of whole DQN, SAC, TD3 and PQN training runs, rljax beside its peers.

    python benchmarks/off_policy_throughput.py --cores 0,1 --rejax-python PYTHON --sb3-python PYTHON

Rejax 0.1.3 as published and with its sampler patched, Stable-Baselines3 and SBX, at the hyper-parameters of
Rejax's own presets (configs/gymnax/cartpole.yaml and pendulum.yaml, networks of 64 and 64 units), on the same
cores. peers/*_off_policy.py say what could not be made equal, side_by_side.py how the systems take turns.

A timing is one whole training run of equally many environment steps for all, random steps before learning
included, compiling not: steps over seconds. A run is --scale times the steps of CASES. One seed has the first
core of --cores alone, several share all of them: rljax shards its seeds over the cores, Rejax maps them with
vmap and, as rejax-pmap, with pmap over as many host devices as there are cores. SB3 and SBX train one seed at
a time on one core; with several seeds one of them is timed, and as many runs one after the other counted.
They are slow enough to be timed in the first --slow-rounds rounds only.

A result is written per case to results/off_policy_throughput_HARDWARE.json, beside those already there.
`--parity` trains each system on --parity-seeds seeds for the whole of the preset's steps instead and writes
the returns of the greedy policies, 1,000 episodes per seed, to results/off_policy_parity_HARDWARE.json.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from pathlib import Path
from typing import Any, NamedTuple

import side_by_side
import tables
from side_by_side import Contest, Failure, Worker, ratio

HERE = Path(__file__).parent
NAMES = {
    "rljax": "rljax",
    "rejax": "Rejax",
    "rejax-pmap": "Rejax, pmap",
    "rejax-patched": "Rejax, sampler patched",
    "rejax-patched-pmap": "Rejax, sampler patched, pmap",
    "sb3": "Stable-Baselines3",
    "sbx": "SBX",
}
ROWS = 100  # of an iteration of rljax; the steps of a run are rounded up to whole ones
SHARED = {"discount": 0.99, "hidden_sizes": [64, 64], "activation": "swish"}
DQN = SHARED | {
    "algorithm": "dqn",
    "env": "CartPole-v1",
    "num_envs": 10,
    "num_updates": 5,  # after every row of num_envs steps
    "num_steps": ROWS,
    "buffer_size": 50_000,
    "learning_starts": 5_000,
    "batch_size": 100,
    "learning_rate": 1e-3,
    "max_grad_norm": 10.0,
    "keep": 0.98,  # of the target network, at every row
    "epsilon": [1.0, 0.05, 0.5],  # from, to, in this part of the run
    "normalize": False,
    "total_steps": 100_000,
}
PENDULUM = SHARED | {
    "env": "Pendulum-v1",
    "num_envs": 1,
    "num_updates": 1,
    "num_steps": ROWS,
    "buffer_size": 10_000,
    "normalize": True,
    "total_steps": 10_000,
}
SAC = PENDULUM | {
    "algorithm": "sac",
    "learning_starts": 256,
    "batch_size": 256,
    "learning_rate": 0.01,
    "max_grad_norm": None,
    "keep": 0.98,
}
TD3 = PENDULUM | {
    "algorithm": "td3",
    "learning_starts": 1_000,
    "batch_size": 100,
    "learning_rate": 1e-3,
    "max_grad_norm": 100.0,
    "keep": 0.95,  # at every second row, as the policy
    "action_high": 2.0,
    "exploration_noise": 0.3,  # in units of the environment's actions, as the two below
    "target_noise": 0.2,
    "target_noise_clip": 0.5,
}
PQN = SHARED | {
    "algorithm": "pqn",
    "env": "CartPole-v1",
    "activation": "relu",
    "num_envs": 16,
    "num_steps": 128,
    "num_updates": 5,  # passes over each rollout
    "num_minibatches": 16,
    "learning_rate": 3e-4,
    "max_grad_norm": 10.0,
    "epsilon": [1.0, 0.05, 0.5],
    "trace_decay": 0.9,
    "normalize": False,
    "total_steps": 524_288,
}


class Case(NamedTuple):
    title: str
    settings: dict[str, Any]
    steps: int  # of a timing with one seed
    steps_of_several: int  # of each seed of a timing with several


SINGLE = {"num_envs": 1, "num_updates": 1, "buffer_size": 10_000, "learning_starts": 1_000, "batch_size": 128}
CASES = {
    "dqn": Case("DQN, buffer 50k", DQN, 25_000, 15_000),
    "dqn-10k": Case("DQN, buffer 10k", DQN | {"buffer_size": 10_000}, 25_000, 15_000),
    "dqn-100k": Case("DQN, buffer 100k", DQN | {"buffer_size": 100_000}, 25_000, 15_000),
    "dqn-1": Case("DQN, 1 environment, buffer 10k, batch 128", DQN | SINGLE, 15_000, 10_000),
    "sac": Case("SAC", SAC, 5_000, 3_000),
    "td3": Case("TD3", TD3, 6_000, 4_000),
    "pqn": Case("PQN", PQN, 524_288, 131_072),
}
ESSENTIAL = ["dqn", "dqn-100k", "sac", "td3"]
SEVERAL = ("dqn", "sac", "pqn")  # are timed with several seeds too, unless --seeds says otherwise
BUFFERS = ("dqn-10k", "dqn-100k")  # whose size SB3 and SBX do not feel
ALONE = ("sb3", "sbx")  # train one seed at a time


class Row(NamedTuple):
    """What is timed at once: a case with so many seeds."""

    case: str
    seeds: int
    systems: list[str]

    @property
    def name(self) -> str:
        return f"{self.case}/{self.seeds}"


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        if arguments.table:
            print(show(tables.read(arguments.table)))
        elif arguments.write_readme:
            for marker, name in (("off-policy", "throughput"), ("parity", "parity")):
                paths = sorted(tables.RESULTS.glob(f"off_policy_{name}_*.json"))
                found = "\n\n".join(show(tables.read(path)) for path in paths)
                tables.write_readme(marker, found or "Not measured yet.")
        elif arguments.parity:
            compare(arguments)
        else:
            compete(arguments)
    except (ValueError, FileNotFoundError, Failure) as error:
        print(f"off_policy_throughput: error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=about[0], epilog=about[3])
    side_by_side.options(parser)
    parser.add_argument(
        "--cases",
        type=cases,
        metavar="NAME,...",
        help=f"of {', '.join(CASES)}; or all; default: {', '.join(ESSENTIAL)}",
    )
    parser.add_argument(
        "--seeds", type=side_by_side.counts, metavar="N,...", help="default: 1,8; a GPU: 1,8,64"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the steps of a timing, such as 0.5; default: 1"
    )
    parser.add_argument(
        "--slow-rounds", type=int, default=2, help="timings of sb3 and sbx, of --rounds; default: 2"
    )
    parser.add_argument(
        "--systems",
        type=systems,
        metavar="NAME,...",
        help=f"of {', '.join(NAMES)}; default: rljax and the peers given",
    )
    parser.add_argument(
        "--sb3-python",
        type=Path,
        metavar="PATH",
        help="the Python of an environment with stable-baselines3 and sbx-rl",
    )
    parser.add_argument("--parity", action="store_true", help="compare returns after training, not speed")
    parser.add_argument("--parity-seeds", type=int, default=10, metavar="N", help="default: 10")
    found = parser.parse_args(words)
    if min(found.rounds, found.slow_rounds) < 1 or min(found.scale, found.timeout) <= 0:
        parser.error("--rounds, --slow-rounds, --scale and --timeout must be positive")
    if found.parity_seeds < 2:
        parser.error("--parity-seeds must be at least 2")
    if found.gpu and found.cores:
        parser.error("--gpu measures unpinned: leave out --cores")
    if found.table or found.write_readme:
        return found
    if not (found.gpu or found.cores):
        parser.error("name the cores to pin to, such as --cores 0,1, or --gpu")
    for name in found.systems or []:
        if name.startswith("rejax") and not found.rejax_python:
            parser.error(f"{name} needs --rejax-python")
        if name in ALONE and not found.sb3_python:
            parser.error(f"{name} needs --sb3-python")
    found.cases = found.cases or ESSENTIAL
    found.all_seeds = found.seeds is not None
    found.seeds = found.seeds or ([1, 8, 64] if found.gpu else [1, 8])
    return found


def cases(text: str) -> list[str]:
    found = list(CASES) if text == "all" else text.split(",")
    if unknown := [name for name in found if name not in CASES]:
        raise argparse.ArgumentTypeError(f"no case {unknown[0]!r}: there are {', '.join(CASES)}")
    return found


def systems(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [name for name in found if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"no system {unknown[0]!r}: there are {', '.join(NAMES)}")
    return found


def plan(arguments: argparse.Namespace) -> list[Row]:
    """The rows that are timed, with the systems of each that it makes sense to time."""
    several_devices = arguments.gpu is False and len(arguments.cores) > 1
    given = ["rljax"]
    given += ["rejax", "rejax-pmap", "rejax-patched", "rejax-patched-pmap"] if arguments.rejax_python else []
    given += ["sb3", "sbx"] if arguments.sb3_python and not arguments.gpu else []

    def fits(system: str, case: str, seeds: int) -> bool:
        replay = CASES[case].settings["algorithm"] != "pqn"
        if system.endswith("-pmap") and not (seeds > 1 and several_devices):
            return False
        if system in ALONE:
            return replay and (arguments.systems is not None or case not in BUFFERS)
        return replay or "patched" not in system

    return [
        Row(case, seeds, [name for name in arguments.systems or given if fits(name, case, seeds)])
        for case in arguments.cases
        for seeds in arguments.seeds
        if seeds == 1 or arguments.all_seeds or case in SEVERAL
    ]


def request(case: str, steps: float, seeds: int) -> dict[str, Any]:
    """What every worker is asked to compile: settings, seeds, and at least so many steps of each seed."""
    settings = CASES[case].settings
    block, first = settings["num_envs"] * settings["num_steps"], settings.get("learning_starts", 0)
    return settings | {"steps": first + max(1, -int((first - steps) // block)) * block, "seeds": seeds}


def how(name: str, seeds: int) -> dict[str, Any]:
    """What of a request is peculiar to a system."""
    if name in ALONE:
        return {"library": name, "seeds": seeds}
    return {"sampler": "patched" if "patched" in name else "published"}


def start(name: str, arguments: argparse.Namespace, pinned: list[int], spread: bool) -> Worker:
    """The worker of a system; `spread` shows Rejax a host device per core."""
    kind = name.split("-")[0]
    python = {"rljax": None, "rejax": arguments.rejax_python}.get(kind, arguments.sb3_python)
    script = {"rljax": "rljax_off_policy.py", "rejax": "rejax_off_policy.py"}.get(kind, "sb3_off_policy.py")
    pinned = pinned[:1] if kind in ALONE else pinned
    devices = len(pinned) if spread and kind == "rejax" else 0
    return side_by_side.start(script, python, pinned, arguments.timeout, devices)


def compete(arguments: argparse.Namespace) -> None:
    """Time every row of the plan."""
    paths = set()
    for row in plan(arguments):
        hardware, result = race(row, arguments)
        paths.add(side_by_side.keep(arguments.out, "off_policy_throughput", hardware, row.name, result))
        print(throughput_table({"hardware": hardware, "cases": {row.name: result}}), flush=True)
    print("\nwritten to " + " and ".join(sorted(map(str, paths))))


def race(row: Row, arguments: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """One row, every system in turn. Returns: the hardware's name, and what the results file says of it."""
    case = CASES[row.case]
    pinned = [] if arguments.gpu else arguments.cores[: 1 if row.seeds == 1 else None]
    asked = request(
        row.case, arguments.scale * (case.steps if row.seeds == 1 else case.steps_of_several), row.seeds
    )
    steps = asked["steps"] * row.seeds
    print(f"{row.name}: {case.title}, {steps:,} steps per timing, seeds: {row.seeds}", flush=True)
    with Contest(row.systems, NAMES) as contest:
        contest.start(lambda name: start(name, arguments, pinned, name.endswith("-pmap")))
        for name in row.systems:
            contest.compile(name, **asked | how(name, 1))
        contest.rounds(arguments.rounds, fewer=dict.fromkeys(ALONE, arguments.slow_rounds))
        for name in contest.running:
            found = contest.found[name]
            found["peak_bytes"] = contest.workers[name].ask("memory")["bytes"]
            if name in ALONE:  # trained more than once
                continue
            with contextlib.suppress(Failure):  # it has been timed all the same
                returns = contest.workers[name].ask("measure")["value"]
                mean = sum(returns) / len(returns)
                found["mean_return"] = round(mean, 2) if math.isfinite(mean) else None
        for name in [name for name in contest.running if name in ALONE and row.seeds > 1]:
            found = contest.found[name]
            found["timed_seeds"] = 1
            found["seconds"] = [round(seconds * row.seeds, 4) for seconds in found["seconds"]]
    hardware, width, affinity = contest.where(pinned)
    return hardware, {
        "case": row.case,
        "seeds": row.seeds,
        "settings": CASES[row.case].settings,
        "steps": steps,
        "width": width,
        "affinity": affinity,
        "rounds": arguments.rounds,
        "revision": side_by_side.revision(HERE.parent),
        "systems": side_by_side.summarise(contest.found, contest.described, steps),
    }


def compare(arguments: argparse.Namespace) -> None:
    """Train every system of every case over seeds, and write their greedy returns."""
    sys.path.insert(0, str(HERE.parent))
    from rljax.runs.reports.statistics import iqm, stratified_bootstrap_interval

    seeds, pinned, paths = arguments.parity_seeds, arguments.cores or [], set()
    for row in plan(argparse.Namespace(**vars(arguments) | {"seeds": [seeds], "all_seeds": True})):
        asked = request(row.case, CASES[row.case].settings["total_steps"], seeds)
        for name in [name for name in row.systems if not name.endswith("-pmap")]:
            with Contest([name], NAMES) as contest:
                contest.start(lambda name: start(name, arguments, pinned, seeds % max(len(pinned), 1) == 0))
                contest.compile(name, **asked | how(name, seeds))
                timed = contest.attempt(name, "time")
                answer = contest.attempt(name, "measure")
            hardware, width, _ = contest.where(pinned)
            result = {"case": row.case, "system": name, "settings": CASES[row.case].settings}
            result |= {"steps": asked["steps"], "seeds": seeds, "width": width}
            result |= {"revision": side_by_side.revision(HERE.parent)}
            result |= {"versions": contest.described[name]["versions"]} | contest.found[name]
            returns = answer["value"] if answer else []
            if lost := sum(not math.isfinite(x) for x in returns):
                result["error"] = f"{lost} of {seeds} seeds diverged"
            elif timed and returns:
                interval = stratified_bootstrap_interval(returns).tolist()
                result |= {"seconds": round(timed["seconds"], 2), "returns": [round(x, 2) for x in returns]}
                result |= {"iqm": round(float(iqm(returns)), 2), "ci95": [round(x, 2) for x in interval]}
            content = {"benchmark": "off_policy_parity", "hardware": hardware, "cases": {row.case: result}}
            print(parity_table(content), flush=True)
            paths.add(
                side_by_side.keep(arguments.out, "off_policy_parity", hardware, f"{row.case}/{name}", result)
            )
    print("\nwritten to " + " and ".join(sorted(map(str, paths))))


def show(content: dict[str, Any]) -> str:
    """A results file of either kind as Markdown."""
    return (parity_table if content["benchmark"] == "off_policy_parity" else throughput_table)(content)


def throughput_table(content: dict[str, Any]) -> str:
    """The hardware, then a row per case: steps per second, and by how much rljax is faster."""
    order = list(CASES)
    found = sorted(content["cases"].values(), key=lambda each: (each["seeds"], order.index(each["case"])))
    names = [name for name in NAMES if any(name in each["systems"] for each in found)]
    columns = ["steps/s; rljax is faster by", "seeds", *(NAMES[name] for name in names), "compile s"]
    rows = []
    for each in found:
        cells = [CASES[each["case"]].title, f"{each['seeds']} on {each['width']}"]
        for name in names:
            system = each["systems"].get(name)
            if not system or "steps_per_second" not in system:
                cells.append("failed" if system else "–")
                continue
            speed = f"{system['steps_per_second'] / 1e3:,.2f}k"
            faster = "" if name == "rljax" else "; " + ratio(system.get("rljax_is_faster_by"))
            cells.append(speed + faster)
        jax = [each["systems"].get(name, {}).get("compile_seconds") for name in ("rljax", "rejax")]
        rows.append([*cells, " / ".join(f"{seconds[0]:.1f}" if seconds else "–" for seconds in jax)])
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


def parity_table(content: dict[str, Any]) -> str:
    """A row per case and system: the returns of the greedy policies after equally many steps."""
    from rljax.runs.reports.statistics import stratified_bootstrap_interval

    order = lambda each: (list(CASES).index(each["case"]), list(NAMES).index(each["system"]))
    columns = ["case", "system", "steps", "seeds", "IQM", "95 % interval", "worst to best seed", "seconds"]
    rows = []
    for each in sorted(content["cases"].values(), key=order):
        cells = [f"{each['steps']:,}"]
        if "iqm" in each:
            low, high = stratified_bootstrap_interval(each["returns"])
            cells += [str(len(each["returns"])), f"{each['iqm']:.1f}", f"{low:.1f} to {high:.1f}"]
            cells += [f"{min(each['returns']):.1f} to {max(each['returns']):.1f}", f"{each['seconds']:.0f}"]
        else:
            cells += ["–", "failed", "–", "–", "–"]
        numbers = [cell.replace("-", "−") for cell in cells]
        rows.append([CASES[each["case"]].title, NAMES[each["system"]], *numbers])
    return f"**{content['hardware']}**\n\n{tables.markdown(columns, rows)}"


if __name__ == "__main__":
    sys.exit(main())
