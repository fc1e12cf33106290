"""What HumanoidBench's rewards read of a simulation, as MuJoCo sensors.

HumanoidBench reads ``MjData`` after ``mj_step``: positions and velocities are those after the last
physics step, frames, contacts and forces those before it. Sensors have the same age.
"""

from typing import Any

from pomcp_jax.envs.importing import load_mujoco

_FRAMES = {
    "head": ("FRAMEPOS", "SITE", "head"),
    "imu": ("FRAMEPOS", "SITE", "imu"),
    "left_foot": ("FRAMEPOS", "SITE", "left_foot"),
    "right_foot": ("FRAMEPOS", "SITE", "right_foot"),
    "left_hand": ("FRAMEPOS", "SITE", "left_hand"),
    # XBODY: BODY would be the frame of the inertia.
    "torso_up": ("FRAMEZAXIS", "XBODY", "torso_link"),
    "pelvis_up": ("FRAMEZAXIS", "XBODY", "pelvis"),
    "pelvis": ("FRAMEPOS", "XBODY", "pelvis"),
    "pelvis_quat": ("FRAMEQUAT", "XBODY", "pelvis"),
    "chair": ("FRAMEPOS", "XBODY", "chair"),
    "velocity": ("SUBTREELINVEL", "BODY", "pelvis"),
}
"""Kind of sensor, kind of object and its name."""
_SPHERE, _FLOOR = ("GEOM", "pivot_sphere_collision"), ("GEOM", "floor")
_CONTACTS: dict[str, tuple[tuple[str, str], tuple[str, str] | None]] = {
    "left_barrier": (("GEOM", "left_barrier_collision"), None),
    "right_barrier": (("GEOM", "right_barrier_collision"), None),
    "behind_barrier": (("GEOM", "behind_barrier_collision"), None),
    "blocks": (("BODY", "maze"), None),
    "poles": (("XBODY", "pole_rows"), None),  # XBODY: the body and all below it
    "sphere": (_SPHERE, None),
    "sphere_floor": (_SPHERE, _FLOOR),
    "sphere_board": (_SPHERE, ("GEOM", "stand_board_collision")),
    "floor": (_FLOOR, None),
}
"""Two objects whose contacts are counted; None: any object."""
FORCES = "forces"
"""Stands for the forces of all actuators."""


def add(spec: Any, measures: tuple[str, ...]) -> tuple[str, ...]:
    """Replace a model's sensors by those that a task reads.

    Args:
      spec: ``mujoco.MjSpec``, changed in place.
      measures: names of the tables here, and :data:`FORCES`.

    Returns:
      Names of the sensors: the measures, :data:`FORCES` replaced by :func:`force_names`.
    """
    mujoco = load_mujoco()
    for sensor in list(spec.sensors):
        spec.delete(sensor)

    def kind(name: str) -> Any:
        return getattr(mujoco.mjtObj, f"mjOBJ_{name}")

    found = 1 << int(mujoco.mjtConDataField.mjCONDATA_FOUND)
    names: list[str] = []
    for name in measures:
        if name == FORCES:
            for own, actuator in zip(force_names(len(spec.actuators)), spec.actuators, strict=True):
                _add(spec, own, "ACTUATORFRC", objtype=kind("ACTUATOR"), objname=actuator.name)
                names.append(own)
            continue
        if name in _CONTACTS:
            (own_kind, own_name), other = _CONTACTS[name]
            more = {} if other is None else {"reftype": kind(other[0]), "refname": other[1]}
            # What to report, no reduction, one slot: the number of contacts.
            more |= {"intprm": [found, 0, 1]}
            _add(spec, name, "CONTACT", objtype=kind(own_kind), objname=own_name, **more)
        else:
            sensor, own_kind, own_name = _FRAMES[name]
            _add(spec, name, sensor, objtype=kind(own_kind), objname=own_name)
        names.append(name)
    return tuple(names)


def force_names(actuators: int) -> tuple[str, ...]:
    """Names of the sensors of all actuators' forces, in the actuators' order."""
    return tuple(f"force_{i}" for i in range(actuators))


def _add(spec: Any, name: str, sensor: str, **settings: Any) -> None:
    kinds = load_mujoco().mjtSensor
    spec.add_sensor(name=name, type=getattr(kinds, f"mjSENS_{sensor}"), **settings)
