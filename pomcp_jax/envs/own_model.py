"""A task on a MuJoCo model of one's own: ``envs.mujoco_task(xml, reward=...)``.

    pendulum = envs.mujoco_task(
        "<mujoco> ... </mujoco>",
        observe=lambda body: jnp.append(body.sensors["tip"], body.qvel),
        reward=lambda body: body.sensors["tip"][2],
        control_timestep=0.02,
    )

Two engines move the body: ``mjx``, on the accelerator, and ``host``, MuJoCo's C code on the CPU.
For both, sensors have the values that ``mj_forward`` computes for the state that has been reached,
under the controls of the last action (zero at the start of an episode).
"""

import copy
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pomcp_jax.envs import checks, mujoco_rules
from pomcp_jax.envs.importing import load_mujoco
from pomcp_jax.envs.mjx import engine as mjx_engine
from pomcp_jax.envs.mujoco_rules import Body, Mover, Rules
from pomcp_jax.envs.physics import Motion, Start, begin, quiet_mjx, relaxed
from pomcp_jax.envs.protocol import Scene, Task
from pomcp_jax.types import Key

BACKENDS = ("mjx", "host")
NOISE = 0.01
"""Largest change of a position or velocity by the default reset, in their units."""

_KNOWN_SENSORS = (
    "magnetometer jointpos tendonpos actuatorpos ballquat framepos framexaxis frameyaxis framezaxis"
    " framequat subtreecom velocimeter gyro jointvel tendonvel actuatorvel ballangvel framelinvel"
    " frameangvel subtreelinvel subtreeangmom touch accelerometer force torque actuatorfrc"
    " jointactfrc tendonactfrc framelinacc frameangacc"
).split()
"""Sensors that MJX computes as MuJoCo does; those that it lacks would silently be zero."""


def mujoco_task(
    source: Any,
    *,
    reward: Callable[..., Any],
    observe: Callable[[Body], Any] | None = None,
    reset: Callable[[Key], Any] | None = None,
    terminated: Callable[[Body], Any] | None = None,
    control_timestep: float | None = None,
    episode_steps: int = 1000,
    backend: str = "mjx",
    name: str | None = None,
    scene: Scene | None = None,
) -> Task:
    """Task on a MuJoCo model.

    Its functions are pure and see a :class:`Body`: ``qpos``, ``qvel``, ``act``, the last
    ``action``, and ``sensors["NAME"]`` for every sensor of the model. Actions in ``[-1, 1]`` are
    scaled to each actuator's range; an actuator without a range receives the action itself.

    Args:
      source: XML text, a file (with its includes and assets), an ``MjSpec`` or an ``MjModel``.
      reward: ``(body)``, the reward of arriving in a state; or ``(body, action, next_body)``.
      observe: by default positions and velocities.
      reset: ``(key)`` returns initial positions, or a :class:`Start`; by default the keyframe
        ``home``, else the first, else ``qpos0``, with noise of ±0.01.
      terminated: whether the episode ends here; by default only by its time limit.
      control_timestep: seconds of a control step, a multiple of the model's timestep; by default
        one physics step.
      episode_steps: control steps until truncation.
      backend: ``mjx`` or ``host``.
      name: of the task; by default the model's.
      scene: how to draw it; by default from the model's first camera.

    Raises:
      FileNotFoundError, ValueError: one line that names what is wrong.
      NotImplementedError: one line; MJX lacks a feature of the model.
    """
    if backend not in BACKENDS:
        raise ValueError(f"mujoco_task: backend = {backend!r}: must be {' or '.join(BACKENDS)}")
    model = mujoco_rules.load(source)
    name = _name(model) if name is None else name
    if model.nu == 0:
        raise ValueError(f"task {name!r}: the model has no actuators; must have one")
    count = checks.required_arguments(reward)
    if count not in (1, 3, None):
        text = "must be reward(body) or reward(body, action, next_body)"
        raise ValueError(f"task {name!r}: reward takes {count} arguments; {text}")
    steps = mujoco_rules.substeps(model, control_timestep)
    first = _start(model) if reset is None else _as_start(name, model, reset)
    rules = Rules(first, observe or _observe, reward, terminated)
    spans = mujoco_rules.find_sensors(name, model, _used_sensors(name, model, rules))
    if backend == "host":
        mover = mujoco_rules.on_host(model, tuple(spans), steps, fresh=True)
    else:
        mover = _on_mjx(name, model, tuple(spans), steps)
    scene = scene or mujoco_rules.default_scene(model, steps)
    return mujoco_rules.assemble(name, model, rules, spans, mover, episode_steps, scene)


def _name(model: Any) -> str:
    """The model's name in its XML."""
    return bytes(model.names).split(b"\0", 1)[0].decode() or "mujoco"


def _observe(body: Body) -> Float[Array, " O"]:
    return jnp.concatenate([body.qpos, body.qvel])


def _as_start(name: str, model: Any, reset: Callable[[Key], Any]) -> Callable[[Key], Start]:
    """``reset`` with its result as a :class:`Start` of real numbers.

    Raises (when it is called):
      ValueError: one line; the result has another size than the model.
    """
    sizes = {"qpos": model.nq, "qvel": model.nv, "act": model.na}

    def start(key: Key) -> Start:
        out = reset(key)
        first = out if isinstance(out, Start) else Start(out)
        for field, size in sizes.items():
            value = getattr(first, field)
            if value is None:
                continue
            value = jnp.asarray(value)
            if value.shape != (size,):
                raise ValueError(
                    f"task {name!r}: reset returns {field} {checks.shown(value)}; the model has"
                    f" {size}"
                )
            real = value.dtype if jnp.issubdtype(value.dtype, jnp.floating) else jnp.float32
            first = first._replace(**{field: value.astype(real)})
        return first

    return start


def _start(model: Any) -> Callable[[Key], Start]:
    """Start at the model's home, with a little noise."""
    kinds = load_mujoco().mjtJoint
    qpos, qvel, act = np.array(model.qpos0), np.zeros(model.nv), np.zeros(model.na)
    if model.nkey:
        names = [model.key(i).name for i in range(model.nkey)]
        home = names.index("home") if "home" in names else 0
        qpos, qvel, act = model.key_qpos[home], model.key_qvel[home], model.key_act[home]
    at, kind = model.jnt_qposadr, model.jnt_type
    quaternions = [*(at[kind == kinds.mjJNT_FREE] + 3), *at[kind == kinds.mjJNT_BALL]]

    def reset(key: Key) -> Start:
        noise = jax.random.uniform(key, (model.nq + model.nv,), minval=-NOISE, maxval=NOISE)
        placed = jnp.asarray(qpos, noise.dtype) + noise[: model.nq]
        for i in quaternions:
            span = slice(int(i), int(i) + 4)
            placed = placed.at[span].divide(jnp.linalg.norm(placed[span]))
        moving = jnp.asarray(qvel, noise.dtype) + noise[model.nq :]
        return Start(placed, moving, jnp.asarray(act, noise.dtype))

    return reset


def _used_sensors(name: str, model: Any, rules: Rules) -> list[str]:
    """Names of the sensors that the functions of a task depend on, found by tracing them.

    Raises:
      ValueError: one of them is none of the model's.
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    real = jax.eval_shape(rules.reset, key).qpos.dtype
    sizes = {model.sensor(i).name: int(model.sensor_dim[i]) for i in range(model.nsensor)}
    sizes.pop("", None)

    def look(key: Key, sensors: dict[str, Array]) -> list[Array]:
        start = rules.reset(key)
        qvel, act, action = (jnp.zeros((n,), real) for n in (model.nv, model.na, model.nu))
        body = Body(start.qpos, qvel, act, action, sensors, start.episode)
        is_change = checks.required_arguments(rules.reward) == 3
        seen = [
            rules.observe(body),
            rules.reward(body, action, body) if is_change else rules.reward(body),
            None if rules.terminated is None else rules.terminated(body),
        ]
        return [x for x in jax.tree.leaves(seen) if checks.is_array(x)]

    shapes = {sensor: jax.ShapeDtypeStruct((size,), real) for sensor, size in sizes.items()}
    try:
        traced = jax.make_jaxpr(look)(key, shapes).jaxpr
    except KeyError as error:
        missing = error.args[0] if error.args else None
        if missing in sizes or not isinstance(missing, str):
            raise
        raise ValueError(
            f"task {name!r}: sensors has {missing!r}; the model's are {', '.join(sizes) or 'none'}"
        ) from error
    read = {id(x) for equation in traced.eqns for x in equation.invars}
    read |= {id(x) for x in traced.outvars}
    # The first input is the key; JAX sorts the keys of dictionaries.
    pairs = zip(sorted(sizes), traced.invars[1:], strict=True)
    return [sensor for sensor, value in pairs if id(value) in read]


def _on_mjx(name: str, model: Any, sensors: tuple[str, ...], steps: int) -> Mover:
    """MJX's forward dynamics by this project's engine.

    Raises:
      NotImplementedError: one line with the features that it lacks.
    """
    edited = _editable(model)
    lacking = _lacking(model, edited, sensors)
    if lacking:
        raise NotImplementedError(
            f"task {name!r}: backend 'mjx' lacks {', '.join(lacking)}; backend='host' has it"
        )
    mjx = quiet_mjx()
    try:
        with relaxed():
            device = mjx.put_model(edited, impl="jax")
            blank = mjx.make_data(edited, impl="jax")
    except NotImplementedError as error:
        text = " ".join(str(error).split()).rstrip(".")
        raise NotImplementedError(
            f"task {name!r}: backend 'mjx': {text}; backend='host' has it"
        ) from None
    passes = int(model.opt.noslip_iterations)
    engine = mjx_engine.make(edited, device, blank, (), passes)
    sense = mjx_engine.sensing(edited, device, blank, sensors)
    low, high = mujoco_rules.control_range(model)

    def start(first: Start) -> tuple[Motion, Array]:
        motion, _ = begin(engine, model, first)
        return motion, sense(motion, jnp.zeros((model.nu,), motion.qpos.dtype))

    def advance(motion: Motion, action: Float[Array, " A"]) -> tuple[Motion, Array]:
        real = motion.qpos.dtype
        bottom, top = jnp.asarray(low, real), jnp.asarray(high, real)
        ctrl = (action.astype(real) + 1) / 2 * (top - bottom) + bottom
        motion, _ = engine.advance(motion, ctrl, steps)
        return motion, sense(motion, ctrl)

    return Mover(start, advance)


def _editable(model: Any) -> Any:
    """Copy of a model without options that MJX refuses and this project's engine has itself."""
    mujoco = load_mujoco()
    edited = copy.copy(model)
    # Energies and these tests change nothing that an environment returns.
    flags = mujoco.mjtEnableBit
    idle = (flags.mjENBL_ENERGY, flags.mjENBL_FWDINV, flags.mjENBL_INVDISCRETE)
    edited.opt.enableflags &= ~sum(map(int, idle))
    edited.opt.noslip_iterations = 0
    edited.opt.jacobian = mujoco.mjtJacobian.mjJAC_DENSE
    edited.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return edited


def _lacking(model: Any, edited: Any, sensors: tuple[str, ...]) -> list[str]:
    """Features of a model that the MJX engine lacks, in words."""
    mujoco = load_mujoco()
    lacking = []
    try:
        mjx_engine.check(edited, "it")
    except NotImplementedError as error:
        lacking.append(str(error).removeprefix("it has "))
    if model.nmocap:
        lacking.append("mocap bodies")
    numbers = [model.numeric(i).name for i in range(model.nnumeric)]
    lacking += [name for name in ("max_contact_points", "max_geom_pairs") if name in numbers]
    for sensor in sensors:
        at = model.sensor(sensor).id
        kind = mujoco.mjtSensor(model.sensor_type[at]).name.removeprefix("mjSENS_").lower()
        cameras = (model.sensor_objtype[at], model.sensor_reftype[at])
        if kind not in _KNOWN_SENSORS:
            lacking.append(f"the kind {kind!r} of the sensor {sensor!r}")
        elif int(mujoco.mjtObj.mjOBJ_CAMERA) in map(int, cameras):
            lacking.append(f"the camera of the sensor {sensor!r}")
    return lacking
