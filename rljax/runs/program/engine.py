"""One compiled program for any number of members: seeds, and configurations that differ in numbers.

A member is one training run. What differs between members (keys, states, swept Config leaves) has a leading
axis S; the rest (frozen arrays, the base Config, how many iterations, the retry count) is shared. `make` is
called inside the trace, so that Config leaves are arguments of the program. Members are mapped on each device
(`vmap` or `lax.map`) and sharded over devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from rljax.runs.program import host_rewards, layout
from rljax.runs.program.compiler import Compiler, Seconds
from rljax.runs.program.host_rewards import iteration_key, sound
from rljax.types import SIDE_BY_SIDE, Algorithm, Array, Env, Key, Mean, Policy, PyTree, Scores, Task

EVALUATION = 2**31 - 1  # folded into the run key where training folds an iteration


class Program(NamedTuple):
    """Compiled functions over S members (padded to a multiple of the devices) and what compiling took."""

    init: Callable[[], PyTree]  # () -> states (S, ...)
    advance: Callable[
        ..., tuple[PyTree, PyTree, Array]
    ]  # (states, n, retry, learn=None) -> (states, summed metrics, first bad iteration); `learn` is of a Feed
    evaluate: Callable[
        ..., tuple[Array, Array, Array]
    ]  # (states, salt, episodes, greedy) -> returns, lengths, complete (S, E); of a Task losses, tokens, True
    place: Callable[[PyTree], PyTree]  # states (S, ...) of the host -> on the devices
    share: Callable[[PyTree], PyTree]  # what all members have in common -> on all devices
    fetch: Callable[[PyTree], PyTree]  # anything (S, ...) -> numpy without the padding
    unhost: Callable[[PyTree], PyTree]  # what `fetch` made of states -> states, with typed keys again
    # (fresh) start to compile what a run needs first: training, and `init` unless its states are restored
    prepare: Callable[..., None]
    seconds: Callable[[], Seconds]  # that its programs took so far
    template: Callable[[], PyTree]  # shapes of what `fetch` makes of states
    memory_bytes: Callable[[], int]  # of the training program per device: arguments, outputs and temporaries
    mapping: str  # how, in words
    # (states, salt) -> rollout, Scores and advantages (S, B, T) of a cycle that is not learnt from; None
    # where nothing is rewarded
    inspect: Callable[[PyTree, int], tuple[PyTree, Scores, Array]] | None = None


def run(algorithm: Algorithm, key: Key, state: PyTree, num_iterations: int) -> tuple[PyTree, PyTree]:
    """`num_iterations` cycles inside a jit: the last state and the metrics stacked over iterations, (I, ...).

    Iteration i uses fold_in(fold_in(key, i), 0), as `train` does, so both give the same run.
    """

    def body(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        return algorithm.step(iteration_key(key, state.iteration, 0), state)

    return jax.lax.scan(body, state, None, num_iterations)


def strong(config: Any) -> Any:
    """Every leaf as a strong float32 array, so that a number and a swept leaf compile to one program."""

    def wide(leaf: Any) -> Any:
        return leaf.astype(jnp.float32) if isinstance(leaf, jax.Array) else np.asarray(leaf, np.float32)

    return jax.tree.map(wide, config)


def episodes(
    env: Env, policy: Policy, key: Key, num_episodes: int, greedy: bool | Array
) -> tuple[Array, Array, Array]:
    """The first episode of each of E parallel environments, whole: no bias towards short ones.

    Returns: undiscounted returns (E,), lengths (E,) and whether each episode ended within the time limit (E,)
    bool; an environment without one gets 100,000 steps.
    """
    limit = env.max_steps or 100_000
    reset_key, run_key = jax.random.split(key)
    obs, state = jax.vmap(env.reset)(jax.random.split(reset_key, num_episodes))
    zero = jnp.zeros(num_episodes, jnp.float32)
    start = (jnp.int32(0), obs, state, policy.init(), zero, zero.astype(jnp.int32), zero.astype(bool))

    def unfinished(carry: tuple) -> Array:
        return (carry[0] < limit) & ~carry[-1].all()

    def step(carry: tuple) -> tuple:
        time, obs, state, memory, returns, lengths, done = carry
        act_key, env_key = jax.random.split(jax.random.fold_in(run_key, time))
        action, memory = policy.act(act_key, obs, memory, greedy)
        keys = jax.random.split(env_key, num_episodes)
        obs, state, reward, terminated, truncated = jax.vmap(env.step)(keys, state, action)
        returns = returns + jnp.where(done, 0.0, reward).astype(jnp.float32)
        return time + 1, obs, state, memory, returns, lengths + ~done, done | terminated | truncated

    *_, returns, lengths, done = jax.lax.while_loop(unfinished, step, start)
    return returns, lengths, done


def build(
    make: Callable[..., Algorithm],
    world: Env | Task,
    config: Any,
    swept: Mapping[str, Sequence[float] | np.ndarray],
    seeds: list[int],
    network: Any = None,
    frozen: Any = None,
    cache: dict[Any, Any] | None = None,
) -> Program:
    """The program of S = len(seeds) members on this machine's devices; member i has seed seeds[i] and
    swept[field][i].

    `cache` keeps compiled programs for later calls that differ in seeds and swept values only; fewer
    members than they were compiled for are padded.

    Raises: ValueError of `make`, which is called here once with each member's concrete Config.
    """
    frozen = world.frozen if frozen is None and isinstance(world, Task) else frozen
    make(world, config, network, frozen)
    for values in zip(*swept.values(), strict=True):
        make(world, config.replace(**dict(zip(swept, map(float, values), strict=True))), network, frozen)

    members = len(seeds)
    cache = {} if cache is None else cache
    devices = layout.devices_for(max([members, *(size for _, size in cache)]))
    kind = layout.mapping_for(devices[0])
    padded = max([-(-members // len(devices)) * len(devices), *(size for _, size in cache)])
    index = np.minimum(np.arange(padded), members - 1)  # the last members again, to fill every device
    grid = jax.make_mesh((len(devices),), ("member",), axis_types=(AxisType.Auto,), devices=devices)
    per_member, everywhere = (NamedSharding(grid, PartitionSpec(*axes)) for axes in (("member",), ()))
    place = lambda tree: jax.device_put(jax.tree.map(lambda x: x[index], tree), per_member)
    share = lambda tree: jax.device_put(tree, everywhere)
    fetch = lambda tree: jax.tree.map(lambda x: np.asarray(x)[:members], hosted(tree))

    base, frozen = share(strong(config)), share(frozen)
    varied = place({name: np.asarray(values, np.float32) for name, values in swept.items()})
    init_keys, run_keys = jax.device_put(
        host_rewards.member_keys(np.asarray(seeds, np.uint32)[index]), per_member
    )

    def algorithm(shared: tuple, varied: dict) -> Algorithm:
        return make(world, shared[0].replace(**varied), network, shared[1])

    def init(shared: tuple, varied: dict, key: Key) -> PyTree:
        return algorithm(shared, varied).init(key)

    def advance(shared: tuple, varied: dict, key: Key, state: PyTree) -> tuple[PyTree, PyTree, Array]:
        step = jax.jit(algorithm(shared, varied).step, inline=True)  # traced once, for shapes and the loop
        state = state.replace(iteration=shared[4])  # one for all members: `vmap` leaves it without an axis
        shapes = jax.eval_shape(step, key, state)[1]
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def body(_: Array, carry: tuple) -> tuple:
            state, sums, bad = carry
            following, metrics = step(iteration_key(key, state.iteration, shared[3]), state)
            bad = jnp.where((bad < 0) & ~sound(following, metrics), state.iteration, bad)
            return following, jax.tree.map(jnp.add, sums, metrics), bad

        return jax.lax.fori_loop(0, shared[2], body, (state, zeros, jnp.int32(-1)))

    def evaluate(
        count: int, shared: tuple, varied: dict, key: Key, state: PyTree
    ) -> tuple[Array, Array, Array]:
        built = algorithm(shared, varied)
        if isinstance(world, Task):
            assert built.measure is not None, "an algorithm that learns a Task has a measure"
            sums, number = built.measure(state, count)
            return sums, number, jnp.isfinite(sums)
        key = jax.random.fold_in(jax.random.fold_in(key, EVALUATION), shared[2])
        return episodes(world, built.policy(state), key, count, shared[3])

    over = lambda function: _over_members(function, kind, grid)
    split, rewarded = host_rewards.parts(algorithm), host_rewards.on_host(world)
    compile = Compiler(cache, devices[0], out_shardings=per_member)

    def compiled(name: Any, function: Callable[..., Any], arguments: tuple, **how: Any) -> Any:
        return compile((name, padded), over(function), arguments, **how)

    def placed(shapes: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=per_member), shapes)

    @functools.cache
    def shapes() -> PyTree:
        return placed(jax.eval_shape(over(init), (base, frozen), varied, init_keys))

    def start() -> PyTree:
        arguments = ((base, frozen), varied, init_keys)
        return compiled("init", init, arguments, use="start")(*arguments)

    def go(states: PyTree, n: int, retry: int = 0, learn: PyTree = None) -> tuple[PyTree, PyTree, Array]:
        if rewarded is not None:
            return cycles(states, n, retry)
        given = frozen if learn is None else frozen | {"learn": learn}
        shared = (base, given, *share((np.int32(n), np.int32(retry), first_of(states))))
        arguments = (shared, varied, run_keys, states)
        return compiled("advance", advance, arguments, donate=(3,))(*arguments)

    def first_of(states: PyTree) -> np.ndarray:
        """The iteration that all states are at."""
        return np.asarray(states.iteration)[0]

    def of_cycle(states: PyTree, iteration: Any, retry: int) -> tuple:
        shared = (base, frozen, *share((np.int32(0), np.int32(retry), iteration)))
        return shared, varied, run_keys, states

    def halves(arguments: tuple) -> tuple[Any, Any, PyTree]:
        """The two programs of a cycle with the host in its middle, and the shapes of its metrics."""
        if ("metrics", padded) not in cache:
            compile.start(("sample", padded), over(split.sample), arguments)
            both = (*arguments, *placed(jax.eval_shape(over(split.sample), *arguments)))
            cache["metrics", padded] = jax.eval_shape(over(split.learn), *both)[1]
            compile.start(("learn", padded), over(split.learn), both, donate=(3,))
        return compile.get(("sample", padded)), compile.get(("learn", padded)), cache["metrics", padded]

    def cycles(states: PyTree, n: int, retry: int) -> tuple[PyTree, PyTree, Array]:
        """`go` with the host between the two programs of a cycle."""
        assert rewarded is not None
        first = int(first_of(states))
        sample, learn, like = halves(of_cycle(states, np.int32(first), retry))
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        bad = np.full(padded, -1, np.int32)
        for iteration in range(first, first + n):
            arguments = of_cycle(states, np.int32(iteration), retry)
            rollout, scores = sample(*arguments)
            scores = place(rewarded(*fetch((rollout, scores))))
            states, metrics, fine = learn(*arguments, rollout, scores)
            sums = jax.tree.map(jnp.add, sums, metrics)
            bad = np.where((bad < 0) & ~np.asarray(fine), np.int32(iteration), bad)
        return states, sums, jnp.asarray(bad)

    def inspect(states: PyTree, salt: int) -> tuple[PyTree, Scores, Array]:
        shared = (base, frozen, *share((np.int32(salt), np.int32(0), first_of(states))))
        arguments = (shared, varied, run_keys, states)
        rollout, scores = compiled("show", split.show, arguments)(*arguments)
        if rewarded is not None:
            scores = place(rewarded(*fetch((rollout, scores))))
        arguments = (*arguments, rollout, scores)
        return rollout, scores, compiled("advantage", split.advantage, arguments)(*arguments)

    def judge(states: PyTree, salt: int, count: int, greedy: bool = True) -> tuple[Array, Array, Array]:
        if rewarded is not None and isinstance(world, Task):
            shared = (base, frozen, *share((np.int32(0), np.int32(0), first_of(states))))
            arguments, best = (shared, varied, run_keys, states), functools.partial(split.greedy, count)
            rollout, scores = fetch(compiled(("greedy", count), best, arguments)(*arguments))
            return place(host_rewards.judged(world, rollout, rewarded(rollout, scores)))
        shared = (base, frozen, *share((np.uint32(salt), np.bool_(greedy))))
        arguments = (shared, varied, run_keys, states)
        whole = functools.partial(evaluate, count)
        use = "evaluation" if isinstance(world, Env) else "training"
        return compiled(("evaluate", count), whole, arguments, use=use)(*arguments)

    def training() -> tuple:
        """The arguments of `advance` in shapes."""
        shared = (base, frozen, *share((np.int32(0), np.int32(0), np.int32(0))))
        return shared, varied, run_keys, shapes()

    def prepare(fresh: bool = True) -> None:
        if fresh:
            compile.start(("init", padded), over(init), ((base, frozen), varied, init_keys), use="start")
        if rewarded is None:
            compile.start(("advance", padded), over(advance), training(), donate=(3,))

    def memory() -> int:
        if rewarded is not None:
            programs = halves(of_cycle(shapes(), np.int32(0), 0))[:2]
        else:
            programs = [compiled("advance", advance, training(), donate=(3,))]
        return max(map(needed, programs))

    def template() -> PyTree:
        one = lambda x: jax.ShapeDtypeStruct((members, *x.shape[1:]), x.dtype)
        return jax.tree.map(one, jax.eval_shape(hosted, shapes()))

    return Program(
        init=start,
        advance=go,
        evaluate=judge,
        place=place,
        share=share,
        fetch=fetch,
        unhost=lambda tree: jax.tree.map(unhosted, tree, shapes()),
        prepare=prepare,
        seconds=lambda: compile.seconds,
        template=template,
        memory_bytes=memory,
        inspect=inspect if isinstance(world, Task) and world.rewards else None,
        mapping=layout.told(dict(swept), seeds, kind, devices),
    )


def needed(program: Any) -> int:
    """Bytes of a compiled program on each device: arguments, outputs and temporaries."""
    told = program.memory_analysis()
    sizes = told.argument_size_in_bytes, told.output_size_in_bytes, told.temp_size_in_bytes
    return sum(sizes) - told.alias_size_in_bytes  # donated states are argument and output


def hosted(tree: PyTree) -> PyTree:
    """A pytree for the host's hands: typed keys as their words."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def unhosted(array: np.ndarray, like: Any) -> Any:
    """The inverse of `hosted` for one leaf: a typed key again, of JAX's default kind, where `like` is one."""
    is_key = jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
    words = jnp.asarray(array)
    return jax.random.wrap_key_data(words) if is_key else words


def _over_members(function: Callable[..., Any], kind: str, grid: Any) -> Callable[..., Any]:
    """`function(shared, *of one member)` over the leading axis of all but the first argument."""

    def on_a_device(shared: PyTree, *members: PyTree) -> PyTree:
        if all(leaf.shape[0] == 1 for leaf in jax.tree.leaves(members)):  # a loop would copy what it carries
            alone = jax.tree.map(lambda x: x[0], members)
            return jax.tree.map(lambda x: x[None], function(shared, *alone))
        if kind == "vmap":
            return jax.vmap(lambda *member: function(shared, *member), axis_name=SIDE_BY_SIDE)(*members)
        return jax.lax.map(lambda member: function(shared, *member), members)

    if grid.size == 1:
        return on_a_device
    spec = PartitionSpec("member")

    def on_all(shared: PyTree, *members: PyTree) -> PyTree:
        specs = (PartitionSpec(), *(spec for _ in members))
        return jax.shard_map(on_a_device, mesh=grid, in_specs=specs, out_specs=spec, check_vma=False)(
            shared, *members
        )

    return on_all


def totals(metrics: PyTree) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Fetched metrics as name -> (total, count), each (S,) in float64, to be added up on the host; those in a
    dict are called field/name.
    """
    flat: dict[str, Mean] = {}
    for name, value in metrics._asdict().items():
        own = isinstance(value, dict)
        flat |= {f"{name}/{key}": mean for key, mean in value.items()} if own else {name: value}
    wide = lambda x: np.asarray(x, np.float64)
    return {name: (wide(mean.total), wide(mean.count)) for name, mean in flat.items()}
