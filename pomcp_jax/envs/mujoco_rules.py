"""Tasks on MuJoCo models as rules: a few pure functions of a body and what its sensors measure.

:func:`assemble` makes a task of rules and of what moves the body. :func:`make` moves it with the
host engine exactly as ``mj_step`` in a loop does, warm starts included, with one callback per
control step for a whole batch. Its sensors are those that MuJoCo computed in the last physics step,
from the state before it: after a control step they are one physics step old, as
``MjData.sensordata`` is. :mod:`pomcp_jax.envs.own_model` has defaults, MJX, and present sensors.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pomcp_jax.envs import checks, host_engine
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.physics import Motion, Start, begin, quiet_mujoco
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key, PyTree

NUMBER = (jax.Array, np.ndarray, np.generic, bool, int, float)
"""What a user's reward and end may be."""


class Body(NamedTuple):
    """Everything that a task's functions see of a state."""

    qpos: Float[Array, " Q"]
    qvel: Float[Array, " V"]
    act: Float[Array, " M"]
    action: Float[Array, " A"]
    """The last action; zeros at the start of an episode."""
    sensors: dict[str, Array]
    """Values of each sensor."""
    episode: PyTree
    """Values of the episode, from :attr:`Start.episode` and ``Rules.follow``."""


class Rules(NamedTuple):
    """A task as pure functions; all are traceable and unbatched."""

    reset: Callable[[Key], Start]
    observe: Callable[[Body], Float[Array, " O"]]
    reward: Callable[..., Float[Array, ""]]
    """``(body)``: the reward of arriving in a state; or ``(body, action, next_body)``."""
    terminated: Callable[[Body], Bool[Array, ""]] | None = None
    """Whether the episode ends here; None: only by its time limit."""
    follow: Callable[[Body], PyTree] | None = None
    """The episode's values after a control step, from a body that has those before it; they are in
    place when the reward is computed. None: they never change."""


class Mover(NamedTuple):
    """What moves a body; both functions also return values of sensors."""

    begin: Callable[[Start], tuple[Motion, Array]]
    advance: Callable[[Motion, Array], tuple[Motion, Array]]
    """One control step with an action in ``[-1, 1]``."""


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
            if isinstance(source, str) and source.lstrip("\ufeff \t\r\n").startswith("<"):
                return mujoco.MjModel.from_xml_string(source.lstrip("\ufeff"))
            if not isinstance(source, str | Path):
                raise ValueError("must be XML text, a file's name, an MjSpec or an MjModel")
            path = Path(source)
            if not path.is_file():
                raise FileNotFoundError(f"model {str(path)!r}: no such file")
            return mujoco.MjModel.from_xml_path(str(path))
    except ValueError as error:
        is_spec = isinstance(source, mujoco.MjSpec)
        name = "model" if is_spec else f"model {' '.join(str(source).split())!r:.100}"
        raise ValueError(f"{name}: {' '.join(str(error).split())}") from None


def control_range(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest control ``[U]`` of each actuator; -1 and 1 where there is no range."""
    limited = np.asarray(model.actuator_ctrllimited, bool)
    low, high = np.where(limited, np.array(model.actuator_ctrlrange).T, [[-1.0], [1.0]])
    return low, high


def controls(model: Any) -> host_engine.Controls:
    """Actions in ``[-1, 1]`` scaled to the range of each actuator, in float64 and not clipped.

    MuJoCo clamps the controls of limited actuators. An actuator without a range receives the
    action itself.
    """
    low, high = control_range(model)

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
    steps, spans = substeps(model, control_timestep), find_sensors(name, model, sensors)
    mover = on_host(model, tuple(spans), steps)
    return assemble(
        name, model, rules, spans, mover, episode_steps, scene or default_scene(model, steps)
    )


def on_host(model: Any, sensors: tuple[str, ...], steps: int, fresh: bool = False) -> Mover:
    """MuJoCo's C code on the host; see :func:`host_engine.make` for ``fresh``."""
    engine = host_engine.make(model, sensors, warm=True, fresh=fresh, controls=controls(model))
    return Mover(
        lambda start: begin(engine, model, start),
        lambda motion, action: engine.advance(motion, action, steps),
    )


def default_scene(model: Any, steps: int) -> Scene:
    """Picture of the model from its first camera, for control steps of ``steps`` physics steps."""

    def pose(state: State) -> dict[str, Array]:
        return {"qpos": state.motion.qpos, "qvel": state.motion.qvel}

    return Scene(model, pose, steps * float(model.opt.timestep))


def assemble(
    name: str,
    model: Any,
    rules: Rules,
    spans: Mapping[str, slice],
    mover: Mover,
    episode_steps: int,
    scene: Scene,
) -> Task:
    """Task of rules and what moves the body; ``spans`` are from :func:`find_sensors`.

    Raises:
      ValueError: ``observe`` returns no vector.
    """
    functions = _functions(model, rules, spans, mover)
    key = jax.eval_shape(lambda: jax.random.key(0))
    seen = jax.eval_shape(lambda key: functions["observe"](functions["reset"](key)), key)
    is_array = isinstance(seen, jax.ShapeDtypeStruct)
    if not is_array or len(seen.shape) != 1:
        shown = checks.shown(seen) if is_array else type(seen).__name__
        raise ValueError(f"task {name!r}: observe returns {shown}; must be a vector")
    return Task(
        name=name,
        observation_size=seen.shape[0],
        action_size=model.nu,
        episode_steps=episode_steps,
        scene=scene,
        **functions,
    )


def _functions(
    model: Any, rules: Rules, spans: Mapping[str, slice], mover: Mover
) -> dict[str, Callable]:
    """The functions of a :class:`Task`, by field."""

    def body(state: State) -> Body:
        sensed = {sensor: state.sensed[span] for sensor, span in spans.items()}
        return Body(*state.motion[:3], state.action, sensed, state.episode)

    def reset(key: Key) -> State:
        start = rules.reset(key)
        motion, sensed = mover.begin(start)
        return State(motion, sensed, jnp.zeros((model.nu,), sensed.dtype), start.episode)

    def step(state: State, action: Float[Array, " A"]) -> State:
        motion, sensed = mover.advance(state.motion, action)
        after = State(motion, sensed, action.astype(sensed.dtype), state.episode)
        return after if rules.follow is None else after._replace(episode=rules.follow(body(after)))

    def finite(value: Float[Array, ""], state: State) -> Float[Array, ""]:
        if not isinstance(value, NUMBER):
            return value  # the checks of tasks name it
        # Sensors of a diverged body may be finite: they can be older than its positions.
        if not jnp.issubdtype(jnp.result_type(value), jnp.floating):
            value = jnp.asarray(value, jnp.float32)  # whole numbers have no NaN
        return jnp.where(_finite(state.motion), value, jnp.full_like(value, jnp.nan))

    def reward(state: State) -> Float[Array, ""]:
        return finite(rules.reward(body(state)), state)

    def change(state: State, action: Float[Array, " A"], following: State) -> Float[Array, ""]:
        return finite(rules.reward(body(state), action, body(following)), following)

    def never(state: State) -> Bool[Array, ""]:
        return jnp.zeros((), bool)

    def terminated(state: State) -> Bool[Array, ""]:
        assert rules.terminated is not None
        ended = rules.terminated(body(state))
        if not isinstance(ended, NUMBER):
            return ended  # the checks of tasks name it
        # True unless 0: of a count, ``&`` would read the last bit.
        return jnp.asarray(ended).astype(bool) & _finite(state.motion)

    return {
        "reset": reset,
        "step": step,
        "observe": lambda state: rules.observe(body(state)),
        "reward": change if checks.required_arguments(rules.reward) == 3 else reward,
        "terminated": never if rules.terminated is None else terminated,
    }


def find_sensors(name: str, model: Any, sensors: Sequence[str]) -> Mapping[str, slice]:
    """Where each sensor's values are among those that the engine reports.

    Raises:
      ValueError: the model has no sensor of that name; one line.
    """
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
