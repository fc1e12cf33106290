"""A small body with HumanoidBench's names, and its rewards as a plain loop over ``MjData``."""

import mujoco
import numpy as np
from dm_control.utils.rewards import tolerance

ROBOT = """
<body name="pelvis" pos="0 0 2"><freejoint/>
 <inertial pos="0.01 0 0" quat="0.9 0.1 0.3 0" mass="4" diaginertia=".05 .06 .04"/>
 <geom type="box" size=".08 .12 .05"/>
 <body name="left_ankle_link" pos="0 .09 0"><joint name="left" axis="0 1 0" range="-1 1"/>
  <geom type="capsule" fromto="0 0 -.1 0 0 -.86" size=".05" mass="2"/>
  <geom type="box" pos=".03 0 -.9" size=".1 .04 .03" mass="1"/>
  <site name="left_foot" pos="0 0 -.9"/></body>
 <body name="right_ankle_link" pos="0 -.09 0"><joint name="right" axis="0 1 0" range="-1 1"/>
  <geom type="capsule" fromto="0 0 -.1 0 0 -.86" size=".05" mass="2"/>
  <geom type="box" pos=".03 0 -.9" size=".1 .04 .03" mass="1"/>
  <site name="right_foot" pos="0 0 -.9"/></body>
 <body name="torso_link" quat="1 .02 0 0"><joint name="torso" axis="0 0 1" range="-2 2"/>
  <inertial pos="0 .02 .3" quat="0.9 0.3 0.1 0" mass="6" diaginertia=".2 .2 .1"/>
  <geom type="capsule" fromto="0 0 .2 0 0 .6" size=".08"/>
  <site name="head" pos="0 0 .7"/><site name="imu" pos="-.04 -.02 .28"/>
  <body name="left_elbow_link" pos="0 .2 .4"><joint name="elbow" axis="0 1 0" range="-1 2"/>
   <geom type="capsule" fromto="0 0 0 .3 0 0" size=".03" mass=".5"/>
   <site name="left_hand" pos=".31 0 -.01"/></body></body>
</body>"""
CHAIR = """<body name="chair" pos="-.25 0 0">{}
 <geom type="box" pos="-.23 0 .65" size=".02 .21 .2" mass="4"/>
 <geom type="box" pos="0 0 .2375" size=".21 .21 .2375" mass="12"/></body>"""
BALANCE = """<body name="stand_board" pos="0 0 .37"><freejoint/>
 <geom name="stand_board_collision" type="box" size=".15 .55 .03"/></body>
<body name="rolling_pivot" pos="0 0 .17">{}
 <geom name="pivot_sphere_collision" size=".17"/></body>"""
SCENES = {
    "hurdle": """<body>
     <geom name="left_barrier_collision" type="box" pos="0 -.7 1" size="9 .1 1"/>
     <geom name="right_barrier_collision" type="box" pos="0 .7 1" size="9 .1 1"/>
     <geom name="behind_barrier_collision" type="box" pos="-4 0 1" size=".05 5 1"/>
     <geom type="box" pos=".4 0 .1" size=".03 .4 .1"/></body>""",
    "maze": """<body name="maze"><geom type="box" pos=".65 .2 .8" size=".2 .2 .8"/></body>""",
    "pole": """<geom type="box" pos="0 .6 1" size="9 .1 1"/><body name="pole_rows"><body>
     <geom type="cylinder" pos=".45 .2 1" size=".05 1"/></body><body>
     <geom type="cylinder" pos="-.4 -.1 1" size=".05 1"/></body></body>""",
    "sit_simple": CHAIR.format(""),
    "sit_hard": CHAIR.format("<freejoint/>"),
    "balance_simple": BALANCE.format(""),
    "balance_hard": BALANCE.format("<freejoint/>"),
}
REST = "1 0 0 0 0 0 0 0"
STARTS = {
    "balance_simple": f"-.02 0 1.35 {REST} 0 0 .37 1 0 0 0",
    "balance_hard": f"-.02 0 1.35 {REST} 0 0 .37 1 0 0 0 0 0 .17 1 0 0 0",
    "sit_hard": f"0 0 .98 {REST} -.25 0 0 1 0 0 0",
}
TASKS = (
    "walk stand run reach hurdle crawl maze sit_simple sit_hard balance_simple balance_hard"
    " stair slide pole"
).split()


def xml(task):
    return f"""<mujoco><option timestep=".002" iterations="100" ls_iterations="50"/>
    <worldbody><light pos="0 0 4"/><geom name="floor" type="plane" size="20 20 1"/>{ROBOT}
    {SCENES.get(task, "")}</worldbody>
    <actuator>
     <position name="left" joint="left" kp="150" kv="5" ctrlrange="-1 1" forcerange="-80 80"/>
     <position name="right" joint="right" kp="150" kv="5" ctrlrange="-1 1" forcerange="-80 80"/>
     <position name="turn" joint="torso" kp="80" kv="2" ctrlrange="-2 2" forcerange="-40 40"/>
     <position name="bend" joint="elbow" kp="20" kv="1" ctrlrange="-1 2" forcerange="-9 9"/>
    </actuator>
    <sensor><subtreelinvel name="pelvis_subtreelinvel" body="pelvis"/></sensor>
    <keyframe><key name="qpos0" qpos="{STARTS.get(task, f"0 0 .98 {REST}")}"/></keyframe>
    </mujoco>"""


def spec(task):
    return mujoco.MjSpec.from_string(xml(task))


# HumanoidBench's formulas, in numpy and float64, from what mj_step leaves in MjData


class Plain:
    """One episode: ``mj_step`` in a loop."""

    def __init__(self, task, model, qpos, qvel, goal=None):
        self.task, self.model, self.goal = task, model, goal
        flags = mujoco.mjtDisableBit
        model.opt.disableflags |= flags.mjDSBL_NATIVECCD | flags.mjDSBL_MULTICCD
        self.data = mujoco.MjData(model)
        self.data.qpos[:], self.data.qvel[:] = qpos, qvel
        mujoco.mj_forward(model, self.data)
        self.stage, self.direction, self.discounted = 0, (1, 0), False

    def obs(self):
        parts = [self.data.qpos, self.data.qvel]
        if self.task == "reach":
            parts += [self.data.site("left_hand").xpos, self.goal]
        return np.concatenate(parts)

    def step(self, action):
        low, high = self.model.actuator_ctrlrange.T
        self.data.ctrl[:] = (np.asarray(action, np.float64) + 1) / 2 * (high - low) + low
        mujoco.mj_step(self.model, self.data, nstep=10)
        mujoco.mj_rnePostConstraint(self.model, self.data)
        return self.reward()

    def pairs(self):
        return [{int(a), int(b)} for a, b in self.data.contact.geom]

    def below(self, name):
        """Geoms of a body and all bodies below it."""
        model, found = self.model, set()
        for geom in range(model.ngeom):
            body = int(model.geom_bodyid[geom])
            while body:
                if body == model.body(name).id:
                    found.add(geom)
                body = int(model.body_parentid[body])
        return found

    def reward(self):
        d, task = self.data, self.task
        self.discounted = False
        head, imu = d.site("head").xpos, d.site("imu").xpos
        up = d.body("torso_link").xmat[8]
        speed = d.sensor("pelvis_subtreelinvel").data
        inf = float("inf")

        def linear(x, low, margin):
            return tolerance(x, (low, inf), margin, sigmoid="linear", value_at_margin=0)

        effort = tolerance(d.actuator_force, margin=10, value_at_margin=0, sigmoid="quadratic")
        small = (4 + effort.mean()) / 5
        standing = tolerance(head[2], (1.65, inf), 1.65 / 4)
        stand = standing * linear(up, 0.9, 1.9)
        move = {s: (5 * linear(speed[0], s, s) + 1) / 6 for s in (0.5, 1, 5)}
        still = tolerance(speed[:2], margin=2).mean()
        if task == "stand":
            return small * stand * still
        if task in ("walk", "run"):
            return small * stand * move[1 if task == "walk" else 5]
        if task == "reach":
            distance = np.linalg.norm(d.site("left_hand").xpos - self.goal)
            near = 5 * (distance < 1) + 10 * (distance < 0.05)
            return 5 * d.body("pelvis").xmat[8] - 1e-4 * np.square(d.qvel).sum() + near
        if task == "hurdle":
            names = (f"{side}_barrier_collision" for side in ("left", "right", "behind"))
            self.touch({self.model.geom(name).id for name in names})
            value = small * standing * linear(up, 0.8, 1.9) * move[5]
            return value * (0.1 if self.discounted else 1)
        if task == "crawl":
            low = min(tolerance(z, (0.6, 1), 1) for z in (imu[2], head[2]))
            turned = np.linalg.norm(d.body("pelvis").xquat - [0.75, 0, 0.65, 0])
            value = 0.1 * small + 0.25 * low + 0.4 * move[1] + 0.25 * tolerance(turned, margin=1)
            return value * (abs(imu[1]) <= 1)
        if task == "maze":
            return self.maze(small * stand, imu, speed)
        if task.startswith("sit"):
            q, chair = d.qpos, d.body("chair").xpos
            place = 0.5 * tolerance(q[2], (0.68, 0.72), 0.2)
            place += 0.5 * (
                tolerance(q[0] - chair[0], (-0.19, 0.19), 0.2)
                * tolerance(q[1] - chair[1], margin=0.1)
            )
            trunk = tolerance(head[2] - imu[2], (0.35, 0.45), 0.3)
            return small * place * linear(up, 0.95, 0.9) * trunk * still
        if task.startswith("balance"):
            tall = tolerance(head[2], (2.02, inf), 1.65 / 4)
            return small * tall * linear(up, 0.9, 1.9) * still
        if task == "pole":
            self.touch(self.below("pole_rows"))
            value = 0.5 * small * stand + 0.5 * move[0.5]
            return value * (0.1 if self.discounted else 1)
        tall = 1.0
        for side in ("left", "right"):
            foot = d.site(f"{side}_foot").xpos
            tall *= tolerance(head[2] - foot[2], (1.2, inf), 0.45)
        return small * tall * linear(up, 0.5, 1.9) * move[1]

    def touch(self, geoms):
        self.discounted = any(pair & geoms for pair in self.pairs())

    def maze(self, posture, imu, speed):
        places = np.array([(0, 0), (3, 0), (3, 6), (6, 6), (6, 6)], float)
        bonus, old = 0.0, self.stage
        if np.linalg.norm(self.data.body("pelvis").xpos[:2] - places[old]) < 0.4:
            self.direction = {0: (1, 0), 1: (0, 1), 2: (1, 0), 3: (0, 1)}.get(old, self.direction)
            self.stage = min(old + 1, 4)
            bonus = 100 * self.stage if self.stage > old else 0
        along = 1.0
        if self.stage != 4:
            for i in range(2):
                off = speed[i] - 2 * self.direction[i]
                along *= tolerance(off, margin=1, value_at_margin=0, sigmoid="linear")
        near = tolerance(np.linalg.norm(imu[:2] - places[self.stage]), margin=1)
        self.touch(self.below("maze"))
        value = 0.2 * posture + 0.4 * (5 * along + 1) / 6 + 0.4 * near
        return value * (0.1 if self.discounted else 1) + bonus

    def terminated(self):
        task, height = self.task, self.data.qpos[2]
        if task in ("reach", "crawl"):
            return False
        if task in ("stair", "slide"):
            return self.data.body("torso_link").xmat[8] < 0.1
        if task.startswith("balance"):
            ids = [self.model.geom(n).id for n in ("floor", "stand_board_collision")]
            floor, board = ids
            sphere = self.model.geom("pivot_sphere_collision").id
            for pair in self.pairs():
                if sphere in pair and not pair & {floor, board}:
                    return True
                if floor in pair and sphere not in pair:
                    return True
            return height < 0.8
        return height < (0.5 if task.startswith("sit") or task == "pole" else 0.2)
