"""Kernels, products, CUDA graphs and bytes of a plan, an update or both, counted without a GPU.

    python -m experiments.benchmarks.kernels plan update step [--size=5M] [--seeds=1] [--envs=1]
        [--set world_model.arranged_for=gpu ...] [--list] [--json=FILE | --check[=FILE]]

XLA compiles for an H100 ahead of time from a description of the device (``h100.txtpb``); what it
would launch is read from its own listing of the program. That needs jax's CUDA plugin and the
CUDA assembler, but neither a GPU nor a driver:

    pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-nvvm nvidia-cuda-nvcc

Counts are of launches with the trips of loops multiplied out; bytes are operands and results of
all kernels, an upper bound, since caches are not modelled. There are no times: with one agent the
number of kernels decides (2.2 microseconds each on an H100), from about eight seeds on the bytes.

``--json`` writes the counts into a table, ``--check`` compares with one: the exit code is 1 if a
count grew by more than 2 %. Other versions of jax count otherwise, so nothing is then compared.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, NoReturn

from experiments import arguments

HERE = pathlib.Path(__file__).parent
DEVICE = HERE / "h100.txtpb"
TABLE = HERE.parent / "results/kernels/h100.json"
MODULE = "jax_cuda13_plugin"
PACKAGES = "jax-cuda13-plugin jax-cuda13-pjrt nvidia-nvvm nvidia-cuda-nvcc"
OBS, ACTIONS = 24, 6
CAPACITY = 20_000
GROWTH = 1.02
"""Largest count that passes the check, as a multiple of the table's."""


class Count(NamedTuple):
    """What a program launches and moves."""

    kernels: int
    gemms: int
    graphs: int
    """Launches of CUDA graphs; the kernels in them are counted as kernels."""
    megabytes: float


class Launch(NamedTuple):
    """One line of XLA's listing."""

    name: str
    kind: str
    """``graph``, ``gemm`` or ``other``."""
    times: int
    """How often it runs: the product of the trips of the loops around it."""
    megabytes: float
    shape: str
    origin: str
    """Name of the JAX operation."""


# ------------------------------------------------------------------- reading XLA's listing

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s64": 8,
          "u64": 8, "f64": 8}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%([\w.\-]+) = (\([^)]*\)|\S+) (\w[\w\-]*)\((.*?)\)(?:,|$)")
_CONTROL = {"kDynamicSliceFusion", "kSequential", "kConditional", "kAddressComputation"}


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, tuples included."""
    sizes = (
        _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims in _ARRAY.findall(shape)
    )
    return sum(sizes)


class _Instruction(NamedTuple):
    shape: str
    operands: tuple[str, ...]
    trips: int
    origin: str


def instructions(hlo: str) -> dict[str, _Instruction]:
    """The instructions of an optimised program by name."""
    found = {}
    for line in hlo.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, _, operands = match.groups()
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            origin = re.search(r'op_name="([^"]*)"', line)
            found[name] = _Instruction(
                shape,
                tuple(re.findall(r"%([\w.\-]+)", operands)),
                int(trips.group(1)) if trips else 1,
                origin.group(1) if origin else "",
            )
    return found


def thunk_names(metadata: str) -> dict[int, str]:
    """Names of instructions by the number of their thunk."""
    names = {}
    for block in metadata.split("thunk_metadata {")[1:]:
        # Protocol buffers leave the number 0 out.
        number = re.search(r"thunk_id: (\d+)", block)
        name = re.search(r'profile_annotation: "([^"]*)"', block)
        names[int(number.group(1)) if number else 0] = name.group(1) if name else ""
    return names


def launches(hlo: str, metadata: str, sequence: str) -> Iterator[Launch]:
    """Everything that a program launches, in order.

    Args:
      hlo: the optimised program.
      metadata: numbers and names of its thunks.
      sequence: the thunks, indented by the loops around them.
    """
    known, names = instructions(hlo), thunk_names(metadata)
    loops: list[tuple[int, int]] = []
    for line in sequence.splitlines():
        match = re.match(r"(\s*)(\d+): (k\w+)\s*(.*)", line)
        if not match:
            continue
        indent, kind, rest = len(match.group(1)), match.group(3), match.group(4)
        name = names.get(int(match.group(2)), "")
        while loops and indent <= loops[-1][0]:
            loops.pop()
        times = math.prod(trips for _, trips in loops)
        found = known.get(name)
        if kind == "kWhile":
            loops.append((indent, found.trips if found else 1))
        elif kind == "kCommandBuffer":
            yield Launch(name, "graph", times, 0.0, "", "")
        elif kind in _CONTROL or (name.startswith("loop_compare") and "source | sink" in rest):
            continue  # structure, and the condition of a loop, which a graph evaluates
        else:
            gemm = "gemm" in name or "cublas" in name or kind in ("kGemm", "kCublasLtMatmul")
            moved = 0
            if found:
                inputs = (known[x].shape for x in found.operands if x in known)
                moved = shape_bytes(found.shape) + sum(map(shape_bytes, inputs))
            shape, origin = (found.shape, found.origin) if found else ("", "")
            yield Launch(name, "gemm" if gemm else "other", times, moved / 1e6, shape, origin)


def count(all_launches: Sequence[Launch]) -> Count:
    """Sums over a program."""
    kernels = [x for x in all_launches if x.kind != "graph"]
    return Count(
        kernels=sum(x.times for x in kernels),
        gemms=sum(x.times for x in kernels if x.kind == "gemm"),
        graphs=sum(x.times for x in all_launches if x.kind == "graph"),
        megabytes=sum(x.times * x.megabytes for x in kernels),
    )


# ------------------------------------------------------------------------------- compiling


def compile_ahead(function: Callable, arguments: tuple, donated: tuple[int, ...]) -> list[Launch]:
    """Compile ``function`` for the device of :data:`DEVICE`; its launches.

    ``XLA_FLAGS`` must ask for dumps before jax starts (:func:`_dumps`).
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    topology = topologies.get_topology_desc(
        "h100x1", "cuda", target_config=DEVICE.read_text(), topology="1x1x1"
    )
    sharding = SingleDeviceSharding(topology.devices[0])

    def described(x: Any) -> jax.ShapeDtypeStruct:
        weak = type(x) in (int, float)  # Python's numbers, as configurations have them
        dtype = jax.numpy.result_type(x) if weak else x.dtype
        return jax.ShapeDtypeStruct(jax.numpy.shape(x), dtype, sharding=sharding, weak_type=weak)

    arguments = jax.tree.map(described, arguments)
    folder = pathlib.Path(os.environ["XLA_FLAGS"].partition("--xla_dump_to=")[2].split()[0])
    before = set(folder.iterdir())
    compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    new = sorted(set(folder.iterdir()) - before, key=lambda path: path.stat().st_size)

    def dump(ending: str) -> str:
        # Helpers such as a cast are modules of their own; the program's is the largest.
        return [path for path in new if path.name.endswith(ending)][-1].read_text()

    endings = ("thunk_metadata.txt", "thunk_sequence_after_thunk_passes.txt")
    return list(launches(compiled.as_text(), *map(dump, endings)))


def _with_seeds(tree: Any, seeds: int) -> Any:
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), tree)


def _state(config: Any, seeds: int) -> tuple[Any, Any, Any]:
    """The static part of an agent, and the shapes of its state and of a key, of all seeds."""
    import jax

    from pomcp_jax import acting, agent

    spec = acting.build(config, OBS, ACTIONS)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: agent.init(key, config, spec), key)
    return spec, _with_seeds(state, seeds), _with_seeds(key, seeds)


def plan(config: Any, seeds: int, envs: int) -> tuple[Callable, tuple, tuple[int, ...]]:
    """A decision of every environment of every seed."""
    import jax

    from pomcp_jax import acting, seed_axis

    spec, state, key = _state(config, seeds)
    start = jax.eval_shape(lambda: acting.init_plan(config, spec, envs))
    obs = jax.ShapeDtypeStruct((envs, OBS), jax.numpy.float32)
    inputs = _with_seeds((obs, start, jax.ShapeDtypeStruct((envs,), bool)), seeds)

    def decide(config, params, key, obs, state, first):
        return acting.act(params, key, obs, state, first, spec=spec, config=config)

    def function(config, *args):
        return seed_axis.over_seeds(decide, config, *args)

    return function, (config, state.params, key, *inputs), ()


def update(config: Any, seeds: int, envs: int) -> tuple[Callable, tuple, tuple[int, ...]]:
    """An update of every seed, the sampling of its batch included, as training has it."""
    import jax
    from jax.flatten_util import ravel_pytree

    from pomcp_jax import agent, calibration, packing, replay, seed_axis

    spec, state, key = _state(config, seeds)
    ring = jax.eval_shape(lambda: replay.init(CAPACITY // envs, envs, OBS, ACTIONS))
    size, length = config.optimizer.batch_size, config.window + 1
    calibrated = config.policy.kl_tuning == "calibrated"
    # A chunk of training packs and joins once, not in every update.
    on_gpu = config.world_model.arranged_for == "gpu"
    state = jax.eval_shape(packing.pack, state) if on_gpu else state

    def learn(config, state, keys, rows):
        ring = replay.Replay(rows, keys[2])
        batch = replay.sample(ring, keys[0], size, length)
        seen = calibration.draw(ring, keys[0], config) if calibrated else None
        state, metrics = agent.update(
            state, batch, keys[1], spec=spec, config=config, outcomes=seen
        )
        return state, ravel_pytree(metrics)[0] if on_gpu else metrics

    def function(config, state, key, rows, inserted):
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(key)
        inserted = jax.numpy.broadcast_to(inserted, (seeds,))
        return seed_axis.over_seeds(learn, config, state, (keys[:, 0], keys[:, 1], inserted), rows)

    rows = _with_seeds(ring.rows, seeds)
    return function, (config, state, key, rows, ring.inserted), (1,)


def step(config: Any, seeds: int, envs: int) -> tuple[Callable, tuple, tuple[int, ...]]:
    """A training step of every seed: decisions, environments, an update.

    The environment is one line of arithmetic. Loops whose trips a run decides count once, and of
    a condition both branches count.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from pomcp_jax import acting, train
    from pomcp_jax import config as config_lib
    from pomcp_jax.envs.protocol import Task, make_env

    task = Task(
        name="drift",
        reset=lambda key: jax.random.normal(key, (OBS,)),
        step=lambda x, action: 0.9 * x + jnp.pad(action, (0, OBS - ACTIONS)),
        observe=lambda x: x,
        reward=lambda x: -jnp.sum(jnp.square(x)),
        terminated=lambda x: jnp.zeros((), bool),
        observation_size=OBS,
        action_size=ACTIONS,
        episode_steps=1000,
    )
    env, spec = make_env(task), acting.build(config, OBS, ACTIONS)
    sizes = {"env.num_envs": envs, "train.num_seeds": seeds, "train.capacity": CAPACITY}
    whole = config_lib.replace(config_lib.Config(agent=config), sizes)
    state = jax.eval_shape(lambda: train.init(whole, env, spec))
    work = train.Work(*map(np.int32, (1, 1, 1)), *map(np.bool_, (0, 1, 0)))
    work = work._replace(part=np.int32(0), parts=np.int32(1), phase=np.int32(0))

    def function(state, config, work):
        return train.chunk(state, config, work, env=env, spec=spec)

    return function, (state, whole, work), (0,)


PROGRAMS = {"plan": plan, "update": update, "step": step}


# --------------------------------------------------------------------------------- table


def key_of(program: str, args: argparse.Namespace) -> str:
    """What a row of the table counts: ``update, 5M, seeds 8, envs 1, po_mpc, FIELD=VALUE``."""
    sizes = f"seeds {args.seeds}", f"envs {args.envs}"
    return ", ".join((program, args.size, *sizes, args.preset, *sorted(args.set)))


def grown(counts: Count, stored: dict[str, float]) -> list[str]:
    """What grew beyond the tolerance, as ``NAME BEFORE -> NOW``."""
    return [
        f"{name} {stored[name]:g} -> {now:g}"
        for name, now in counts._asdict().items()
        if now > GROWTH * stored[name]
    ]


def save(path: pathlib.Path, found: dict[str, Count], version: str) -> None:
    """Write counts into a table; rows of another version of jax are replaced."""
    table = json.loads(path.read_text()) if path.exists() else {}
    rows = table["rows"] if table.get("jax") == version else {}
    for key, counts in found.items():
        rows[key] = counts._asdict() | {"megabytes": round(counts.megabytes, 1)}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"jax": version, "rows": dict(sorted(rows.items()))}, indent=1)
    path.write_text(text + "\n")


# ------------------------------------------------------------------------------- command


def _config(args: argparse.Namespace) -> Any:
    """The agent's configuration; exits with one line if a name or value is wrong."""
    from pomcp_jax import config as config_lib
    from pomcp_jax import presets, validation

    try:
        config = presets.with_size(presets.get(args.preset), args.size)
        config = config_lib.replace(config, dict(map(arguments.setting, args.set)))
        validation.validate_agent(config)
        return config
    except config_lib.ConfigError as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise SystemExit(2)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("programs", nargs="+", choices=sorted(PROGRAMS))
    parser.add_argument("--size", default="5M")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--envs", type=int, default=1)
    parser.add_argument("--preset", default="po_mpc")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--list", action="store_true", help="print every launch")
    parser.add_argument("--json", type=pathlib.Path, help="table to write the counts into")
    parser.add_argument(
        "--check", nargs="?", type=pathlib.Path, const=TABLE, help="table to compare with"
    )
    args = parser.parse_args(argv)
    for name in ("seeds", "envs"):
        if getattr(args, name) < 1:
            _refuse(f"--{name}={getattr(args, name)}: must be at least 1")
    return args


def _stored(args: argparse.Namespace, version: str) -> dict[str, dict[str, float]] | None:
    """Rows of the table to compare with; None if another version of jax made it."""
    try:
        table = json.loads(args.check.read_text())
    except (OSError, ValueError) as error:
        _refuse(f"--check={args.check}: no table: {error}")
    if table["jax"] != version:
        print(f"skipped: {args.check} was made with jax {table['jax']}, this is jax {version}")
        return None
    for program in args.programs:
        if key_of(program, args) not in table["rows"]:
            _refuse(f"--check={args.check}: has no row {key_of(program, args)!r}")
    return table["rows"]


def _dumps(folder: str) -> None:
    """Let XLA write its listings, for a device that is not there; before jax is imported."""
    os.environ.pop("JAX_PLATFORMS", None)
    # Programs from the cache would leave no listing.
    os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"


def _report(program: str, found: list[Launch], every: bool) -> Count:
    total = count(found)
    kernels, gemms, graphs, megabytes = total
    print(f"| {program} | {kernels} | {gemms} | {graphs} | {megabytes:,.0f} |", flush=True)
    for x in found if every else ():
        text = f"{x.times:4d} {x.kind:6s} {x.megabytes:8.2f} {x.name:40s} {x.shape[:40]:40s}"
        print(f"{text} {x.origin[-110:]}")
    return total


def main(argv: Sequence[str] | None = None) -> None:
    """The command; see the module's docstring."""
    args = _parse(argv)
    rows = _stored(args, version("jax")) if args.check else {}
    if rows is None:
        return
    if importlib.util.find_spec(MODULE) is None:
        _refuse(f"{MODULE}: not installed; pip install {PACKAGES}")
    with tempfile.TemporaryDirectory() as folder:
        _dumps(folder)
        config = _config(args)
        print("| program | kernels | GEMMs | graph launches | MB |\n|---|---|---|---|---|")
        found = {}
        for program in args.programs:
            parts = PROGRAMS[program](config, args.seeds, args.envs)
            found[key_of(program, args)] = _report(program, compile_ahead(*parts), args.list)
    if args.json:
        save(args.json, found, version("jax"))
    if args.check:
        worse = [f"{key}: {x}" for key, now in found.items() for x in grown(now, rows[key])]
        print("\n".join(worse) or "no count grew by more than 2 %")
        raise SystemExit(1 if worse else 0)


if __name__ == "__main__":
    main()
