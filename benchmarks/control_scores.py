"""Returns of the presets: what `rljax train ALGORITHM --env ENV --seeds N --steps STEPS` reaches.

    python benchmarks/control_scores.py                      # every row, hours on two cores
    python benchmarks/control_scores.py --only CartPole-v1   # rows merge into the results file

A seed's score is the mean undiscounted return of the greedy final policy over 128 whole episodes from
random starts. A row is their interquartile mean over seeds with its 95 % stratified-bootstrap interval
(Agarwal et al. 2021); a target is met where that mean is at least as high. Steps are environment steps per
seed. The results, every seed's score among them, are in results/control_scores.json.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tables


class Row(NamedTuple):
    algorithm: str
    env: str
    steps: int
    target: float | None = None
    seeds: int = 20
    episodes: int = 128  # per seed

    @property
    def name(self) -> str:
        return f"{self.algorithm}/{self.env}"


ROWS = (
    Row("ppo", "CartPole-v1", 500_000, 498),
    Row("ppo", "Acrobot-v1", 1_000_000, -80),
    Row("ppo", "MountainCarContinuous-v0", 1_000_000, 92),
    Row("ppo", "Pendulum-v1", 1_000_000, -160),
    Row("ppo", "MountainCar-v0", 1_000_000, -118),
    Row("ppo", "Breakout-MinAtar", 10_000_000, 40, seeds=3),
    Row("a2c", "CartPole-v1", 500_000),
    Row("reinforce", "CartPole-v1", 500_000),
    Row("trpo", "CartPole-v1", 200_000, 498, seeds=10),
    Row("dqn", "CartPole-v1", 300_000, 498, seeds=10),
    Row("dqn", "Acrobot-v1", 400_000, -80, seeds=10),
    Row("dqn", "MountainCar-v0", 400_000, -110, seeds=10),
    Row("c51", "CartPole-v1", 200_000, seeds=10),
    Row("iqn", "CartPole-v1", 200_000, seeds=10),
    Row("qrdqn", "Acrobot-v1", 500_000, -78, seeds=10),
    Row("rainbow", "Acrobot-v1", 300_000, -78, seeds=10),
    Row("pqn", "CartPole-v1", 500_000, 498, seeds=10),
    Row("pqn", "Breakout-MinAtar", 10_000_000, 28, seeds=1),
    Row("discrete_sac", "CartPole-v1", 200_000, 495, seeds=10),
    Row("ddpg", "Pendulum-v1", 30_000, -160, seeds=10, episodes=1_000),
    Row("td3", "Pendulum-v1", 30_000, -160, seeds=10, episodes=1_000),
    Row("sac", "Pendulum-v1", 30_000, -160, seeds=10, episodes=1_000),
    Row("ddpg", "MountainCarContinuous-v0", 200_000, 93, seeds=10),
    Row("td3", "MountainCarContinuous-v0", 250_000, 93, seeds=10),
    Row("sac", "MountainCarContinuous-v0", 200_000, 93, seeds=10),
)


def main(words: list[str] | None = None) -> int:
    arguments = parse(words)
    try:
        if arguments.table:
            print(table(tables.read(arguments.table)))
        elif arguments.write_readme:
            tables.write_readme("scores", table(tables.read(arguments.out)))
        else:
            run(arguments)
    except (ValueError, FileNotFoundError) as error:
        print(f"control_scores: error: {error}", file=sys.stderr)
        return 1
    return 0


def parse(words: list[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").split("\n\n")
    parser = argparse.ArgumentParser(description=about[0])
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="an environment, an algorithm, or ALGORITHM/ENV; repeatable",
    )
    parser.add_argument("--seeds", type=int, help="instead of each row's")
    parser.add_argument(
        "--steps", type=float, help="per seed, instead of each row's; such a row is not comparable"
    )
    parser.add_argument(
        "--out", type=Path, default=tables.RESULTS / "control_scores.json", help="the results file"
    )
    parser.add_argument(
        "--busy", action="store_true", help="the machine does other work, so leave out the seconds"
    )
    parser.add_argument(
        "--table", type=Path, metavar="JSON", help="print the table of a results file, and train nothing"
    )
    parser.add_argument(
        "--write-readme", action="store_true", help="put the table of --out into README.md, and train nothing"
    )
    found = parser.parse_args(words)
    found.rows = [
        row for row in ROWS if not found.only or {row.env, row.algorithm, row.name} & set(found.only)
    ]
    if not found.rows:
        parser.error(
            f"--only {' '.join(found.only)} names no row: there are {', '.join(row.name for row in ROWS)}"
        )
    if found.seeds is not None and found.seeds < 1:
        parser.error("--seeds must be positive")
    return found


def run(arguments: argparse.Namespace) -> None:
    for row in arguments.rows:
        row = row._replace(seeds=arguments.seeds or row.seeds, steps=int(arguments.steps or row.steps))
        result = measure(row)
        if arguments.busy:
            result |= {"seconds": None, "compile_seconds": None, "steps_per_second": None}
        path: Path = arguments.out
        content = tables.read(path) if path.is_file() else {"benchmark": "control_scores", "rows": {}}
        content["rows"][row.name] = result
        tables.write(path, content)
        print(table(content | {"rows": {row.name: result}}), flush=True)
    print(f"\nwritten to {arguments.out}")


def measure(row: Row) -> dict[str, Any]:
    """Train and evaluate one row. Returns: what the results file says of it."""
    import rljax
    from rljax.runs.folder import files

    result = rljax.train(
        row.algorithm, row.env, None, seeds=row.seeds, steps=row.steps, evaluation_episodes=row.episodes
    )
    summary = result.summary
    return row._asdict() | {
        "steps": summary["steps"],
        "steps_asked": row.steps,
        "return": summary["return"],
        "met": met(summary["return"]["iqm"], row.target),
        "seconds": result.rows[-1]["seconds"],
        "compile_seconds": summary["compile_seconds"],
        "steps_per_second": summary["steps_per_second"],
        "device": summary["device"],
        "versions": files.versions(),
        "revision": files.revision(),
        "config": {name: files.plain(value) for name, value in vars(result.config).items()},
    }


def met(iqm: float | None, target: float | None) -> bool | None:
    """Whether the target is reached: None where there is none, False for a diverged seed."""
    return None if target is None else iqm is not None and iqm >= target


def table(content: dict[str, Any]) -> str:
    """A results file as Markdown, rows in the order of this script."""
    order = [row.name for row in ROWS]
    found = sorted(
        content["rows"].items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    )
    columns = [
        "algorithm, environment",
        "steps",
        "seeds",
        "IQM of returns",
        "95 % interval",
        "worst to best seed",
        "target",
    ]
    columns += ["seconds", "steps/s"]
    from rljax.runs.reports.statistics import headline

    rows = []
    for name, row in found:
        scores = headline(row["return"]["per_seed"], row["return"].get("episodes", 0))
        known = [score for score in scores["per_seed"] if score is not None]
        rows.append(
            [
                ", ".join(name.split("/", 1)),
                f"{row['steps'] / 1e6:.3g}M",
                str(row["seeds"]),
                number(scores["iqm"]),
                " to ".join(map(number, scores["ci95"])) if scores["ci95"] else "–",
                f"{number(min(known))} to {number(max(known))}" if known else "–",
                "–" if row["target"] is None else f"{row['target']:g} {'met' if row['met'] else 'missed'}",
                "–" if row["seconds"] is None else f"{row['seconds']:,.0f}",
                "–" if row["steps_per_second"] is None else f"{row['steps_per_second'] / 1e3:,.0f}k",
            ]
        )
    devices = sorted({row["device"] for _, row in found})
    return tables.markdown(columns, rows) + "\n\nOn " + "; ".join(devices) + "."


def number(value: float | None) -> str:
    return "diverged" if value is None else f"{value:.1f}".replace("-", "−")


if __name__ == "__main__":
    sys.exit(main())
