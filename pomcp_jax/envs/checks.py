"""Checks of a task's arguments, shapes and dtypes, made before anything is compiled.

Every error is one line with the task's name, the field, what it returned and what is required.
Exceptions raised by the task's own functions propagate unchanged.
"""

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pomcp_jax.types import PyTree

FUNCTIONS = ("reset", "step", "observe", "reward", "terminated")
SIZES = ("observation_size", "action_size", "episode_steps")
LARGEST = 2**31 - 1
"""Largest size: counters on the device are int32."""


class Facts(NamedTuple):
    """Results of tracing a task."""

    carried: PyTree | None
    """Dtype of each leaf of the carried state; None for those that ``reset`` returns."""
    terminates: bool
    """Whether an episode can end before its time limit."""


def check_sizes(task: Any) -> dict[str, int]:
    """Sizes of a task as Python integers; of its functions only the presence is checked.

    Raises:
      ValueError: one line.
    """
    wanted = ("name", *FUNCTIONS, *SIZES)
    if not all(hasattr(task, field) for field in wanted):
        raise ValueError(f"make_env takes a Task, got {task!r:.100} (envs.make takes names)")
    if not isinstance(task.name, str):
        raise ValueError(f"task {task.name!r:.100}: name must be a string")
    for field in FUNCTIONS:
        if not callable(getattr(task, field)):
            raise _error(task, field, f"is {getattr(task, field)!r:.100}; must be a function")
    return {field: _size(task, field) for field in SIZES}


def _size(task: Any, field: str) -> int:
    value = getattr(task, field)
    try:
        size = operator.index(value)
    except TypeError:
        size = 0
    if isinstance(value, bool | np.bool_) or not 1 <= size <= LARGEST:
        raise _error(task, field, f"is {value!r:.100}; must be an int from 1 to {LARGEST}")
    return size


def reward_of_transition(task: Any) -> Callable[[PyTree, Any, PyTree], Any]:
    """The reward of a task as a function ``(state, action, next_state)``, whichever form it has.

    The number of positional parameters without a default decides: one is the state that is reached,
    three are the transition.

    Raises:
      ValueError: one line; it has another number of them.
    """
    reward, count = task.reward, required_arguments(task.reward)
    if count == 3:
        return reward
    if count not in (None, 1):
        text = f"takes {count} arguments; must be reward(state) or reward(state, action,"
        raise _error(task, "reward", f"{text} next_state)")
    return lambda state, action, following: reward(following)


def required_arguments(function: Any) -> int | None:
    """Number of positional parameters without a default; None if unknown, or for ``*args``."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C may have no signature
        return None
    if any(p.kind == p.VAR_POSITIONAL for p in parameters):
        return None
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return sum(p.default is p.empty for p in plain)


def check_task(task: Any) -> Facts:
    """Trace every function of a task once or twice, for shapes and dtypes only.

    Raises:
      ValueError: one line.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    fresh = _state(task, "reset", lambda key: task.reset(key), key)
    if not jax.tree.leaves(fresh):
        raise _error(task, "reset", "returns no arrays; must return the state of a fresh episode")
    state = _carried(task, fresh)
    action = jax.ShapeDtypeStruct((task.action_size,), jnp.float32)
    reward = reward_of_transition(task)
    _check_numbers(task, "observe", task.observe, (state,), (task.observation_size,))
    _check_numbers(task, "reward", reward, (state, action, state), ())
    _check_numbers(task, "terminated", task.terminated, (state,), ())
    return Facts(jax.tree.map(lambda x: x.dtype, state), _terminates(task, state))


def _error(task: Any, field: str, text: str) -> ValueError:
    return ValueError(f"task {task.name!r}: {field} {text}")


def shown(x: Any) -> str:
    """Type and shape of an array: ``float32[3]``."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _leaf(path: tuple) -> str:
    return f"the state's leaf {jax.tree_util.keystr(path)}" if path else "the state"


def is_array(x: Any) -> bool:
    """Whether JAX takes a value for an array."""
    try:
        jax.typeof(x)
    except TypeError:
        return False
    return True


def _state(task: Any, field: str, function: Any, *args: Any) -> PyTree:
    """Shapes and dtypes of the state that ``function`` returns, without weak types."""

    def run(*args: Any) -> PyTree:
        out = function(*args)
        for path, x in jax.tree_util.tree_leaves_with_path(out):
            if not is_array(x):
                raise _error(
                    task, field, f"returns {type(x).__name__} for {_leaf(path)}; must be an array"
                )
        return out

    shapes = jax.eval_shape(run, *args)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)


def _carried(task: Any, fresh: PyTree) -> PyTree:
    """State with dtypes that represent the results of ``reset`` and of any number of steps.

    A step from wider dtypes may return wider dtypes again, so this iterates to a fixed point.
    """
    action = jax.ShapeDtypeStruct((task.action_size,), jnp.float32)
    state = fresh
    # Four rounds suffice: dtypes widen from bool to int to float, then step must keep them.
    for _ in range(4):
        following = _state(task, "step", task.step, state, action)
        _check_structure(task, following, fresh)
        wider = jax.tree_util.tree_map_with_path(
            lambda path, x, y: _promoted(task, path, x, y), state, following
        )
        if [x.dtype for x in jax.tree.leaves(wider)] == [x.dtype for x in jax.tree.leaves(state)]:
            return state
        state = wider
    raise _error(task, "step", "returns ever wider dtypes; must keep those of its state")


def _check_structure(task: Any, following: PyTree, fresh: PyTree) -> None:
    ours: Any = jax.tree.structure(following)
    theirs: Any = jax.tree.structure(fresh)
    if ours != theirs:
        text = f"returns {_short(ours)}, reset returns {_short(theirs)}; must be the same structure"
        raise _error(task, "step", text)
    pairs = zip(jax.tree_util.tree_leaves_with_path(following), jax.tree.leaves(fresh), strict=True)
    for (path, x), y in pairs:
        if x.shape != y.shape:
            text = f"returns {shown(x)} for {_leaf(path)}, reset returns {shown(y)}"
            raise _error(task, "step", f"{text}; must be the same shape")


def _short(structure: Any) -> str:
    return f"{str(structure).removeprefix('PyTreeDef(').removesuffix(')'):.60}"


def promote(x: Any, y: Any) -> Any:
    """Dtype that represents values of both, None if there is none (keys, signed and unsigned)."""
    if x == y:
        return x
    # Keys have extended dtypes, which promote_types does not know.
    if any(jnp.issubdtype(d, jax.dtypes.extended) for d in (x, y)):
        return None
    with jax.numpy_dtype_promotion("standard"):
        wider = jnp.promote_types(x, y)
    unsigned = [jnp.issubdtype(d, jnp.unsignedinteger) for d in (x, y)]
    if jnp.issubdtype(wider, jnp.integer) and any(unsigned) and not all(unsigned):
        # uint32 and int32 need int64, which JAX truncates to int32 unless x64 is enabled: large
        # unsigned values would become negative.
        sizes = [jnp.iinfo(d).bits for d, u in zip((x, y), unsigned, strict=True) if u]
        if not jnp.issubdtype(wider, jnp.unsignedinteger) and jnp.iinfo(wider).bits <= sizes[0]:
            return None
    return wider


def _promoted(task: Any, path: tuple, x: Any, y: Any) -> jax.ShapeDtypeStruct:
    wider = promote(x.dtype, y.dtype)
    if wider is None:
        text = f"returns {shown(y)} for {_leaf(path)}, which was {shown(x)}"
        raise _error(task, "step", f"{text}; no dtype holds both")
    return jax.ShapeDtypeStruct(x.shape, wider)


def _check_numbers(
    task: Any, field: str, function: Callable, args: tuple, shape: tuple[int, ...]
) -> None:
    """Check that ``field`` returns one array of real numbers of this shape."""
    name, wanted = {
        "observe": ("observe", f"float32[{task.observation_size}] of observation_size"),
        "reward": ("reward:", "float32[]"),
        "terminated": ("terminated:", "bool[] (or a number, true unless 0)"),
    }[field]

    def run(*args: PyTree) -> Any:
        out = function(*args)
        if not is_array(out):
            kind = type(out).__name__
            article = "an" if kind[0] in "aeiou" else "a"
            raise _error(task, name, f"returns {article} {kind}; must be {wanted}")
        return out

    out = jax.eval_shape(run, *args)
    if out.shape != shape:
        if shape and len(out.shape) == 1:
            text = f"returns {shown(out)}, observation_size is {task.observation_size}"
            raise _error(task, name, text)
        raise _error(task, name, f"returns {shown(out)}; must be {wanted}")
    if not any(jnp.issubdtype(out.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
        raise _error(task, name, f"returns {shown(out)}; must be {wanted}")


def _terminates(task: Any, state: PyTree) -> bool:
    """Whether ``terminated`` depends on the state, or is constantly true."""
    answers = []

    def run(state: PyTree) -> None:
        # Constants stay concrete here, so only a result that depends on the state is a tracer.
        with jax.ensure_compile_time_eval():
            ended = task.terminated(state)
        answers.append(isinstance(ended, jax.core.Tracer) or bool(ended))

    jax.eval_shape(run, state)
    return answers[0]


def terminates_unseen(terminated: Any) -> bool:
    """Like :func:`_terminates`, without a state: any access to the state counts as True."""
    try:
        return bool(terminated(object()))
    except Exception:  # no attribute, no index, no arithmetic: a function may fail in any way
        return True
