"""Kernels of a plan, an update or a training step on a GPU, counted without a GPU.

    python -m experiments.benchmarks.kernels plan update step [--size=5M] [--seeds=1] [--envs=1]
        [--set world_model.compute_dtype=bfloat16 ...] [--list] [--json=FILE]

XLA compiles for an H100 ahead of time from a description of the device (``h100.txtpb``); what it
would launch is read from its own listing of the program. That needs jax's CUDA plugin and the
CUDA assembler, but neither a GPU nor a driver:

    pip install jax-cuda13-plugin jax-cuda13-pjrt nvidia-nvvm nvidia-cuda-nvcc

Counts are of launches with the trips of loops multiplied out; bytes are operands and results of
all kernels, an upper bound, since caches are not modelled. There are no times: with one agent the
number of kernels decides (2.2 microseconds each on an H100), from about eight seeds on the bytes.
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
from collections.abc import Iterator
from typing import Any, NamedTuple

DEVICE = pathlib.Path(__file__).with_name("h100.txtpb")
NEEDED = {
    "jax_cuda13_plugin": "jax-cuda13-plugin jax-cuda13-pjrt nvidia-nvvm nvidia-cuda-nvcc",
}
OBS, ACTIONS = 24, 6
CAPACITY = 20_000
PROGRAMS = ("plan", "update", "step")


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
    """Everything that a program launches, in order; graphs have the kind ``graph``."""
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


def count(all_launches: list[Launch]) -> Count:
    """Sums over a program."""
    kernels = [x for x in all_launches if x.kind != "graph"]
    return Count(
        kernels=sum(x.times for x in kernels),
        gemms=sum(x.times for x in kernels if x.kind == "gemm"),
        graphs=sum(x.times for x in all_launches if x.kind == "graph"),
        megabytes=sum(x.times * x.megabytes for x in kernels),
    )


# ------------------------------------------------------------------------------- compiling


def compile_ahead(program: str, folder: pathlib.Path, **sizes: Any) -> list[Launch]:
    """Compile ``program`` for the device of :data:`DEVICE`; its launches.

    ``XLA_FLAGS`` must name ``folder`` as the place of dumps before jax starts (:func:`main`).
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    topology = topologies.get_topology_desc(
        "h100x1", "cuda", target_config=DEVICE.read_text(), topology="1x1x1"
    )
    sharding = SingleDeviceSharding(topology.devices[0])

    def described(x: Any) -> jax.ShapeDtypeStruct:
        weak = isinstance(x, float)
        dtype = jax.numpy.float32 if weak else x.dtype
        return jax.ShapeDtypeStruct(jax.numpy.shape(x), dtype, sharding=sharding, weak_type=weak)

    function, arguments, donated = BUILDERS[program](**sizes)
    arguments = jax.tree.map(described, arguments)
    before = set(folder.iterdir())
    compiled = jax.jit(function, donate_argnums=donated).lower(*arguments).compile()
    new = sorted(set(folder.iterdir()) - before, key=lambda path: path.stat().st_size)

    def dump(ending: str) -> str:
        # Helpers such as a cast are modules of their own; the program's is the largest.
        return [path for path in new if path.name.endswith(ending)][-1].read_text()

    return list(
        launches(
            compiled.as_text(),
            dump("thunk_metadata.txt"),
            dump("thunk_sequence_after_thunk_passes.txt"),
        )
    )


def _agent(size: str, preset: str, changes: dict[str, Any]) -> tuple[Any, Any]:
    from pomcp_jax import acting, presets
    from pomcp_jax import config as config_lib

    config = presets.with_size(presets.get(preset), size)
    config = config_lib.replace(config, changes)
    return config, acting.build(config, OBS, ACTIONS)


def _with_seeds(tree: Any, seeds: int) -> Any:
    import jax

    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((seeds, *x.shape), x.dtype), tree)


def plan(size: str, seeds: int, envs: int, preset: str, changes: dict[str, Any]) -> tuple:
    """A decision of every environment of every seed."""
    import jax

    from pomcp_jax import acting, agent, seed_axis

    config, spec = _agent(size, preset, changes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: agent.init(key, config, spec), key)
    one = (
        state.params,
        key,
        jax.ShapeDtypeStruct((envs, OBS), jax.numpy.float32),
        jax.eval_shape(lambda: acting.init_plan(config, spec, envs)),
        jax.ShapeDtypeStruct((envs,), bool),
    )

    def decide(config, params, key, obs, state, first):
        return acting.act(params, key, obs, state, first, spec=spec, config=config)

    def function(config, *args):
        return seed_axis.over_seeds(decide, config, *args)

    return function, (config, *_with_seeds(one, seeds)), ()


def update(size: str, seeds: int, envs: int, preset: str, changes: dict[str, Any]) -> tuple:
    """An update of every seed, the sampling of its batch included."""
    import jax

    from pomcp_jax import agent, replay, seed_axis

    del envs
    config, spec = _agent(size, preset, changes)
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(lambda key: agent.init(key, config, spec), key)
    ring = jax.eval_shape(lambda: replay.init(CAPACITY, 1, OBS, ACTIONS))
    rows = _with_seeds(ring.rows, seeds)
    size_, length = config.optimizer.batch_size, config.mppi.horizon + 1

    def learn(config, state, keys, rows):
        batch = replay.sample(replay.Replay(rows, keys[2]), keys[0], size_, length)
        return agent.update(state, batch, keys[1], spec=spec, config=config)

    def function(config, state, key, rows, inserted):
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(key)
        inserted = jax.numpy.broadcast_to(inserted, (seeds,))
        return seed_axis.over_seeds(learn, config, state, (keys[:, 0], keys[:, 1], inserted), rows)

    args = (config, _with_seeds(state, seeds), _with_seeds(key, seeds), rows, ring.inserted)
    return function, args, (1,)


BUILDERS = {"plan": plan, "update": update}


def _value(text: str) -> tuple[str, Any]:
    import ast

    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", nargs="+", choices=PROGRAMS)
    parser.add_argument("--size", default="5M")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--envs", type=int, default=1)
    parser.add_argument("--preset", default="po_mpc")
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--list", action="store_true", help="every launch")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    for module, packages in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            sys.exit(f"{module}: not installed; pip install {packages}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("JAX_PLATFORMS", None)
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        os.environ["XLA_FLAGS"] = f"--xla_dump_to={folder} --xla_dump_hlo_as_text"
        print("| program | kernels | GEMMs | graph launches | MB |\n|---|---|---|---|---|")
        for program in args.programs:
            found = compile_ahead(
                program,
                pathlib.Path(folder),
                size=args.size,
                seeds=args.seeds,
                envs=args.envs,
                preset=args.preset,
                changes=dict(map(_value, args.set)),
            )
            total = count(found)
            print(
                f"| {program} | {total.kernels} | {total.gemms} | {total.graphs} | {total.megabytes:,.0f} |",
                flush=True,
            )
            if args.list:
                for x in found:
                    print(
                        f"{x.times:4d} {x.kind:6s} {x.megabytes:8.2f} {x.name:40s} {x.shape[:40]:40s} {x.origin[-110:]}"
                    )


if __name__ == "__main__":
    main()
