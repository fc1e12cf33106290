"""Tasks on any MuJoCo model, compared with ``mj_step`` in a loop."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import falling
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from pomcp_jax.envs import host_engine, make_env, mujoco_rules

BATCH, STEPS = 5, 30


def keys(batch=BATCH):
    return jax.random.split(jax.random.key(0), batch)


def play(task, actions, state):
    step = lambda state, a: 2 * (jax.vmap(task.step)(state, a),)  # noqa: E731
    return jax.jit(lambda s, a: jax.lax.scan(step, s, a))(state, actions)[1]


def bits(state):
    return np.ascontiguousarray(np.asarray(state.motion.hidden)).view(np.float64)


@pytest.fixture(scope="module")
def task():
    return falling.task()


@pytest.fixture(scope="module")
def start(task):
    return jax.jit(jax.vmap(task.reset))(keys())


@pytest.fixture(scope="module")
def actions():
    return jax.random.uniform(jax.random.key(1), (STEPS, BATCH, 2), minval=-1.2, maxval=1.2)


def test_every_bit_is_that_of_mj_step(task, start, actions):
    states = play(task, actions, start)
    model = mujoco.MjModel.from_xml_string(falling.XML)
    touched = set()
    for row in range(BATCH):
        data = mujoco.MjData(model)
        data.qpos[:] = bits(start)[row, 1 : 1 + model.nq]
        mujoco.mj_forward(model, data)
        assert start.sensed[row].tolist() == np.float32(data.sensordata[[3, 0, 1, 2]]).tolist()
        for t in range(STEPS):
            pull, turn = np.float64(actions[t, row])
            # The first actuator has a range, asymmetric; the second has none.
            data.ctrl[:] = (pull + 1) / 2 * 1.5 - 0.5, turn
            mujoco.mj_step(model, data, nstep=4)
            now = jax.tree.map(lambda x: x[t, row], states)  # noqa: B023
            exact = np.concatenate([[data.time], data.qpos, data.qvel, data.qacc_warmstart])
            np.testing.assert_array_equal(bits(now), exact)
            # Sensors are one physics step old, in the order of the task.
            tip = np.float32(data.sensordata[:3])
            np.testing.assert_array_equal(now.sensed, [data.sensordata[3], *tip])
            touched.add(float(now.sensed[0]))
            assert now.episode["steps"] == t + 1
    assert len(touched) > 1 and data.ncon > 0


def test_neither_threads_nor_the_batch_change_a_bit(task, start, actions, monkeypatch):
    ahead = {}
    for seconds in (0.0, np.inf):
        monkeypatch.setattr(host_engine, "SERIAL_SECONDS", seconds)
        ahead[seconds] = play(task, actions, start).motion.hidden
    np.testing.assert_array_equal(ahead[0.0], ahead[np.inf])
    alone = jax.tree.map(lambda x: x[2:3], start)
    np.testing.assert_array_equal(
        play(task, actions[:, 2:3], alone).motion.hidden[:, 0], ahead[0.0][:, 2]
    )


def test_episodes_end_by_falls_and_by_time(task, actions):
    env = make_env(falling.task(episode_steps=12))
    assert env.terminates and env.episode_length == 12
    state, _ = jax.jit(env.reset)(keys())
    # The first actuator's middle is not zero: -1/3 is no force.
    pushed = actions.at[:, 0].set(1.0).at[:, 2].set(jnp.asarray([-1 / 3, 0.0]))
    steps = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, pushed)[1]
    assert steps.terminated[:, 0].any() and not steps.terminated[:, 2].any()
    np.testing.assert_array_equal(np.flatnonzero(steps.truncated[:, 2]), [11, 24])
    fell = int(np.argmax(steps.terminated[:, 0]))
    assert abs(steps.obs[fell, 0, 1]) > 0.3 > abs(steps.obs[fell + 1, 0, 1])
    assert steps.is_first[fell + 1, 0]


def test_diverged_bodies_are_reset_and_leave_no_log(task, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    env = make_env(task)
    state, _ = jax.jit(env.reset)(keys())
    wild = bits(state.task).copy()
    wild[0, 2], wild[1, 10] = np.nan, 9e9  # a position; a velocity that MuJoCo warns of later
    motion = state.task.motion._replace(hidden=jnp.asarray(wild.view(np.uint32)))
    state = state._replace(task=state.task._replace(motion=motion))
    _, timestep = jax.jit(env.step)(state, jnp.zeros((BATCH, 2)))
    np.testing.assert_array_equal(timestep.invalid, [True, True, False, False, False])
    assert all(np.isfinite(x).all() for x in timestep)
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_models_are_read_from_anything(tmp_path):
    path = tmp_path / "model.xml"
    path.write_text(falling.XML)
    spec = mujoco.MjSpec.from_string(falling.XML)
    for source in (falling.XML, path, str(path), spec, mujoco.MjModel.from_xml_path(str(path))):
        assert mujoco_rules.load(source).nq == 9


@pytest.mark.parametrize(
    "change, words",
    [
        ({"source": "none.xml"}, "model 'none.xml': no such file"),
        ({"source": "<mujoco><worldbody><geom/></worldbody></mujoco>"}, "model '<mujoco>.*size"),
        ({"sensors": ("tip", "top")}, "task 'x': sensors has 'top'; the model's are tip, box"),
        ({"control_timestep": 0.012}, "control_timestep = 0.012: must be a whole number"),
        ({"control_timestep": 0.0}, "control_timestep = 0.0: must be a whole number"),
    ],
)
def test_mistakes_are_named_in_one_line(change, words):
    settings = {"source": falling.XML, "sensors": falling.SENSORS} | change
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        mujoco_rules.make("x", rules=falling.RULES, **settings)
    assert "\n" not in str(error.value)
