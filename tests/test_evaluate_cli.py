"""``python -m experiments.evaluate``: episodes of a trained agent, counted and written."""

import csv
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny

from experiments import evaluate, parsers, trained
from pomcp_jax import acting, agent, checkpoint, controller, digests, envs
from pomcp_jax.evaluate import Episodes

CONFIG = tiny.run(train__seed=3, train__num_seeds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two untrained seeds on a probe whose return is the number of its steps."""
    folder = tmp_path_factory.mktemp("run")
    env = envs.make(CONFIG.env.task)
    spec = acting.build(CONFIG.agent, env.observation_size, env.action_size)
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key: agent.init(key, CONFIG.agent, spec))(keys)
    checkpoint.save(folder / "checkpoints", 10, state, CONFIG, spec)
    return folder


def test_every_episode_is_told(run, tmp_path, capsys):
    out = tmp_path / "episodes.csv"
    arguments = [str(run), "--episodes=3", "--actor=policy", f"--csv={out}"]
    assert evaluate.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "probe/truncated after 10 decisions (10 frames)" in shown
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["seed", "3", "4", "all"]
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["episode"]) for row in rows] == [
        (seed, episode) for seed in "34" for episode in "012"
    ]
    length = envs.make(CONFIG.env.task).episode_length
    assert {row["length"] for row in rows} == {str(length)}


def test_broken_episodes_are_in_no_mean():
    returns = np.array([[1.0, 3.0, 1e9], [5.0, 5.0, 5.0]])
    valid = np.array([[True, True, False], [True, True, True]])
    lines = evaluate.table(Episodes(returns, np.full((2, 3), 7), valid), 0).splitlines()
    one, two, both = (line.split() for line in lines[1:])
    # Student's t with one degree of freedom: 12.706 * 1.414 / sqrt(2) = 12.7.
    assert one == ["0", "2.0", "-10.7", "to", "14.7", "2.0", "1.4", "7.0", "3", "1"]
    assert two == ["1", "5.0", "5.0", "to", "5.0", "5.0", "0.0", "7.0", "3", "0"]
    assert both[:2] == ["all", "3.5"] and both[-2:] == ["6", "1"]


@pytest.mark.parametrize("broken", [np.nan, np.inf, 1e300])
def test_an_episode_that_breaks_in_dm_control_spoils_no_other(broken):
    """Its observations become zeros; numbers that float32 cannot hold are broken too."""
    seen = []

    class Agent:
        action_repeat = 2

        def reset(self):
            pass

        def act(self, obs):
            seen.append(obs)
            return np.zeros((len(obs), 1), np.float32)

    class World:
        def __init__(self, value):
            self.value, self.time = value, 0

        def action_spec(self):
            return SimpleNamespace(minimum=-np.ones(1), maximum=np.ones(1))

        def now(self, x):
            over = self.time == 4
            return SimpleNamespace(last=lambda: over, reward=1.0, observation={"x": np.array(x)})

        def reset(self):
            return self.now([0.0, 0.0])

        def step(self, action):
            self.time += 1
            return self.now([self.value, 1.0])

    total, length = evaluate._episodes(Agent(), [World(0.5), World(broken)])
    assert total[0] == 4.0 and np.isnan(total[1]) and length.tolist() == [2, 2]
    assert all(obs.dtype == np.float32 and np.isfinite(obs).all() for obs in seen)
    np.testing.assert_array_equal(seen[1], [[0.5, 1.0], [0.0, 1.0]])


def test_all_episodes_broken():
    episodes = Episodes(np.zeros((1, 2)), np.zeros((1, 2), int), np.zeros((1, 2), bool))
    assert evaluate.table(episodes, 0).splitlines()[1].split() == [
        "0", "-", "-", "-", "-", "-", "2", "2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes=0"], "--episodes = 0: must be >= 1"),
        (["--checkpoint=99"], "holds no checkpoint 99; it has [10]"),
        (["--checkpoint=last"], "checkpoint = 'last': must be 'best', 'newest' or a number"),
        (["--backend=dm_control"], "probe/truncated is no task of dm_control"),
        (["--backend=host"], "probe/truncated has the backend mjx, not 'host'"),
        (["--seed=-1"], "--seed = -1: must be >= 0"),
        (["--seed=99999999999999999999"], "must be >= 0 and < 2**31"),
        (["--checkpoint=²"], "checkpoint = '²': must be 'best', 'newest' or a number"),
        (["--backend="], "probe/truncated has the backend mjx, not ''"),
        (["--csv=/nowhere/x.csv"], "/nowhere is no folder"),
    ],
)
def test_wrong_arguments_are_one_line(run, capsys, arguments, message):
    assert evaluate.main([str(run), *arguments]) == 2
    *before, error = capsys.readouterr().err.splitlines()
    assert message in error and before in ([], [f"reading {run}"])


def test_no_run(tmp_path, capsys):
    assert evaluate.main([str(tmp_path / "nothing")]) == 2
    assert "no such folder; must be the workdir of a run" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert evaluate.main([str(tmp_path / "file")]) == 2
    assert "is a file; must be the workdir of a run" in capsys.readouterr().err
    assert evaluate.main([str(tmp_path)]) == 2
    assert "must be the workdir of a run that has saved one" in capsys.readouterr().err


def changed(run, folder, change):
    """A copy of the run whose manifest was rewritten, as a later version might."""
    place = shutil.copytree(run, folder / "changed") / "checkpoints/10"
    manifest = digests.read(place)
    change(manifest)
    digests.write(place, manifest)
    return folder / "changed"


def test_a_run_of_a_later_version(run, tmp_path, capsys):
    def later(manifest):
        manifest["config"]["agent"]["news"] = 1
        manifest["versions"]["pomcp_jax"] = "9.0"

    assert evaluate.main([str(changed(run, tmp_path, later))]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "agent.news: unknown field" in error and "; pomcp_jax 9.0 wrote it, this is " in error


def test_damaged_checkpoints(run, tmp_path, capsys):
    """The newest undamaged one is used, with a warning; without any, the error says what to do."""
    folder = shutil.copytree(run, tmp_path / "run")
    restored = controller.load(run)
    checkpoint.save(folder / "checkpoints", 20, restored.state, CONFIG, restored.spec)
    (folder / "checkpoints/20/agent/_METADATA").write_text("{}")
    args = parsers.evaluate().parse_args([str(folder)])
    assert trained.load(args)[0].decisions == 10
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and line.endswith("is damaged; trying the one before")
    assert evaluate.main([str(folder), "--checkpoint=20"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--checkpoint=N reads another one (there are 10, 20), else copy or train" in error


def test_a_package_of_tasks_that_is_not_installed(run, capsys, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("these tasks need more: pip install more")

    monkeypatch.setattr(envs, "check_name", missing)
    assert evaluate.main([str(run)]) == 2
    assert "error: these tasks need more: pip install more\n" in capsys.readouterr().err


OWN = """
import jax.numpy as jnp
from pomcp_jax import Task, make_env

task = Task(
    name="reach", reset=lambda key: jnp.zeros(1), step=lambda x, action: x + action,
    observe=lambda x: x, reward=lambda x: jnp.ones(()), terminated=lambda x: jnp.zeros((), bool),
    observation_size=1, action_size=1, episode_steps=6,
)

def env():
    return make_env(task, 1)

other = task._replace(name="other")
wide = task._replace(
    reset=lambda key: jnp.zeros(2), observation_size=2, step=lambda x, action: x + action[0]
)
number = 3

def broken():
    raise RuntimeError("no model")
"""


@pytest.fixture(scope="module")
def own_run(tmp_path_factory):
    """An untrained agent of a task that is in no registry, and the folder of its code."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_reach.py").write_text(OWN)
    config = tiny.run(env__task="reach")
    spec = acting.build(config.agent, 1, 1)
    state = jax.vmap(lambda key: agent.init(key, config.agent, spec))(
        jax.random.split(jax.random.key(0), 1)
    )
    checkpoint.save(folder / "run" / "checkpoints", 10, state, config, spec)
    return folder


@pytest.mark.parametrize("attribute", ["task", "env"])
def test_a_task_of_ones_own(own_run, capsys, monkeypatch, attribute):
    monkeypatch.chdir(own_run)
    arguments = ["run", "--episodes=2", "--actor=policy", f"--task=own_reach:{attribute}"]
    assert evaluate.main(arguments) == 0
    row = capsys.readouterr().out.splitlines()[2].split()
    assert row[1] == "6.0"  # a reward of 1 in each of six steps


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (None, "env.task = 'reach': is no task of this package; if it is one of your own, --task="),
        ("own_reach", "--task = 'own_reach': must be MODULE:ATTRIBUTE, for example my_tasks:reach"),
        ("own_reach.py:task", "must be MODULE:ATTRIBUTE"),
        ("nowhere:task", "--task = 'nowhere:task': there is no module nowhere"),
        ("own_reach:zzz", "own_reach has no 'zzz'"),
        ("own_reach:number", "is int; must be a Task, an Env or a function"),
        ("own_reach:broken", "RuntimeError: no model"),
        ("own_reach:other", "is 'other', the run was trained on 'reach'"),
        ("own_reach:wide", "has 2 observations and 1 actions, the agent 1 and 1"),
    ],
)
def test_a_task_of_ones_own_that_does_not_fit(own_run, capsys, monkeypatch, task, message):
    monkeypatch.chdir(own_run)
    assert evaluate.main(["run", *([f"--task={task}"] if task else [])]) == 2
    before, error = capsys.readouterr().err.splitlines()
    assert before == "reading run" and error.startswith("error: ") and message in error
