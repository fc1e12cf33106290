"""MuJoCo's C code behind the functional protocol, compared with MJX."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from experiments.benchmarks.fidelity import deviations
from pomcp_jax import envs
from pomcp_jax.envs import host_engine
from pomcp_jax.envs.dm_control import models

BATCH = 3
DOMAINS = sorted({name.split("-")[0]: name for name in envs.dm_control_tasks()}.values())


def keys(seed=0, batch=BATCH):
    return jax.random.split(jax.random.key(seed), batch)


def rollout(env, actions, seed=0):
    state, first = jax.jit(env.reset)(keys(seed, actions.shape[1]))
    state, rest = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions)
    return state, jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, rest)


@pytest.mark.parametrize("name", ["cartpole-swingup", "hopper-hop"])
def test_host_is_dm_control(name):
    found = deviations([name], backend="host")[name]
    # The engine is exact; observations are rounded to float32.
    assert max(found.step_obs, *found.obs.values()) < 3e-5
    assert max(found.step_reward, *found.reward.values()) < 1e-6


def test_the_whole_dog_runs_on_the_host():
    found = deviations(["dog-run"], episodes=1, checkpoints=(40,), backend="host")["dog-run"]
    # Rounding of observations, and cold starts of the solver and its noslip pass.
    assert found.step_obs < 1e-3 and found.step_obs_median < 1e-5 and found.step_reward < 1e-5


def test_engines_start_and_move_alike():
    both = [envs.make("ball_in_cup-catch", 2, backend) for backend in ("mjx", "host")]
    actions = jax.random.uniform(jax.random.key(1), (5, BATCH, 2), minval=-1, maxval=1)
    mjx, host = (rollout(env, actions)[1] for env in both)
    for a, b in zip(mjx, host, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    assert np.abs(mjx.obs[-1] - mjx.obs[0]).max() > 0.1


def test_host_state_resumes_bit_for_bit():
    env = envs.make("hopper-hop", backend="host")
    actions = jax.random.uniform(jax.random.key(2), (20, BATCH, 4), minval=-1, maxval=1)
    state, whole = rollout(env, actions)
    middle, _ = rollout(env, actions[:8])
    # Through numpy and back, as a checkpoint does, and with another engine object.
    saved = jax.tree.map(np.asarray, middle._replace(key=jax.random.key_data(middle.key)))
    restored = jax.tree.map(jnp.asarray, saved)
    restored = restored._replace(key=jax.random.wrap_key_data(restored.key))
    again = envs.make("hopper-hop", backend="host")
    end, rest = jax.jit(lambda s, a: jax.lax.scan(again.step, s, a))(restored, actions[8:])
    for a, b in zip(rest, whole, strict=True):
        np.testing.assert_array_equal(a, b[9:])
    np.testing.assert_array_equal(end.task.motion.hidden, state.task.motion.hidden)


CART = """<mujoco><worldbody><body><joint name="cart" type="slide" axis="1 0 0"/><geom size=".1"/>
<body><joint axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 1" size=".05"/></body></body>
</worldbody><actuator><motor joint="cart" gear="10"/></actuator></mujoco>"""


def test_threads_of_the_host_change_no_bit(monkeypatch):
    """Much work is divided between threads, little is not; the numbers are the same."""
    model = mujoco.MjModel.from_xml_string(CART)
    engine = host_engine.make(model, ())
    qpos = jax.random.normal(jax.random.key(0), (9, 2))
    still = jnp.zeros((9, 0))
    motion, _ = jax.vmap(engine.start)(qpos, jnp.zeros((9, 2)), still)
    ahead = {}
    for seconds in (0.0, np.inf):
        monkeypatch.setattr(host_engine, "SERIAL_SECONDS", seconds)
        advance = jax.vmap(lambda now, ctrl: engine.advance(now, ctrl, 50)[0])
        ahead[seconds] = advance(motion, qpos[:, :1]).hidden
    np.testing.assert_array_equal(ahead[0.0], ahead[np.inf])
    assert (ahead[0.0] != motion.hidden).any()


def test_host_rows_do_not_depend_on_their_batch():
    env = envs.make("ball_in_cup-catch", backend="host")
    actions = jax.random.uniform(jax.random.key(3), (15, BATCH, 2), minval=-1, maxval=1)
    _, together = rollout(env, actions)
    state, first = jax.jit(env.reset)(keys()[1:2])
    _, alone = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions[:, 1:2])
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a[:, 0], b[1:, 1])


def test_diverged_rows_are_reset_and_leave_no_log(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    env = envs.make("pendulum-swingup", backend="host")
    state, _ = jax.jit(env.reset)(keys())
    wild = np.ascontiguousarray(np.asarray(state.task.motion.hidden)).view(np.float64).copy()
    wild[0, 2], wild[1, 2] = np.nan, 1e12
    motion = state.task.motion._replace(hidden=jnp.asarray(wild.view(np.uint32)))
    state = state._replace(task=state.task._replace(motion=motion))
    state, timestep = jax.jit(env.step)(state, jnp.zeros((BATCH, 1)))
    np.testing.assert_array_equal(timestep.invalid, [True, True, False])
    assert all(np.isfinite(x).all() for x in timestep)
    _, after = jax.jit(env.step)(state, jnp.zeros((BATCH, 1)))
    assert not after.invalid.any()
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_diverged_bodies_of_mjx_are_reset():
    env = envs.make("pendulum-swingup")
    state, _ = jax.jit(env.reset)(keys())
    motion = state.task.motion
    wild = motion._replace(qvel=motion.qvel.at[0].set(1e12))
    state = state._replace(task=state.task._replace(motion=wild))
    _, timestep = jax.jit(env.step)(state, jnp.zeros((BATCH, 1)))
    np.testing.assert_array_equal(timestep.invalid, [True, False, False])


def test_unknown_backends_are_refused():
    with pytest.raises(ValueError, match="walker-walk has the backend mjx or .*, not 'magic'"):
        envs.make("walker-walk", backend="magic")
    with pytest.raises(ValueError, match="probe/lqr has the backend mjx, not 'host'"):
        envs.make_task("probe/lqr", backend="host")


@pytest.mark.parametrize("name", DOMAINS)
def test_every_domain_keeps_its_types_under_strict_promotion(name):
    """Traced only, and on the host, which shares all but the engine: MJX takes long to trace."""
    env = envs.make(name, backend="host")
    state, first = jax.eval_shape(env.reset, keys())
    action = jax.ShapeDtypeStruct((BATCH, env.action_size), jnp.float32)
    following, timestep = jax.eval_shape(env.step, state, action)
    describe = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    assert describe(state) == describe(following) and describe(first) == describe(timestep)


@pytest.mark.parametrize("what", ["model", "mujoco"])
def test_changed_models_are_announced(what, monkeypatch):
    if what == "model":
        monkeypatch.setitem(models._DIGESTS, "pendulum", "0" * 16)
        match = "pendulum: the model in dm_control .* is not the one of 1.0.50"
    else:
        monkeypatch.setattr(models, "KNOWN_MUJOCO", "3.0.0")
        match = "pendulum: compared with dm_control under MuJoCo 3.0.0, this is 3.17"
    with pytest.warns(UserWarning, match=match):
        models.read("pendulum")


def test_missing_parts_of_a_model_are_named():
    text, _ = models.read("pendulum", lambda root: models.remove(root, "camera"))
    assert "<camera" not in text
    with pytest.raises(KeyError, match="no geom named wall"):
        models.read("pendulum", lambda root: models.find(root, "geom", "wall"))
