"""The batched environment made from a task: episodes, resets, masking, carries, names."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from pomcp_jax import envs
from pomcp_jax.envs import probes
from pomcp_jax.envs.dm_control.rewards import tolerance

BATCH = 3


def keys(seed=0, batch=BATCH):
    return jax.random.split(jax.random.key(seed), batch)


def rollout(env, actions, seed=0):
    """Time steps ``[T + 1, B, ...]`` under ``actions[T, B, A]``; index 0 is the reset."""
    state, first = jax.jit(env.reset)(keys(seed, actions.shape[1]))
    state, rest = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions)
    return state, jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, rest)


def hold(value, steps, batch=BATCH):
    return jnp.full((steps, batch, 1), value, jnp.float32)


def short(task, steps):
    return task._replace(episode_steps=steps)


@pytest.fixture(scope="module")
def pendulum():
    return short(envs.make_task("pendulum-swingup"), 3)


# Episodes


def test_final_observation_is_the_tasks_own(pendulum):
    env = envs.make_env(pendulum)
    actions = jax.random.uniform(jax.random.key(1), (4, BATCH, 1), minval=-1, maxval=1)
    _, steps = rollout(env, actions)
    # The wrapper splits each key and starts the task from the second half.
    state = jax.vmap(lambda key: pendulum.reset(jax.random.split(key)[1]))(keys())
    step = jax.jit(jax.vmap(pendulum.step))
    for t in range(3):
        state = step(state, actions[t])
        np.testing.assert_allclose(steps.obs[t + 1], jax.vmap(pendulum.observe)(state), atol=1e-6)
    assert steps.truncated[3].all() and not steps.terminated.any()
    assert steps.is_first[4].all() and not np.allclose(steps.obs[4], steps.obs[3], atol=1e-3)


def test_resets_are_fresh_and_differ_between_rows(pendulum):
    env = envs.make_env(pendulum)
    _, steps = rollout(env, jnp.zeros((20, BATCH, 1)))
    first = steps.obs[steps.is_first]
    assert len(first) == 6 * BATCH
    assert len(np.unique(first.round(5), axis=0)) == len(first)


def test_a_row_does_not_depend_on_its_batch(pendulum):
    # Rows end at different times: terminate by angle as well.
    task = pendulum._replace(terminated=lambda state: state.qpos[0] > 0, episode_steps=5)
    env = envs.make_env(task, action_repeat=2)
    actions = jax.random.uniform(jax.random.key(2), (12, 4, 1), minval=-1, maxval=1)
    _, together = rollout(env, actions)
    for i in range(4):
        state, first = env.reset(keys(0, 4)[i : i + 1])
        _, rest = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, actions[:, i : i + 1])
        alone = jax.tree.map(lambda a, b: np.concatenate([a[None], b]), first, rest)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[:, i], b[:, 0], atol=1e-6)
    assert together.terminated.any() and together.truncated.any()


def test_first_steps_ignore_the_action():
    env = envs.make("probe/action")
    _, a = rollout(env, jnp.stack([hold(0.1, 1)[0], hold(-0.9, 1)[0]]))
    _, b = rollout(env, jnp.stack([hold(0.1, 1)[0], hold(0.8, 1)[0]]))
    assert a.is_first[2].all()
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x[2], y[2])


@pytest.mark.parametrize("repeat,rewards", [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (7, [5])])
def test_action_repeat_sums_and_stops_at_the_limit(repeat, rewards):
    env = envs.make("probe/truncated", action_repeat=repeat)
    assert env.episode_length == len(rewards)
    _, steps = rollout(env, hold(0.0, len(rewards) + 1))
    np.testing.assert_array_equal(steps.reward[1:-1, 0], rewards)
    np.testing.assert_array_equal(steps.episode_return[:, 0], [0, *np.cumsum(rewards), 0])
    np.testing.assert_array_equal(steps.episode_length[:, 0], [*range(len(rewards) + 1), 0])
    assert steps.truncated[-2].all() and not steps.terminated.any()
    assert steps.is_first[-1].all()


def test_action_repeat_freezes_a_terminated_row():
    env = envs.make("probe/delayed", action_repeat=4)
    state, steps = rollout(env, hold(0.0, 1))
    np.testing.assert_array_equal(steps.reward[1], np.ones(BATCH))
    np.testing.assert_array_equal(steps.obs[1], np.full((BATCH, 1), 2.0))
    np.testing.assert_array_equal(state.frames, np.full(BATCH, 2))
    assert steps.terminated[1].all() and not steps.truncated[1].any()


def test_termination_at_the_limit_is_a_termination():
    env = envs.make_env(short(envs.make_task("probe/delayed"), 2))
    _, steps = rollout(env, hold(0.0, 2))
    assert steps.terminated[2].all() and not steps.truncated[2].any()


# Broken states


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("bad", [0.9, -0.9, np.nan, np.inf])
def test_broken_steps_become_fresh_episodes(bad, repeat):
    env = envs.make("probe/nan", action_repeat=repeat)
    actions = hold(0.0, 3).at[1, 1].set(bad)
    _, steps = rollout(env, actions)
    assert all(np.isfinite(x).all() for x in steps)
    np.testing.assert_array_equal(steps.invalid[:, 1], [False, False, True, False])
    np.testing.assert_array_equal(steps.is_first[:, 1], [True, False, True, False])
    np.testing.assert_array_equal(steps.reward[:, 1], [0, repeat, 0, repeat])
    np.testing.assert_array_equal(steps.episode_length[:, 1], [0, 1, 0, 1])
    assert not steps.invalid[:, [0, 2]].any() and not steps.is_last.any()


def test_a_broken_reset_heals():
    task = envs.make_task("probe/observation")

    def reset(key):
        state = task.reset(key)
        return state._replace(sign=jnp.where(state.sign > 0, state.sign, jnp.nan))

    env = envs.make_env(task._replace(reset=reset))
    _, steps = rollout(env, hold(0.0, 40, batch=8))
    assert all(np.isfinite(x).all() for x in steps)
    assert steps.invalid.any() and (steps.reward == 1).any()


def test_a_broken_action_of_a_finished_row_counts_for_nothing():
    env = envs.make("probe/constant")
    _, steps = rollout(env, hold(0.0, 2).at[1].set(np.nan))
    assert steps.is_first[2].all() and not steps.invalid.any()


# Precision


def products(jaxpr):
    """Precisions of every product of matrices in a program, inner ones too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", ["reacher-easy", "walker-walk", "brax/inverted_pendulum"])
def test_accelerators_may_not_round_physics(name):
    env = envs.make(name)
    state = jax.eval_shape(env.reset, keys())[0]
    action = jax.ShapeDtypeStruct((BATCH, env.action_size), jnp.float32)
    highest = (jax.lax.Precision.HIGHEST,) * 2
    found = list(products(jax.make_jaxpr(env.step)(state, action).jaxpr))
    assert len(found) > 5 and set(found) == {highest}


def test_accelerators_may_not_round_a_users_rewards():
    task = envs.make_task("probe/lqr")
    matrix = jnp.ones((4, 4))
    squared = task._replace(reward=lambda state: jnp.sum(matrix @ matrix) + task.reward(state))
    env = envs.make_env(squared)
    state = jax.eval_shape(env.reset, keys())[0]
    action = jax.ShapeDtypeStruct((BATCH, env.action_size), jnp.float32)
    found = list(products(jax.make_jaxpr(env.step)(state, action).jaxpr))
    assert found and set(found) == {(jax.lax.Precision.HIGHEST,) * 2}


# Carries


@pytest.mark.parametrize("name", ["cartpole-swingup", "reacher-easy", "probe/lqr"])
def test_carry_is_stable_and_step_traces_once(name):
    env = envs.make(name, action_repeat=2)
    traces = []

    @jax.jit
    def step(state, action):
        traces.append(1)
        return env.step(state, action)

    state, first = jax.jit(env.reset)(keys())
    action = jnp.zeros((BATCH, env.action_size))
    following, timestep = step(state, action)
    describe = lambda tree: jax.tree.map(jax.typeof, tree)  # noqa: E731
    assert describe(state) == describe(following) and describe(first) == describe(timestep)
    assert first.obs.shape == (BATCH, env.observation_size)
    step(following, action)
    assert len(traces) == 1


def test_state_can_be_donated_with_its_first_step():
    env = envs.make("probe/observation")
    for make in (env.reset, jax.jit(env.reset)):
        donate = jax.jit(lambda s, t: env.step(s, t.obs), donate_argnums=(0, 1))
        state, timestep = donate(*make(keys()))
        donate(state, timestep)


def test_dtypes_do_not_depend_on_x64():
    code = """
import jax, jax.numpy as jnp
from pomcp_jax import envs
for name in ("probe/match", "probe/lqr", "pendulum-swingup"):
    env = envs.make(name, 2)
    state, first = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
    action = jnp.zeros((2, env.action_size), jnp.float32)
    after, timestep = jax.jit(
        lambda s, a: jax.lax.scan(lambda s, _: env.step(s, a), s, length=3))(state, action)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert a.dtype == b.dtype, (name, a.dtype, b.dtype)
    kinds = [str(x.dtype) for x in first]
    assert kinds == ["float32"] * 2 + ["bool"] * 4 + ["float32", "int32"], (name, kinds)
    assert [str(x.dtype) for x in timestep] == kinds
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, "JAX_ENABLE_X64": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# Probes


def test_probes_have_the_values_they_document():
    _, steps = rollout(envs.make("probe/action"), hold(probes.BEST_ACTION, 1))
    np.testing.assert_allclose(steps.reward[1], 1.0)
    env = envs.make("probe/match")
    state, first = env.reset(keys())
    np.testing.assert_allclose(env.step(state, 0.5 * first.obs)[1].reward, 1.0)
    env = envs.make("probe/observation")
    state, first = env.reset(keys(0, 50))
    np.testing.assert_allclose(env.step(state, jnp.zeros((50, 1)))[1].reward, first.obs[:, 0])
    assert set(np.unique(first.obs)) == {-1.0, 1.0}


def test_lqr_solution_is_its_value():
    discount = 0.9
    gain, cost = probes.lqr_solution(discount)
    task = envs.make_task("probe/lqr")
    state = task.reset(jax.random.key(0))
    expected = -state.x @ jnp.asarray(cost, jnp.float32) @ state.x
    gain = jnp.asarray(gain, jnp.float32)

    def body(carry, weight):
        state, total, largest = carry
        action = -gain @ state.x
        state = task.step(state, action)
        total = total + weight * task.reward(state)
        return (state, total, jnp.maximum(largest, jnp.abs(action[0]))), None

    start = (state, jnp.float32(0), jnp.float32(0))
    weights = jnp.asarray(discount ** np.arange(300), jnp.float32)
    (_, total, largest), _ = jax.lax.scan(body, start, weights)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    assert largest < 1


# Rewards


@pytest.mark.parametrize(
    "sigmoid",
    "gaussian hyperbolic long_tail reciprocal cosine linear quadratic tanh_squared".split(),
)
def test_tolerance_is_dm_controls(sigmoid):
    from dm_control.utils import rewards

    x = np.linspace(-5, 5, 101).astype(np.float32)
    for bounds, margin, value in [((-1, 2), 1.5, 0.1), ((0, 0), 3.0, 0.4), ((1, np.inf), 0.0, 0.1)]:
        ours = tolerance(jnp.asarray(x), bounds, margin, sigmoid, value)
        theirs = rewards.tolerance(x, bounds, margin, sigmoid, value)
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    with pytest.raises(ValueError, match="out of range"):
        tolerance(jnp.asarray(x), margin=1, sigmoid=sigmoid, value_at_margin=1.0)
    assert tolerance(jnp.asarray(x), margin=1).dtype == jnp.float32


def test_tolerance_refuses_nonsense():
    with pytest.raises(ValueError, match="bad bounds"):
        tolerance(jnp.zeros(()), bounds=(1, 0))
    with pytest.raises(ValueError, match="unknown sigmoid"):
        tolerance(jnp.zeros(()), margin=1, sigmoid="none")


# Names


@pytest.mark.parametrize(
    "wrong,near",
    [
        ("cartpole-swngup", "cartpole-swingup"),
        ("brax/antt", "brax/ant"),
        ("", "envs.available()"),
        ("probe", "envs.available()"),
        ("cartpole-swing_up", "cartpole-swingup"),
    ],
)
def test_unknown_names_get_one_line_with_the_nearest(wrong, near):
    with pytest.raises(ValueError) as error:
        envs.make(wrong)
    message = str(error.value)
    assert repr(wrong) in message and near in message and "\n" not in message


@pytest.mark.parametrize("repeat", [0, -1, 1.0, True, "2"])
def test_bad_action_repeat_gets_one_line(repeat):
    with pytest.raises(ValueError, match="action_repeat must be an int of at least 1") as error:
        envs.make("probe/constant", action_repeat=repeat)
    assert "\n" not in str(error.value)


def test_every_name_of_a_light_family_builds():
    for name in envs.available():
        if name.startswith("probe/"):
            assert envs.make_task(name).name == name


def test_import_and_names_load_no_engine():
    code = (
        "import sys; from pomcp_jax import envs; envs.check_name('cheetah-run');"
        "loaded = {'mujoco', 'brax', 'dm_control'} & set(sys.modules);"
        "assert not loaded, loaded"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_building_prints_nothing_and_needs_no_gl():
    code = (
        "import sys; from pomcp_jax import envs; envs.make('cheetah-run');"
        "assert not [m for m in sys.modules if m.startswith(('dm_control', 'OpenGL'))]"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# brax


def test_brax_environments_become_tasks():
    env = envs.make("brax/inverted_pendulum", action_repeat=2, backend="spring", episode_steps=9)
    _, steps = rollout(env, jnp.ones((30, BATCH, 1)))
    assert steps.obs.shape == (31, BATCH, env.observation_size)
    last = steps.terminated | steps.truncated
    assert steps.terminated.any()
    # True final observations: done means that the pole has tipped beyond 0.2.
    assert (np.abs(steps.obs[..., 1])[steps.terminated] > 0.2).all()
    assert (np.abs(steps.obs[..., 1])[steps.is_first] <= 0.01 + 1e-6).all()
    np.testing.assert_array_equal(steps.is_first[1:], last[:-1])
