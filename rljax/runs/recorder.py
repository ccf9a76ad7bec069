"""What a run leaves behind while it runs: rows of metrics, evaluations, checkpoints, and at the end its
summary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rljax import checks
from rljax.algorithms import Definition
from rljax.checks import RunError
from rljax.runs import alike, load
from rljax.runs.folder import checkpoint, files, writers
from rljax.runs.program.engine import Program
from rljax.runs.program.loop import NotFinite, Row
from rljax.runs.program.prefetch import Feeder
from rljax.runs.reports import samples, statistics
from rljax.runs.reports.progress import Progress
from rljax.types import PyTree, Task

# The metrics of training beside each headline, of which an algorithm has one.
TRAINING = {"return": ("episode_return", "reward"), "loss": ("loss",), "accuracy": ("accuracy",)}


class Result(NamedTuple):
    """A finished (or stopped) run."""

    summary: dict[str, Any]  # what summary.json says
    folder: Path | None
    states: PyTree  # of all members, (S, ...), on the host; typed keys as their words
    config: Any
    rows: list[dict[str, Any]]  # what metrics.jsonl says

    def __repr__(self) -> str:
        """A few lines: the states are millions of numbers."""
        return f"Result({told(self.summary)}\n  folder {self.folder})"


def told(summary: dict[str, Any]) -> str:
    """What was trained on what and for how long, and the headline with its seeds; two lines."""
    name = summary["headline"]
    block = summary[name]
    world = summary.get("env") or summary["task"]
    steps = f"{summary['steps']:,} {summary['unit']} per seed"
    shown = lambda value: "–" if value is None else f"{value:.5g}"
    seeds = block["per_seed"]
    each = ", ".join(map(shown, seeds[:10])) + ", …" * (len(seeds) > 10)
    measured = f"{name} {shown(block['mean'])}, IQM {shown(block['iqm'])}"
    measured += f" ({checks.counted(len(seeds), 'seed')}: {each})"
    return f"{summary['algorithm']} on {world}: {steps}\n  {measured}"


Callback = Callable[[dict[str, Any], PyTree], bool | None]


class Options(NamedTuple):
    """What of a run is the host's business: nothing here changes a number that the algorithm computes."""

    checkpoint_every: int = 0  # iterations; 0: only at the end
    keep: int = 3  # newest checkpoints to keep, besides the best
    target_return: float | None = None  # stop when every member's current return has reached it
    evaluate_every: int = 0  # iterations; 0: only at the end
    evaluation_episodes: int = 128  # of a Task: held-out rows
    log_every: int = 0  # iterations; 0: about a hundred rows per run
    samples_every: int = 0  # iterations between tables of sampled completions; 0: none
    samples: int = 4  # completions of each seed in such a table
    tensorboard: bool = False
    wandb: bool = False
    progress: bool = True
    stop_on_nan: bool = True  # a sweep goes on and reports the member's return as null
    # (row, states) -> whether to stop, or several of them: called at every row of metrics with what that says
    # and the states of all members, (S, ...), on the host
    callback: Callback | Sequence[Callback] = ()
    changed_algorithm: bool = False  # resume, though the file of an algorithm of one's own is another by now


# What other libraries call an argument of `train`.
ELSEWHERE = {
    "total_timesteps": "steps",
    "timesteps": "steps",
    "num_timesteps": "steps",
    "max_steps": "steps",
    "num_seeds": "seeds",
    "n_seeds": "seeds",
    "env_id": "env",
    "env_name": "env",
    "env_kwargs": "env_arguments",
    "env_params": "env_arguments",
    "eval_freq": "evaluate_every",
    "save_freq": "checkpoint_every",
    "log_interval": "log_every",
    "output_dir": "out",
    "policy_kwargs": "network",
}


def options_from(given: dict[str, Any], algorithm: Definition | None = None) -> Options:
    """Options from keywords of `train`. Raises: ValueError naming a keyword that is none, with where it
    belongs if it is a field of the algorithm's Config; or a value that is out of range.
    """
    for name, value in given.items():
        if name in Options._fields:
            continue
        if algorithm is not None and name in [field.name for field in algorithm.fields()]:
            told = f'{{"{name}": {checks.show(value)}}}'
            raise ValueError(f"train has no option {name}: it is of the Config, config={told}")
        hint = f"; did you mean {ELSEWHERE[name]}?" if name in ELSEWHERE else ""
        raise ValueError(f"train has no option {name}{hint or checks.suggest(name, Options._fields)}")
    options = Options(**given)
    lowest = dict.fromkeys(("checkpoint_every", "evaluate_every", "log_every", "samples_every"), 0)
    lowest |= dict.fromkeys(("keep", "evaluation_episodes", "samples"), 1)
    counts = {name: checks.whole(name, getattr(options, name), low) for name, low in lowest.items()}
    target = options.target_return
    if target is not None and (not checks.is_real(target) or np.ndim(target) or math.isnan(target)):
        raise ValueError(f"target_return = {checks.show(target)}: must be a number")
    for name in ("tensorboard", "wandb", "progress", "stop_on_nan", "changed_algorithm"):
        if not isinstance(getattr(options, name), bool):
            raise ValueError(f"{name} = {checks.show(getattr(options, name))}: must be True or False")
    for each in several(options.callback):
        if not callable(each):
            raise ValueError(
                f"callback = {checks.show(each)}: must be a function of (row, states), or a list"
            )
    return options._replace(**counts, target_return=None if target is None else float(target))


def several(callback: Callback | Sequence[Callback]) -> Sequence[Callback]:
    """A callback, or several of them, as several."""
    return callback if isinstance(callback, Sequence) else (callback,)


class Recorder:
    """The host's side of one run. It holds what has been written, never what is computed with."""

    def __init__(
        self,
        setup: load.Setup,
        program: Program,
        run: Path | None,
        description: dict[str, Any],
        options: Options,
        bar: Progress,
        restored: checkpoint.Restored | None,
        feeder: Feeder | None = None,
    ) -> None:
        self.feeder = feeder
        self.setup, self.program, self.run, self.options, self.bar = setup, program, run, options, bar
        self.seeds = description["seeds"]
        self.headline = setup.algorithm.headline
        self.per_iteration = setup.config.steps_per_iteration
        self.initial = setup.config.initial_steps
        self.iteration = restored.iteration if restored else 0
        self.seconds = restored.metadata["seconds"] if restored else 0.0
        self.before = (self.iteration, self.seconds)
        self.retry = load.retries(run) if run else 0
        self.saved = self.iteration if restored else -1
        self.evaluated = -1  # the iteration of the newest evaluation
        self.rows: list[dict[str, Any]] = []
        self.current: np.ndarray | None = None  # (S,) the newest return of each member, NaN for none
        if restored and restored.metadata["returns"] is not None:
            self.current = np.asarray(restored.metadata["returns"], np.float64)
        self.writers = writers.writers(
            run, description, options.tensorboard, options.wandb, self.iteration if restored else None
        )

    def steps(self, iteration: int) -> int:
        """Environment steps of each member after so many iterations."""
        return self.initial + iteration * self.per_iteration

    def rate(self, iteration: int, seconds: float) -> float:
        """Environment steps per second since this process began training, over all members."""
        spent = max(seconds - self.before[1], 1e-9)
        return (iteration - self.before[0]) * self.per_iteration * len(self.seeds) / spent

    def tick(self, iteration: int, seconds: float, metrics: dict[str, np.ndarray]) -> None:
        if not self.options.evaluate_every:
            self.see(next((metrics[name] for name in TRAINING[self.headline] if name in metrics), None))
        speed = self.rate(iteration, self.before[1] + seconds)
        self.bar.update(self.steps(iteration), speed, self.score(), self.label())

    def label(self) -> str:
        """What the score is: of training, whose policy explores, or of evaluations."""
        if not self.options.evaluate_every:
            return f"training {self.headline}"
        return f"{'greedy' if self.headline == 'return' else 'held-out'} {self.headline}"

    def see(self, returns: np.ndarray | None) -> None:
        if returns is not None and not np.isnan(returns).all():
            self.current = (
                returns if self.current is None else np.where(np.isnan(returns), self.current, returns)
            )

    def score(self) -> float | None:
        """The mean current return of the members that have a finite one."""
        finite = () if self.current is None else self.current[np.isfinite(self.current)]
        return float(np.mean(finite)) if len(finite) else None

    def record(self, row: Row, states: PyTree) -> None:
        """Write one row, with an evaluation and a checkpoint where they are due."""
        self.iteration, self.seconds = row.iteration, self.before[1] + row.seconds
        content = {
            "iteration": row.iteration,
            "steps": self.steps(row.iteration),
            "seconds": round(self.seconds, 3),
            "steps_per_second": round(self.rate(row.iteration, self.seconds), 1),
        } | {name: column.tolist() for name, column in row.metrics.items()}
        if self.due(self.options.evaluate_every):
            self.current = evaluated = self.evaluate(states).means
            self.evaluated = row.iteration
            content[f"evaluation_{self.headline}"] = evaluated.tolist()
        self.rows.append(content)
        for writer in self.writers:
            writer.write(content)
        if self.due(self.options.samples_every):
            self.show(states)
        if self.due(self.options.checkpoint_every):
            self.save(states)

    def show(self, states: PyTree) -> None:
        """Completions of a cycle that is not learnt from: those of the first seed on the terminal, of all in
        samples.jsonl.
        """
        if self.program.inspect is None or not isinstance(self.setup.env, Task):
            return
        rollout, scores, advantage = self.program.fetch(self.program.inspect(states, self.iteration))
        number = self.options.samples
        content = samples.rows(self.setup.env, rollout, scores, advantage, self.seeds, number)
        if self.run is not None:
            samples.write(self.run, self.iteration, content)
        first = [row for row in content if row["seed"] == self.seeds[0]]
        self.bar.show(samples.table(self.iteration, first[:number]))

    def due(self, every: int) -> bool:
        return every > 0 and self.iteration % every == 0

    def reached_target(self) -> bool:
        """Whether every member's current return has reached the target, which ends the run."""
        target = self.options.target_return
        if target is None or self.current is None or not (self.current >= target).all():
            return False
        spent = f"{self.steps(self.iteration):,} {self.setup.algorithm.unit}"
        self.bar.say(f"every seed reached a {self.label()} of {target:g} after {spent}")
        return True

    def asked_to_stop(self, states: PyTree) -> bool:
        """Whether a callback of the user's, called with the last row and the states, has said True."""
        if not self.options.callback:
            return False
        hosted = self.program.fetch(states)
        answers = [callback(self.rows[-1], hosted) for callback in several(self.options.callback)]
        if asked := any(answer is True for answer in answers):
            self.bar.say(
                f"a callback ends the run after {self.steps(self.iteration):,} {self.setup.algorithm.unit}"
            )
        return asked

    def evaluate(self, states: PyTree) -> statistics.Measured:
        """The return of the greedy policy, or of a Task the loss or accuracy of its held-out rows."""
        evaluated = self.program.evaluate(states, self.iteration, self.options.evaluation_episodes)
        text = isinstance(self.setup.env, Task)
        found = statistics.measured(self.headline, text, *self.program.fetch(evaluated))
        if found.note:
            self.bar.say(found.note)
        return found

    def save(self, states: PyTree) -> None:
        """A checkpoint of this iteration, if there is a folder and none yet."""
        if self.run is None or self.saved == self.iteration:
            return
        returns = [] if self.current is None else self.current.tolist()
        known = [value if math.isfinite(value) else None for value in returns]
        score = (
            self.score() if self.evaluated == self.iteration else None
        )  # of these very parameters, or none
        best = -score if score is not None and self.headline == "loss" else score  # the highest is the best
        metadata = {"seconds": self.seconds, "score": best, "returns": known or None}
        if self.feeder is not None:
            metadata["feed"] = self.feeder.begins(self.iteration)
        where = self.run / files.CHECKPOINTS
        checkpoint.save(where, self.iteration, self.program.fetch(states), metadata, self.options.keep)
        self.saved = self.iteration

    def failure(self, error: NotFinite) -> RunError:
        """What to tell of NaN or Inf; recorded, so that a resumed run draws other random numbers."""
        members = ", ".join(str(self.seeds[member]) for member in error.members[:8])
        names = ", ".join(error.metrics)
        text = f"{names} became NaN or infinite in iteration {error.iteration} (seed {members})"
        if self.run is None:
            return RunError(f"{text}; lower the learning rate, or look at the rewards or the text")
        last = checkpoint.latest(self.run / files.CHECKPOINTS)
        content = {
            "iteration": error.iteration,
            "metrics": error.metrics,
            "seeds": [self.seeds[i] for i in error.members],
        }
        files.write(
            self.run, files.FAILURE, content | {"checkpoint": last and last.name, "retry": self.retry + 1}
        )
        saved = (
            f"the last finite checkpoint is {last}; --resume goes on from it with other random numbers"
            if last
            else ("no checkpoint was saved before it; use --checkpoint-every")
        )
        return RunError(f"{text}; {saved}, --init starts anew from its parameters with another Config")

    def finish(self, states: PyTree, startup: dict[str, float]) -> Result:
        """The final evaluation, summary.json and curve.png. `startup` is the time before training."""
        found = self.evaluate(states)
        more = alike.sampled(self.setup.env, self.program, states, self.iteration, found)
        steps = self.steps(self.iteration)
        learnt = (steps - self.initial) * len(self.seeds)  # without those of `init`, as in `seconds`
        hosted = self.program.fetch(states)
        summary = {
            "algorithm": self.setup.algorithm.name,
            load.kind(self.setup): self.setup.env_name,
            "steps": steps,
            "unit": self.setup.algorithm.unit,
            "seeds": len(self.seeds),
            "headline": self.headline,
            self.headline: statistics.headline(found.means.tolist(), found.number),
            **more,
            "steps_per_second": round(learnt / self.seconds, 1) if self.seconds else None,
            "compile_seconds": round(startup["trace"] + startup["compile"], 2),
            "startup": startup,
            "device": files.device(),
            "state_sha256": checkpoint.sha256_of(hosted),
            "finished": True,
        }
        if self.run is not None:
            files.write(self.run, files.SUMMARY, summary)
            (self.run / files.FAILURE).unlink(missing_ok=True)
            from rljax.runs.report import draw_curve

            draw_curve(self.run)
        return Result(summary, self.run, hosted, self.setup.config, self.rows)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
