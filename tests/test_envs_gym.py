"""Environments of gymnasium, step by step beside a plain Python loop; faults, resume, workers."""

import csv
import os
import shutil
import signal
import threading
import time
import types
from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gym_worlds import Closed, Stored, Walk

from pomcp_jax import Trainer, envs, seed_axis, train
from pomcp_jax.config import ConfigError
from pomcp_jax.envs.adapters import gymnasium as gymnasium_adapter
from pomcp_jax.envs.adapters import gymnasium_rows, gymnasium_workers
from pomcp_jax.envs.adapters.gymnasium_rows import Rows, seed_of
from pomcp_jax.envs.adapters.gymnasium_workers import Workers
from pomcp_jax.rendering import frames
from pomcp_jax.running import trainer
from pomcp_jax.running.background import Control
from pomcp_jax.running.progress import Progress


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def some_actions(env, steps, rows, seed=0):
    shape = steps, rows, env.action_size
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def play(env, row_keys, actions):
    """First time steps, and those of a compiled loop over ``actions [T, B, A]``."""

    @jax.jit
    def run(row_keys, actions):
        state, first = env.reset(row_keys)
        state, others = jax.lax.scan(env.step, state, actions)
        return state, jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, others)

    state, steps = run(row_keys, actions)
    return state, jax.tree.map(np.asarray, steps)


def plain(name, row_key, actions, repeat=1):
    """The same by gymnasium alone: ``(obs, reward, terminated, truncated, is_first)`` a step."""
    env = gymnasium.make(name)
    low, high, data = env.action_space.low, env.action_space.high, jax.random.key_data(row_key)
    key, episode, over = np.asarray(data).tobytes(), 0, True
    out = []
    for action in [actions[0], *actions]:
        if over:
            obs, _ = env.reset(seed=seed_of(key, episode))
            reward, terminated, truncated, first = 0.0, False, False, True
            episode += 1
        else:
            reward, first = 0.0, False
            scaled = (low / 2 + high / 2) + (high / 2 - low / 2) * action.astype(np.float64)
            for _ in range(repeat):
                moved = env.step(np.clip(scaled, low, high).astype(env.action_space.dtype))
                obs, more, terminated, truncated, _ = moved
                reward += float(more)
                if terminated or truncated:
                    break
        over = terminated or truncated
        flat = gymnasium.spaces.flatten(env.observation_space, obs)
        out.append((flat, reward, terminated, truncated and not terminated, first))
    env.close()
    return [np.stack(x) for x in zip(*out, strict=True)]


@pytest.mark.parametrize(
    ("name", "steps", "repeat"),
    [("Pendulum-v1", 203, 1), ("HalfCheetah-v5", 506, 2), ("Humanoid-v5", 60, 1),
     ("gym_worlds:Nested-v0", 45, 1)],
)  # fmt: skip
def test_every_step_is_that_of_a_plain_loop(name, steps, repeat):
    env = envs.make(f"gym/{name}", repeat)
    actions = some_actions(env, steps, 2)
    _, ours = play(env, keys(2), actions)
    for row in range(2):
        theirs = plain(name, keys(2)[row], actions[:, row], repeat)
        for field, value in zip(("obs", "reward"), theirs, strict=False):
            actual = getattr(ours, field)[:, row]
            np.testing.assert_array_equal(actual, value.astype(np.float32))
        for field, value in zip(("terminated", "truncated", "is_first"), theirs[2:], strict=True):
            np.testing.assert_array_equal(getattr(ours, field)[:, row], value)
    assert ours.is_last.any() and not ours.invalid.any() and env.outside.notes() == []
    assert env.terminates == (name in ("Humanoid-v5", "gym_worlds:Nested-v0"))


def test_returns_and_lengths_are_those_of_the_running_episode():
    env = envs.make("gym/gym_worlds:Walk-v0", 3)
    assert env.episode_length == 7
    _, steps = play(env, keys(3), some_actions(env, 40, 3))
    for row in range(3):
        total = length = 0
        for t in range(41):
            first = steps.is_first[t, row]
            total, length = (0, 0) if first else (total + steps.reward[t, row], length + 1)
            np.testing.assert_allclose(steps.episode_return[t, row], total, 1e-5, 1e-5)
            assert steps.episode_length[t, row] == length <= 7


def test_a_row_does_not_depend_on_its_batch():
    env = envs.make("gym/gym_worlds:Walk-v0")
    actions = some_actions(env, 30, 8)
    _, all_rows = play(env, keys(8), actions)
    _, alone = play(env, keys(8)[5:6], actions[:, 5:6])
    for batch, single in zip(all_rows, alone, strict=True):
        np.testing.assert_array_equal(batch[:, 5:6], single)


def test_rows_with_equal_keys_have_environments_of_their_own():
    """A seed in two cells of a sweep: their actions are equal until the cells' agents differ."""
    env = envs.make("gym/gym_worlds:Stored-v0")
    same, actions = jnp.stack([keys(1)[0]] * 3), some_actions(env, 30, 3)
    actions[:5] = actions[:5, :1]
    state, steps = play(env, same, actions)
    for row in range(3):
        _, alone = play(env, same[:1], actions[:, row : row + 1])
        for batch, single in zip(steps, alone, strict=True):
            np.testing.assert_array_equal(batch[:, row : row + 1], single)
    assert env.outside.notes() == []


def on_disk(state):
    """A state as a checkpoint has it."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x), state
    )


@pytest.mark.parametrize(
    "name", ["gym_worlds:Stored-v0", "HalfCheetah-v5", "Humanoid-v5", "Reacher-v5"]
)
def test_environments_that_store_themselves_resume_bit_for_bit(name):
    """Also where XLA runs a program again: ``jax_debug_nans`` does."""
    env, again = (envs.make(f"gym/{name}") for _ in range(2))
    actions = some_actions(env, 18, 2)
    step, other = jax.jit(env.step), jax.jit(again.step)
    state, _ = env.reset(keys(2))
    for action in actions[:9]:
        state, _ = step(state, action)
    saved = on_disk(env.outside.snapshot(state))
    expected, resumed, repeated = [], saved, saved
    for action in actions[9:]:
        state, timestep = step(state, action)
        expected.append(timestep)
    for action, timestep in zip(actions[9:], expected, strict=True):
        resumed, actual = other(resumed, action)
        jax.tree.map(np.testing.assert_array_equal, actual, timestep)
    for action, timestep in zip(actions[9:], expected, strict=True):
        repeated, actual = step(repeated, action)
        jax.tree.map(np.testing.assert_array_equal, actual, timestep)
    assert env.outside.notes() == again.outside.notes() == []


def test_other_environments_begin_their_running_episode_again():
    env, again = (envs.make("gym/gym_worlds:Walk-v0") for _ in range(2))
    actions = some_actions(env, 30, 2)
    step, other = jax.jit(env.step), jax.jit(again.step)
    state, first = env.reset(keys(2))
    for action in actions[:25]:  # into the second episodes
        state, timestep = step(state, action)
        start = (
            jnp.where(timestep.is_first[:, None], timestep.obs, start)
            if "start" in locals()
            else first.obs
        )
    resumed, timestep = other(on_disk(env.outside.snapshot(state)), actions[25])
    assert timestep.is_first.all() and not timestep.invalid.any() and not timestep.reward.any()
    np.testing.assert_array_equal(timestep.obs, start)
    np.testing.assert_array_equal(resumed.task.rows[:, 0], state.task.rows[:, 0])
    assert "2 running episodes of gym/gym_worlds:Walk-v0 began again" in again.outside.notes()[0]
    # From here on it is an ordinary episode, and the host's environments are those of the state.
    resumed, timestep = other(resumed, actions[26])
    assert not timestep.is_first.any() and (timestep.episode_length == 1).all()
    # The first one was not disturbed.
    _, timestep = step(state, actions[25])
    assert not timestep.is_first.any()


def test_a_wrong_environment_is_never_stepped():
    """States of equal age with other actions: what is live has another history."""
    env = envs.make("gym/gym_worlds:Walk-v0")
    step = jax.jit(env.step)
    state, _ = env.reset(keys(1))
    here, _ = step(state, np.float32([[0.5, 0.5]]))
    begun, timestep = step(state, np.float32([[-0.5, 0.5]]))
    assert timestep.is_first.all()  # `here` has moved on
    there, _ = step(begun, np.float32([[-0.5, 0.5]]))
    _, timestep = step(here, np.float32([[0.0, 0.0]]))
    assert timestep.is_first.all()
    _, timestep = step(there, np.float32([[0.0, 0.0]]))
    assert timestep.is_first.all()


def test_an_evaluation_has_environments_of_its_own():
    env = envs.make("gym/gym_worlds:Walk-v0")
    apart = env.outside.apart()
    state, _ = env.reset(keys(2))
    play(apart, keys(2), some_actions(env, 5, 2))
    _, timestep = jax.jit(env.step)(state, some_actions(env, 1, 2)[0])
    assert not timestep.is_first.any()


def test_closed_environments_are_made_again_when_they_are_needed():
    env = envs.make("gym/gym_worlds:Closed-v0")
    step, actions = jax.jit(env.step), some_actions(env, 3, 2)
    apart = env.outside.apart()
    state, _ = jax.block_until_ready(env.reset(keys(2)))
    jax.block_until_ready(apart.reset(keys(1)))
    assert Closed.alive == 3
    env.outside.close()
    assert Closed.alive == 1  # what was made apart is not ours to close
    env.outside.close()
    state, timestep = step(state, actions[0])
    assert timestep.is_first.all() and not timestep.invalid.any() and Closed.alive == 3
    assert "2 running episodes" in env.outside.notes()[0]
    _, timestep = step(state, actions[1])
    assert not timestep.is_first.any()
    env.outside.close()
    apart.outside.close()

    vector = envs.to_gymnasium("gym/gym_worlds:Closed-v0", num_envs=2)
    vector.reset()
    assert Closed.alive == 2
    vector.close()
    assert Closed.alive == 0

    vector = envs.to_gymnasium(env, num_envs=2)
    vector.reset()
    vector.close()
    assert Closed.alive == 2  # the caller's
    env.outside.close()
    assert Closed.alive == 0


def rows_of(cls, count):
    """The live environments of a batch, its first rows and their keys."""
    settings = gymnasium_rows.Settings(f"gym_worlds:{cls.__name__}-v0", {}, 1, 20)
    layout = gymnasium_rows.Layout(2, 2, 2, 0, 0)
    rows = Rows(settings, layout, Walk.action_space, Walk.observation_space)
    data = np.asarray(jax.random.key_data(keys(count)))
    return rows, rows.reset(data), data


@pytest.mark.parametrize("outcomes", [[None, KeyboardInterrupt], [ValueError, KeyboardInterrupt]])
def test_an_interrupted_step_leaves_no_environment_open(monkeypatch, outcomes):
    rows, now, data = rows_of(Closed, 3)
    assert Closed.alive == 3
    steps = iter(outcomes)

    def interrupted(self, action):
        if error := next(steps):
            raise error
        return Walk.step(self, action)

    monkeypatch.setattr(Closed, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.step(now, data, np.zeros((3, 2), np.float32), np.zeros((3, 0), np.uint8))
    assert Closed.alive == 0 and not [line for line in rows.notes if "close" in line]


def test_an_interrupted_reset_leaves_no_environment_open(monkeypatch):
    rows, _, data = rows_of(Closed, 2)
    resets = iter([None, KeyboardInterrupt])

    def interrupted(self, **options):
        if error := next(resets):
            raise error
        return Walk.reset(self, **options)

    monkeypatch.setattr(Closed, "reset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rows.reset(data)
    assert Closed.alive == 0


def test_closing_does_not_wait_for_a_step_that_hangs(monkeypatch):
    rows, now, data = rows_of(Closed, 1)
    entered, leave = threading.Event(), threading.Event()

    def hang(self, action):
        entered.set()
        assert leave.wait(60)
        return Walk.step(self, action)

    monkeypatch.setattr(Closed, "step", hang)
    monkeypatch.setattr(gymnasium_rows, "PATIENCE_AT_CLOSE", 0.05)
    arguments = now, data, np.zeros((1, 2), np.float32), np.zeros((1, 0), np.uint8)
    stepping = threading.Thread(target=rows.step, args=arguments)
    stepping.start()
    assert entered.wait(60)
    rows.close()
    assert stepping.is_alive() and Closed.alive == 1
    leave.set()
    stepping.join()
    rows.close()
    assert Closed.alive == 0


@pytest.mark.parametrize("abandoned", [True, False])
def test_environments_of_abandoned_work_are_left_alone(tmp_path, monkeypatch, abandoned):
    given = envs.make("gym/gym_worlds:Walk-v0")
    given = given._replace(outside=given.outside._replace(close=lambda: calls.append("given")))
    calls = []

    def finish(run, command):
        return trainer.outcome(run, 143, "stopped", "")._replace(abandoned=abandoned)

    monkeypatch.setattr(trainer, "finish", finish)
    run = Trainer(tiny.run(env__task="gym/gym_worlds:Walk-v0"), tmp_path, env=given)
    close = run.functions.close
    run.functions = run.functions._replace(close=lambda: calls.append("apart") or close())
    assert run.run().code == 143
    assert calls == ([] if abandoned else ["apart"])  # never what the caller made


def test_refused_environments_are_closed():
    before = Closed.alive
    with pytest.raises(RuntimeError, match="step raises"):
        envs.make("gym/gym_worlds:Closed-v0", broken=True)
    assert Closed.alive == before


@pytest.mark.parametrize("fault", ["raise", "nan", "shape", "nan_reward", "reward"])
def test_faults_break_their_row_only(fault):
    env = envs.make(f"gym/gym_worlds:Faulty_{fault}-v0")
    _, steps = play(env, keys(2), some_actions(env, 6, 2) * 0.1)
    assert steps.invalid[3].all() and steps.is_first[3].all() and not steps.reward[3].any()
    assert steps.invalid.sum() == 4 and np.isfinite(steps.obs).all()
    (note, *_) = env.outside.notes()
    assert f"Faulty_{fault}-v0: step breaks: " in note and "\n" not in note


def test_broken_actions_and_resets():
    env = envs.make("gym/gym_worlds:Walk-v0")
    actions = some_actions(env, 3, 2)
    actions[1, 0, 1] = np.nan
    _, steps = play(env, keys(2), actions)
    np.testing.assert_array_equal(steps.invalid.sum(axis=0), [1, 0])
    np.testing.assert_array_equal(steps.is_first[2], [True, False])


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("Nothing-v9", "unknown environment 'gym/Nothing-v9'; gymnasium.registry has"),
        ("HalfCheeta-v5", "'gym/HalfCheeta-v5'; did you mean gym/HalfCheetah-v5"),
        ("no_such_module:X-v0", "no_such_module cannot be imported: ModuleNotFoundError: No mod"),
        ("gym_worlds:Endless-v0", "has no time limit; gymnasium.register(..., max_episode_st"),
        ("gym_worlds:Faulty_constructor-v0", "cannot be made: OSError: no such robot"),
        ("gym_worlds:Faulty_reset-v0", "reset raises RuntimeError: no reset"),
        ("gym_worlds:Faulty_first_shape-v0", "observation has shape (1,); its space has (2,)"),
        ("gym_worlds:Faulty_tuple-v0", "step raises ValueError: not enough values to unpack (exp"),
        ("gym_worlds:Faulty_discrete-v0", "action_space is Discrete(3); must be a Box of floats"),
        ("gym_worlds:Faulty_infinite-v0", "action_space is unbounded; must be a Box of floats"),
        ("gym_worlds:Faulty_integer-v0", "action_space is a Box of int64; must be a Box of floats"),
        ("gym_worlds:Faulty_text-v0", "observation_space is Text"),
    ],
)  # fmt: skip
def test_unsuitable_environments_are_refused_in_one_line(name, error, tmp_path, capsys):
    from experiments import run

    run_dir = tmp_path / "run"
    argv = ["run", "--config=experiments/configs/debug.py", f"--config.env.task=gym/{name}"]
    assert run.main([*argv, f"--workdir={run_dir}"]) == 2
    text = capsys.readouterr().err
    lines = [line for line in text.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and error in lines[0] and not run_dir.exists(), text


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="is no Task; make"):
        envs.make_task("gym/Pendulum-v1")
    with pytest.raises(ValueError, match="walker-walk runs in no process of its own; must be 0"):
        envs.check_workers("walker-walk", 2)
    with pytest.raises(ValueError, match="workers must be an int of at least 0"):
        envs.make("gym/Pendulum-v1", workers=-1)
    for gain in ((2, 3), {1: 2}, np.float32(1), print):
        with pytest.raises(ValueError, match="^gain = .*must be what JSON keeps"):
            envs.make("gym/Pendulum-v1", workers=1, gain=gain)
    env = envs.make("gym/Pendulum-v1")
    state, _ = env.reset(keys(1))
    with pytest.raises(NotImplementedError, match="cannot be stepped under vmap"):
        jax.vmap(env.step)(jax.tree.map(lambda x: x[None], state), jnp.zeros((1, 1, 1)))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "pomcp_jax\[gym\]"'):
        envs.check_name("gym/Pendulum-v1")


def sit(config, workdir, until=-1):
    """Train up to so many decisions, or to the end; also returns what was printed."""
    control, lines = Control(Progress(interval=float("inf"))), []
    control.progress.say = lines.append

    def row(row):
        if 0 < until <= row["decisions"]:
            control.request(143, "stopped")

    outcome = Trainer(config, workdir, control=control, on_row=[row]).run()
    return outcome, "\n".join(lines)


def test_runs_resume_bit_for_bit_or_with_their_running_episodes_again(tmp_path, monkeypatch):
    changes = {"num_seeds": 2, "total_decisions": 80, "eval_decisions": 40}
    config = tiny.run(
        env__task="gym/gym_worlds:Stored-v0", **{f"train__{k}": v for k, v in changes.items()}
    )
    seen, closed = [], []
    reset = Stored.reset
    monkeypatch.setattr(Stored, "reset", lambda env, **kw: seen.append(env) or reset(env, **kw))
    monkeypatch.setattr(Stored, "close", lambda env: closed.append(env))
    with tiny.shared_programs():
        outcome, _ = sit(config, tmp_path / "stopped", until=40)
        assert outcome.code == 143 and 40 <= outcome.decisions < 60
        shutil.copytree(tmp_path / "stopped", tmp_path / "lost")
        # A run in between takes the live environments, as the end of a process does.
        outcome, _ = sit(config, tmp_path / "whole")
        assert outcome.code == 0 and np.isfinite(outcome.evaluation).all()
        outcome, lines = sit(config, tmp_path / "stopped")
        assert outcome.code == 0 and "began again" not in lines
        assert tiny.saved(tmp_path / "stopped", 80) == tiny.saved(tmp_path / "whole", 80)
        monkeypatch.setattr(Rows, "_restored", lambda *args: None)
        outcome, lines = sit(config, tmp_path / "lost")
        assert outcome.code == 0
        assert "warning: 4 running episodes of gym/gym_worlds:Stored-v0 began again" in lines
    assert {id(env) for env in seen} == {id(env) for env in closed}
    rows, whole = (
        list(csv.DictReader((tmp_path / name / "metrics.csv").read_text().splitlines()))
        for name in ("lost", "whole")
    )
    assert len(rows) == len(whole) and {row["env/invalid"] for row in rows} == {"0"}


def test_environments_on_the_host_have_one_device_of_several(monkeypatch):
    env = envs.make("gym/Pendulum-v1")
    monkeypatch.setattr(seed_axis, "device_count", lambda config: 2)
    config = tiny.run(env__task="gym/Pendulum-v1", train__num_seeds=2)
    assert train.build(config, env).mesh is None
    config = tiny.run(env__task="gym/Pendulum-v1", train__num_seeds=2, train__num_devices=2)
    with pytest.raises(ConfigError, match="'gym/Pendulum-v1' live on the host and serve one dev"):
        train.build(config, env)


def test_bounds_are_those_of_the_action_space():
    low, high = envs.action_bounds("gym/gym_worlds:Walk-v0")
    np.testing.assert_array_equal([low, high], [[-2, 0], [2, 1]])


def test_workers_step_as_the_process_itself_does():
    here, there = (envs.make("gym/gym_worlds:Stored-v0", workers=count) for count in (0, 2))
    actions = some_actions(here, 25, 3)
    state, steps = play(there, keys(3), actions)
    for own, other in zip(play(here, keys(3), actions)[1], steps, strict=True):
        np.testing.assert_array_equal(own, other)
    saved, again = on_disk(there.outside.snapshot(state)), envs.make("gym/gym_worlds:Stored-v0")
    _, expected = jax.jit(there.step)(state, actions[0])
    _, resumed = jax.jit(again.step)(saved, actions[0])
    jax.tree.map(np.testing.assert_array_equal, resumed, expected)


@pytest.fixture
def made(monkeypatch):
    """Every ``Workers`` that the test makes."""
    out, start = [], Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, *a: out.append(self) or start(self, *a))
    return out


def test_a_killed_worker_breaks_its_rows_and_starts_again(made):
    env = envs.make("gym/gym_worlds:Walk-v0", workers=2)
    step, actions = jax.jit(env.step), some_actions(env, 4, 2)
    state, _ = env.reset(keys(2))
    state, _ = step(state, actions[0])
    os.kill(made[0].pids()[1], signal.SIGKILL)
    state, timestep = step(state, actions[1])
    np.testing.assert_array_equal(timestep.invalid, [False, True])
    state, timestep = step(state, actions[2])
    assert not timestep.invalid.any() and not timestep.is_first.any()
    (note,) = env.outside.notes()
    assert "worker 2 is lost: it ended with code -9; it starts again" in note
    pids = made[0].pids()
    made[0].close()
    deadline = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{pid}/status") for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", [0.1, 0.3, 1.2, 3.4028234e38])
def test_extreme_actions_are_in_their_space(dtype, bound):
    """0.1 of float32 is more than 0.1 of float64: an environment that checks would refuse it."""
    space = gymnasium.spaces.Box(-bound, bound / 2, (2,), dtype)
    scale = gymnasium_rows.actions(space)
    for action in scale(np.array([[-1, 1], [1, 0], [0.999, -0.3]], np.float32)):
        assert space.contains(action), action


def test_names_like_those_of_gymnasium_are_not_its_own():
    assert not gymnasium_adapter.terminates("Reacher-v5")
    gymnasium.register("Reacher-With-Walls-v0", "gym_worlds:Walk", max_episode_steps=20)
    assert gymnasium_adapter.terminates("Reacher-With-Walls-v0")
    with pytest.raises(ValueError, match="max_episode_steps must be an int of at least 1, got -1"):
        envs.make("gym/Pendulum-v1", max_episode_steps=-1)


def test_a_worker_that_dies_takes_its_children_along(made, monkeypatch):
    env = envs.make("gym/gym_worlds:Faulty_exit-v0", workers=1)
    step, actions = jax.jit(env.step), some_actions(env, 1, 1)[0]
    monkeypatch.setenv("GYM_WORLDS_CHILD", "1")
    state, _ = env.reset(keys(1))
    first = made[0].pids()[0]
    for _ in range(3):
        state, timestep = step(state, actions)
    # Its child holds an end of the connection, but the limit is not waited for.
    assert bool(timestep.invalid[0]) and "ended with code -9" in env.outside.notes()[0]
    members = [p for p in Path("/proc").glob("[0-9]*") if group(p) == first]
    assert not [p for p in members if "Z" not in (p / "stat").read_text().split(")")[1][:3]]
    made[0].close()


def group(process):
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[2])
    except OSError:
        return None


def test_a_worker_that_hangs_is_replaced(made, monkeypatch):
    env = envs.make("gym/gym_worlds:Walk-v0", workers=2)
    step, actions = jax.jit(env.step), some_actions(env, 3, 2)
    state, _ = env.reset(keys(2))
    state, _ = step(state, actions[0])
    stopped, ask = made[0].pids()[1], Workers._ask
    # Only the first answers are late at once; a new process has the usual time to start.
    late = iter([(0.2, 0.1)])

    def impatient(self, *args):
        per_request = next(late, None)
        if per_request is None:
            return ask(self, *args)
        with monkeypatch.context() as patch:
            for name, value in zip(("PATIENCE", "PATIENCE_PER_ROW"), per_request, strict=True):
                patch.setattr(gymnasium_workers, name, value)
            return ask(self, *args)

    monkeypatch.setattr(Workers, "_ask", impatient)
    os.kill(stopped, signal.SIGSTOP)
    state, timestep = step(state, actions[1])
    np.testing.assert_array_equal(timestep.invalid, [False, True])
    (note,) = env.outside.notes()
    assert "worker 2 is lost: it did not answer for 0.3 s; it starts again" in note
    assert not os.path.exists(f"/proc/{stopped}/status")
    state, timestep = step(state, actions[2])
    assert not timestep.invalid.any() and not timestep.is_first.any()
    made[0].close()


def test_a_worker_that_always_dies_is_given_up():
    env = envs.make("gym/gym_worlds:Faulty_exit-v0", workers=1)
    step, actions = jax.jit(env.step), some_actions(env, 1, 1)[0]
    state, _ = env.reset(keys(1))
    broken = 0
    for _ in range(4):
        state, timestep = step(state, actions)
        broken += int(timestep.invalid.sum())
    assert broken == 1 and np.isfinite(timestep.obs).all()
    assert "ended with code -9" in env.outside.notes()[0]


@pytest.mark.parametrize(
    "executable, why",
    [("/bin/false", "ended with code 1"), ("/no", "be started (No such file or directory)")],
)
def test_workers_that_cannot_start_are_tried_three_times(made, monkeypatch, executable, why):
    env, pauses = envs.make("gym/gym_worlds:Walk-v0", workers=1), []
    clock = types.SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    monkeypatch.setattr(gymnasium_workers, "time", clock)
    monkeypatch.setattr(gymnasium_workers.sys, "executable", executable)
    env.reset(keys(2))
    assert pauses == [0.5]
    data = np.asarray(jax.random.key_data(keys(2)))
    for _ in range(2):
        rows = made[0].reset(data)
    assert pauses == [0.5, 1.0]
    assert (rows[:, gymnasium_rows.FLAGS] & gymnasium_rows.INVALID).all()
    assert made[0].notes[-1].endswith(f"{why}; its rows stay broken")


def test_workers_that_hang_are_closed_together(made):
    env = envs.make("gym/gym_worlds:Walk-v0", workers=3)
    env.reset(keys(3))
    pids, ends = made[0].pids(), []
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for worker in made[0]._workers:
        end = worker.end
        worker.end = lambda seconds, end=end: ends.append(seconds) or end(seconds)
    made[0].close()
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}/status")]
    # What the first took is not left for the others.
    assert ends[0] > 1.0 and max(ends[1:]) < 0.1


def test_an_answer_that_was_interrupted_is_not_that_of_the_next_request(made, monkeypatch, capfd):
    env = envs.make("gym/gym_worlds:Walk-v0", workers=2)
    env.reset(keys(2))
    data, others = (np.asarray(jax.random.key_data(keys(2, seed))) for seed in (0, 1))
    rows = made[0].reset(data)
    pids = made[0].pids()

    def interrupt(self, k, limit):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workers, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            made[0].reset(others)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}/status")]
    np.testing.assert_array_equal(made[0].reset(data), rows)
    made[0].close()
    assert not env.outside.notes() and "Traceback" not in capfd.readouterr().err


def test_mujoco_environments_are_drawn_and_others_are_refused():
    env = envs.make("gym/HalfCheetah-v5")
    scene = frames.check(env)
    assert scene.timestep == 0.05
    state, _ = env.reset(keys(2))
    qpos = frames.poses(scene, state.task)["qpos"]
    own = gymnasium.make("HalfCheetah-v5")
    own.reset(seed=seed_of(np.asarray(jax.random.key_data(keys(2)[1])).tobytes(), 0))
    np.testing.assert_array_equal(qpos[1], own.unwrapped.data.qpos.astype(np.float32))
    with pytest.raises(ValueError, match="task 'gym/Pendulum-v1' has no picture"):
        frames.check(envs.make("gym/Pendulum-v1"))
