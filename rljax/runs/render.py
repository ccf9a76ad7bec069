"""Render: one episode of a trained policy as a GIF, for every environment that Gymnax can draw.

What a state looks like is Gymnax's own `visualize.Visualizer`. Frames are written here instead of by its
`animate`, which makes a new Gymnasium environment for every frame and goes through pyplot's global figures.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np

from rljax import checks
from rljax.algorithms import AlgorithmLike
from rljax.envs.wrappers import unwrapped
from rljax.runs import stopping
from rljax.types import Env, Key, Network, Policy, PyTree, Task

# Gymnax 1.0.1's Visualizer gives the others an empty picture without a word.
DRAWABLE = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Asterix-MinAtar",
    "Breakout-MinAtar",
    "Freeway-MinAtar",
    "Seaquest-MinAtar",
    "SpaceInvaders-MinAtar",
    "Catch-bsuite",
    "FourRooms-misc",
    "MetaMaze-misc",
    "PointRobot-misc",
    "Pong-misc",
)
EVERY = 5.0  # seconds between two words
_ENDLESS = 1000  # steps of an episode without a time limit
# Read by pygame: no window, no sound card, no greeting.
_SILENT = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "PYGAME_HIDE_SUPPORT_PROMPT": "1"}


@stopping.stoppable()
def render(
    run: Path | str,
    out: Path | str | None = None,
    member: int = 0,
    seed: int = 0,
    max_steps: int | None = None,
    greedy: bool = True,
    env: Env | None = None,
    network: Network | None = None,
    frozen: PyTree = None,
    progress: bool = True,
    algorithm: AlgorithmLike | None = None,
    changed_algorithm: bool = False,
) -> Path:
    """Roll a run's policy out for one episode and draw it; returns the GIF.

    Args:
        run: a folder that `train` wrote, of which the newest checkpoint is used.
        out: the GIF, or a folder for it; None is RUN/episode.gif.
        member: whose policy.
        seed: of the start state and whatever is drawn.
        max_steps: of the episode, which else ends by itself, or after 1000 steps where it has no time limit.
        greedy: the policy's mode, or draws from it.
        env, network, frozen, algorithm, changed_algorithm: as for `load`.
        progress: say on stderr what is done, and every five seconds how many frames are drawn.

    Raises: ValueError or FileNotFoundError for misuse, RunError where the extra `render` is not installed or
        Gymnax fails to draw; each one line.
    """
    from rljax.runs import load
    from rljax.runs.folder import files

    if max_steps is not None:
        max_steps = checks.whole("max_steps", max_steps, low=1)
    (seed,) = load.numbers(seed, 1)
    path = files.at(run) / "episode.gif" if out is None else Path(out).expanduser()
    path = path / "episode.gif" if path.is_dir() else path
    _check_suffix(path)
    if (files.at(run) / files.CONFIG).is_file() and "task" in files.read(run):
        raise ValueError(f"{run} learnt text and has no episode to draw: `rljax generate` writes with it")
    loaded = load.load(
        run,
        member=member,
        env=env,
        network=network,
        frozen=frozen,
        algorithm=algorithm,
        changed_algorithm=changed_algorithm,
    )
    assert not isinstance(loaded.env, Task), "a run of an environment has one"
    _check_drawable(loaded.env.name, loaded.env.source)
    limit = max_steps or loaded.env.max_steps or _ENDLESS
    policy = loaded.algorithm.policy(loaded.state)
    say = _to_stderr if progress else _to_nobody
    say(f"playing an episode of {loaded.env.name}")
    states, rewards = roll_out(loaded.env, policy, jax.random.key(seed), limit, greedy)
    return draw_episode(loaded.env.source, states, rewards, path, say)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _to_nobody(text: str) -> None:
    del text


def roll_out(
    env: Env, policy: Policy, key: Key, max_steps: int, greedy: bool = True
) -> tuple[list[PyTree], np.ndarray]:
    """One episode of at most `max_steps` steps: its n + 1 states from start to end, without the memory of
    wrappers, and (n + 1,) the sum of rewards up to each, the first of which is 0.
    """
    reset_key, run_key = jax.random.split(key)

    @jax.jit
    def step(key: Key, obs: PyTree, state: PyTree, carry: PyTree) -> tuple:
        act_key, env_key = jax.random.split(key)
        action, carry = policy.act(act_key, jax.tree.map(lambda x: x[None], obs), carry, greedy)
        action = jax.tree.map(lambda x: x[0], action)
        obs, state, reward, terminated, truncated = env.step(env_key, state, action)
        return obs, state, carry, reward, terminated | truncated

    obs, state = jax.jit(env.reset)(reset_key)
    carry, states, rewards = policy.init(), [unwrapped(state)], [0.0]
    for t in range(max_steps):
        obs, state, carry, reward, done = step(jax.random.fold_in(run_key, t), obs, state, carry)
        states.append(unwrapped(state))
        rewards.append(float(reward))
        if done:
            break
    return states, np.cumsum(rewards)


def draw_episode(
    env_source: tuple[Any, Any] | None,
    states: Sequence[PyTree],
    cumulative_rewards: Sequence[float] | np.ndarray,
    path: Path | str,
    say: Callable[[str], None] = _to_nobody,
) -> Path:
    """Write a GIF with one frame for each state; returns its path.

    Args:
        env_source: (Gymnax environment, its parameters), an Env's `source`.
        states: n states of the Gymnax environment, in order.
        cumulative_rewards: (n,) the sum of rewards up to each, for the heading.
        path: ends in .gif.
        say: is told how many frames there are, and every five seconds how many are drawn.

    Needs no display and leaves matplotlib's and SDL's settings as they were. Raises: ValueError for an
    environment that Gymnax does not draw, RunError where the extra `render` is missing or Gymnax fails.
    """
    path = Path(path)
    _check_suffix(path)
    gymnax_env, params = _check_drawable("the environment", env_source)
    if not len(states) or len(states) != len(cumulative_rewards):
        raise ValueError(
            f"{len(states)} states and {len(cumulative_rewards)} sums of rewards: as many are needed, not 0"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial.gif")
    with _silent():
        try:
            say(f"drawing {checks.counted(len(states), 'frame')}")
            frames = _told(_frames(gymnax_env, params, states, cumulative_rewards), len(states), say)
            first = next(frames)
            duration = 50 if _is_classic(gymnax_env.name) else 100
            first.save(partial, save_all=True, append_images=frames, duration=duration, loop=0)
            partial.replace(path)
        except ImportError as error:
            raise _missing(error) from error
        except OSError:  # of writing the file
            raise
        except Exception as error:
            if type(error).__name__ == "DependencyNotInstalled":  # Gymnasium's, for pygame
                raise _missing(error) from error
            reason = " ".join(str(error).split())
            raise checks.RunError(
                f"Gymnax failed to draw {gymnax_env.name}: {type(error).__name__}: {reason}"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
    return path


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() != ".gif":
        raise ValueError(f"{path}: an episode is drawn as a GIF, so the file must end in .gif")


def _check_drawable(name: str, source: Any) -> tuple[Any, Any]:
    if not (isinstance(source, tuple) and len(source) == 2 and getattr(source[0], "name", None) in DRAWABLE):
        name = getattr(source[0], "name", name) if isinstance(source, tuple) and source else name
        raise ValueError(f"Gymnax cannot draw {name}; it draws {', '.join(DRAWABLE)}")
    return source


def _missing(error: Exception) -> checks.RunError:
    reason = " ".join(str(error).split())
    return checks.RunError(f'drawing needs the extra `render`: pip install "rljax[render]" ({reason})')


def _is_classic(name: str) -> bool:
    return name in DRAWABLE[:5]


@contextmanager
def _silent() -> Iterator[None]:
    """The environment variables that pygame reads, where they are unset, for as long as this lasts."""
    added = {name: value for name, value in _SILENT.items() if name not in os.environ}
    with mock.patch.dict(os.environ, added):
        yield


def _frames(
    env: Any, params: Any, states: Sequence[PyTree], sums: Sequence[float] | np.ndarray
) -> Iterator[Any]:
    """Every state as a PIL image of 256 colours or fewer."""
    from gymnax.visualize import Visualizer, vis_circle, vis_gym
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    picture: Any = Visualizer.__new__(Visualizer)  # its __init__ would open a figure of pyplot
    picture.env, picture.env_params, picture.state_seq, picture.reward_seq = env, params, states, None
    picture.fig = Figure(figsize=(6, 5), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(picture.fig)
    picture.ax = picture.fig.subplots()
    # The one drawing that asks pyplot for its current axes gets those of this figure.
    with mock.patch.object(vis_circle, "plt", _pyplot(picture.ax)):
        picture.init()
    screen: Any = None
    if _is_classic(env.name):
        import gymnasium

        screen = gymnasium.make(env.name, render_mode="rgb_array")
        screen.reset()
        vis_gym.set_gym_params(screen.unwrapped, env.name, params)
    try:
        for index, state in enumerate(states):
            if screen is None:
                picture.update(index)
            else:
                inner = screen.unwrapped
                inner.state = vis_gym.get_gym_state(state, env.name)
                if env.name == "Pendulum-v1":
                    inner.last_u = np.asarray(state.last_u, np.float64)
                picture.im.set_data(screen.render())
            picture.ax.set_title(
                f"{env.name}: step {index}, return {round(float(sums[index]), 2):g}", fontsize=14
            )
            canvas.draw()
            image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
            yield image.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    finally:
        if screen is not None:
            screen.close()


def _told(frames: Iterator[Any], number: int, say: Callable[[str], None]) -> Iterator[Any]:
    """The frames, with a word every five seconds."""
    last = time.monotonic()
    for index, frame in enumerate(frames, start=1):
        yield frame
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{index:,} of {number:,} frames drawn")


def _pyplot(axes: Any) -> SimpleNamespace:
    from matplotlib.patches import Circle

    return SimpleNamespace(axis=axes.axis, Circle=Circle)
