"""Mistakes in tasks: a one-line error with task and field, before compiling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pomcp_jax import Task, envs, make_env
from pomcp_jax.envs import checks, full_precision


def task(**changes):
    """A task of two numbers that move by the action."""
    good = dict(
        name="lander",
        reset=lambda key: {"x": jax.random.uniform(key, (2,)), "n": jnp.zeros((), jnp.int32)},
        step=lambda s, a: {"x": s["x"] + jnp.float32(0.1) * a, "n": s["n"] + 1},
        observe=lambda s: s["x"],
        reward=lambda s: jnp.sum(s["x"]),
        terminated=lambda s: jnp.zeros((), bool),
        observation_size=2,
        action_size=2,
        episode_steps=5,
    )
    return Task(**(good | changes))


def play(env, steps=3, batch=2):
    state, first = jax.jit(env.reset)(jax.random.split(jax.random.key(0), batch))
    action = jnp.full((steps, batch, env.action_size), 0.5)
    return jax.jit(lambda s, a: jax.lax.scan(env.step, s, a))(state, action)


MISTAKES = {
    "observe returns float32[2], observation_size is 3": dict(observation_size=3),
    "observe returns a dict; must be float32[2]": dict(observe=lambda s: s),
    "observe returns a list; must be": dict(observe=lambda s: [s["x"][0], s["x"][1]]),
    "observe returns a NoneType; must be": dict(observe=lambda s: None),
    "observe returns float32[]; must be float32[1]": dict(
        observe=lambda s: s["x"][0], observation_size=1
    ),
    "observe returns float32[1,2]; must be": dict(observe=lambda s: s["x"][None]),
    "observe returns complex64[2]; must be": dict(
        observe=lambda s: jax.lax.complex(s["x"], s["x"])
    ),
    "reward: returns float32[1]; must be float32[]": dict(reward=lambda s: s["x"][:1]),
    "reward: returns a tuple; must be": dict(reward=lambda s: (s["x"][0],)),
    "terminated: returns bool[1]; must be bool[]": dict(terminated=lambda s: s["x"][:1] > 9),
    "terminated: returns a str; must be": dict(terminated=lambda s: "no"),
    "reset returns no arrays": dict(reset=lambda key: None),
    "reset returns str for the state's leaf ['x']": dict(reset=lambda key: {"x": "first"}),
    "step returns *, reset returns {'n': *, 'x': *}; must be the same": dict(
        step=lambda s, a: s["x"]
    ),
    "step returns float32[3] for the state's leaf ['x'], reset returns float32[2]": dict(
        step=lambda s, a: {"x": jnp.zeros(3), "n": s["n"]}
    ),
    "step returns uint32[] for the state's leaf ['n'], which was int32[]; no dtype": dict(
        step=lambda s, a: {"x": s["x"], "n": s["n"].astype(jnp.uint32)}
    ),
    "reward takes 0 arguments; must be reward(state) or reward(state, action, next_state)": dict(
        reward=lambda: 0.0
    ),
    "reward takes 2 arguments; must be reward(state) or": dict(reward=lambda s, a: 0.0),
    "reward takes 4 arguments; must be reward(state) or": dict(reward=lambda s, a, n, k: 0.0),
    "reward: returns float32[2]; must be float32[]": dict(reward=lambda s, a, n: a),
    "step is None; must be a function": dict(step=None),
    "reward is 1.0; must be a function": dict(reward=1.0),
} | {
    f"{field} is {value!r}; must be an int from 1": {field: value}
    for field in ("episode_steps", "observation_size", "action_size")
    for value in (0, -1, None, float("inf"), 50.0, True, "5", 2**31)
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_one_line_with_the_task_and_the_field(text):
    with pytest.raises(ValueError) as caught:
        make_env(task(**MISTAKES[text]))
    assert str(caught.value).startswith(f"task 'lander': {text}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["cartpole-swingup", None, 3])
def test_what_is_no_task_is_refused(what):
    with pytest.raises(ValueError, match=r"make_env takes a Task, got .*envs.make takes names"):
        make_env(what)


def test_the_tasks_own_exceptions_pass_through():
    class Mine(Exception):
        pass

    def fail(*_):
        raise Mine("my text\nof two lines")

    for field in ("reset", "step", "observe", "reward", "terminated"):
        with pytest.raises(Mine, match="my text\nof two lines"):
            make_env(task(**{field: fail}))


def test_whole_numbers_of_any_library_are_sizes():
    env = make_env(task(episode_steps=np.int64(5), observation_size=np.int32(2)))
    assert type(env.episode_length) is int and env.episode_length == 5
    assert type(env.observation_size) is int and play(env)[1].obs.shape == (3, 2, 2)


@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize(
    "ended", [lambda s: jnp.where(s["n"] > 2, 1.0, 0.0), lambda s: (s["n"] > 2).astype(jnp.int32)]
)
def test_a_number_is_a_termination_unless_it_is_0(ended, repeat):
    env = make_env(task(terminated=ended), action_repeat=repeat)
    steps = play(env, 4)[1]
    assert steps.terminated.dtype == bool
    at = {1: 2, 3: 0}[repeat]
    assert np.asarray(steps.terminated[:, 0]).tolist()[: at + 1] == [False] * at + [True]
    assert env.terminates


def test_a_nan_as_termination_is_a_broken_state():
    env = make_env(task(terminated=lambda s: jnp.where(s["n"] == 2, jnp.nan, 0.0)))
    steps = play(env, 3)[1]
    assert np.asarray(steps.invalid[:, 0]).tolist() == [False, True, False]
    assert not steps.terminated.any()


# Rewards of a state, and of a transition


@pytest.mark.parametrize("repeat", [1, 3])
def test_a_reward_sees_every_control_step(repeat):
    """Compared with a plain loop over control steps, across ends of episodes."""

    def reward(s, a, following):
        count = (following["n"] - s["n"] ** 2).astype(jnp.float32)
        return a[0] * s["x"][0] + 10 * following["x"][1] + count

    one = task(reward=reward)
    env = make_env(one, repeat)
    state, _ = jax.jit(env.reset)(jax.random.split(jax.random.key(0), 2))
    actions = jax.random.uniform(jax.random.key(1), (5, 2, 2), minval=-1.0, maxval=1.0)
    steps = jax.jit(lambda s, a: jax.lax.scan(env.step, s, a)[1])(state, actions)
    row, frames, expected = jax.tree.map(lambda x: x[0], state.task), 0, []
    for action in actions[:, 0]:
        total = 0.0
        for _ in range(repeat):
            if frames < one.episode_steps:
                following = one.step(row, action)
                total += float(reward(row, action, following))
                row, frames = following, frames + 1
        expected.append(total)
        if frames == one.episode_steps:
            break
    np.testing.assert_allclose(steps.reward[: len(expected), 0], expected, rtol=1e-5)
    assert steps.truncated[len(expected) - 1, 0] and len(expected) == {1: 5, 3: 2}[repeat]


def wrapped(function):
    return lambda *args: function(*args)


@pytest.mark.parametrize(
    "reward",
    [
        lambda s, a, following: following["x"][0],
        lambda s, scale=1.0: scale * s["x"][0],  # a default is no argument of the transition
        lambda s, one=1.0, two=0.0: one * s["x"][0] + two,
        lambda s, a, following, scale=1.0: scale * following["x"][0],
        jax.jit(lambda s, a, following: following["x"][0]),
        functools.partial(lambda scale, s: scale * s["x"][0], 1.0),
        wrapped(lambda s: s["x"][0]),
    ],
)
def test_forms_of_one_reward_are_equal(reward):
    expected = play(make_env(task(reward=lambda s: s["x"][0]), 2))[1]
    for made in (
        make_env(task(reward=reward), 2),
        make_env(full_precision(task(reward=reward)), 2),
    ):
        np.testing.assert_array_equal(play(made)[1].reward, expected.reward)


# Dtypes of the state


def grid(first, move):
    """A state that starts at ``first`` and is changed by ``move``."""
    return task(
        reset=lambda key: first,
        step=lambda x, a: move(x),
        observe=lambda x: jnp.asarray(x).reshape(-1)[:1],
        reward=lambda x: jnp.asarray(x, jnp.float32).reshape(-1)[0],
        observation_size=1,
    )


def times(steps, first, move):
    return np.asarray(play(make_env(grid(first, move)), steps)[1].obs[:, 0, 0])


def add(number):
    def move(x):
        with jax.numpy_dtype_promotion("standard"):
            return x + number

    return move


@pytest.mark.parametrize(
    "first",
    [jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.uint8), jnp.zeros(2, bool), np.zeros(2), 0, 0.0,
     False, jnp.zeros(2, jnp.int8), jnp.zeros(2, jnp.float32)],
    ids=str,
)  # fmt: skip
def test_a_step_of_a_tenth_moves_whatever_reset_gives(first):
    seen = times(4, first, add(jnp.full(np.shape(first), 0.1, jnp.float32)))
    np.testing.assert_allclose(seen, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize(
    "first,number,expected",
    [(jnp.zeros(2, jnp.float16), jnp.float32(1e-4), [1e-4, 2e-4, 3e-4]),
     (jnp.zeros(2, jnp.bfloat16), jnp.float16(0.5), [0.5, 1.0, 1.5]),
     (jnp.zeros(2, bool), jnp.int32(300), [300, 600, 900]),
     (jnp.zeros(2, jnp.uint8), jnp.int32(-1), [-1, -2, -3]),
     (jnp.zeros(2, jnp.uint8), jnp.int32(300), [300, 600, 900]),
     (0, jnp.float16(0.5), [0.5, 1.0, 1.5])],
)  # fmt: skip
def test_kinds_and_widths_are_promoted(first, number, expected):
    np.testing.assert_allclose(times(3, first, add(number)), expected, rtol=1e-3)


def test_dtypes_that_widen_step_by_step_are_followed_to_the_end():
    """The counter is one kind behind the flag, the position one behind the counter."""

    def step(s, a):
        with jax.numpy_dtype_promotion("standard"):
            return {"a": s["a"] + 0.5, "b": s["b"] + s["a"], "c": s["c"] + s["b"]}

    env = make_env(
        task(
            reset=lambda key: {"a": jnp.zeros((), bool), "b": jnp.uint8(0), "c": jnp.int32(0)},
            step=step, observe=lambda s: s["c"][None], reward=lambda s: s["b"], observation_size=1,
        )
    )  # fmt: skip
    state, steps = play(env, 4)
    assert {x.dtype for x in state.task.values()} == {jnp.dtype("float32")}
    np.testing.assert_allclose(steps.obs[:, 0, 0], [0.0, 0.0, 0.5, 2.0])


def test_keys_in_a_state_survive_and_advance():
    def step(s, a):
        key, draw = jax.random.split(s["key"])
        return {"key": key, "x": jax.random.uniform(draw)}

    env = make_env(
        task(
            reset=lambda key: {"key": key, "x": 0.0}, step=step, observe=lambda s: s["x"][None],
            reward=lambda s: s["x"], observation_size=1,
        )
    )  # fmt: skip
    state, steps = play(env, 4)
    assert jnp.issubdtype(state.task["key"].dtype, jax.dtypes.prng_key)
    assert len(np.unique(steps.obs)) == 8
    with pytest.raises(ValueError, match=r"leaf \['key'\].*no dtype holds both"):
        broken = lambda s, a: {"key": jax.random.key_data(s["key"])[0], "x": s["x"]}  # noqa: E731
        make_env(task(reset=lambda key: {"key": key, "x": 0.0}, step=broken))


def test_double_precision_is_kept_where_it_is_on():
    with jax.enable_x64(True):
        seen = play(make_env(grid(jnp.zeros(2, jnp.int32), add(jnp.float64(1e-12)))), 3)
        assert seen[0].task.dtype == jnp.float64 and seen[1].obs.dtype == jnp.float32
        np.testing.assert_allclose(seen[0].task[0], [3e-12] * 2)


@pytest.mark.parametrize("kind", [jnp.int32, jnp.uint8, jnp.float16])
def test_observations_and_rewards_of_any_kind_are_float32(kind):
    env = make_env(
        task(observe=lambda s: s["x"].astype(kind), reward=lambda s: s["n"].astype(kind))
    )
    steps = play(env)[1]
    assert steps.obs.dtype == steps.reward.dtype == jnp.float32
    np.testing.assert_array_equal(steps.reward[:, 0], [1, 2, 3])


# Library tasks


def test_library_tasks_are_not_traced_when_they_are_made(monkeypatch):
    monkeypatch.setattr(checks, "check_task", None)
    assert not envs.make("cartpole-swingup").terminates
    assert envs.make("probe/constant").terminates and not envs.make("probe/truncated").terminates
    assert not make_env(envs.make_task("pendulum-swingup")).terminates


def test_a_library_task_that_somebody_changed_is_checked():
    with pytest.raises(ValueError, match=r"task 'probe/lqr': reward: returns float32\[1\]"):
        make_env(envs.make_task("probe/lqr")._replace(reward=lambda s: s.x[:1]))


@pytest.mark.parametrize(
    "ended,known",
    [(lambda s: jnp.zeros((), bool), False), (lambda s: False, False), (lambda s: 0.0, False),
     (lambda s: jnp.zeros_like(s["x"][0], bool), False), (lambda s: s["n"] > 3, True),
     (lambda s: True, True), (lambda s: jnp.float32(1) > 0, True)],
)  # fmt: skip
def test_whether_a_task_can_terminate_is_known(ended, known):
    assert make_env(task(terminated=ended)).terminates is known


# Broken first observations


def test_a_broken_first_observation_is_no_transition():
    """The state recovers in the next step, so that only the first observation shows it."""
    env = make_env(task(observe=lambda s: jnp.where(s["n"] == 0, jnp.nan, s["x"]), episode_steps=3))
    keys = jax.random.split(jax.random.key(0), 2)
    state, first = env.reset(keys)
    assert first.invalid.all() and first.is_first.all() and np.isfinite(first.obs).all()
    steps = play(env, 4)[1]
    assert steps.is_first.all() and steps.invalid.all()
    assert not steps.reward.any() and not steps.is_last.any() and not steps.episode_length.any()


def test_functions_of_the_package_are_traced_once_for_resets_and_steps_of_any_batch():
    calls = []
    plain = task()

    def counted(name):
        def function(*args):
            calls.append(name)
            return getattr(plain, name)(*args)

        return function

    names = ("reset", "step", "observe", "reward")
    env = make_env(full_precision(task(**{n: counted(n) for n in names}), trusted=True), 2)
    for batch in (2, 3):
        keys = jax.random.split(jax.random.key(0), batch)
        state, _ = jax.eval_shape(env.reset, keys)
        jax.eval_shape(env.step, state, jnp.zeros((batch, 2)))
    assert sorted(calls) == sorted(names)
    np.testing.assert_array_equal(play(env)[1].obs, play(make_env(plain, 2))[1].obs)
