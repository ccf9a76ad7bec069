"""The processor at hand, and what JAX is told about it: once before it starts, and with each program.

What is fast and what is right differ between processors and between versions of jaxlib, so each choice stands
here with the measurement behind it (benchmarks/README.md has the tables).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import platform
import re
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

Layout = Literal["rows", "columns"]
Use = Literal["training", "evaluation", "start"]
LAYOUTS: tuple[Layout, ...] = ("rows", "columns")
FUSION_FLAG = "xla_cpu_experimental_ynn_fusion_type"
EMITTERS = "xla_cpu_use_fusion_emitters"
CACHE_BYTES = 2**30  # what one folder of compiled programs may hold
MARK, HOUR = "tidied", 3600.0  # a file whose age tells when the folder was tidied last
SETTLED = 60.0  # seconds after which another process has surely finished writing a file of the cache


class Processor(NamedTuple):
    """The processor that programs are compiled for."""

    name: str
    features: frozenset[str]  # as Linux names them; empty where they are not known


@functools.cache
def processor() -> Processor:
    """This machine's processor, as /proc/cpuinfo describes it."""
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return Processor(platform.processor() or platform.machine(), frozenset())
    fields = {}
    for line in first.splitlines():
        name, _, value = line.partition(":")
        fields[name.strip()] = value.strip()
    features = fields.get("flags", fields.get("Features", "")).split()
    return Processor(fields.get("model name") or platform.machine(), frozenset(features))


def wide() -> bool:
    """Whether the processor has registers of 512 bits, whatever XLA_FLAGS allows to XLA itself: YNNPACK
    chooses its kernels by the processor.
    """
    return "avx512f" in processor().features


@functools.cache
def layout() -> Layout:
    """How small networks lay out a large batch: its items as columns, or as rows.

    With registers of 512 bits PPO on CartPole took 0.80 of the steps per second in rows (Intel Xeon) or 0.93
    (AMD EPYC, Zen 4), without them 1.17 to 1.24 times as many (AMD EPYC, Zen 3). RLJAX_LAYOUT overrides the
    choice.

    Raises: ValueError where RLJAX_LAYOUT is neither.
    """
    wanted = os.environ.get("RLJAX_LAYOUT", "")
    for each in LAYOUTS:
        if wanted == each:
            return each
    if wanted:
        raise ValueError(f"RLJAX_LAYOUT={wanted!r}: must be rows or columns")
    return "columns" if wide() else "rows"


@functools.cache
def jaxlib_0_10() -> bool:
    """Whether this is the jaxlib that Python 3.11 gets, 0.10; newer ones have other options."""
    return version("jaxlib").startswith("0.10.")


def fusions() -> str | None:
    """The fusions that YNNPACK may take over in XLA's CPU backend: None leaves XLA's own choice.

    jaxlib 0.10 computes products fused with sums wrongly for some numbers of rows (jax-ml/jax #39103), so
    YNNPACK gets single products there, which are right and as fast (1.12 to 1.15 times the steps per second
    of none at all, in PPO and DQN on an AMD EPYC, Zen 4), or nothing on processors without registers of 512
    bits, where XLA's own products are faster.
    """
    if not jaxlib_0_10():
        return None
    return "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT" if wide() else ""


def described() -> dict[str, str]:
    """The choices of this file that decide the last bits of a run, and the processor that they are for."""
    chosen = _set_fusions()
    fused = "XLA's own" if chosen is None else chosen or "none"
    return {"processor": processor().name, "layout": layout(), "fusions": fused}


def prepare() -> None:
    """Tell JAX, before it starts, how many devices to show, which fusions to leave out, and where it keeps
    compiled programs. What the user has set already stays.
    """
    use_every_core()
    leave_out_wrong_fusions()
    keep_compiled_programs()


def use_every_core() -> None:
    """Let JAX's CPU backend show one device per core, so that members of a run can be sharded over cores.

    Only before JAX has started, and only if nothing was asked for already: RLJAX_HOST_DEVICES=1 opts out,
    another number sets that many, and XLA_FLAGS' or JAX's own setting wins. A single seed runs on one device
    and keeps every core for its matmuls.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    wanted = os.environ.get("RLJAX_HOST_DEVICES", "")
    if wanted and (not wanted.isdigit() or int(wanted) < 1):
        raise SystemExit(
            f"rljax: error: RLJAX_HOST_DEVICES={wanted!r}: must be a number of devices, 1 for no sharding"
        )
    count = int(wanted) if wanted else cores()
    if count > 1:
        configure("jax_num_cpu_devices", count)


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def leave_out_wrong_fusions() -> None:
    """Append `fusions` to XLA_FLAGS, for every jit of this process and its children that JAX has not started
    yet.
    """
    flags, chosen = os.environ.get("XLA_FLAGS", ""), fusions()
    if chosen is not None and FUSION_FLAG not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{FUSION_FLAG}={chosen}".strip()


def cache_folder() -> Path | None:
    """The folder for compiled programs of this processor and this jaxlib, None where there is to be none.

    JAX's own key knows nothing of the processor, and code for another one can crash, so each has a folder.
    RLJAX_COMPILATION_CACHE=0 opts out, another value names the folder around it.
    """
    wanted = os.environ.get("RLJAX_COMPILATION_CACHE", "")
    if wanted == "0":
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    try:
        root = Path(wanted or home / "rljax" / "compiled").expanduser().absolute()
    except RuntimeError:  # no home
        return None
    here = processor()
    told = "\n".join([platform.machine(), here.name, *sorted(here.features)])
    return root / f"jaxlib-{version('jaxlib')}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"


def keep_compiled_programs() -> None:
    """Let JAX keep what it compiles in `cache_folder`, unless JAX's own settings say where already."""
    folder = cache_folder()
    if folder is None or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    if "jax" in sys.modules and _kept_in() is not None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    if os.access(folder, os.W_OK):
        configure("jax_compilation_cache_dir", str(folder))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            configure("jax_persistent_cache_min_compile_time_secs", 0.0)
        # What cannot be read is compiled: `tidy` removes it, and nobody has to know.
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def _kept_in() -> str | None:
    """The folder in which JAX keeps compiled programs."""
    import jax

    config: Any = jax.config
    return config.jax_compilation_cache_dir


def configure(name: str, value: Any) -> None:
    """Set an option of JAX, by its environment variable where JAX is not imported yet."""
    if "jax" not in sys.modules:
        os.environ[name.upper()] = str(value)
        return
    with contextlib.suppress(RuntimeError):  # JAX has started: the devices that it shows now stay
        sys.modules["jax"].config.update(name, value)


def tidy_cache() -> None:
    """`tidy` the folder of compiled programs, at most once an hour, if JAX keeps them where rljax said."""
    folder = cache_folder()
    if folder is None or _kept_in() != str(folder):
        return
    mark = folder / MARK
    with contextlib.suppress(OSError):
        if not mark.exists() or time.time() - mark.stat().st_mtime > HOUR:
            tidy(folder)


def tidy(folder: Path, limit: int = CACHE_BYTES) -> None:
    """Remove broken files that were written since the last call, and the longest unused ones above `limit`
    bytes.

    JAX never replaces a file: one that a killed process left half-written would cost a compilation each time.
    """
    mark, now = folder / MARK, time.time()
    last = mark.stat().st_mtime if mark.exists() else 0.0
    files = []
    for path in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has removed it
            told = path.stat()
            if last - SETTLED <= told.st_mtime < now - SETTLED:
                if not _whole(path):
                    path.unlink()
                    continue
                os.utime(path, ns=(told.st_atime_ns, told.st_mtime_ns))  # to look is not to use
            files.append((max(told.st_atime, told.st_mtime), told.st_size, path))
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= limit:
            break
        with contextlib.suppress(OSError):
            path.unlink()
            held -= size
    with contextlib.suppress(OSError):
        mark.touch()


def _whole(path: Path) -> bool:
    """Whether a compressed file of JAX's cache was written to its end; True for what only JAX can read."""
    content = path.read_bytes()
    if content[:1] != b"\x78":  # not zlib, which JAX takes unless zstandard is installed
        return len(content) > 0
    try:
        zlib.decompress(content)
    except zlib.error:
        return False
    return True


def _set_fusions() -> str | None:
    """The fusions that XLA_FLAGS names, the user's or ours: None where it names none."""
    found = re.findall(rf"--{FUSION_FLAG}=(\S*)", os.environ.get("XLA_FLAGS", ""))
    return found[-1] if found else None


def compiler_options(device: Any, use: Use = "training") -> dict[str, Any]:
    """What a program is compiled with for this device, by what it is used for.

    On a CPU with registers of 512 bits LLVM prefers half of them unless told otherwise: using them whole gave
    5 to 16 % more steps per second of DQN, TD3 and SAC. LLVM's level 1 gives programs as fast as level 3 and
    compiles a fifth faster. Without XLA's fusion emitters, which jaxlib 0.10 can leave out, training takes up
    to twice as long, but what plays episodes does not and compiles in half the time ("evaluation"); at level
    0 in a fifth of it (the start of DQN in 1.1 s, not 5.8), which pays for what runs once ("start").
    """
    if device.platform != "cpu":
        return {}
    options: dict[str, Any] = {"xla_cpu_prefer_vector_width": 512}
    if (chosen := _set_fusions()) is not None:  # said again, as JAX may have started before rljax
        options[FUSION_FLAG] = chosen
    if use != "training" and jaxlib_0_10():
        options[EMITTERS] = False
    import jax

    if use == "start":
        options["xla_backend_optimization_level"] = 0
    elif not jax.config.read("jax_disable_most_optimizations"):
        options["xla_backend_optimization_level"] = 1
    return options


class Importing:
    """How long imports of large packages took: `with importing:` around each."""

    def __init__(self) -> None:
        self.seconds, self.depth = 0.0, 0

    def take(self) -> float:
        """The seconds since the last call."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def __enter__(self) -> None:
        self.depth += 1
        if self.depth == 1:
            self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            self.seconds += time.perf_counter() - self.begun


importing = Importing()


class _Later(ModuleType):
    """Stands for a module until something of it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def later(*names: str) -> Iterator[None]:
    """What is imported within gets modules of these names that load when something of them is first used."""
    missing = [name for name in names if name not in sys.modules]
    sys.modules.update({name: _Later(name) for name in missing})
    try:
        yield
    finally:
        for name in missing:
            if isinstance(sys.modules.get(name), _Later):
                del sys.modules[name]
