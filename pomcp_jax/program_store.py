"""Lowered programs in files: a process that finds its own there does not trace it again.

JAX's compilation cache saves the compiler's time only; tracing and lowering a training step takes
several seconds more (docs/benchmarks.md, "Start-up"). Whatever cannot be stored or read is traced.
Stored and new programs are the same StableHLO, and so compute the same bits.
"""

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp

from pomcp_jax import files
from pomcp_jax.config import EnvConfig
from pomcp_jax.packages import installed
from pomcp_jax.types import PyTree

MOST_BYTES = 256 * 1024**2
"""Size of a folder beyond which the programs that were not used for longest are removed."""
PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "mujoco", "mujoco-mjx", "brax", "dm_control")
UNSTORED = (
    "jax_debug_nans", "jax_debug_infs", "jax_disable_jit", "jax_check_tracer_leaks",
    "jax_default_device",
)  # fmt: skip
"""Settings of JAX with which no program is stored or read: they debug, or choose a device."""
_HARMLESS = tuple(
    f"jax_{name}"
    for name in (
        "compilation_cache", "persistent_cache", "raise_persistent_cache", "dump_ir", "log_",
        "logging", "debug_log_modules", "compiler_detailed_logging", "traceback",
        "tracer_error", "transfer_guard",
    )
)  # fmt: skip
"""Beginnings of the names of settings of JAX that do not change a program."""

Signature = tuple[Any, ...]
Described = Any
"""A structure as JSON has it: null for an array, ``["argument", 0]``, ``["dict", {...}]``,
``["tuple", [...]]``, or the name of a type and what it holds."""


class Store(NamedTuple):
    """Where programs are kept, and what all of them depend on."""

    folder: Path
    origin: str
    """Digest of everything besides a program's name and arguments."""


class Program(NamedTuple):
    """A function of the leaves of its arguments."""

    function: jax.stages.Wrapped
    """From ``jax.jit``."""
    out: Described
    """Structure of the result."""
    types: tuple[type, ...]
    """Named tuples in it."""

    def __call__(self, *args: Any) -> Any:
        """The result, as the function that was stored returns it."""
        results = iter(self.function(*jax.tree.leaves(args)))
        return _rebuilt(self.out, results, args, self.types)

    def compile(self, *args: Any) -> None:
        """Compile for arguments like these, into JAX's caches."""
        self.function.lower(*jax.tree.leaves(args)).compile()


def storable(env: EnvConfig) -> bool:
    """Whether programs with the environment that ``env`` names depend on files that keys cover.

    Those of a user's own, or of other packages, may change without notice, and programs that call
    the host are bound to a process.
    """
    family, slash, _ = env.task.partition("/")
    ours = family == "probe" if slash else ":" not in env.task
    return ours and env.backend == "mjx" and not env.assets


def store(folder: Path, env: EnvConfig) -> Store | None:
    """A store for the programs of a run on one device; None if they cannot be stored.

    Args:
      folder: need not exist.
      env: names the environments; it must not be one that the user registered.
    """
    models = _models()
    if not storable(env) or not _IMPORTED or models is None:
        return None
    # What a program is lowered for; JAX's cache knows what machine code depends on besides.
    device, versions = jax.devices()[0], (platform.python_version(), *map(installed, PACKAGES))
    known = (_IMPORTED, models, versions, device.platform, device.device_kind, repr(env))
    return Store(folder, hashlib.sha256(repr(known).encode()).hexdigest())


def _sources() -> str:
    """Digest of this package's modules; empty if they cannot be read."""
    place, digest = Path(__file__).parent, hashlib.sha256()
    try:
        for path in sorted(place.rglob("[!.]*.py")):
            digest.update(f"{path.relative_to(place)}\0".encode() + path.read_bytes())
    except OSError:
        return ""
    return digest.hexdigest()


_IMPORTED = _sources()
"""What this process runs, whatever happens to the files later."""


def _models() -> str | None:
    """Digest of dm_control's models, of nothing if it is not installed; None: unreadable."""
    package = importlib.util.find_spec("dm_control")
    digest = hashlib.sha256()
    for place in (package and package.submodule_search_locations) or ():
        suite = Path(place) / "suite"
        try:
            for path in sorted(suite.rglob("*.xml")):
                digest.update(f"{path.relative_to(suite)}\0".encode() + path.read_bytes())
            for path in sorted((suite / "dog_assets").rglob("*")):  # 30 MB of meshes
                about = path.stat()
                digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns}\0".encode())
        except OSError:
            return None
    return digest.hexdigest()


def signature(args: PyTree) -> Signature | None:
    """What a program of these arguments depends on; None if it can be neither stored nor read.

    The arguments' structure, shapes and dtypes, and JAX's settings in this thread.
    """
    values = jax.config.values
    settings = {name: getattr(jax.config, name, value) for name, value in values.items()}
    if any(settings.get(name) for name in UNSTORED):
        return None
    leaves, structure = jax.tree.flatten(args)
    place = {jax.devices()[0]}
    for x in leaves:
        if isinstance(x, jax.core.Tracer):
            return None
        if isinstance(x, jax.Array) and x.committed and x.sharding.device_set != place:
            return None
    chosen = tuple(
        (name, str(value))
        for name, value in sorted(settings.items())
        if not name.startswith(_HARMLESS)
    )
    return structure, tuple(map(_leaf, leaves)), chosen


def _leaf(x: Any) -> Any:
    if isinstance(x, bool | int | float):  # an argument, whatever its value
        return type(x).__name__
    return x.shape, str(x.dtype), bool(getattr(x, "weak_type", False))


def find(
    store: Store,
    name: str,
    signature: Signature,
    function: jax.stages.Wrapped,
    args: tuple,
    types: tuple[type, ...] = (),
) -> Program | None:
    """The stored program, or that of ``function``, which is stored then; None without either.

    Args:
      store: of this process.
      name: of the function.
      signature: of ``args``.
      function: from ``jax.jit``; not called if its program is found.
      args: arrays or their shapes, and other leaves.
      types: named tuples of which the result may consist, besides arrays, dictionaries, tuples
        and the structures of arguments.
    """
    place = store.folder / f"{_key(store, name, signature)}.program"
    stored = _load(place)
    if stored is None:
        try:
            stored = _export(function, args, types)
        except Exception:  # not every program can be: JAX's errors have no common type
            return None
        _save(place, stored)
    # LAPACK is called through pointers that JAX fills in when it lowers such a call. A stored
    # program that finds them empty ends the process.
    jax.jit(jnp.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), jnp.float32))
    call = jax.export.deserialize(bytearray(stored.program)).call
    # Results are committed to the device. Without a place for arguments too, a second call, with
    # results of the first, would be another program.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    function = jax.jit(call, donate_argnums=tuple(stored.donated), in_shardings=device)
    return Program(function, stored.out, types)


class _Stored(NamedTuple):
    """Content of a file."""

    program: bytes
    donated: Sequence[int]
    """Positions of the leaves whose memory the program reuses."""
    out: Described


def _export(function: jax.stages.Wrapped, args: tuple, types: tuple[type, ...]) -> _Stored:
    leaves, structure = jax.tree.flatten(args)
    described = []

    def of_leaves(*leaves: Any) -> list[Any]:
        out = function(*jax.tree.unflatten(structure, leaves))
        described.append(_described(out, args, types))
        return jax.tree.leaves(out)

    exported = jax.export.export(jax.jit(of_leaves))(*leaves)
    info = jax.tree.leaves(function.trace(*args).args_info)  # type: ignore[attr-defined]
    donated = [i for i, leaf in enumerate(info) if leaf.donated]
    return _Stored(bytes(exported.serialize()), donated, described[0])


def _described(tree: PyTree, args: tuple, types: tuple[type, ...]) -> Described:
    structure: Any = jax.tree.structure(tree)
    if structure == jax.tree.structure(0):
        return None
    known = [jax.tree.structure(arg) for arg in args]
    if structure in known:
        return ["argument", known.index(structure)]
    inner = functools.partial(_described, args=args, types=types)
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return ["dict", {key: inner(tree[key]) for key in sorted(tree)}]
    if type(tree) in (tuple, *types):
        return [type(tree).__name__, [inner(x) for x in tree]]
    raise TypeError(f"a result of type {type(tree).__name__}")


def _rebuilt(
    described: Described, leaves: Iterator[Any], args: tuple, types: tuple[type, ...]
) -> PyTree:
    if described is None:
        return next(leaves)
    kind, inside = described
    if kind == "argument":
        return jax.tree.map(lambda _: next(leaves), args[inside])
    if kind == "dict":
        # In the order in which JAX has a dictionary's leaves, that of its keys.
        return {key: _rebuilt(inside[key], leaves, args, types) for key in sorted(inside)}
    parts = [_rebuilt(x, leaves, args, types) for x in inside]
    return tuple(parts) if kind == "tuple" else {t.__name__: t for t in types}[kind](*parts)


def _key(store: Store, name: str, signature: Signature) -> str:
    structure, leaves, settings = signature
    # A structure's text has all static values, those of a configuration included.
    text = "\n".join([store.origin, name, str(structure), repr(leaves), repr(settings)])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _load(place: Path) -> _Stored | None:
    try:
        data = place.read_bytes()
    except OSError:
        return None
    digest, body = data[:32], data[32:]
    if hashlib.sha256(body).digest() != digest:
        return None
    with contextlib.suppress(OSError):
        os.utime(place)
    head, _, program = body.partition(b"\n")
    return _Stored(program, *json.loads(head))


def _save(place: Path, stored: _Stored) -> None:
    if _sources() != _IMPORTED:  # edited meanwhile: some modules may have been imported since
        return
    body = json.dumps([stored.donated, stored.out]).encode() + b"\n" + stored.program
    with contextlib.suppress(OSError):  # a full or read-only disk costs the next start its time
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.write_bytes(place, hashlib.sha256(body).digest() + body)
        _prune(place.parent)


def _prune(folder: Path) -> None:
    """Remove the programs that were not used for longest."""
    found = [(path.stat(), path) for path in folder.glob("*.program")]
    found.sort(key=lambda item: item[0].st_mtime, reverse=True)
    total = 0
    for about, path in found:
        total += about.st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
