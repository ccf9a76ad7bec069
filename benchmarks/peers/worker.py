"""A worker process of a benchmark: one system, pinned, asked by JSON lines over stdin and stdout.

It runs in the environment of the system that it measures, so it imports nothing but the standard library
until it is pinned, then JAX. Requests are {"do": ...}; each answer is one line, with "error" where the
request failed:
    "compile"   with a case (num_envs, num_steps, seeds, iterations) -> {"seconds"} of tracing and compiling
    "time"      -> {"seconds"} of one whole training run of that case, from initialising to the last iteration
    "measure"   -> {"value"}: the mean return after training, of a limit what was measured
    "memory"    -> {"bytes"}: the peak of this process (CPU) or of its first device
    "describe"  -> platform, device, devices, affinity, threads, versions
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = (
    "rljax", "rejax", "gymnax", "jax", "jaxlib", "flax", "optax", "distrax",
    "stable-baselines3", "sbx-rl", "torch", "transformers", "gymnasium",
)  # fmt: skip


EPISODES = 1_000  # of the evaluation after training, where returns are compared


class Trial(NamedTuple):
    """A case, compiled."""

    run: Callable[[], Any]  # one whole training run; blocked on and timed by the worker
    measure: Callable[[Any], Any]  # of what `run` returned -> anything JSON can hold


def serve(
    load: Callable[[argparse.Namespace], Callable[[dict[str, Any]], Trial]],
    describing: Callable[[], dict[str, Any]] | None = None,
    peak: Callable[[], int | None] | None = None,
) -> None:
    """Answer requests until stdin ends. `load` imports the system, once pinned; it returns what compiles.

    `describing` and `peak` answer in place of `describe` and `peak_bytes`, which ask JAX.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--cores", default="", help="comma-separated; empty: no pinning")
    parser.add_argument(
        "--devices", type=int, default=0, help="host devices to show; 0: leave it to the system"
    )
    parser.add_argument("--path", action="append", default=[], help="put before sys.path")
    arguments = parser.parse_args()
    if arguments.cores:
        os.sched_setaffinity(0, [int(core) for core in arguments.cores.split(",")])
    if arguments.devices:
        os.environ["JAX_NUM_CPU_DEVICES"] = str(arguments.devices)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    sys.path[:0] = arguments.path
    prepare, trial, output = load(arguments), None, None

    import jax

    for line in sys.stdin:
        request = json.loads(line)
        try:
            begun = time.perf_counter()
            match request["do"]:
                case "compile":
                    trial = output = None
                    trial = prepare(request)
                    answer = {"seconds": time.perf_counter() - begun}
                case "time":
                    output = None  # so that a run does not share memory with the one before
                    output = jax.block_until_ready(_compiled(trial).run())
                    answer = {"seconds": time.perf_counter() - begun}
                case "measure":
                    answer = {"value": _compiled(trial).measure(output)}
                case "memory":
                    answer = {"bytes": (peak or peak_bytes)()}
                case "describe":
                    answer = (describing or describe)()
                case unknown:
                    raise ValueError(f"a worker cannot {unknown!r}")
        except Exception as error:  # the benchmark goes on without this system
            text = (str(error).strip().splitlines() or [""])[0]
            answer = {"error": f"{type(error).__name__}: {text[:200]}"}
        print(json.dumps(answer), file=answers, flush=True)


def compile_mapped(function: Callable[[Any], Any], seeds: int) -> Callable[[], Any]:
    """`function(key)` over seeds as the peers' READMEs map it: jit, vmap, or pmap over several devices."""
    import jax

    keys, devices = jax.random.split(jax.random.PRNGKey(0), seeds), jax.local_device_count()
    if seeds == 1:
        keys, mapped = keys[0], jax.jit(function)
    elif devices > 1 and seeds % devices == 0:
        keys, mapped = keys.reshape(devices, seeds // devices, *keys.shape[1:]), jax.pmap(jax.vmap(function))
    else:
        mapped = jax.jit(jax.vmap(function))
    compiled = mapped.lower(keys).compile()
    return lambda: compiled(keys)


def peak_bytes() -> int | None:
    """The most memory held at once so far: resident on a CPU, allocated on the first device elsewhere."""
    import jax

    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    try:  # ru_maxrss would count the parent at the time of the fork
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe() -> dict[str, Any]:
    """Where and with what this worker computes."""
    import jax

    device = jax.local_devices()[0]
    affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "platform": device.platform,
        "device": processor() if device.platform == "cpu" else device.device_kind,
        "devices": jax.local_device_count(),
        "affinity": affinity,
        "threads": len(list(Path("/proc/self/task").iterdir())) if Path("/proc/self/task").is_dir() else None,
        "versions": {"python": platform.python_version()}
        | {name: found for name in PACKAGES if (found := installed(name))},
    }


def installed(package: str) -> str | None:
    """The version of an installed or, as a checkout's, imported package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return getattr(sys.modules.get(package), "__version__", None)


def processor() -> str:
    """The processor's name, with what tells apart two that call themselves the same."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        fields = dict(
            line.replace("\t", "").split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line
        )
        extensions = [
            name for name in ("amx_tile", "avx512f", "avx2") if name in fields.get("flags", "").split()
        ]
        limit = re.findall(r"--xla_cpu_max_isa=(\w+)", os.environ.get("XLA_FLAGS", ""))
        limited = [f"limited to {name}" for name in limit[-1:]]
        details = ", ".join(["model " + fields["model"].strip(), *extensions[:1], *limited])
        return f"{fields['model name'].strip()} ({details})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def _compiled(trial: Trial | None) -> Trial:
    if trial is None:
        raise ValueError("nothing is compiled yet")
    return trial
