"""Environments as data: a functional ``Task`` and the batched ``Env`` made from it.

A ``Task`` describes one unbatched environment with pure functions. ``make_env``
adds what training needs and a task's author should not have to write: the batch,
action repeat, time limits, fresh random episodes, returns, and protection from
non-finite numbers.

Three properties hold for every ``Env``:

* observations are always the true ones, also at the end of an episode; the fresh
  episode starts at the *next* call, which ignores its action;
* row ``i`` depends only on its own key and actions, never on other rows;
* resets cost nothing in steps where no row resets: they are under a ``lax.cond``
  with a scalar predicate, outside every ``vmap``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.envs import checks
from pomcp_jax.types import Key, PyTree, TimeStep

State = Any
"""The state of a task: any pytree of arrays."""


class Scene(NamedTuple):
    """What a renderer needs of a task, as plain data."""

    model: Any
    """``mujoco.MjModel`` to draw."""
    pose: Callable[[State], Mapping[str, Array]]
    """Fields of ``mujoco.MjData`` (``qpos``, ``mocap_pos``) or ``mujoco.MjModel`` (``geom_pos``)
    and their values in a state; at least ``qpos``."""
    timestep: float
    """Seconds of one control step."""
    camera: str | int | None = None
    """Name or number of the camera; None for the model's first one, or a free one."""


class Task(NamedTuple):
    """One unbatched environment; all functions are pure and traceable."""

    name: str
    reset: Callable[[Key], State]
    step: Callable[[State, Float[Array, " A"]], State]
    """One control step with an action in ``[-1, 1]``."""
    observe: Callable[[State], Float[Array, " O"]]
    reward: Callable[..., Float[Array, ""]]
    """``(state)``: the reward of arriving in a state; or ``(state, action, next_state)``: that of a
    control step. :func:`make_env` decides by the number of positional parameters."""
    terminated: Callable[[State], Bool[Array, ""]]
    """A bool, or a number that is true unless 0."""
    observation_size: int
    action_size: int
    episode_steps: int
    """Control steps until truncation."""
    scene: Scene | None = None
    """How to draw a state; None for tasks without a picture."""


class EnvState(NamedTuple):
    """Carry of an ``Env``; every leaf has the leading axis ``B``."""

    task: PyTree
    key: Key
    """Key of each row's future episodes; split at each of its resets."""
    frames: Int[Array, " B"]
    """Control steps of the current episode."""
    decisions: Int[Array, " B"]
    episode_return: Float[Array, " B"]
    is_last: Bool[Array, " B"]
    """The previous time step ended its episode."""


class Env(NamedTuple):
    """A batch of environments; B is the number of keys passed to ``reset``."""

    name: str
    reset: Callable[[Key], tuple[Any, TimeStep]]
    """``keys[B] -> (state, first time steps)``; a state is an :class:`EnvState`, or a pytree with
    a field ``task`` that ``scene.pose`` reads."""
    step: Callable[[Any, Float[Array, "B A"]], tuple[Any, TimeStep]]
    observation_size: int
    action_size: int
    episode_length: int
    """Decisions until truncation."""
    action_repeat: int
    terminates: bool | None = None
    """Whether episodes can end before their time limit; None if unknown."""
    scene: Scene | None = None
    """How to draw the state of one row; see :class:`Task`."""
    history: int = 1
    """Observations of the episode in each of its own (:mod:`pomcp_jax.envs.history`)."""
    outside: "Outside | None" = None
    """Access to environments outside of the compiled program; None if the state is everything."""


class Outside(NamedTuple):
    """Environments on the host, of which a state has only the names."""

    apart: Callable[[], Env]
    """The same environment with live ones of its own: an evaluation must not disturb training."""
    snapshot: Callable[[Any], Any]
    """The state with all that another process needs to restore the live environments."""
    notes: Callable[[], list[str]]
    """Lines for the user since the last call: what was raised, lost or begun again."""
    close: Callable[[], None]
    """Close the live environments, not those made apart. A later call makes new ones, restored from
    what a state has stored, or at the beginning of an episode."""


class _Advance(NamedTuple):
    """The part of a batch's state that changes within one decision."""

    task: PyTree
    frames: Int[Array, " B"]
    reward: Float[Array, " B"]
    terminated: Bool[Array, " B"]


def check_action_repeat(action_repeat: int) -> None:
    """Raise unless ``action_repeat`` is a whole number of at least one."""
    if isinstance(action_repeat, bool) or not isinstance(action_repeat, int) or action_repeat < 1:
        raise ValueError(f"action_repeat must be an int of at least 1, got {action_repeat!r}")


def full_precision(task: Task, *, trusted: bool = False) -> Task:
    """``task`` with its matrix products in full precision.

    By default accelerators round the factors of float32 products (mantissas to 10 bits on NVIDIA
    GPUs, 7 on TPUs): good enough for networks, but not for rigid bodies. :func:`make_env` does
    not check ``trusted`` functions, and they are traced once in a process: tracing the physics of
    a large body takes seconds.
    """

    def exactly(function: Callable, jit: bool = trusted) -> Callable:
        # A step contains a reset, and a run several programs: physics are traced once for all.
        # A user's function stays as it is, since checks judge what it returns.
        once = jax.jit(function) if jit else function

        def run(*args: Any, **kwargs: Any) -> Any:
            with jax.default_matmul_precision("highest"):
                return once(*args, **kwargs)

        # make_env wraps again: the mark and the signature must survive a second wrapping.
        run.trusted = trusted or getattr(function, "trusted", False)  # type: ignore[attr-defined]
        run.__wrapped__ = function  # type: ignore[attr-defined]
        return run

    return task._replace(
        reset=exactly(task.reset),
        step=exactly(task.step),
        observe=exactly(task.observe),
        reward=exactly(task.reward),
        # Checks look for constants, which a jitted function would hide.
        terminated=exactly(task.terminated, jit=False),
    )


def make_env(task: Task, action_repeat: int = 1) -> Env:
    """Batch ``task`` and add episodes, action repeat, masking of broken states, and precision.

    The state is carried in dtypes that can represent what both ``reset`` and ``step`` return:
    integers become floats if a step adds floats.

    Raises:
      ValueError: one line with the task and its field, what it returns and what is required.
    """
    check_action_repeat(action_repeat)
    sizes = checks.check_sizes(task)
    task = full_precision(
        task._replace(
            observation_size=sizes["observation_size"],
            action_size=sizes["action_size"],
            episode_steps=sizes["episode_steps"],
        )
    )
    if all(getattr(task, field).trusted for field in checks.FUNCTIONS):
        facts = checks.Facts(None, checks.terminates_unseen(task.terminated))
    else:
        facts = checks.check_task(task)
    if facts.carried is not None:
        fresh = task.reset
        task = task._replace(reset=lambda key: _cast(fresh(key), facts.carried))
    task = task._replace(reward=checks.reward_of_transition(task))
    return _batched(task, action_repeat)._replace(terminates=facts.terminates)


def _batched(task: Task, action_repeat: int) -> Env:
    """Environment of a checked task, whose reward is one of ``(state, action, next_state)``."""

    def reset(keys: Key) -> tuple[EnvState, TimeStep]:
        carried, fresh = _fresh(task, keys)
        zero, count, _ = _zeros(keys.shape[0])
        obs, broken = _first_observation(task, fresh)
        # Copies because trainers donate the state: XLA refuses to donate one buffer twice.
        state = EnvState(fresh, carried, count, jnp.copy(count), zero, jnp.copy(broken))
        no = jnp.zeros_like(broken)
        return state, TimeStep(
            obs=obs,
            reward=jnp.copy(zero),
            terminated=no,
            truncated=jnp.copy(no),
            is_first=~no,
            invalid=broken,
            episode_return=jnp.copy(zero),
            episode_length=jnp.copy(count),
        )

    def step(state: EnvState, action: Float[Array, "B A"]) -> tuple[EnvState, TimeStep]:
        return _step(task, action_repeat, state, action)

    return Env(
        name=task.name,
        reset=reset,
        step=step,
        observation_size=task.observation_size,
        action_size=task.action_size,
        episode_length=math.ceil(task.episode_steps / action_repeat),
        action_repeat=action_repeat,
        scene=task.scene,
    )


def _step(
    task: Task, action_repeat: int, state: EnvState, action: Float[Array, "B A"]
) -> tuple[EnvState, TimeStep]:
    """One decision of a batch: advance all rows, then start new episodes where needed."""
    finite_action = jnp.all(jnp.isfinite(action), axis=1)
    # Broken actions are zeroed before the physics: on NaN the solver would iterate to its limit,
    # and the whole batch would wait for it.
    action = jnp.where(finite_action[:, None], action, jnp.zeros_like(action))
    moved = _advance(task, action_repeat, state, action)
    obs = _observe(task, moved.task)
    finite = finite_action & jnp.isfinite(moved.reward) & jnp.all(jnp.isfinite(obs), axis=1)
    # After a last step this call's action is ignored, so its non-finite result is not a fault.
    invalid = ~finite & ~state.is_last
    is_first = state.is_last | invalid

    def restart(operand: tuple) -> tuple:
        old, old_obs, old_key, _ = operand
        carried, fresh = _fresh(task, old_key)
        fresh_obs, broken = _first_observation(task, fresh)
        return (
            _where(is_first, fresh, old),
            _where(is_first, fresh_obs, old_obs),
            _where(is_first, carried, old_key),
            is_first & broken,
        )

    # The scalar predicate keeps this a branch: a select under vmap would compute a reset for every
    # row in every step, and resets that reject poses are expensive.
    none = jnp.zeros_like(is_first)
    task_state, obs, key, stillborn = jax.lax.cond(
        jnp.any(is_first), restart, lambda operand: operand, (moved.task, obs, state.key, none)
    )
    zero, count, _ = _zeros(action.shape[0])
    reward = jnp.where(is_first, zero, moved.reward)
    frames = jnp.where(is_first, count, moved.frames)
    decisions = jnp.where(is_first, count, state.decisions + 1)
    episode_return = jnp.where(is_first, zero, state.episode_return + reward)
    terminated = moved.terminated & ~is_first
    truncated = (frames >= task.episode_steps) & ~terminated & ~is_first
    following = EnvState(
        task=task_state,
        key=key,
        frames=frames,
        decisions=decisions,
        episode_return=episode_return,
        # An episode whose first observation is broken has no transitions: the next call resets.
        is_last=terminated | truncated | stillborn,
    )
    return following, TimeStep(
        obs=jnp.copy(obs),
        reward=reward,
        terminated=terminated,
        truncated=truncated,
        is_first=is_first,
        invalid=invalid | stillborn,
        episode_return=jnp.copy(episode_return),
        episode_length=jnp.copy(decisions),
    )


def _advance(
    task: Task, action_repeat: int, state: EnvState, action: Float[Array, "B A"]
) -> _Advance:
    """Repeat an action and sum rewards; a row stops changing once its episode is over."""
    zero, _, no = _zeros(action.shape[0])

    def once(now: _Advance) -> _Advance:
        following = _like(task, jax.vmap(task.step)(now.task, action), now.task)
        reward = jax.vmap(task.reward)(now.task, action, following).astype(jnp.float32)
        ended = jax.vmap(task.terminated)(following)
        if jnp.issubdtype(ended.dtype, jnp.floating):
            # NaN would count as true below. It marks a broken state, which a NaN reward reports.
            reward = jnp.where(jnp.isfinite(ended), reward, jnp.nan)
        terminated = ended if ended.dtype == bool else ended != 0
        return _Advance(following, now.frames + 1, now.reward + reward, terminated)

    def again(now: _Advance, _: None) -> tuple[_Advance, None]:
        over = now.terminated | (now.frames >= task.episode_steps)
        return _where(over, now, once(now)), None

    start = _Advance(state.task, state.frames, zero, no)
    # Without a repeat no row can be over yet: skip the scan and its selects.
    if action_repeat == 1:
        return once(start)
    return jax.lax.scan(again, start, length=action_repeat)[0]


def _fresh(task: Task, keys: Key) -> tuple[Key, PyTree]:
    """New episodes from ``keys[B]``: the keys for later episodes, and the states."""
    split = jax.vmap(jax.random.split)(keys)
    fresh = jax.vmap(task.reset)(split[:, 1])
    return split[:, 0], _cast(fresh, jax.tree.map(lambda x: x.dtype, fresh))


def _observe(task: Task, state: PyTree) -> Float[Array, "B O"]:
    return jax.vmap(task.observe)(state).astype(jnp.float32)


def _first_observation(task: Task, state: PyTree) -> tuple[Float[Array, "B O"], Bool[Array, " B"]]:
    """First observations, with non-finite ones set to zero, and a mask of those."""
    obs = _observe(task, state)
    broken = ~jnp.all(jnp.isfinite(obs), axis=1)
    return jnp.where(broken[:, None], jnp.zeros_like(obs), obs), broken


def _zeros(batch: int) -> tuple[Float[Array, " B"], Int[Array, " B"], Bool[Array, " B"]]:
    """Zeros for sums, counters and flags, with dtypes that do not depend on x64."""
    shape = (batch,)
    return jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool)


def _where(mask: Bool[Array, " B"], yes: PyTree, no: PyTree) -> PyTree:
    """Select whole rows of two trees."""

    def select(a: Array, b: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, yes, no)


def _like(task: Task, tree: PyTree, reference: PyTree) -> PyTree:
    """``tree`` with the dtypes of ``reference``, which must be able to represent its values.

    Raises:
      ValueError: a dtype would lose values; only unchecked (trusted) tasks reach this error.
    """
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(reference), strict=True
    ):
        if checks.promote(jnp.result_type(x), y.dtype) != y.dtype:
            name = jax.tree_util.keystr(path)
            raise ValueError(
                f"task {task.name!r}: step returns {jnp.result_type(x)} for the state's leaf"
                f" {name}, which reset makes {y.dtype}; must be the same"
            )
    return _cast(tree, jax.tree.map(lambda x: x.dtype, reference))


def _cast(tree: PyTree, dtypes: PyTree) -> PyTree:
    """``tree`` in these dtypes and without weak types."""
    # A weak type in the initial state changes the type of the carry after one step, and every
    # function of the state would be traced and compiled a second time.

    def cast(x: Array, dtype: Any) -> Array:
        x = jnp.asarray(x)
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key else jax.lax.convert_element_type(x, dtype)

    return jax.tree.map(cast, tree, dtypes)
