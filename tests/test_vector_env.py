"""Our environments as gymnasium's vector environments, beside the Env itself."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from pomcp_jax import envs
from pomcp_jax.envs.protocol import Task


def counter(steps=4, broken=None):
    """A task that counts; it terminates beyond 2.5 and breaks where ``broken`` is met."""

    def reward(x):
        return jnp.where(x[0] == broken, jnp.nan, x[0]) if broken else x[0]

    return Task(
        name="counter",
        reset=lambda key: jax.random.uniform(key, (2,)) * 0.1,
        step=lambda x, action: x + 0.5 * (action[0] + 1.0),
        observe=lambda x: x,
        reward=reward,
        terminated=lambda x: x[0] > 2.5,
        observation_size=2,
        action_size=3,
        episode_steps=steps,
    )


def test_steps_are_those_of_the_env():
    env = envs.make_env(counter())
    vector = envs.to_gymnasium(counter(), num_envs=3)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 3, 3)).astype(np.float32)
    state, timestep = env.reset(jax.random.split(jax.random.key(5), 3))
    obs, infos = vector.reset(seed=5)
    np.testing.assert_array_equal(obs, timestep.obs)
    step, ends = jax.jit(env.step), np.zeros(2, int)
    for action in actions:
        state, timestep = step(state, action)
        obs, reward, terminated, truncated, infos = vector.step(action)
        for ours, theirs in zip(
            (obs, reward, terminated, truncated),
            (timestep.obs, timestep.reward, timestep.terminated, timestep.truncated),
            strict=True,
        ):
            np.testing.assert_array_equal(ours, theirs)
        ends += terminated.sum(), truncated.sum()
        assert infos == {} and vector.observation_space.contains(obs)
        assert reward.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
    assert ends.all()


def test_spaces_metadata_and_seeds():
    vector = envs.to_gymnasium(counter(), num_envs=2, seed=1)
    assert isinstance(vector, gymnasium.vector.VectorEnv) and vector.num_envs == 2
    assert vector.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.NEXT_STEP
    assert vector.single_action_space == gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    assert vector.action_space.shape == (2, 3) and vector.observation_space.shape == (2, 2)
    first, second = (vector.reset()[0] for _ in range(2))
    assert (first != second).all()
    np.testing.assert_array_equal(envs.to_gymnasium(counter(), 2, seed=1).reset()[0], first)
    np.testing.assert_array_equal(vector.reset(seed=7)[0], vector.reset(seed=7)[0])


def test_gymnasiums_own_wrappers_count_its_episodes():
    vector = RecordEpisodeStatistics(envs.to_gymnasium(counter(steps=3), num_envs=2))
    vector.reset(seed=0)
    for _ in range(7):  # three steps, one to begin again, three steps
        *_, truncated, infos = vector.step(np.full((2, 3), -1.0))
    assert truncated.all()
    np.testing.assert_array_equal(infos["episode"]["l"], [3, 3])
    np.testing.assert_array_equal(vector.length_queue, [3, 3, 3, 3])


def test_a_broken_row_is_cut_with_the_observation_before_and_marked():
    task = counter(broken=2.0)._replace(reset=lambda key: jnp.zeros(2))
    vector = envs.to_gymnasium(task, num_envs=2)
    before, _ = vector.reset(seed=0)
    up = np.array([[1.0, 0, 0], [0.0, 0, 0]])
    before, *_, infos = vector.step(up)
    assert infos == {}
    obs, reward, terminated, truncated, infos = vector.step(up)
    np.testing.assert_array_equal(infos["invalid"], [True, False])
    np.testing.assert_array_equal(truncated, [True, False])
    np.testing.assert_array_equal(obs[0], before[0])
    assert reward[0] == 0 and not terminated.any()
    *_, truncated, infos = vector.step(up)
    assert infos == {} and not truncated[0]


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_envs must be an int of at least 1, got 0"):
        envs.to_gymnasium(counter(), 0)
    vector = envs.to_gymnasium("probe/lqr", 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="needs a reset"):
        vector.step(np.zeros((2, 1)))
    vector.reset()
    with pytest.raises(ValueError, match=r"actions have shape \[1\]; must be \[2, "):
        vector.step(np.zeros(1))
    with pytest.raises(ValueError, match="rows reset by themselves"):
        vector.reset(options={"reset_mask": np.ones(2, bool)})
