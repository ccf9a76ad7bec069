import os
import sys

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest

from rljax import checks, envs
from rljax.algorithms import ppo
from rljax.envs import wrappers
from rljax.runs import load, render
from rljax.runs.render import DRAWABLE, draw_episode, roll_out
from rljax.types import Policy

# One of each kind of drawing, and those that compile fast; the slow suite has all.
QUICK = ("CartPole-v1", "Pendulum-v1", "Breakout-MinAtar", "Catch-bsuite", "MetaMaze-misc", "PointRobot-misc")


@pytest.fixture(autouse=True)
def needs_the_extra():
    pytest.importorskip("gymnasium")
    pytest.importorskip("pygame")


def random_policy(env):
    source, params = env.source
    with jax.ensure_compile_time_eval():
        space = source.action_space(params)
    return Policy(tuple, lambda key, obs, carry, greedy: (space.sample(key)[None], carry))


def frames(path):
    from PIL import Image, ImageSequence

    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def drawn_in(frame):
    """Pixels under the heading that are neither white nor the frame of the axes."""
    picture = frame[60:480, 60:540].reshape(-1, 3)
    return len(np.unique(picture, axis=0))


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DRAWABLE]
)
def test_every_drawable_environment_is_drawn_and_moves(name, tmp_path):
    env = envs.make(name)
    steps = 24 if name in ("Asterix-MinAtar", "FourRooms-misc") else 4
    states, rewards = roll_out(env, random_policy(env), jax.random.key(1), steps)
    pick = [0, len(states) // 2, -1]
    path = draw_episode(env.source, [states[i] for i in pick], rewards[pick], tmp_path / "deep" / "e.gif")
    assert path == tmp_path / "deep" / "e.gif"
    pictures = frames(path)
    assert len(pictures) == 3
    assert all(drawn_in(picture) > 1 for picture in pictures)
    assert any(np.abs(pictures[0][60:].astype(int) - other[60:]).max() > 50 for other in pictures[1:])


def test_the_others_are_what_gymnax_leaves_empty(tmp_path):
    """If this fails, Gymnax has learnt to draw one more: add it to DRAWABLE."""
    import gymnax
    from gymnax.visualize import visualizer

    with open(visualizer.__file__) as file:
        text = file.read()
    for name in set(gymnax.registered_envs) - set(DRAWABLE) - {"MNISTBandit-bsuite"}:
        source = envs.make(name).source
        assert source[0].name not in text
        with pytest.raises(ValueError, match=r"cannot draw .*; it draws CartPole-v1, .*Pong-misc$"):
            draw_episode(source, [None], [0.0], tmp_path / "e.gif")


def test_states_show_where_things_are(tmp_path):
    """CartPole drawn from two states that differ in nothing but the cart's place: the cart moves."""
    env = envs.make("CartPole-v1")
    _, state = env.reset(jax.random.key(0))
    places = [state.replace(x=jnp.float32(x), theta=jnp.float32(0.0)) for x in (-1.2, 1.2)]
    left, right = frames(draw_episode(env.source, places, [0.0, 1.0], tmp_path / "cart.gif"))
    place = lambda picture: np.flatnonzero((picture[300:370, 40:560].max(-1) < 60).sum(0) > 5).mean()
    assert place(right) - place(left) == pytest.approx(
        2.4 / 4.8 * 560, rel=0.03
    )  # of x_threshold 2.4 each way


def test_parameters_reach_the_drawing(tmp_path):
    pictures = []
    for length in (0.5, 1.0):
        env = envs.make("CartPole-v1", length=length)
        _, state = env.reset(jax.random.key(0))
        pictures.append(frames(draw_episode(env.source, [state], [0.0], tmp_path / f"{length}.gif"))[0])
    assert (pictures[0] != pictures[1]).any(-1).sum() > 300


def test_roll_out_sums_rewards_and_ends_with_the_episode():
    env = envs.make("Catch-bsuite")
    states, rewards = roll_out(env, random_policy(env), jax.random.key(0), 500)
    assert len(states) == len(rewards) == 10  # the ball falls through nine rows
    np.testing.assert_array_equal(rewards[:-1], 0)
    assert abs(rewards[-1]) == 1
    assert [int(state.ball_y) for state in states] == list(range(10))
    env = envs.make("CartPole-v1")
    always_left = Policy(tuple, lambda key, obs, carry, greedy: (jnp.zeros(1, jnp.int32), carry))
    states, rewards = roll_out(env, always_left, jax.random.key(0), 500)
    assert 5 < len(states) < 20
    np.testing.assert_array_equal(rewards, np.arange(len(states)))
    assert len(roll_out(env, always_left, jax.random.key(0), 3)[0]) == 4


def test_roll_out_carries_memory_and_passes_greedy():
    env = envs.make("CartPole-v1")
    alternate = Policy(
        lambda: jnp.int32(0),
        lambda key, obs, carry, greedy: (jnp.where(greedy, carry % 2, 0)[None], carry + 1),
    )
    lengths = [len(roll_out(env, alternate, jax.random.key(0), 500, greedy)[0]) for greedy in (True, False)]
    assert lengths[0] > 2 * lengths[1]


def test_wrapped_states_are_unwrapped(tmp_path):
    env = wrappers.time_limit(envs.make("Catch-bsuite"), 3)
    states, rewards = roll_out(env, random_policy(env), jax.random.key(0), 500)
    assert len(states) == 4
    assert len(frames(draw_episode(env.source, states, rewards, tmp_path / "e.gif"))) == 4


def test_nothing_outside_is_touched(tmp_path, monkeypatch):
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)  # where SDL's "disk" writes its sound
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    monkeypatch.setenv("SDL_AUDIODRIVER", "disk")
    before = dict(os.environ)
    settings = dict(mpl.rcParams.copy())
    for name in ("CartPole-v1", "PointRobot-misc"):  # the second asks pyplot for its current axes
        env = envs.make(name)
        _, state = env.reset(jax.random.key(0))
        draw_episode(env.source, [state], [0.0], tmp_path / "e.gif")
    assert dict(os.environ) == before
    assert plt.get_fignums() == []
    assert dict(mpl.rcParams.copy()) == settings


def test_render_draws_a_runs_policy(tmp_path, monkeypatch):
    world = envs.make("Catch-bsuite")
    config = ppo.Config(num_envs=2, num_steps=4, num_minibatches=1)
    algorithm = ppo.make(world, config)
    state = algorithm.init(jax.random.key(0))
    asked = {}

    def fake(run, **arguments):
        asked.update(arguments, run=run)
        return load.Loaded(algorithm, world, state, ppo, config, 0)

    monkeypatch.setattr(load, "load", fake)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert render.render("run", member=3).samefile(tmp_path / "run" / "episode.gif")
    own = {"algorithm": None, "changed_algorithm": False}
    assert asked == {"run": "run", "member": 3, "env": None, "network": None, "frozen": None} | own
    assert len(frames("run/episode.gif")) == 10
    assert render.render("run", out=".", max_steps=2).samefile("episode.gif")
    assert len(frames("episode.gif")) == 3
    assert render.render("run", out="mine.gif", max_steps=1, greedy=False).samefile("mine.gif")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_steps": 0}, "max_steps = 0"),
        ({"max_steps": 2.5}, "max_steps = 2.5"),
        ({"seed": -1}, "seed = -1"),
        ({"out": "film.mp4"}, r"film.mp4: .*\.gif"),
    ],
)
def test_misuse_is_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        render.render("nowhere", **arguments)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        render.render("nowhere")


def test_what_cannot_be_drawn_is_said_before_anything_is_rolled_out(tmp_path):
    with pytest.raises(ValueError, match="Gymnax cannot draw the environment; it draws CartPole-v1"):
        draw_episode(None, [], [], tmp_path / "e.gif")
    source = envs.make("Catch-bsuite").source
    with pytest.raises(ValueError, match="0 states"):
        draw_episode(source, [], [], tmp_path / "e.gif")
    _, state = envs.make("Catch-bsuite").reset(jax.random.key(0))
    good = draw_episode(source, [state], [0.0], tmp_path / "e.gif").read_bytes()
    with pytest.raises(checks.RunError, match="failed to draw Catch-bsuite: AttributeError") as caught:
        draw_episode(source, [state, None], [0.0, 1.0], tmp_path / "e.gif")
    assert "\n" not in str(caught.value)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [good]  # no half of a film


@pytest.mark.parametrize("module", ["gymnasium", "pygame"])
def test_a_missing_extra_is_named(module, tmp_path, monkeypatch):
    env = envs.make("CartPole-v1")
    _, state = env.reset(jax.random.key(0))
    for name in list(sys.modules):
        if name.partition(".")[0] == module or name.startswith("gymnax.visualize"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(checks.RunError, match=r'pip install "rljax\[render\]"') as caught:
        draw_episode(env.source, [state], [0.0], tmp_path / "e.gif")
    assert "\n" not in str(caught.value)


def test_drawing_says_how_far_it_is(monkeypatch):
    """At every frame where no five seconds are waited for."""
    monkeypatch.setattr(render, "EVERY", 0.0)
    said = []
    assert list(render._told(iter("abc"), 3, said.append)) == ["a", "b", "c"]
    assert said == ["1 of 3 frames drawn", "2 of 3 frames drawn", "3 of 3 frames drawn"]
