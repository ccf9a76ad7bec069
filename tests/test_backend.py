"""The processor's settings: right sums, kept programs, layouts, and what a user has set stays."""

import os
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import algorithms, backend, envs
from rljax.models import layers
from rljax.runs.program.compiler import Compiler
from rljax.types import Task
from tests.algorithms import tasks

ROWS = 40_000  # for which jaxlib 0.10.2 computes a product fused with a sum wrongly (jax-ml/jax #39103)
SUMS = f"""
import numpy as np, MODULE
import jax
m = np.arange(9, dtype=np.float32).reshape(3, 3) / 9 - 0.3
x = np.random.default_rng(0).normal(size=({ROWS}, 3)).astype(np.float32)
found = np.asarray(jax.jit(lambda x: jax.vmap(lambda row: ((m @ row) ** 2).sum())(x))(x))
right = ((x.astype(np.float64) @ m.T.astype(np.float64)) ** 2).sum(1)
print(np.abs(found - right).max() / right.max())
"""


def run(code: str, **environment: str) -> str:
    """What a new process prints, with the settings of a user and not of the tests."""
    ours = ("XLA_FLAGS", "JAX_", "RLJAX_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_users_own_jit_sums_rightly() -> None:
    # Three products and three squares are added: a few machine epsilons.
    assert (
        float(run(SUMS.replace("MODULE", "rljax"), RLJAX_COMPILATION_CACHE="0"))
        < 8 * np.finfo(np.float32).eps
    )


@pytest.mark.skipif(not version("jaxlib").startswith("0.10.2"), reason="another jaxlib is right by itself")
def test_without_rljax_it_does_not() -> None:
    assert float(run(SUMS.replace("MODULE", "sys"))) > 1e-3


def test_programs_sum_rightly() -> None:
    m = np.arange(9, dtype=np.float32).reshape(3, 3) / 9 - 0.3
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    squares = jax.vmap(lambda row: ((m @ row) ** 2).sum())
    found = Compiler({}, jax.local_devices()[0])("squares", squares, (x,))(x)
    right = ((x.astype(np.float64) @ m.T.astype(np.float64)) ** 2).sum(1)
    np.testing.assert_allclose(found, right, rtol=0, atol=8 * np.finfo(np.float32).eps * right.max())


def test_flags_are_appended_and_never_over_the_users() -> None:
    shown = "import os, rljax; print(os.environ.get('XLA_FLAGS', ''))"
    flag = f"--{backend.FUSION_FLAG}="
    chosen = backend.fusions()
    ours = "" if chosen is None else f"{flag}{chosen}"
    assert run(shown) == ours
    assert run(shown, XLA_FLAGS="--xla_cpu_max_isa=AVX2") == f"--xla_cpu_max_isa=AVX2 {ours}".strip()
    assert run(shown, XLA_FLAGS=f"{flag}DOT") == f"{flag}DOT"


def test_the_folder_is_of_one_processor_and_one_jaxlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLJAX_COMPILATION_CACHE", "/somewhere")
    here = backend.cache_folder()
    assert here is not None
    assert here.parent == Path("/somewhere")
    assert version("jaxlib") in here.name
    other = backend.Processor("another", backend.processor().features - {"avx2"})
    monkeypatch.setattr(backend, "processor", lambda: other)
    assert backend.cache_folder() != here
    monkeypatch.setenv("RLJAX_COMPILATION_CACHE", "0")
    assert backend.cache_folder() is None


KEPT = "import rljax, jax; print(jax.config.jax_compilation_cache_dir)"


def test_what_the_user_says_of_the_cache_stays(tmp_path: Path) -> None:
    assert run(KEPT, JAX_COMPILATION_CACHE_DIR=str(tmp_path)) == str(tmp_path)
    assert run(KEPT, RLJAX_COMPILATION_CACHE="0") == "None"
    assert run(KEPT, RLJAX_COMPILATION_CACHE=str(tmp_path)).startswith(f"{tmp_path}/jaxlib-")
    first = "import jax; jax.config.update('jax_compilation_cache_dir', '/mine')\n"
    assert run(first + KEPT, RLJAX_COMPILATION_CACHE=str(tmp_path)) == "/mine"


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path: Path) -> None:
    taken = tmp_path / "file"
    taken.write_text("")
    assert run(KEPT, RLJAX_COMPILATION_CACHE=str(taken)) == "None"


TRAIN = """
import json, sys, rljax
config = {"num_envs": 4, "num_steps": 8, "hidden_sizes": (8,)}
given = {"steps": 4 * 32, "out": sys.argv[1], "progress": False, "evaluation_episodes": 2}
result = rljax.train("a2c", "CartPole-v1", config, checkpoint_every=2, resume="resume" in sys.argv, **given)
print(json.dumps([result.summary["state_sha256"], result.summary["startup"]["cached"]]))
"""


def test_a_warm_start_gives_the_same_bits_and_says_so(tmp_path: Path) -> None:
    """Cold, from the cache, with a broken cache, and resumed across the two."""
    cache, runs = tmp_path / "cache", tmp_path / "runs"
    train = lambda name, *words, **more: run(
        TRAIN.replace("sys.argv", repr(["", str(runs / name), *words])),
        **{"RLJAX_COMPILATION_CACHE": str(cache)} | more,
    )
    sha, cached = eval(train("cold"))
    assert cached == 0
    assert eval(train("warm")) == [sha, 2]
    # a run that was stopped after its second iteration goes on with programs from the cache
    (runs / "half").mkdir(parents=True)
    for path in (runs / "cold").glob("*"):
        if path.name in ("config.json", "metrics.jsonl"):
            (runs / "half" / path.name).write_bytes(path.read_bytes())
    whole = next((runs / "cold" / "checkpoints").glob("*2"))
    shutil.copytree(whole, runs / "half" / "checkpoints" / whole.name)
    assert eval(train("half", "resume"))[0] == sha
    assert eval(train("without", RLJAX_COMPILATION_CACHE="0")) == [sha, 0]
    for path in cache.glob("*/*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert eval(train("broken")) == [sha, 0]


def test_tidying_removes_what_is_broken_and_what_was_not_used_for_long(tmp_path: Path) -> None:
    old = time.time() - 1000
    for number, content in enumerate(
        [zlib.compress(b"a" * 100), zlib.compress(b"b" * 100)[:-3], b"", b"(xyz"]
    ):
        path = tmp_path / f"{number}-cache"
        path.write_bytes(content)
        os.utime(path, (old + number, old + number))
    fresh = tmp_path / "fresh-cache"
    fresh.write_bytes(b"\x78half")  # another process may be writing it
    backend.tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*-cache")) == ["0-cache", "3-cache", "fresh-cache"]
    backend.tidy(tmp_path, limit=8)
    assert [path.name for path in tmp_path.glob("*-cache")] == ["fresh-cache"]


@pytest.mark.parametrize("batch", [6, 150])
def test_rows_and_columns_are_one_network(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(3, batch)).astype(np.float32)
    results = []
    for layout in backend.LAYOUTS:
        monkeypatch.setattr(backend, "layout", lambda layout=layout: layout)
        network = layers.MLP((8, 5), "silu", normalization="layer")

        def loss(params: Any, x: Any, network: layers.MLP = network) -> Any:
            value = network.apply(params, x)
            assert isinstance(value, jax.Array)
            return jnp.square(value).sum()

        params = jax.jit(network.init)(jax.random.key(0), x)
        results.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x))
    # Sums over at most 150 items of size one, in another order.
    for one, two in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(
            one, two, rtol=1e-5, atol=150 * np.finfo(np.float32).eps * np.abs(one).max()
        )


def test_the_layout_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLJAX_LAYOUT", "rows")
    assert backend.layout.__wrapped__() == "rows"
    monkeypatch.setenv("RLJAX_LAYOUT", "diagonals")
    with pytest.raises(ValueError, match="RLJAX_LAYOUT='diagonals': must be rows or columns"):
        backend.layout.__wrapped__()


def test_gymnax_comes_without_its_drawings_which_still_draw() -> None:
    code = """
import sys, rljax
from rljax import envs
envs.make("CartPole-v1")
print(sorted({"seaborn", "pandas", "scipy.stats", "matplotlib.pyplot"} & set(sys.modules)))
from gymnax.environments.misc import pong
print(len(pong.sns.color_palette("cubehelix", 3)), "seaborn" in sys.modules)
"""
    assert run(code) == "[]\n3 True"


LARGE = 32_769  # rows of one minibatch
ON_POLICY = {"num_envs": 10_923, "num_steps": 3}
OFF_POLICY = {
    "num_envs": 64,
    "num_steps": 1,
    "learning_starts": 640,
    "batch_size": LARGE,
    "buffer_size": LARGE,
}
LANGUAGE = {"hidden_size": 6, "num_layers": 1, "num_heads": 1}
ROWS_OF_TEXT = {"length": 11, "batch_size": 2_979, "chunk": 11, "num_micro": 1}
TOKENS = {"num_prompts": 3, "group_size": 2_731, "chunk": 4, "num_epochs": 1, "num_micro": 1}  # of four each
STARTED = {name: tasks.SIZES[name] for name in ("hidden_size", "num_layers", "num_heads")}
PAIRS = {"batch_size": 3_641, "num_micro": 1}  # of nine tokens at most


def pairs() -> Task:
    learn = tasks.judged(3_641)
    policy = tasks.started_task().params
    return Task("ones", tasks.VOCABULARY, learn, learn, policy, max_new_tokens=5, stop_ids=(0,))


ODD: dict[str, tuple[str | Callable[[], Task], dict[str, Any]]] = {
    "reinforce": ("Pendulum-v1", {"num_envs": 163, "num_steps": 201}),
    "a2c": ("Acrobot-v1", ON_POLICY),
    "ppo": ("Pendulum-v1", ON_POLICY | {"num_minibatches": 1, "num_epochs": 1}),
    "trpo": (
        "Acrobot-v1",
        ON_POLICY | {"num_minibatches": 1, "num_value_epochs": 1, "conjugate_gradient_iterations": 2},
    ),
    "pqn": ("Acrobot-v1", ON_POLICY | {"num_minibatches": 1, "num_epochs": 1}),
    "dqn": ("MountainCar-v0", OFF_POLICY),
    "c51": ("MountainCar-v0", OFF_POLICY | {"atoms": 11, "value_low": -100.0, "value_high": 0.0}),
    "qrdqn": ("MountainCar-v0", OFF_POLICY | {"quantiles": 3}),
    "iqn": (
        "MountainCar-v0",
        OFF_POLICY | {"batch_size": 4_097, "num_quantiles": 3, "num_policy_quantiles": 3},
    ),
    "rainbow": ("MountainCar-v0", OFF_POLICY | {"atoms": 3, "value_low": -100.0, "value_high": 0.0}),
    "ddpg": ("Pendulum-v1", OFF_POLICY),
    "td3": ("Pendulum-v1", OFF_POLICY),
    "sac": ("Pendulum-v1", OFF_POLICY),
    "discrete_sac": ("MountainCar-v0", OFF_POLICY),
    "pretrain": (
        tasks.text_task,
        LANGUAGE | {"length": 11, "batch_size": 2_979, "chunk": 11, "num_micro": 1},
    ),
    "reward_model": (pairs, STARTED | PAIRS | {"normalization_samples": 2}),
    "dpo": (pairs, STARTED | PAIRS | {"chunk": 5}),
    "grpo": (tasks.rewarded_task, LANGUAGE | TOKENS),
}


@pytest.mark.parametrize("name", ODD)
def test_an_update_of_an_odd_large_batch_is_what_it_is_without_fusions(name: str) -> None:
    """Compiled as users get it, and compiled plainly: of text one algorithm for each kind of batch."""
    world, fields = ODD[name]
    module = algorithms.find(name).module
    control = isinstance(world, str)
    small = {"hidden_sizes": (3,) if name != "iqn" else (3, 3)} if control else {}
    config = module.Config(**small | fields | {"total_steps": 10**6})
    algorithm = module.make(envs.make(world) if control else world(), config)
    device = jax.local_devices()[0]
    plain = backend.compiler_options(device, "start") | {backend.FUSION_FLAG: ""}
    key = jax.random.key(0)
    start = jax.jit(algorithm.init).lower(key).compile(plain)(key)
    lowered = jax.jit(algorithm.step).lower(key, start)
    users = backend.compiler_options(device) | ({backend.EMITTERS: True} if backend.jaxlib_0_10() else {})
    one, two = (lowered.compile(options)(key, start) for options in (users, plain))
    for (path, mine), theirs in zip(
        jax.tree_util.tree_leaves_with_path(one[0].params), jax.tree.leaves(two[0].params), strict=True
    ):
        # Adam's first step is ± the learning rate where a gradient is not rounding alone; sums of LARGE
        # terms differ by √LARGE machine epsilons, which Adam divides by the gradient's size.
        where = jax.tree_util.keystr(path)
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=2e-5, err_msg=where)
    if not control:  # metrics of text count ties and measure what is 0 but for rounding
        return
    for mine, theirs in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
