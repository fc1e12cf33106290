"""The planner's model: user functions, checked and converted before a search.

The author of a model writes three functions on unbatched arrays. Their results are
checked by tracing them once; mistakes raise :class:`ConfigError`, one line that
names the function, what it returned and what it should return. Exceptions
raised inside the functions pass through unchanged.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pomcp_jax.config import ConfigError
from pomcp_jax.types import Key, Params, PyTree

Proposer = Callable[[Params, Key, PyTree], Float[Array, " A"]]


class SplitStep(NamedTuple):
    """A step in three parts, for models whose rewards do not feed their dynamics.

    The root is prepared once for all samples and iterations, ``advance`` is rolled out, and the
    ``outcome`` of all steps and samples is computed as one batch: fewer and larger operations than
    a reward in every step.
    """

    prepare: Callable[[Params, PyTree], PyTree]
    """``(params, latent) -> prepared``: what a step computes from the latent alone."""
    advance: Callable[[Params, PyTree, Float[Array, " A"]], tuple[PyTree, PyTree]]
    """``(params, prepared, action [A]) -> (next latent, seen)``, seen by ``outcome``."""
    outcome: Callable[[Params, PyTree], tuple[Array, Array]]
    """``(params, seen) -> (reward [], discount [])``."""


class ModelFns(NamedTuple):
    """The model to plan in; unbatched pure functions of ``params``."""

    step: Callable[[Params, PyTree, Float[Array, " A"]], tuple[PyTree, Array, Array]] | SplitStep
    """``(params, latent, action [A]) -> (next latent, reward [], discount [])``, or its parts."""
    value: Callable[[Params, Key, PyTree], Float[Array, ""]]
    """``(params, key, latent) -> []``: value of the state at the end of a plan."""
    sample_action: "Proposer | tuple[Proposer, ...] | None" = None
    """``(params, key, latent) -> [A]``: proposal policy; several share the P proposals
    evenly, and the first ones take the remainder. None plans without proposals."""


class Conformed(NamedTuple):
    """A model and a root whose types no longer change from step to step."""

    prepare: Callable
    """This and the next two are those of a :class:`SplitStep`."""
    advance: Callable
    outcome: Callable
    value: Callable
    proposers: tuple[Proposer, ...]
    root: PyTree
    dtype: np.dtype
    """Of actions, rewards, discounts and values: the root's, at least float32."""
    axes: tuple
    """Mesh axes of ``jax.shard_map`` over which the plan varies."""
    split: bool
    """Whether steps come in parts: they are compiled side by side, and random numbers at once."""


# ------------------------------------------------------------------ descriptions


def describe(x: Any) -> str:
    """``float32[2,3]`` for an array or number, the type's name for anything else."""
    if x is None or isinstance(x, str):
        return repr(x)
    if not is_array(x):
        return f"a {type(x).__name__}"
    dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
    return f"{dtype}[{','.join(map(str, np.shape(x)))}]"


def is_array(x: Any) -> bool:
    """Whether ``x`` is an array of numbers, or a number."""
    # Strings and lists convert to arrays as well, but are mistakes here.
    if isinstance(x, bool | int | float | complex | jax.Array):
        return True
    if not isinstance(x, np.ndarray | np.generic):
        return hasattr(x, "__jax_array__")
    return any(jnp.issubdtype(x.dtype, k) for k in (jnp.bool_, jnp.number))


def is_real(x: Any) -> bool:
    """Whether ``x`` is an array of real numbers or booleans, or such a number."""
    if not is_array(x):
        return False
    # JAX has no Python integer beyond int32.
    dtype = jnp.asarray(float(x) if type(x) is int else x).dtype
    return any(jnp.issubdtype(dtype, k) for k in (jnp.bool_, jnp.integer, jnp.floating))


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.extended)


# ----------------------------------------------------------- what a function returns

_STEP = "model.step must return (next latent, reward [], discount [])"
_ADVANCE = "model.step.advance must return (next latent, seen)"
_OUTCOME = "model.step.outcome must return (reward [], discount [])"


def _check_latent(latent: PyTree, root: PyTree, action: Array) -> None:
    """Refuse a next latent of another structure, shape or kind than the root."""
    (wanted, structure), (returned, other) = _leaves(root), _leaves(latent)
    # An empty path is a latent that is a single array: its structure says more than a leaf's name.
    missing, extra = wanted.keys() - returned.keys(), returned.keys() - wanted.keys()
    if structure != other:
        if missing and "" not in missing:
            what = f"has no leaf {min(missing)}"
        elif extra and "" not in extra and "" not in missing:
            what = f"has a leaf {min(extra)} that the root has not"
        else:
            ours, theirs = (" ".join(str(tree).split())[:120] for tree in (structure, other))
            what = f"is {theirs}, the root is {ours}"
        raise ConfigError(f"{_STEP}; its next latent {what}")
    for name, like in wanted.items():
        x = returned[name]
        same_kind = is_array(x) and np.shape(x) == like.shape and _joins(like, jnp.asarray(x))
        if not same_kind:
            raise ConfigError(
                f"{_STEP}; its next latent{name} is {describe(x)}, the root's {describe(like)}"
                f" (the action is {describe(action)})"
            )


def _leaves(tree: PyTree) -> tuple[dict[str, Any], Any]:
    """Leaves by path, and the structure."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): x for path, x in leaves}, structure


def _joins(a: Array, b: Array) -> bool:
    """Whether a common dtype keeps the kind of both: keys stay keys, signs stay signs."""
    if a.dtype == b.dtype:
        return True
    # Without x64 no integer type holds all of int32 and of uint32; promotion would wrap.
    signs = {np.dtype(x.dtype).kind for x in (a, b) if not _is_key(x)}
    return not (_is_key(a) or _is_key(b) or signs == {"i", "u"})


def _joint_dtype(like: Array, x: Any) -> Any:
    with jax.numpy_dtype_promotion("standard"):
        return like.dtype if _is_key(like) else jnp.result_type(like, x)


def _check_size(wanted: str, out: Any, size: int) -> None:
    if not isinstance(out, tuple | list) or len(out) != size:
        returned = f" of {len(out)}" if isinstance(out, tuple | list) else ""
        raise ConfigError(f"{wanted}; it returned {describe(out)}{returned}")


def _check_numbers(wanted: str, numbers: Sequence) -> None:
    for name, x in zip(("reward", "discount"), numbers, strict=True):
        if not is_real(x) or np.shape(x) != ():
            raise ConfigError(f"{wanted}; its {name} is {describe(x)}")


def _check_step(out: Any, root: PyTree, action: Array) -> None:
    _check_size(_STEP, out, 3)
    _check_numbers(_STEP, out[1:])
    _check_latent(out[0], root, action)


def _report_value(out: Any) -> frozenset:
    if not is_real(out) or np.shape(out) != ():
        raise ConfigError(f"model.value must return a number []; it returned {describe(out)}")
    return varying_axes(out)


def _report_action(name: str, size: int | None, out: Any) -> tuple[int, frozenset]:
    is_float = is_array(out) and jnp.issubdtype(jnp.asarray(out).dtype, jnp.floating)
    if not is_float or len(np.shape(out)) != 1 or size not in (None, *np.shape(out)):
        wanted = "[A]" if size is None else f"[{size}]"
        raise ConfigError(
            f"{name} must return an action, floats {wanted}; it returned {describe(out)}"
        )
    return np.shape(out)[0], varying_axes(out)


# -------------------------------------------------------------------- the functions


def _check_callable(name: str, function: Any, arguments: str) -> None:
    if not callable(function):
        raise ConfigError(f"{name} must be a function of {arguments}; it is {describe(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some callables, built-in ones for instance, have none
        return
    try:
        signature.bind(*arguments.split(","))
    except TypeError:
        raise ConfigError(f"{name} must take {arguments}; it takes {signature}") from None


def proposers(model: ModelFns) -> dict[str, Proposer]:
    """The proposal policies by their names in messages; checks that ``model`` is a model.

    Raises:
      ConfigError: for anything but functions of the right arguments.
    """
    for name in ModelFns._fields:
        if not hasattr(model, name):
            raise ConfigError(f"model must be a ModelFns; it is {describe(model)} without {name}")
    if isinstance(model.step, SplitStep):
        _check_callable("model.step.prepare", model.step.prepare, "(params, latent)")
        _check_callable("model.step.advance", model.step.advance, "(params, prepared, action)")
        _check_callable("model.step.outcome", model.step.outcome, "(params, seen)")
    else:
        _check_callable("model.step", model.step, "(params, latent, action)")
    _check_callable("model.value", model.value, "(params, key, latent)")
    given = model.sample_action
    if given is None:
        return {}
    if isinstance(given, tuple | list):
        named = {f"model.sample_action[{i}]": proposer for i, proposer in enumerate(given)}
    else:
        named = {"model.sample_action": given}
    if not named:
        raise ConfigError("model.sample_action must be a function, several or None; it is empty")
    for name, proposer in named.items():
        _check_callable(name, proposer, "(params, key, latent)")
    return named


# ------------------------------------------------------------------------- the root


def _root_arrays(root: PyTree) -> PyTree:
    """The root with every leaf an array, Python numbers included."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(root)
    if not leaves:
        raise ConfigError(f"root must have arrays: the latent of the present state; it is {root!r}")
    arrays = []
    for path, x in leaves:
        name = f"root{jax.tree_util.keystr(path)}"
        if not is_array(x):
            raise ConfigError(f"{name} must be an array or a number; it is {describe(x)}")
        try:
            x = jnp.asarray(x)
        except OverflowError:
            raise ConfigError(f"{name} = {x}: does not fit into {jnp.asarray(0).dtype}") from None
        # Drops a weak type, which a step would lose: the loop's carry must keep its type.
        arrays.append(x if _is_key(x) else jax.lax.convert_element_type(x, x.dtype))
    return jax.tree.unflatten(structure, arrays)


def _float_dtype(root: PyTree, default: DTypeLike) -> np.dtype:
    floats = [x for x in jax.tree.leaves(root) if jnp.issubdtype(x.dtype, jnp.floating)]
    with jax.numpy_dtype_promotion("standard"):
        widest = jnp.result_type(*floats) if floats else default
        return jnp.promote_types(widest, jnp.float32)


def _varying(x: Any) -> frozenset:
    return jax.typeof(x).mat.varying if isinstance(x, jax.core.Tracer) else frozenset()


def varying_axes(*trees: PyTree) -> frozenset:
    """The mesh axes of ``jax.shard_map`` over which any array in ``trees`` varies."""
    return frozenset().union(*map(_varying, jax.tree.leaves(trees)))


def vary(tree: PyTree, axes: Sequence) -> PyTree:
    """``tree`` with the type that varies over ``axes``, as a loop's carry must; no operation."""

    def cast(x: Array) -> Array:
        # ``pcast`` refuses axes over which an array varies already.
        missing = tuple(a for a in axes if a not in _varying(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree) if axes else tree


def _trace(function: Callable, report: Callable, *args: Any) -> Any:
    """``report`` of what ``function(*args)`` returns; nothing is computed."""
    # ``eval_shape`` returns arrays only, so the report leaves by a closure.
    reports = []
    jax.eval_shape(lambda *args: reports.append(report(function(*args))), *args)
    return reports[0]


# ----------------------------------------------------------------------- conforming


def conform(
    model: ModelFns,
    params: Params,
    key: Key,
    root: PyTree,
    action_size: int | None,
    *,
    also: PyTree = (),
    default: DTypeLike = float,
) -> Conformed:
    """Check ``model`` at ``root`` and fix the types of everything that it returns.

    Rewards, discounts, values and actions are cast to one float dtype. A latent
    whose dtype changes in a step is promoted, root included, never cast back.

    Args:
      model: as the user gave it.
      params: passed to its functions untouched.
      key: only its type matters.
      root: latent of the present state.
      action_size: A; None takes that of the first proposal policy.
      also: other inputs of the plan, whose mesh axes count too.
      default: dtype of a plan whose root has no floats.

    Raises:
      ConfigError: one line naming the function, what it returned and what it should.
    """
    named = proposers(model)
    root = _root_arrays(root)
    axes = varying_axes(params, key, root, also)
    for name, proposer in named.items():
        call = functools.partial(proposer, params)
        report = functools.partial(_report_action, name, action_size)
        action_size, seen = _trace(call, report, key, root)
        axes |= seen
    step = _whole(model.step) if isinstance(model.step, SplitStep) else model.step
    root, dtype, seen = _settle(step, params, root, action_size, axes, default)
    # The value sees the root after promotion, as it will in the search.
    axes |= seen | _trace(functools.partial(model.value, params), _report_value, key, root)
    return _wrapped(model, tuple(named.values()), root, dtype, tuple(sorted(axes, key=str)))


def _settle(step, params, root, action_size, axes, default):
    """The root in the dtypes that steps keep, the plan's dtype, and the axes of a step's output."""

    def probe(latent, action):
        action = vary(action, tuple(axes))
        return step(params, latent, action), latent, action

    def report(traced):
        out, latent, action = traced
        _check_step(out, latent, action)
        return jax.tree.map(_joint_dtype, latent, out[0]), varying_axes(out)

    # Promoting a leaf can promote others in the next step. Types only widen, so this ends.
    while True:
        dtype = _float_dtype(root, default)
        action = jax.ShapeDtypeStruct((action_size,), dtype)
        wider, seen = _trace(probe, report, root, action)
        if jax.tree.leaves(wider) == [x.dtype for x in jax.tree.leaves(root)]:
            return root, dtype, seen
        root = jax.tree.map(_cast, root, wider)


def _cast(x: Any, dtype: Any) -> Array:
    x = jnp.asarray(x)
    return x if _is_key(x) else x.astype(dtype)


def _whole(split: SplitStep) -> Callable:
    """A step in one part, whose messages name the part at fault."""

    def step(params, latent, action):
        moved = split.advance(params, split.prepare(params, latent), action)
        _check_size(_ADVANCE, moved, 2)
        outcome = split.outcome(params, moved[1])
        _check_size(_OUTCOME, outcome, 2)
        _check_numbers(_OUTCOME, outcome)
        return moved[0], *outcome

    return step


def _wrapped(model, policies, root, dtype, axes) -> Conformed:
    """The model's functions with outputs of fixed types."""
    dtypes = jax.tree.map(lambda x: x.dtype, root)
    split = model.step if isinstance(model.step, SplitStep) else None

    def number(x):
        return vary(_cast(x, dtype), axes)

    def prepare(params, latent):
        return split.prepare(params, latent) if split else latent

    def advance(params, prepared, action):
        if split:
            latent, seen = split.advance(params, prepared, action)
        else:
            latent, *seen = model.step(params, prepared, action)
            seen = tuple(map(number, seen))
        return vary(jax.tree.map(_cast, latent, dtypes), axes), seen

    def outcome(params, seen):
        reward, discount = split.outcome(params, seen) if split else seen
        return number(reward), number(discount)

    def value(params, key, latent):
        return number(model.value(params, key, latent))

    def converted(policy):
        return lambda params, key, latent: number(policy(params, key, latent))

    root = vary(root, axes)
    policies = tuple(map(converted, policies))
    return Conformed(
        prepare, advance, outcome, value, policies, root, dtype, axes, split is not None
    )
