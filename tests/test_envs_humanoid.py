"""HumanoidBench's tasks: a small model everywhere, the real ones where a checkout is."""

import os

os.environ.setdefault("MUJOCO_GL", "disable")

from pathlib import Path

import humanoid_small
import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from experiments import run
from experiments.configs import common
from pomcp_jax import envs
from pomcp_jax.envs import mujoco_rules
from pomcp_jax.envs.humanoid_bench import models, rewards, tasks

STEPS, BATCH = 40, 3
SHARED = Path(__file__).parent.parent.parent / "shared" / "humanoid_bench"


@pytest.fixture(scope="session")
def checkout():
    """Folder of HumanoidBench's models."""
    folder = os.environ.get(models.VARIABLE) or (str(SHARED) if SHARED.is_dir() else "")
    try:
        return str(models.find(folder))
    except FileNotFoundError:
        pytest.skip("no assets")


def play(task, state, actions):
    """Observations, rewards and ends of ``actions[T, B, A]`` without resets."""

    def step(state, action):
        state = jax.vmap(task.step)(state, action)
        seen = (jax.vmap(f)(state) for f in (task.observe, task.reward, task.terminated))
        return state, tuple(seen)

    return jax.jit(lambda s, a: jax.lax.scan(step, s, a))(state, actions)[1]


def exact(state):
    """The float64 state ``[B, ...]``: time, positions, velocities, warm start."""
    return np.ascontiguousarray(np.asarray(state.motion.hidden)).view(np.float64).copy()


def with_exact(state, values):
    return state._replace(motion=state.motion._replace(hidden=jnp.asarray(values.view(np.uint32))))


def near(ours, theirs):
    """Within 1e-6, relative for numbers above one: those are float32."""
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", humanoid_small.TASKS)
def test_rewards_and_ends_are_those_of_a_plain_loop(name):
    spec = humanoid_small.spec(name)
    task = tasks.build(f"humanoid/small-{name}", name, spec)
    state = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), BATCH))
    actions = jax.random.uniform(jax.random.key(1), (STEPS, BATCH, 4), minval=-1, maxval=1)
    model = mujoco.MjModel.from_xml_string(humanoid_small.xml(name))
    first, full = jax.vmap(task.observe)(state), exact(state)
    # Row 0 stands, row 1 is pushed over to the front and row 2 to the back and the left.
    full[1:, 1 + model.nq : 7 + model.nq] = [2, 0, 0, 0, 3, 0], [-1.5, 1, 0, -1, -3, 0]
    state = with_exact(state, full)
    goals = state.episode[:, None] if name == "reach" else [()] * BATCH
    parts = full[:, 1 : 1 + model.nq], full[:, 1 + model.nq : 1 + model.nq + model.nv]
    plain = [humanoid_small.Plain(name, model, *p, *g) for *p, g in zip(*parts, goals, strict=True)]
    np.testing.assert_allclose(first[0], plain[0].obs(), rtol=1e-6, atol=1e-6)
    obs, reward, ended = play(task, state, actions)
    seen = []
    for t in range(STEPS):
        near(reward[t], [row.step(a) for row, a in zip(plain, actions[t], strict=True)])
        near(obs[t], [row.obs() for row in plain])
        assert [bool(x) for x in ended[t]] == [row.terminated() for row in plain]
        seen += [(row.discounted, row.terminated()) for row in plain]
    assert obs.shape[-1] == task.observation_size == first.shape[-1]
    # Contacts that cost were made and not made, and an end came; otherwise nothing was compared.
    costly, over = ({pair[i] for pair in seen} for i in range(2))
    assert costly == ({True, False} if name in ("hurdle", "maze", "pole") else {False})
    assert over == ({False} if name in ("reach", "crawl") else {True, False})


def test_the_maze_is_walked_in_stages():
    """Its four bonuses, and where to walk after each; by hand from HumanoidBench's rules."""
    path = (
        # Pelvis, then stage, direction and bonus after the step.
        ((0.0, 0.1), 1, (1, 0), 100),
        ((0.0, 0.1), 1, (1, 0), 0),
        ((2.5, 0.0), 1, (1, 0), 0),
        ((2.7, 0.2), 2, (0, 1), 200),
        ((3.0, 5.7), 3, (1, 0), 300),
        ((0.0, 0.0), 3, (1, 0), 0),
        ((6.1, 6.1), 4, (0, 1), 400),
        ((6.1, 6.1), 4, (0, 1), 0),
        ((0.0, 0.0), 4, (0, 1), 0),
    )
    follow = jax.jit(rewards.next_stage)
    empty, stage = jnp.zeros(0), rewards.first_stage()
    for place, number, direction, bonus in path:
        pelvis = {"pelvis": jnp.asarray([*place, 1.0])}
        stage = follow(mujoco_rules.Body(empty, empty, empty, empty, pelvis, stage))
        assert (int(stage.stage), float(stage.bonus)) == (number, bonus)
        assert stage.direction.tolist() == list(direction)


@pytest.mark.parametrize("name", ["sit_hard", "balance_hard", "reach"])
def test_resets_are_the_keyframe_with_noise(name):
    task = tasks.build("small", name, humanoid_small.spec(name))
    states = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(3), 400))
    model = mujoco.MjModel.from_xml_string(humanoid_small.xml(name))
    qpos, qvel = (np.asarray(x) for x in states.motion[:2])
    assert len(np.unique(qpos, axis=0)) == 400 and not qvel.any()
    quaternions = [slice(at + 3, at + 7) for at in range(0, model.nq, 7) if at != 7]
    if model.nq > 11:
        quaternions = [slice(3, 7), *(slice(at + 3, at + 7) for at in range(11, model.nq, 7))]
    own = list(range(model.nq))
    for span in quaternions[: 1 if model.nq == 11 else None]:
        np.testing.assert_allclose(np.linalg.norm(qpos[:, span], axis=1), 1, atol=1e-6)
        own = [i for i in own if not span.start <= i < span.stop]
    noise = qpos - model.key_qpos[0]
    if name == "sit_hard":
        own = [i for i in own if i > 1]
        x, y = qpos[:, :2].T
        yaw = 2 * np.arctan2(qpos[:, 6], qpos[:, 3])
        assert not qpos[:, 4:6].any()
        for values, low, high in ((x, 0.2, 0.4), (y, -0.15, 0.15), (yaw, -1.8, 1.8)):
            uniform(values, low, high)
    for i in own:
        uniform(noise[:, i], -0.01, 0.01)
    assert np.abs(noise[:, 7:11]).max() < 0.0101
    if name == "reach":
        goals = np.asarray(states.episode)
        for i, low in enumerate((-2, -2, 0.2)):
            uniform(goals[:, i], low, 2)
        np.testing.assert_array_equal(jax.vmap(task.observe)(states)[:, -3:], goals)


def uniform(values, low, high):
    """Fails for 400 uniform draws once in 10,000 times at most; the seed is fixed."""
    assert low - 1e-6 <= values.min() and values.max() <= high + 1e-6
    share = (values - low) / (high - low)
    assert share.min() < 0.03 and share.max() > 0.97 and abs(share.mean() - 0.5) < 0.06


def test_goals_are_drawn_where_they_are():
    task = tasks.build("small", "reach", humanoid_small.spec("reach"))
    state = jax.jit(task.reset)(jax.random.key(0))
    pose, model = task.scene.pose(state), task.scene.model
    np.testing.assert_array_equal(pose["geom_pos"][model.geom("goal").id], state.episode)
    assert model.geom("goal").contype == model.geom("goal").conaffinity == 0
    assert model.nq == len(pose["qpos"]) and task.scene.timestep == 0.02


# Where the files are


def test_missing_files_are_named_with_what_to_do(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv(models.VARIABLE, raising=False)
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    config = "--config=experiments/configs/small.py:humanoid/h1-walk"
    wanted = "git clone https://github.com/carlosferrazza/humanoid-bench and set HUMANOID_BENCH"
    for more, words in (
        ([], "error: env.task = 'humanoid/h1-walk': needs its model files; "),
        ([f"--config.env.assets={tmp_path}"], f"'{tmp_path}' has no humanoid_bench/assets/envs; "),
    ):
        assert run.main(["run", config, f"--workdir={tmp_path / 'run'}", *more]) == 2
        error = capsys.readouterr().err
        assert words in error and wanted in error and error.count("\n") == 1
    assert run.main(["run", config.replace("humanoid/h1", "walker"), "--config.env.assets=x"]) == 2
    assert "env.assets = 'x': walker-walk reads no files; must be ''" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_checkouts_packages_and_their_folders_are_found(monkeypatch, tmp_path):
    file = tmp_path / "clone/humanoid_bench/assets/envs/h1_pos_walk.xml"
    file.parent.mkdir(parents=True)
    file.write_text(humanoid_small.xml("walk"))
    inside = file.parent.parent
    for folder in (tmp_path / "clone", inside.parent, inside):
        assert models.find(str(folder)) == inside
        monkeypatch.setenv(models.VARIABLE, str(folder))
        assert models.find() == inside
    monkeypatch.delenv(models.VARIABLE)
    monkeypatch.syspath_prepend(tmp_path / "clone")
    (inside.parent / "__init__.py").write_text("raise ImportError('must not be imported')")
    assert models.find() == inside
    # It is another model than the one of the papers, and says so; it trains all the same.
    with pytest.warns(UserWarning, match="humanoid/h1-walk: the model in .* is not the one of May"):
        task = envs.make_task("humanoid/h1-walk", "host", assets=str(inside))
    assert (task.name, task.action_size, task.observation_size) == ("humanoid/h1-walk", 4, 21)


def test_changes_of_mujoco_and_of_files_are_announced(monkeypatch, tmp_path):
    path = tmp_path / "envs" / "h1_pos_walk.xml"
    for folder in ("envs", "robots"):
        (tmp_path / folder).mkdir()
    path.write_text('<mujoco><include file="../robots/h1.xml"/></mujoco>')
    with pytest.raises(FileNotFoundError, match=r"incomplete checkout, there is no .*h1\.xml"):
        models.digest(path)
    (tmp_path / "robots" / "h1.xml").write_bytes(b"<mujoco>\n</mujoco>")
    monkeypatch.setitem(models._DIGESTS, "h1_pos_walk", models.digest(path))
    models.check_versions("humanoid/h1-walk", path)  # warnings are errors here
    (tmp_path / "robots" / "h1.xml").write_bytes(b"<mujoco>\r\n</mujoco>")
    models.check_versions("humanoid/h1-walk", path)
    monkeypatch.setattr(models, "KNOWN_MUJOCO", "3.1.6")
    with pytest.warns(UserWarning, match="compared with HumanoidBench under MuJoCo 3.1.6, this is"):
        models.check_versions("humanoid/h1-walk", path)


def test_configuration_files_follow_the_tasks():
    found = {
        name: common.make_small(f"humanoid/{name}", {}) for name in ("h1-walk", "h1hand-reach")
    }
    found["walker"] = common.make_small("walker-walk", {})
    rows = {
        name: (
            config.env.backend,
            config.env.action_repeat,
            config.agent.world_model.termination,
            config.agent.mppi.iterations,
        )
        for name, config in found.items()
    }
    assert rows == {
        "h1-walk": ("host", 1, True, 3),
        "h1hand-reach": ("host", 1, False, 5),
        "walker": ("mjx", 2, False, 3),
    }
    for name in envs.available():
        if name.startswith("humanoid/"):
            never = tasks.RULES[name.partition("-")[2]].terminated is None
            assert envs.about(name).terminates is not never
    with pytest.raises(ValueError, match="humanoid/h1-walk has the backend host, not 'mjx'"):
        envs.make("humanoid/h1-walk")


# The real models


GOLDEN = (
    "h1-walk h1-reach h1-crawl h1-maze h1-sit_hard h1-balance_simple h1-stair h1hand-run"
    " h1hand-pole"
).split()


@pytest.mark.parametrize("name", GOLDEN)
def test_episodes_are_those_of_humanoid_bench(name, checkout):
    """Recorded with HumanoidBench's own formulas; every end and every contact is the same."""
    file = SHARED / "golden.npz"
    if not file.is_file():
        pytest.skip("no assets")
    golden = {
        key.removeprefix(f"{name}/"): value
        for key, value in np.load(file).items()
        if key.startswith(f"{name}/")
    }
    task = envs.make_task(f"humanoid/{name}", "host", assets=checkout)
    assert envs.about(task.name).action_size == task.action_size
    length = max(len(golden[f"{row}/action"]) for row in range(2))
    state = jax.jit(jax.vmap(task.reset))(jax.random.split(jax.random.key(0), 2))
    full, actions = np.zeros_like(exact(state)), np.zeros((length, 2, task.action_size), "f")
    for row in range(2):
        start = np.concatenate([golden[f"{row}/qpos"], golden[f"{row}/qvel"]])
        full[row, 1 : 1 + len(start)] = start
        own = golden[f"{row}/action"]
        actions[: len(own), row] = own
    state = with_exact(state, full)
    if name == "h1-reach":
        state = state._replace(episode=jnp.asarray([golden["0/goal"], golden["1/goal"]], "f"))
    obs, reward, ended = play(task, state, actions)
    for row in range(2):
        wanted = golden[f"{row}/obs"]
        t, size = wanted.shape
        assert task.observation_size == size + (6 if name == "h1-reach" else 0)
        near(obs[:t, row, :size], wanted)
        near(reward[:t, row], golden[f"{row}/reward"])
        np.testing.assert_array_equal(ended[:t, row], golden[f"{row}/terminated"])


def test_all_real_models_load_and_observe(checkout):
    for name in envs.available():
        if name.startswith("humanoid/h1hand-"):
            task = envs.make_task(name, "host", assets=checkout)
            extra = {"reach": 6, "sit_hard": 13, "balance_simple": 13, "balance_hard": 26}
            assert task.observation_size == 151 + extra.get(name.partition("-")[2], 0)
            assert (task.action_size, task.episode_steps, task.scene.timestep) == (61, 1000, 0.02)
            camera = task.scene.camera
            assert task.scene.model.camera(camera).name == camera
