"""Controllers: a trained agent that acts on a robot or in another program's loop.

:func:`load_controller` reads a run's folder and returns a :class:`Controller` with NumPy inputs and
outputs, compiled once. :func:`make_fns` returns pure functions for loops that are jitted.
Neither builds an environment.

Symbols: N observations at once, O observation size, A action size, H horizon.
"""

import dataclasses
import math
import numbers
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax import acting, checkpoint, envs, parts, planner_checks
from pomcp_jax import cells as cells_lib
from pomcp_jax import config as config_lib
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.checkpoint import CheckpointError, Restored
from pomcp_jax.config import AgentConfig, Config, ConfigError
from pomcp_jax.mppi import PlanState
from pomcp_jax.types import Key

ACTORS = ("planner", "policy", "prior")
_MEASUREMENTS = 7
"""Timed calls for each candidate number of iterations, to meet a time budget."""


class ControllerState(NamedTuple):
    """State of a controller between decisions."""

    key: Key
    plan: PlanState
    """Warm starts ``[N, H, A]``."""
    is_first: Bool[Array, " N"]
    """The next observation begins an episode, so its warm start is ignored."""


class ControllerFns(NamedTuple):
    """A controller as pure functions, which can be transformed with ``jit`` and ``vmap``."""

    init: Callable[[Key, int], ControllerState]
    """``(key, N)``: the state before the first decision; the key is consumed."""
    act: Callable[
        [AgentParams, ControllerState, Float[Array, "N O"]],
        tuple[ControllerState, Float[Array, "N A"]],
    ]
    """One decision for each of N observations; actions in ``[-1, 1]``. Observations are those of
    the agent: with ``env.history`` the latest ones side by side (:mod:`pomcp_jax.envs.history`)."""


def make_fns(
    config: AgentConfig,
    spec: AgentSpec,
    *,
    actor: str = "planner",
    select: Literal["sample", "argmax"] = "argmax",
    explore: float = 0.0,
) -> ControllerFns:
    """Pure functions that select an agent's actions.

    Args:
      config: configuration of the agent.
      spec: static part of the agent.
      actor: ``planner`` (MPPI), ``policy`` (the bare network) or ``prior`` (the learned prior).
      select: elite that the planner executes: ``argmax`` the best one, ``sample`` as in training.
      explore: scale of the exploration noise, a number or ``[A]``; 0 for none.

    Raises:
      ValueError: for an unknown actor or select, a wrong ``explore``, or ``prior`` if the agent
        learned none.
    """
    if actor not in ACTORS:
        raise ValueError(f"actor = {actor!r}: must be one of {', '.join(ACTORS)}")
    if select not in ("argmax", "sample"):
        raise ValueError(f"select = {select!r}: must be 'argmax' or 'sample'")
    planner_checks.check_explore(explore, spec.action_size)
    if actor == "prior" and not config.policy.learns_prior:
        raise ValueError(
            f"actor = 'prior': this agent learned none (policy.prior = {config.policy.prior!r});"
            " must be 'planner' or 'policy'"
        )
    # Training samples an elite to explore; a robot should execute the best one.
    config = dataclasses.replace(config, mppi=dataclasses.replace(config.mppi, select=select))

    def init(key: Key, num: int) -> ControllerState:
        return ControllerState(key, acting.init_plan(config, spec, num), jnp.ones((num,), bool))

    def act(params: AgentParams, state: ControllerState, obs: Array) -> tuple:
        next_key, key = jax.random.split(state.key)
        plan, no = state.plan, jnp.zeros_like(state.is_first)
        if actor == "planner":
            out = acting.act(
                params, key, obs, plan, state.is_first, spec=spec, config=config, explore=explore
            )
            return ControllerState(next_key, out.next_state, no), out.action
        # Prior and policy are the same network with other parameters.
        if actor == "prior":
            params = params._replace(policy=params.prior)
        action = acting.act_policy(params, key, obs, spec=spec, config=config, explore=explore)
        return ControllerState(next_key, plan, no), action

    return ControllerFns(init, act)


class Controller:
    """A trained agent: ``reset()`` before an episode, then ``act(observation)`` for each decision.

    Repeat each action for ``action_repeat`` control steps of the environment. Every observation is
    given once: the latest ``history`` of them, which the agent sees, are kept here. Not
    thread-safe.
    """

    def __init__(
        self,
        params: AgentParams,
        config: Config,
        spec: AgentSpec,
        *,
        key: int = 0,
        bounds: tuple[np.ndarray, np.ndarray] | None = None,
        time_budget: float | None = None,
        **options: Any,
    ):
        """Prepare a controller; compiles nothing unless there is a time budget.

        Args:
          params: parameters of one seed.
          config: configuration of the run.
          spec: static part of the agent.
          key: seed of the controller's random numbers.
          bounds: lowest and highest action ``[A]`` of the environment; ``[-1, 1]`` by default.
          time_budget: seconds that one decision for one observation may take. The largest number
            of planning iterations that fits is found by measurement on this machine, at most the
            agent's own number.
          **options: of :func:`make_fns`.

        Raises:
          ValueError: as :func:`make_fns`, or if the budget is too short for any plan.
        """
        known = isinstance(key, int | np.integer) and not isinstance(key, bool)
        if not known or not -(2**63) <= key < 2**63:
            raise ValueError(
                f"key = {key!r:.80}: must be an integer of 64 bits, a seed of random numbers"
            )
        self.history, self.action_size = config.env.history, spec.action_size
        # The agent sees the latest observations at once; callers give one at a time.
        self.observation_size = spec.obs_size // self.history
        self.action_repeat, self.task = config.env.action_repeat, config.env.task
        self.iterations = config.agent.mppi.iterations
        self._params, self._key = params, key
        self._bounds = None if bounds is None else _checked(bounds, spec.action_size)
        self._config, self._spec, self._options = config.agent, spec, options
        self._use(self.iterations)
        if time_budget is not None:
            self._fit(time_budget)

    def _use(self, iterations: int) -> None:
        planner = dataclasses.replace(self._config.mppi, iterations=iterations)
        config = dataclasses.replace(self._config, mppi=planner)
        # The number of iterations is static, so each number is a compilation of its own.
        self._fns = make_fns(config, self._spec, **self._options)
        self._act = jax.jit(self._fns.act)
        self.iterations = iterations
        self.reset()

    def _fit(self, budget: float) -> None:
        """Choose the largest number of iterations whose slowest measured decision fits."""
        # The slowest, not the median: a control loop has to meet its deadline every time.
        known = isinstance(budget, numbers.Real) and not isinstance(budget, bool)
        if not known or not budget > 0.0:
            raise ValueError(f"time_budget = {budget!r}: must be > 0 seconds")
        for iterations in range(self.iterations, 0, -1):
            self._use(iterations)
            slowest = max(self.latencies(_MEASUREMENTS))
            if slowest <= budget or self._options.get("actor") in ("policy", "prior"):
                break
        if slowest > budget:
            raise ValueError(
                f"time_budget = {budget:g} s: the fastest decision takes {slowest:.2g} s here;"
                " must be longer, or actor='policy'"
            )

    def latencies(self, count: int = 100) -> list[float]:
        """Seconds of each of ``count`` decisions for one observation; resets afterwards."""
        # The first call compiles, which is not a latency.
        self.warm_up()
        obs, out = np.zeros(self.observation_size, np.float32), []
        for _ in range(count):
            begin = time.perf_counter()
            self.act(obs)
            out.append(time.perf_counter() - begin)
        self.reset()
        return out

    def warm_up(self, num: int | None = None) -> None:
        """Compile for one observation ``[O]``, or for ``num`` of them; resets the controller.

        Raises:
          ValueError: ``num`` is no positive integer.
        """
        if num is not None:
            planner_checks.check_count("num", num)
        shape = (self.observation_size,) if num is None else (num, self.observation_size)
        self.reset()
        self.act(np.zeros(shape, np.float32))
        self.reset()

    def reset(self) -> None:
        """Begin new episodes: discard plans and restart the random numbers."""
        # The number of robots is known at the next observation only, so the state is made there.
        self._state: ControllerState | None = None
        self._seen: np.ndarray | None = None

    def _with_history(self, obs: np.ndarray) -> np.ndarray:
        """The latest ``env.history`` observations of the episode ``[N, K]``, the oldest first."""
        # At an episode's start the first one is repeated, as pomcp_jax.envs.history does.
        before = np.tile(obs, (1, self.history)) if self._seen is None else self._seen
        self._seen = np.concatenate([before[:, self.observation_size :], obs], axis=1)
        return self._seen

    def act(self, observation: Any) -> np.ndarray:
        """Decide on an action.

        Args:
          observation: ``[O]``, or ``[N, O]`` for N robots at once.

        Returns:
          Actions ``[A]`` or ``[N, A]``, within the controller's bounds.

        Raises:
          ValueError: for another shape than at the start of the episode, non-finite numbers, or
            what are no real numbers.
        """
        obs = _numbers(observation)
        if obs.ndim not in (1, 2) or obs.shape[-1] != self.observation_size:
            raise ValueError(
                f"observation of shape {obs.shape}: must be [{self.observation_size}] or"
                f" [N, {self.observation_size}], which this agent was trained with"
            )
        if not np.isfinite(obs).all():
            index = tuple(int(i) for i in np.argwhere(~np.isfinite(obs))[0])
            raise ValueError(f"observation[{', '.join(map(str, index))}] is not finite")
        rows = obs[None] if obs.ndim == 1 else obs
        if self._state is None:
            self._state = self._fns.init(jax.random.key(self._key), len(rows))
        if len(rows) != len(self._state.is_first):
            raise ValueError(
                f"{len(rows)} observations: this episode began with {len(self._state.is_first)};"
                " call reset() to change the number"
            )
        seen = self._with_history(rows)
        self._state, action = self._act(self._params, self._state, seen)
        action = np.array(action, np.float32)
        if self._bounds is not None:
            low, high = self._bounds
            # Exploration noise may leave [-1, 1], and sums are rounded; a robot must never see more
            # than its bounds. Halves first: the difference of the largest numbers is infinite.
            bottom, top = (np.asarray(bound, np.float64) / 2.0 for bound in (low, high))
            inside = (bottom + top) + (top - bottom) * np.clip(action, -1.0, 1.0)
            action = np.clip(inside.astype(np.float32), low, high)
        return action[0] if obs.ndim == 1 else action


def _numbers(observation: Any) -> np.ndarray:
    """``observation`` in float32.

    Raises:
      ValueError: it is no array of real numbers, or some are masked.
    """
    try:
        given = np.asarray(observation)
    except jax.errors.TracerArrayConversionError:
        raise  # it says what to do
    except (TypeError, ValueError):  # a ragged list
        given = np.asarray(None)
    # Not ``dtype.kind`` alone: bfloat16 has none of its own. numpy calls times integers.
    real = any(jnp.issubdtype(given.dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))
    real &= given.dtype.kind != "m"
    if not real or np.ma.is_masked(observation):
        kind = "masked values" if real else f"{type(observation).__name__} of {given.dtype}"
        raise ValueError(f"observation: has {kind}; must be an array of real numbers")
    return given.astype(np.float32)


def _checked(bounds: tuple[np.ndarray, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """``bounds``, numbers or one per input ``[A]``, as float32 arrays ``[A]``.

    Raises:
      ValueError: for another shape, or a lowest action that is not below the highest.
    """
    try:
        low, high = (np.asarray(end, np.float32) for end in bounds)
    except (TypeError, ValueError):
        raise ValueError(f"bounds = {bounds!r}: must be (lowest [A], highest [A])") from None
    low, high = (np.full(size, end) if end.ndim == 0 else end for end in (low, high))
    if low.shape != (size,) or high.shape != (size,):
        raise ValueError(
            f"bounds have the shapes {low.shape} and {high.shape}: must be numbers or [{size}] each"
        )
    if not (np.isfinite(low) & np.isfinite(high) & (low < high)).all():
        raise ValueError(f"bounds = ({low}, {high}): the first must be below the second")
    return low, high


def choose_checkpoint(folder: Path, which: str | int = "best") -> int | None:
    """Decisions of the ``best`` checkpoint (by evaluation, else the newest) or the ``newest``.

    Returns:
      None for the newest undamaged one, which :func:`checkpoint.restore` finds.

    Raises:
      CheckpointError: for any other value that is not a number of decisions.
    """
    if isinstance(which, int) and not isinstance(which, bool):
        return which
    if which not in ("best", "newest"):
        raise CheckpointError(f"checkpoint = {which!r}: must be 'best', 'newest' or a number")
    scores = checkpoint.scores(folder) if which == "best" else {}
    # Of equal scores the later checkpoint, which has learned from more data.
    best = max(scores, key=lambda step: (scores[step], step), default=None)
    return best if best is not None and math.isfinite(scores[best]) else None


def find(run: Path | str) -> tuple[Path, str]:
    """Folder of a run's checkpoints and, for a cell of a sweep, the cell's name.

    Raises:
      CheckpointError: there is no such folder.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        is_file = "is a file" if folder.exists() else "no such folder"
        raise CheckpointError(f"{folder}: {is_file}; must be the workdir of a run")
    inner = folder / "checkpoints"
    if not inner.is_dir() and not checkpoint.entries(folder):
        nested = sorted(place.parent for place in folder.glob("*/checkpoints") if place.is_dir())
        if nested:
            shown = ", ".join(map(str, nested[:5])) + (", ..." if nested[5:] else "")
            raise CheckpointError(f"{folder}: holds no checkpoint; did you mean {shown}?")
    if not inner.is_dir() and (folder.parent / "sweep.json").is_file():
        return folder.parent / "checkpoints", folder.name
    return (inner if inner.is_dir() else folder), ""


def load(run: Path | str, which: str | int = "best") -> Restored:
    """Agents of a run, from ``RUN/checkpoints`` or from a folder of checkpoints itself.

    For a sweep, ``run`` is the folder of one of its cells; the best checkpoint is the one with the
    best mean over all cells. Of a run over several processes the seeds of all parts are returned,
    from a checkpoint that all have.

    Raises:
      CheckpointError: one line that names what is missing or damaged.
    """
    place = Path(run).expanduser()
    try:
        record = parts.read(place)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if record is not None:
        return _of_parts([place / part.folder / "checkpoints" for part in record.parts], which)
    folder, cell = find(run)
    restored = checkpoint.restore(folder, choose_checkpoint(folder, which))
    grid = checkpoint.read(folder, restored.decisions).host.get("grid")
    return _of_cell(restored, grid, cell, folder) if grid else restored


def _of_parts(folders: Sequence[Path], which: str | int) -> Restored:
    """Agents of all parts of a run, at a checkpoint that all have.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    known = [checkpoint.scores(folder) for folder in folders]
    common = sorted(set(known[0]).intersection(*known[1:]))
    workdir = folders[0].parents[1]
    if isinstance(which, int) and which in common:
        common = [which]
    elif not common or which not in ("best", "newest"):
        raise CheckpointError(
            f"{workdir}: checkpoint = {which!r}: must be 'best', 'newest', or one that all parts"
            f" have: {common}"
        )
    # As for one process: the mean over all seeds, and only where all were evaluated.
    sizes = [checkpoint.read(folder, common[-1]).sizes[2] for folder in folders]
    means = {step: float(np.average([s[step] for s in known], weights=sizes)) for step in common}
    best = max(common, key=lambda step: (means[step], step))
    newest = which != "best" or not math.isfinite(means[best])
    step = common[-1] if newest else best
    restored = [checkpoint.restore(folder, step) for folder in folders]
    state = jax.tree.map(lambda *x: jnp.concatenate(x), *(part.state for part in restored))
    whole = {"train.num_seeds": sum(sizes)}
    return restored[0]._replace(state=state, config=config_lib.replace(restored[0].config, whole))


def _of_cell(restored: Restored, grid: Any, name: str, folder: Path) -> Restored:
    """Agents of one cell of a sweep, with the cell's configuration."""
    try:
        cells = cells_lib.cells(restored.config, cells_lib.check_grid(grid, restored.config))
    except (ConfigError, AttributeError) as error:
        raise CheckpointError(f"{folder}: its grid is invalid ({error})") from None
    by_name = {cell.name: cell for cell in cells}
    if name not in by_name:
        shown = ", ".join(by_name)
        raise CheckpointError(f"{folder.parent}: holds a sweep; choose a cell: {shown:.300}")
    cell = by_name[name]
    state = jax.tree.map(lambda x: x[cell.rows], restored.state)
    return restored._replace(state=state, config=cell.config)


def load_controller(
    run: Path | str,
    *,
    actor: str = "planner",
    seed: int | None = None,
    checkpoint: str | int = "best",
    units: str = "normalised",
    **options: Any,
) -> Controller:
    """Load a trained agent, ready to act.

    Args:
      run: workdir of a run.
      actor: ``planner``, ``policy`` or ``prior``.
      seed: number of the training seed; the first one by default.
      checkpoint: ``best`` by evaluation, ``newest``, or its decisions.
      units: ``normalised`` for actions in ``[-1, 1]``, or ``environment`` for those of the
        environment (known for dm_control's tasks; pass ``bounds`` for others).
      **options: of :class:`Controller`: ``key``, ``bounds``, ``time_budget``, ``select``,
        ``explore``.

    Raises:
      CheckpointError: there is no undamaged checkpoint.
      ValueError: one line about an argument that does not fit.
    """
    if units not in ("normalised", "environment"):
        raise ValueError(f"units = {units!r}: must be 'normalised' or 'environment'")
    restored = load(run, checkpoint)
    first = restored.config.train.seed
    count = restored.num_seeds
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral | None):
        raise ValueError(f"seed = {seed!r}: must be the number of a training seed")
    index = 0 if seed is None else seed - first
    if not 0 <= index < count:
        raise ValueError(f"seed = {seed}: this run has the seeds {first} to {first + count - 1}")
    if units == "environment" and options.get("bounds") is None:
        options["bounds"] = envs.action_bounds(restored.config.env.task)
    params = jax.tree.map(lambda x: x[index], restored.state.params)
    return Controller(params, restored.config, restored.spec, actor=actor, **options)
