"""``envs.mujoco_task``: both engines, sensors of the present state, defaults, mistakes."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pomcp_jax import envs
from pomcp_jax.envs import make_env, mujoco_task
from pomcp_jax.envs.physics import Start

XML = """<mujoco model="arm"><option timestep="0.005"/><worldbody>
<body name="arm"><joint name="hinge" axis="0 1 0" damping="0.1"/>
 <geom type="capsule" fromto="0 0 0 0 0 .5" size=".03" contype="0"/><site name="tip" pos="0 0 .5"/>
 <body pos="0 0 .5"><joint name="rod" type="slide" axis="0 0 1" stiffness="30"/>
  <geom size=".05" contype="0"/><site name="end"/></body></body></worldbody>
<actuator><motor name="turn" joint="hinge" gear="2" ctrlrange="-.5 1"/>
 <position joint="rod" kp="20"/></actuator>
<sensor><framepos name="tip" objtype="site" objname="tip"/><clock name="clock"/>
 <framelinvel name="speed" objtype="site" objname="end"/><accelerometer name="felt" site="end"/>
 <actuatorfrc name="force" actuator="turn"/><jointpos name="angle" joint="hinge"/>
 <subtreelinvel name="drift" body="arm"/></sensor></mujoco>"""
READ = ("speed", "tip", "felt", "force", "angle", "drift")
FREE = """<mujoco><worldbody><body pos="0 0 1"><freejoint/><geom size=".1"/></body>
<body><joint name="h"/><geom size=".1"/></body></worldbody>
<actuator><motor joint="h"/></actuator>
<keyframe><key name="low" qpos="0 0 0 1 0 0 0 0"/>
 <key name="home" qpos="0 0 3 0 1 0 0 0.5" qvel="0 0 0 0 0 0 2"/></keyframe></mujoco>"""


def observe(body):
    return jnp.concatenate([body.qpos, body.qvel, *(body.sensors[name] for name in READ)])


def make(backend="host", source=XML, **changes):
    settings = {"observe": observe, "reward": lambda body: body.sensors["tip"][2]} | changes
    return mujoco_task(source, backend=backend, control_timestep=0.02, **settings)


def play(task, actions):
    def body(state, action):
        following = task.step(state, action)
        return following, (task.observe(following), task.reward(state, action, following))

    def run(key, actions):
        first = task.reset(key)
        return task.observe(first), jax.lax.scan(body, first, actions)[1]

    return jax.tree.map(np.asarray, jax.jit(run)(jax.random.key(0), actions))


@pytest.mark.parametrize("backend", ["host", "mjx"])
def test_a_count_of_reasons_ends_an_episode(backend):
    """Two reasons as one: a count is true unless 0, not if it is odd."""
    for count in (0, 1, 2):
        task = make(backend, terminated=lambda body, n=count: jnp.sum(body.qpos < 5.0) * n // 2)
        assert bool(task.terminated(task.reset(jax.random.key(0)))) == (count > 0)
    touch = make(backend, terminated=lambda body: body.sensors["tip"][2])
    assert touch.terminated(touch.reset(jax.random.key(0)))
    with pytest.raises(ValueError, match="NoneType"):
        make_env(make(backend, terminated=lambda body: None))
    with pytest.raises(ValueError, match="NoneType"):
        make_env(make(backend, reward=lambda body: None))


def test_flags_that_change_physics_are_not_dropped():
    harmless = XML.replace("<worldbody>", '<option><flag energy="enable"/></option><worldbody>', 1)
    make("mjx", harmless)
    override = harmless.replace("energy", "override")
    make("host", override)
    with pytest.raises(NotImplementedError, match="OVERRIDE; backend='host' has it"):
        make("mjx", override)
    make("host", "\ufeff" + XML)


def test_engines_agree_and_sensors_are_those_of_the_state():
    """With each other, and with ``mj_forward`` after ``mj_step``."""
    reward = lambda body, action, after: after.sensors["angle"][0] - body.qpos[0] + action[0]  # noqa: E731
    actions = jax.random.uniform(jax.random.key(1), (12, 2), minval=-1.2, maxval=1.2)
    first, (seen, rewards) = play(make("host", reward=reward), actions)
    other = play(make("mjx", reward=reward), actions)
    np.testing.assert_allclose(other[0], first, atol=1e-5)
    np.testing.assert_allclose(other[1][0], seen, atol=2e-4)
    np.testing.assert_allclose(other[1][1], rewards, atol=1e-4)
    before = np.concatenate([[first[0]], seen[:-1, 0]])
    np.testing.assert_allclose(rewards, seen[:, 0] - before + actions[:, 0], atol=1e-5)

    model = mujoco.MjModel.from_xml_string(XML)
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = first[:2], first[2:4]
    for t, row in enumerate([first, *seen]):
        if t:
            turn, rod = np.float64(actions[t - 1])
            data.ctrl[:] = (turn + 1) / 2 * 1.5 - 0.5, rod
            mujoco.mj_step(model, data, nstep=4)
        present = mujoco.MjData(model)
        present.qpos[:], present.qvel[:], present.ctrl[:] = data.qpos, data.qvel, data.ctrl
        mujoco.mj_forward(model, present)
        expected = np.concatenate([data.qpos, data.qvel, *(present.sensor(s).data for s in READ)])
        np.testing.assert_allclose(row, expected, atol=1e-4)


@pytest.mark.parametrize("source", ["text", "path", "spec", "model"])
def test_sources(source, tmp_path):
    (tmp_path / "part.xml").write_text("<mujoco><worldbody><body><joint name='h'/>"
                                       "<geom size='.1'/></body></worldbody></mujoco>")  # fmt: skip
    whole = tmp_path / "whole.xml"
    whole.write_text("<mujoco model='spun'><include file='part.xml'/><actuator><motor joint='h'/>"
                     "</actuator></mujoco>")  # fmt: skip
    given = {
        "text": lambda: whole.read_text().replace("<include file='part.xml'/>",
            "<worldbody><body><joint name='h'/><geom size='.1'/></body></worldbody>"),
        "path": lambda: str(whole),
        "spec": lambda: mujoco.MjSpec.from_file(str(whole)),
        "model": lambda: mujoco.MjModel.from_xml_path(str(whole)),
    }  # fmt: skip
    task = mujoco_task(given[source](), reward=lambda body: body.qpos[0])
    assert (task.name, task.observation_size, task.action_size) == ("spun", 2, 1)


def test_defaults():
    """Home with a little noise, positions and velocities, no early end, 1,000 steps."""
    task = mujoco_task(FREE, reward=lambda body: 1, backend="host", name="mine")
    env = make_env(task, 2)
    assert env.episode_length == 500 and env.terminates is False and env.name == "mine"
    drawn = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 20))
    states = jax.tree.map(np.asarray, drawn)
    home = mujoco.MjModel.from_xml_string(FREE).key("home")
    for values, wanted in ((states.motion.qpos, home.qpos), (states.motion.qvel, home.qvel)):
        assert np.abs(values - wanted).max() < 0.02 and values.std(axis=0).min() > 1e-6
    np.testing.assert_allclose(np.linalg.norm(states.motion.qpos[:, 3:7], axis=1), 1, rtol=1e-6)
    state = jax.tree.map(lambda x: x[0], states)
    np.testing.assert_array_equal(task.observe(state), [*state.motion.qpos, *state.motion.qvel])
    assert task.reward(state) == 1.0


@pytest.mark.parametrize(
    ("reward", "count"),
    [
        (lambda body: 0.0, 0),
        (lambda body: body.sensors["tip"][2], 3),
        (lambda body: body.sensors.get("tip", 0)[2] + 0 * body.sensors["angle"][0], 4),
        (lambda body: sum(x[0] for x in jax.tree.leaves(body.sensors)), 15),
    ],
)
def test_only_sensors_that_are_read_are_computed(reward, count):
    task = mujoco_task(XML, reward=reward, backend="host")
    state = jax.eval_shape(task.reset, jax.random.key(0))
    assert state.sensed.shape == (count,)
    assert jax.eval_shape(task.reward, state).shape == ()


def test_starts_and_ends():
    task = mujoco_task(
        XML,
        reset=lambda key: Start(jnp.array([0.5, 0.0]), episode=jnp.float32(3)),
        reward=lambda body: body.episode + body.qpos[0],
        terminated=lambda body: body.qpos[0] > 0.4,
        backend="host",
        episode_steps=7,
    )
    state = task.reset(jax.random.key(0))
    assert task.reward(state) == 3.5 and task.terminated(state) and make_env(task).terminates
    plain = mujoco_task(XML, reset=lambda k: jnp.ones(2, int), reward=lambda b: 0, backend="host")
    assert plain.reset(jax.random.key(0)).motion.qpos.tolist() == [1.0, 1.0]


MISTAKES = {
    "model '<mujoco><x/></mujoco>': XML Error: Schema": {"source": "<mujoco><x/></mujoco>"},
    "model 'none.xml': no such file": {"source": "none.xml"},
    "model '3': must be XML text, a file's name, an MjSpec or an MjModel": {"source": 3},
    "mujoco_task: backend = 'warp': must be mjx or host": {"backend": "warp"},
    "control_timestep = 0.012: must be a whole number of physics": {"control_timestep": 0.012},
    "task 'arm': sensors has 'top'; the model's are tip, clock, speed,": {
        "reward": lambda body: body.sensors["top"][0]
    },
    "task 'arm': reward takes 2 arguments; must be reward(body) or reward(body, action, next": {
        "reward": lambda body, action: 0.0
    },
    "task 'arm': observe returns float32[]; must be a vector": {"observe": lambda b: b.qpos[0]},
    "task 'arm': observe returns tuple; must be a vector": {"observe": lambda b: (b.qpos, b.qvel)},
    "task 'arm': reset returns qpos float32[3]; the model has 2": {"reset": lambda k: jnp.ones(3)},
    "task 'arm': reset returns qvel int32[]; the model has 2": {
        "reset": lambda key: Start(jnp.zeros(2), 0)
    },
    "task 'arm': the model has no actuators": {
        "source": XML.split("<actuator>")[0] + "</mujoco>", "observe": lambda body: body.qpos
    },
    "task 'arm': backend 'mjx' lacks the kind 'clock' of the sensor 'clock'; backend='host'": {
        "reward": lambda body: body.sensors["clock"][0], "backend": "mjx"
    },
    "task 'arm': backend 'mjx' lacks an integrator other than Euler and RK4; backend='host'": {
        "source": XML.replace('timestep="0.005"', 'timestep="0.005" integrator="implicitfast"'),
        "backend": "mjx",
    },
    "task 'arm': backend 'mjx' lacks mocap bodies; backend='host' has it": {
        "source": XML.replace("</worldbody>", '<body mocap="true"/></worldbody>'), "backend": "mjx"
    },
    "task 'arm': backend 'mjx': (mjtGeom.mjGEOM_ELLIPSOID, mjtGeom.mjGEOM_BOX) collisions not": {
        "source": XML.replace("</worldbody>", '<geom type="box" size="1 1 1" pos="3 0 0"/><body>'
        '<freejoint/><geom type="ellipsoid" size=".1 .2 .3"/></body></worldbody>'),
        "backend": "mjx",
    },
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_one_line(text):
    settings = {"source": XML, "reward": lambda body: 0.0, "backend": "host"} | MISTAKES[text]
    source = settings.pop("source")
    with pytest.raises((ValueError, OSError, NotImplementedError)) as error:
        mujoco_task(source, **settings)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)


def test_the_example_is_a_task_of_the_command_line():
    assert envs.make("examples.own_xml:make_task", 4, "host").episode_length == 250
    assert envs.about("examples.own_xml:make_task").backend == "mjx"
