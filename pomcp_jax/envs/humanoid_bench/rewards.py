"""HumanoidBench's rewards and terminations as functions of a :class:`Body`.

Source of every constant: ``humanoid_bench/envs/*.py`` and ``dmc_deps/dmc_rewards.py`` of
carlosferrazza/humanoid-bench (MIT). Names of sensors: :mod:`.sensors`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pomcp_jax.envs.dm_control.rewards import tolerance
from pomcp_jax.envs.humanoid_bench.sensors import force_names
from pomcp_jax.envs.mujoco_rules import Body

_STAND, _STAND_MARGIN = 1.65, 1.65 / 4
_BALANCE = 2.02
"""Height of the head on the board."""
_CRAWL = (0.6, 1.0)
_CRAWL_QUAT = (0.75, 0.0, 0.65, 0.0)
_TOUCHED = 0.1
"""What a reward is multiplied by while an obstacle is touched."""
CHECKPOINTS = ((0.0, 0.0), (3.0, 0.0), (3.0, 6.0), (6.0, 6.0), (6.0, 6.0))
"""Place of the maze that each stage leads to."""
DIRECTIONS = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0))
"""Where to walk after the checkpoint of each stage; the last stage has no direction."""
_NEAR, _BONUS, _SPEED = 0.4, 100.0, 2.0


def small(body: Body) -> Float[Array, ""]:
    """1 without actuator forces, at least 0.8."""
    forces = jnp.concatenate([body.sensors[name] for name in force_names(body.action.shape[0])])
    effort = tolerance(forces, margin=10, value_at_margin=0, sigmoid="quadratic")
    return (4 + jnp.mean(effort)) / 5


def upright(body: Body, bound: float, margin: float = 1.9) -> Float[Array, ""]:
    """How upright the torso is; 1 from ``bound`` on."""
    return tolerance(
        body.sensors["torso_up"][2], (bound, math.inf), margin, "linear", value_at_margin=0
    )


def standing(body: Body, height: float = _STAND) -> Float[Array, ""]:
    """Height of the head."""
    return tolerance(body.sensors["head"][2], (height, math.inf), _STAND_MARGIN)


def stand(body: Body) -> Float[Array, ""]:
    """Height of the head and uprightness."""
    return standing(body) * upright(body, 0.9)


def move(body: Body, speed: float) -> Float[Array, ""]:
    """Velocity of the centre of mass along x."""
    along = body.sensors["velocity"][0]
    reached = tolerance(along, (speed, math.inf), speed, "linear", value_at_margin=0)
    return (5 * reached + 1) / 6


def still(body: Body) -> Float[Array, ""]:
    """No horizontal velocity."""
    return jnp.mean(tolerance(body.sensors["velocity"][:2], margin=2))


def _discount(touched: Bool[Array, ""]) -> Float[Array, ""]:
    return jnp.where(touched, _TOUCHED, 1.0)


def _touches(body: Body, *names: str) -> Bool[Array, ""]:
    return jnp.any(jnp.stack([body.sensors[name][0] > 0 for name in names]))


def stand_still(body: Body) -> Float[Array, ""]:
    """stand."""
    return small(body) * stand(body) * still(body)


def walk(speed: float) -> Callable[[Body], Float[Array, ""]]:
    """Reward of walk and run."""
    return lambda body: small(body) * stand(body) * move(body, speed)


def reach(body: Body) -> Float[Array, ""]:
    """Upright pelvis, slow joints, left hand at the goal."""
    distance = jnp.linalg.norm(body.sensors["left_hand"] - body.episode)
    effort = jnp.sum(jnp.square(body.qvel))
    near = 5 * (distance < 1).astype(distance.dtype) + 10 * (distance < 0.05).astype(distance.dtype)
    return 5 * body.sensors["pelvis_up"][2] - 1e-4 * effort + near


def hurdle(body: Body) -> Float[Array, ""]:
    """Run; contacts with the barriers at the sides cost, those with hurdles do not."""
    touched = _touches(body, "left_barrier", "right_barrier", "behind_barrier")
    posture = standing(body) * upright(body, 0.8)
    return small(body) * posture * move(body, 5.0) * _discount(touched)


def crawl(body: Body) -> Float[Array, ""]:
    """Move on, low, inside of the tunnel."""
    imu, head = body.sensors["imu"], body.sensors["head"]
    low = jnp.minimum(tolerance(imu[2], _CRAWL, 1.0), tolerance(head[2], _CRAWL, 1.0))
    turned = jnp.linalg.norm(body.sensors["pelvis_quat"] - jnp.asarray(_CRAWL_QUAT, imu.dtype))
    posture = 0.1 * small(body) + 0.25 * low + 0.25 * tolerance(turned, margin=1)
    inside = (jnp.abs(imu[1]) <= 1).astype(imu.dtype)
    return (posture + 0.4 * move(body, 1.0)) * inside


def sit(body: Body) -> Float[Array, ""]:
    """Sit on the chair, upright and still."""
    chair = body.sensors["chair"]
    sitting = tolerance(body.qpos[2], (0.68, 0.72), 0.2)
    on_chair = tolerance(body.qpos[0] - chair[0], (-0.19, 0.19), 0.2)
    on_chair *= tolerance(body.qpos[1] - chair[1], margin=0.1)
    trunk = tolerance(body.sensors["head"][2] - body.sensors["imu"][2], (0.35, 0.45), 0.3)
    place = 0.5 * sitting + 0.5 * on_chair
    return small(body) * place * upright(body, 0.95, 0.9) * trunk * still(body)


def balance(body: Body) -> Float[Array, ""]:
    """Stand still on the board."""
    return small(body) * standing(body, _BALANCE) * upright(body, 0.9) * still(body)


def climb(body: Body) -> Float[Array, ""]:
    """Walk with the head above both feet (stair and slide)."""
    head = body.sensors["head"][2]
    feet = jnp.stack([body.sensors[f"{side}_foot"][2] for side in ("left", "right")])
    tall = jnp.prod(tolerance(head[None] - feet, (1.2, math.inf), 0.45))
    return small(body) * tall * upright(body, 0.5) * move(body, 1.0)


def pole(body: Body) -> Float[Array, ""]:
    """Walk between the poles."""
    value = 0.5 * small(body) * stand(body) + 0.5 * move(body, 0.5)
    return value * _discount(_touches(body, "poles"))


class Stage(NamedTuple):
    """Progress in the maze, which observations do not show."""

    stage: Int[Array, ""]
    """Index of the checkpoint to go to."""
    direction: Float[Array, "2"]
    """Where to walk."""
    bonus: Float[Array, ""]
    """Reward for the checkpoint that this step has reached."""


def first_stage() -> Stage:
    """The stage at the start of an episode."""
    zero = jnp.zeros(())
    return Stage(jnp.zeros((), jnp.int32), jnp.asarray(DIRECTIONS[0], zero.dtype), zero)


def next_stage(body: Body) -> Stage:
    """The stage after a control step: the next one once the pelvis is near its checkpoint."""
    now: Stage = body.episode
    real = now.bonus.dtype
    checkpoints, directions = jnp.asarray(CHECKPOINTS, real), jnp.asarray(DIRECTIONS, real)
    near = jnp.linalg.norm(body.sensors["pelvis"][:2] - checkpoints[now.stage]) < _NEAR
    stage = jnp.where(near, jnp.minimum(now.stage + 1, len(CHECKPOINTS) - 1), now.stage)
    direction = jnp.where(near, directions[now.stage], now.direction)
    bonus = jnp.where(stage > now.stage, _BONUS * stage.astype(real), jnp.zeros_like(now.bonus))
    return Stage(stage, direction, bonus)


def maze(body: Body) -> Float[Array, ""]:
    """Walk along the present direction, towards the present checkpoint; a bonus for each."""
    episode: Stage = body.episode
    off = body.sensors["velocity"][:2] - _SPEED * episode.direction
    along = jnp.prod(tolerance(off, margin=1, value_at_margin=0, sigmoid="linear"))
    along = jnp.where(episode.stage == len(CHECKPOINTS) - 1, jnp.ones_like(along), along)
    place = jnp.asarray(CHECKPOINTS, off.dtype)[episode.stage]
    near = tolerance(jnp.linalg.norm(body.sensors["imu"][:2] - place), margin=1)
    value = 0.2 * stand(body) * small(body) + 0.4 * (5 * along + 1) / 6 + 0.4 * near
    return value * _discount(_touches(body, "blocks")) + episode.bonus


def lower_than(height: float) -> Callable[[Body], Bool[Array, ""]]:
    """Whether the pelvis is below ``height``."""
    return lambda body: body.qpos[2] < height


def toppled(body: Body) -> Bool[Array, ""]:
    """Whether the torso is not upright any more."""
    return body.sensors["torso_up"][2] < 0.1


def off_board(body: Body) -> Bool[Array, ""]:
    """Whether the robot is low, or something other than sphere and board touches the ground.

    The sphere may touch the floor and the board only, the floor the sphere only.
    """
    count = {name: body.sensors[name][0] for name in ("sphere", "sphere_floor", "sphere_board")}
    sphere = count["sphere"] - count["sphere_floor"] - count["sphere_board"] > 0
    floor = body.sensors["floor"][0] - count["sphere_floor"] > 0
    return (body.qpos[2] < 0.8) | sphere | floor
