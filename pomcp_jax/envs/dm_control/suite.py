"""dm_control's tasks on its original models: load a domain and build tasks from it.

A domain's file defines how an episode starts and what observations and rewards depend on;
physics, control ranges and the choice of the engine are here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs import host_engine, warp_engine
from pomcp_jax.envs.dm_control import models
from pomcp_jax.envs.mjx import engine as mjx_engine
from pomcp_jax.envs.physics import (
    Motion,
    Physics,
    Start,
    View,
    begin,
    force_sensors,
    quiet_mjx,
    relaxed,
    view,
)
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key, PyTree

BACKENDS = ("mjx", "host", "warp")
"""MJX on the accelerator, MuJoCo's C code on the host, or MJX's Warp kernels."""

_CAMERAS = {"fish": "tracking_y", "humanoid": "side", "humanoid_CMU": "side", "quadruped": "x"}
"""Cameras of pictures where the model's first one shows less."""


class Seen(NamedTuple):
    """Observation of a body, and the quantities that rewards need."""

    obs: Float[Array, " O"]
    facts: PyTree
    """Inputs of the rewards of the domain's tasks."""


class State(NamedTuple):
    """State of a task."""

    motion: Motion
    ctrl: Float[Array, " U"]
    seen: Seen
    """Measurements of ``motion``, computed once for the observation and the reward."""
    episode: PyTree

    @property
    def qpos(self) -> Float[Array, " Q"]:
        """Positions."""
        return self.motion.qpos

    @property
    def qvel(self) -> Float[Array, " V"]:
        """Velocities."""
        return self.motion.qvel


class Marks(NamedTuple):
    """How pictures show what dm_control changes in its model per task and episode: targets."""

    model: Any
    """``mujoco.MjModel`` to draw: a copy of the original, with this task's sizes and colours."""
    place: Callable[[PyTree], Mapping[str, Array]]
    """Fields of the model and their values in an episode."""


class Domain(NamedTuple):
    """Physics of a family of tasks, how its episodes start and what is observed."""

    physics: Physics
    begin: Callable[[Key], Start]
    look: Callable[[View, PyTree], Seen]
    """``(view, episode) -> seen``."""
    episode_steps: int = 1000
    marks: Marks | None = None


def load(
    domain: str,
    backend: str = "mjx",
    control_timestep: float | None = None,
    *,
    sensors: tuple[str, ...] = (),
    edit: models.Edit | None = None,
    adjust: Callable[[Any], None] | None = None,
    max_contacts: Mapping[int, int] = MappingProxyType({}),
    **mjx_edits: Any,
) -> Physics:
    """Compile ``dm_control/suite/<domain>.xml`` for an engine.

    Args:
      domain: Name of the XML file.
      backend: One of :data:`BACKENDS`.
      control_timestep: Seconds; by default a control step is one physics step.
      sensors: Names of the sensors that the domain reads.
      edit: Changes that dm_control makes to the XML.
      adjust: Changes that dm_control makes to the compiled model.
      max_contacts: Number of contacts of each condim that MJX solves for: the deepest.
      **mjx_edits: Options of :func:`models.compile_for_mjx`.

    Raises:
      ValueError: if ``backend`` is not one of them.
      ModuleNotFoundError, NotImplementedError: as :func:`warp_engine.check`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    text, assets = models.read(domain, edit)
    model = models.compile_original(text, assets)
    if backend == "warp":
        warp_engine.check(model, domain)
    edited = models.compile_for_mjx(text, assets, sensors=sensors, **mjx_edits)
    # Both models change: views read the edited one even if the host engine steps the original.
    for compiled in (model, edited):
        if adjust is not None:
            adjust(compiled)
    mjx_engine.check(edited, domain)
    with relaxed():
        device = quiet_mjx().put_model(edited, impl="jax")
        blank = quiet_mjx().make_data(edited, impl="jax")
    forces = force_sensors(model, sensors)
    if backend == "host":
        engine = host_engine.make(model, forces)
    else:
        passes = int(model.opt.noslip_iterations)  # the edited model's are zero
        engine = mjx_engine.make(edited, device, blank, forces, passes, max_contacts)
    # Warp has no call for contacts alone, so resets use MJX's.
    if backend == "warp":
        engine = warp_engine.make(edited, int(blank._impl.nefc), forces, engine)
    # round: a quotient of floats may be just below the whole number.
    timestep = float(model.opt.timestep)
    substeps = 1 if control_timestep is None else round(control_timestep / timestep)
    return Physics(model, edited, device, blank, engine, substeps, sensors, forces)


def velocity_after_one_step(model: Any) -> np.ndarray:
    """Velocities ``[V]`` one physics step after ``qpos0`` at rest, computed by MuJoCo."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_step(model, data)
    return data.qvel.copy()


def moved(values: np.ndarray, index: tuple[int, slice], place: Float[Array, " C"]) -> Array:
    """A field of a model with ``place`` at ``index``, for :class:`Marks`."""
    return jnp.asarray(values, place.dtype).at[index].set(place)


def place(domain: Domain, start: Start) -> State:
    """State at the beginning of an episode."""
    model, real = domain.physics.model, start.qpos.dtype
    motion, forces = begin(domain.physics.engine, model, start)
    ctrl = jnp.zeros((model.nu,), real)
    return State(motion, ctrl, _see(domain, motion, forces, start.episode), start.episode)


def _see(domain: Domain, motion: Motion, forces: Float[Array, " F"], episode: PyTree) -> Seen:
    seen = domain.look(view(domain.physics, motion, forces), episode)
    return jax.tree.map(lambda x: jnp.asarray(x, motion.qpos.dtype), seen)


def make_task(
    name: str, domain: Domain, reward: Callable[[PyTree, Float[Array, " U"]], Float[Array, ""]]
) -> Task:
    """Task of a domain; ``reward`` is a function of the facts and the controls.

    dm_control's tasks never terminate: episodes end by their time limit only.
    """
    physics = domain.physics
    low, high = physics.model.actuator_ctrlrange.T

    def step(state: State, action: Float[Array, " A"]) -> State:
        real = state.qpos.dtype
        middle, half = jnp.asarray((high + low) / 2, real), jnp.asarray((high - low) / 2, real)
        # MuJoCo clips controls on its own, but some rewards read them as well.
        ctrl = middle + half * jnp.clip(action.astype(real), -1.0, 1.0)
        motion, forces = physics.engine.advance(state.motion, ctrl, physics.substeps)
        return State(motion, ctrl, _see(domain, motion, forces, state.episode), state.episode)

    # Traced for shapes only: a domain's observation has as many entries as its code concatenates.
    def observation_size() -> int:
        start = jax.eval_shape(domain.begin, jax.random.key(0))
        return jax.eval_shape(lambda s: place(domain, s), start).seen.obs.shape[0]

    def pose(state: State) -> dict[str, Array]:
        marks = {} if domain.marks is None else domain.marks.place(state.episode)
        return {"qpos": state.qpos, "qvel": state.qvel, **marks}

    # The original even on MJX, whose edited model has no skins.
    drawn = physics.model if domain.marks is None else domain.marks.model
    seconds = float(physics.model.opt.timestep) * physics.substeps
    camera = _CAMERAS.get(name.partition("-")[0])
    return Task(
        name=name,
        reset=lambda key: place(domain, domain.begin(key)),
        step=step,
        observe=lambda state: state.seen.obs,
        reward=lambda state: reward(state.seen.facts, state.ctrl),
        terminated=lambda state: jnp.zeros((), bool),
        observation_size=observation_size(),
        action_size=physics.model.nu,
        episode_steps=domain.episode_steps,
        scene=Scene(drawn, pose, seconds, camera),
    )
