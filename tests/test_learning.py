"""Learning runs of minutes: the presets still learn. `python -m pytest -m slow` runs them."""

import pytest

import rljax


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "env", "goal"),
    [
        ("ppo", "CartPole-v1", 495.0),
        ("ppo", "Acrobot-v1", -80.0),
        ("ppo", "MountainCar-v0", -105.0),
        ("ppo", "MountainCarContinuous-v0", 92.0),
        ("ppo", "Pendulum-v1", -175.0),
        ("a2c", "CartPole-v1", 480.0),
        ("reinforce", "CartPole-v1", 470.0),
        ("trpo", "CartPole-v1", 490.0),
        ("dqn", "CartPole-v1", 400.0),
        ("dqn", "MountainCar-v0", -115.0),
        ("pqn", "CartPole-v1", 490.0),
        ("discrete_sac", "CartPole-v1", 480.0),
        ("ddpg", "Pendulum-v1", -175.0),
        ("td3", "Pendulum-v1", -175.0),
        ("sac", "Pendulum-v1", -175.0),
        ("q_learning", "CliffWalking-tabular", -13.0),
    ],
)
def test_presets_learn(algorithm: str, env: str, goal: float) -> None:
    result = rljax.train(algorithm, env, seeds=4, seed=100, progress=False)
    assert result.summary["return"]["iqm"] >= goal
