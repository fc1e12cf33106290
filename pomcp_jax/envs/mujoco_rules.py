"""Tasks on any MuJoCo model: a few pure functions of what MuJoCo's sensors measure.

The host engine moves the body exactly as ``mj_step`` in a loop does, warm starts included, with
one callback per control step for a whole batch. Positions and velocities are those after the last
physics step. Sensors are those that MuJoCo computed in the last physics step, from the state
before it: after a control step they are one physics step old, as ``MjData.sensordata`` is.

    rules = Rules(reset, observe, reward, terminated)
    task = make("reach", "arm.xml", rules, sensors=("tip", "goal"), control_timestep=0.02)
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs import host_engine
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.physics import Motion, Start, begin, quiet_mujoco
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key, PyTree


class Body(NamedTuple):
    """Everything that a task's functions see of a state."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    act: Float[Array, " M"]
    action: Float[Array, " A"]
    """The last action; zeros at the start of an episode."""
    sensors: dict[str, Array]
    """Values of each sensor; one physics step old, except at the start of an episode."""
    episode: PyTree
    """Values of the episode, from :attr:`Start.episode` and :attr:`Rules.follow`."""


class Rules(NamedTuple):
    """A task as pure functions; all are traceable and unbatched."""

    reset: Callable[[Key], Start]
    observe: Callable[[Body], Float[Array, " O"]]
    reward: Callable[[Body], Float[Array, ""]]
    """The reward of arriving in a state."""
    terminated: Callable[[Body], Bool[Array, ""]] | None = None
    """Whether the episode ends here; None: only by its time limit."""
    follow: Callable[[Body], PyTree] | None = None
    """The episode's values after a control step, from a body that has those before it; they are in
    place when the reward is computed. None: they never change."""


class State(NamedTuple):
    """State of a task."""

    motion: Motion
    sensed: Float[Array, " F"]
    action: Float[Array, " A"]
    episode: PyTree


def load(source: Any) -> Any:
    """``mujoco.MjModel`` of ``source``: such a model, an ``MjSpec``, a file, or a text of XML.

    Raises:
      FileNotFoundError: no such file.
      ValueError: MuJoCo does not compile it; one line.
    """
    mujoco = load_mujoco()
    if isinstance(source, mujoco.MjModel):
        return source
    try:
        with quiet_mujoco():
            if isinstance(source, mujoco.MjSpec):
                return source.compile()
            if isinstance(source, str) and source.lstrip().startswith("<"):
                return mujoco.MjModel.from_xml_string(source)
            path = Path(source)
            if not path.is_file():
                raise FileNotFoundError(f"model {str(path)!r}: no such file")
            return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        name = "model" if isinstance(source, mujoco.MjSpec) else f"model {str(source)!r:.100}"
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def controls(model: Any) -> host_engine.Controls:
    """Actions in ``[-1, 1]`` scaled to the range of each actuator, in float64 and not clipped.

    MuJoCo clamps the controls of limited actuators. An actuator without a range receives the
    action itself.
    """
    limited = np.asarray(model.actuator_ctrllimited, bool)
    low, high = np.where(limited, np.array(model.actuator_ctrlrange).T, [[-1.0], [1.0]])

    def scale(action: np.ndarray) -> np.ndarray:
        # In this order: contacts amplify the last bit of a control within a second.
        return (action.astype(np.float64) + 1) / 2 * (high - low) + low

    return scale


def substeps(model: Any, control_timestep: float | None) -> int:
    """Physics steps of a control step.

    Raises:
      ValueError: a control step is no whole number of physics steps.
    """
    timestep = float(model.opt.timestep)
    count = 1 if control_timestep is None else round(control_timestep / timestep)
    if control_timestep is not None and not (
        count >= 1 and np.isclose(count * timestep, control_timestep, rtol=1e-6, atol=0)
    ):
        raise ValueError(
            f"control_timestep = {control_timestep}: must be a whole number of physics steps of"
            f" {timestep:g} s"
        )
    return count


def make(
    name: str,
    source: Any,
    rules: Rules,
    *,
    sensors: tuple[str, ...] = (),
    control_timestep: float | None = None,
    episode_steps: int = 1000,
    scene: Scene | None = None,
) -> Task:
    """Task on a MuJoCo model.

    Args:
      name: Name of the task.
      source: The model; see :func:`load`.
      rules: How episodes start, what is observed, rewarded, and what ends them.
      sensors: Names of the model's sensors that the rules read.
      control_timestep: Seconds of a control step; None for one physics step.
      episode_steps: Control steps until truncation.
      scene: How to draw a :class:`State`; by default the model from its first camera.

    Raises:
      FileNotFoundError, ValueError: as :func:`load` and :func:`substeps`; or the model has no
        sensor of that name.
    """
    model = load(source)
    steps, spans = substeps(model, control_timestep), _spans(name, model, sensors)
    functions = _functions(model, rules, spans, steps)
    key = jax.eval_shape(lambda: jax.random.key(0))
    first = jax.eval_shape(lambda key: functions["observe"](functions["reset"](key)), key)
    pose = lambda state: {"qpos": state.motion.qpos, "qvel": state.motion.qvel}  # noqa: E731
    return Task(
        name=name,
        observation_size=first.shape[0],
        action_size=model.nu,
        episode_steps=episode_steps,
        scene=scene or Scene(model, pose, steps * float(model.opt.timestep)),
        **functions,
    )


def _functions(
    model: Any, rules: Rules, spans: Mapping[str, slice], steps: int
) -> dict[str, Callable]:
    """The functions of a :class:`Task`, by field."""
    engine = host_engine.make(model, tuple(spans), warm=True, controls=controls(model))

    def body(state: State) -> Body:
        sensed = {sensor: state.sensed[span] for sensor, span in spans.items()}
        return Body(*state.motion[:3], state.action, sensed, state.episode)

    def reset(key: Key) -> State:
        start = rules.reset(key)
        motion, sensed = begin(engine, model, start)
        return State(motion, sensed, jnp.zeros((model.nu,), sensed.dtype), start.episode)

    def step(state: State, action: Float[Array, " A"]) -> State:
        motion, sensed = engine.advance(state.motion, action, steps)
        after = State(motion, sensed, action.astype(sensed.dtype), state.episode)
        return after if rules.follow is None else after._replace(episode=rules.follow(body(after)))

    def reward(state: State) -> Float[Array, ""]:
        # Sensors of a diverged body are finite: they are older than its positions.
        value = rules.reward(body(state))
        return jnp.where(_finite(state.motion), value, jnp.full_like(value, jnp.nan))

    def never(state: State) -> Bool[Array, ""]:
        return jnp.zeros((), bool)

    def terminated(state: State) -> Bool[Array, ""]:
        assert rules.terminated is not None
        return rules.terminated(body(state)) & _finite(state.motion)

    return {
        "reset": reset,
        "step": step,
        "observe": lambda state: rules.observe(body(state)),
        "reward": reward,
        "terminated": never if rules.terminated is None else terminated,
    }


def _spans(name: str, model: Any, sensors: tuple[str, ...]) -> Mapping[str, slice]:
    """Where each sensor's values are among those that the engine reports."""
    spans, at = {}, 0
    for sensor in sensors:
        try:
            size = int(model.sensor(sensor).dim[0])
        except KeyError:
            known = [model.sensor(i).name for i in range(model.nsensor)]
            raise ValueError(
                f"task {name!r}: sensors has {sensor!r}; the model's are"
                f" {', '.join(known) or 'none'}"
            ) from None
        spans[sensor] = slice(at, at + size)
        at += size
    return spans


def _finite(motion: Motion) -> Bool[Array, ""]:
    return jnp.all(jnp.isfinite(motion.qpos)) & jnp.all(jnp.isfinite(motion.qvel))
