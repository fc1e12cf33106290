"""Damaged checkpoints, forged manifests and the cost of saving, for faults.py."""

import hashlib
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments import settings
from pomcp_jax import checkpoint, digests, train
from pomcp_jax.checkpoint import CheckpointError, DamagedError
from pomcp_jax.running import bookkeeping, process, starting, tables
from pomcp_jax.running.functions import Functions, build
from pomcp_jax.running.options import Options

CONFIG = "--config=experiments/configs/debug.py"


def parsed(*arguments: str) -> Options:
    """Options of a run with these arguments of experiments.run."""
    given = settings.parse(["experiments.run", *arguments])
    return Options(given.config, given.workdir)


def small_state(
    folder: Path,
) -> tuple[Options, Functions, train.TrainState]:
    """State of a debug run with a partly filled ring; writes two checkpoints to ``folder``."""
    options = parsed(CONFIG, "--config.train.num_seeds=2", f"--workdir={folder}")
    functions = build(options.config)
    state = filled(jax.jit(functions.program.init)(options.config), 100)
    for decisions in (100, 200):
        save(options, functions, state, decisions)
    return options, functions, state


def filled(state: train.TrainState, rows: int) -> train.TrainState:
    """``state`` with ``rows`` rows in use per environment."""
    return state._replace(replay=state.replay._replace(inserted=jnp.asarray(rows, jnp.int32)))


def save(
    options: Options,
    functions: Functions,
    state: train.TrainState | checkpoint.Snapshot,
    decisions: int,
) -> None:
    """Save a checkpoint as a run does."""
    sizes = dict.fromkeys(tables.TABLES, 0)
    books = bookkeeping.fresh(options.config.train.num_seeds, process.commit())
    books = books._replace(tables=(tables.Written(list(tables.FIRST), [], sizes, 0),))
    spec = functions.program.spec
    folder = options.workdir / "checkpoints"
    host = bookkeeping.to_json(books)
    checkpoint.save(folder, decisions, state, options.config, spec, host=host)


def flips(count: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Flip single bits of a checkpoint; then truncate, empty and delete each of its files.

    A flip is detected if reading the run raises :class:`DamagedError`. After each damaged file a
    run must also start at the checkpoint before and name the file.
    """
    options, functions, _ = small_state(folder / "flips")
    checkpoints = options.workdir / "checkpoints"
    place, shapes = checkpoints / "200", jax.eval_shape(functions.program.init, options.config)
    names = [*digests.list_files(place), digests.NAME]
    # Weights of the draw: every bit of the checkpoint is equally likely.
    sizes = [(place / name).stat().st_size for name in names]
    detected, missed = 0, []
    for _ in range(count):
        path = place / draw.choices(names, sizes)[0]
        good = path.read_bytes()
        bad, where = bytearray(good), draw.randrange(8 * len(good))
        bad[where // 8] ^= 1 << where % 8
        path.write_bytes(bad)
        try:
            checkpoint.restore_run(checkpoints, checkpoint.read(checkpoints, 200), shapes)
            missed.append(f"{path.name}:{where}")
        except DamagedError:
            detected += 1
        path.write_bytes(good)
    wrong, damaged = [], 0
    for name in names:
        for how in ("cut short", "emptied", "deleted"):
            copy = folder / "copy"
            shutil.copytree(options.workdir, copy)
            path = copy / "checkpoints" / "200" / name
            data = path.read_bytes()
            path.unlink()
            if how != "deleted":
                path.write_bytes(
                    data[: draw.randrange(1, len(data))] if how == "cut short" else b""
                )
            start = starting.begin(options._replace(workdir=copy), functions.program)
            named = any(str(path.relative_to(copy)) in note for note in start.notes)
            damaged += 1
            if start.decisions != 100 or not named:
                wrong.append(f"{name} {how}")
            shutil.rmtree(copy)
    return {
        "flips": count, "flips_detected": detected, "missed": missed, "files": len(names),
        "bytes": sum(sizes), "files_damaged": damaged, "went_on_elsewhere": wrong,
    }  # fmt: skip


def mutate(draw: random.Random, value: Any, depth: int = 0) -> Any:
    """``value``, plain JSON, with one random change; may change it in place."""
    # Wrong types, sizes beyond memory, paths out of the folder, dtypes that are no plain numbers.
    junk: list[Any] = [
        None, -1, 0, 2**63, 2**40, 1e308, "", "../x", "/etc/passwd", "\x00", [], {}, True,
        [2**62] * 3, "key<fry>", "object", "float64", [[]], {"a": {}}, 10**400,
    ]  # fmt: skip
    if isinstance(value, dict) and value and (draw.random() < 0.9 or depth == 0):
        name, kind = draw.choice(list(value)), draw.random()
        if kind < 0.1:
            del value[name]
        elif kind < 0.2:
            value[draw.choice(["x", "../../x", "", name * 2])] = value.pop(name)
        else:
            value[name] = mutate(draw, value[name], depth + 1)
        return value
    if isinstance(value, list) and value and draw.random() < 0.7:
        i = draw.randrange(len(value))
        value[i] = mutate(draw, value[i], depth + 1)
        return value
    return draw.choice(junk)


def write_manifest(path: Path, contents: Any) -> None:
    """Write ``contents`` as a manifest with a correct digest."""
    body = json.dumps({"manifest": contents})[1:].encode()
    path.write_bytes(f'{{"sha256": "{hashlib.sha256(body).hexdigest()}",\n'.encode() + body)


def mutations(count: int, draw: random.Random, folder: Path) -> dict[str, Any]:
    """Restore agents through manifests with a random change and a correct digest.

    Each must load or raise :class:`CheckpointError` with one line; nothing may be written. Such
    manifests are not damaged but malicious: only the checks of their contents can reject them.
    """
    options, _, _ = small_state(folder / "mutations")
    checkpoints = options.workdir / "checkpoints"
    path = checkpoints / "200" / digests.NAME
    original = json.loads(path.read_bytes())["manifest"]
    before = sorted(str(p) for p in folder.rglob("*"))
    peak, begin = process.peak_memory_gb(), time.monotonic()
    refused = loaded = 0
    crashes: dict[str, int] = {}
    slowest = 0.0
    for _ in range(count):
        changed = mutate(draw, json.loads(json.dumps(original)))
        write_manifest(path, changed)
        since = time.monotonic()
        try:
            checkpoint.restore(checkpoints, 200)
            loaded += 1
        except CheckpointError as error:
            refused += 1
            if "\n" in str(error):
                crashes["more than one line"] = crashes.get("more than one line", 0) + 1
        except Exception as error:  # must not happen; counted, so that one run finds all kinds
            text = f"{type(error).__name__}: {error}"[:200]
            crashes[text] = crashes.get(text, 0) + 1
        slowest = max(slowest, time.monotonic() - since)
    return {
        "mutations": count, "refused": refused, "loaded": loaded, "crashes": crashes,
        "files_written": len(set(map(str, folder.rglob("*"))) - set(before)),
        "peak_memory_grew_mb": round(1e3 * (process.peak_memory_gb() - peak), 1),
        "slowest_seconds": round(slowest, 2), "seconds": round(time.monotonic() - begin, 1),
    }  # fmt: skip


def saves(count: int, folder: Path) -> dict[str, Any]:
    """Cost of one checkpoint of the quick start with a full ring.

    ``stall`` is how long training stands still: the copy to the host. ``write`` happens in a
    thread meanwhile; a run on a CPU shares its cores with it.
    """
    quickstart = "--config=experiments/configs/quickstart.py"
    options = parsed(quickstart, f"--workdir={folder / 'saves'}")
    functions = build(options.config)
    state = jax.jit(functions.program.init)(options.config)
    state = jax.block_until_ready(filled(state, options.config.train.capacity))
    stalls, writes, cpu = [], [], []
    for i in range(count):
        begin = time.monotonic()
        shot = checkpoint.snapshot(state)
        stalls.append(time.monotonic() - begin)
        begin, used = time.monotonic(), time.process_time()
        save(options, functions, shot, i)
        writes.append(time.monotonic() - begin)
        cpu.append(time.process_time() - used)
    place = options.workdir / "checkpoints" / str(count - 1)
    size = sum((place / name).stat().st_size for name in digests.list_files(place))

    def middle(values: list[float]) -> float:
        return round(sorted(values)[len(values) // 2], 4)

    return {
        "saves": count, "megabytes": round(size / 1e6, 1), "stall_median": middle(stalls),
        "stall_longest": round(max(stalls), 4), "write_median": middle(writes),
        "write_cpu_median": middle(cpu),
        "interval_decisions": options.config.train.checkpoint_decisions,
    }  # fmt: skip
