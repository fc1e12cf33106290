"""Tasks of one's own by name: found, refused, and through every command."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments import (
    aggregate,
    evaluate,
    export,
    plot,
    render,
    report,
    reproduce,
    settings,
    sweep,
)
from experiments import run as run_module
from pomcp_jax import checkpoint, envs, validation
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.envs import registry
from pomcp_jax.running import cost
from pomcp_jax.running.background import Control
from pomcp_jax.running.cost import Machine
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.trainer import Trainer

ROOT = Path(__file__).parent.parent
FILES = f"--config={ROOT}/experiments/configs"
CODE = """
import jax, jax.numpy as jnp
from pomcp_jax import Task, make_env

def make_task():
    return Task(
        name="craft", reset=lambda key: jax.random.uniform(key, (2,)),
        step=lambda x, action: x + 0.1 * action[0], observe=lambda x: x,
        reward=lambda x, action, following: following[0] - 0.1 * action[0] ** 2,
        terminated=lambda x: x[1] > 1.5, observation_size=2, action_size=1, episode_steps=8,
    )

task = make_task()
never = task._replace(terminated=lambda x: jnp.zeros((), bool))

def env(action_repeat=3):
    return make_env(task, action_repeat)

def fixed():
    return make_env(task, 3)

def many():
    return task._replace(action_size=20)

def engine(backend="host", assets=""):
    return task._replace(name=f"{backend}-{assets}")

class Group:
    task = task

number = 3
wide = task._replace(observation_size=1, observe=lambda x: x[:1])
deaf = task._replace(observe=lambda x: x.ears)

def broken():
    raise RuntimeError("no\\nmodel")

def ends():
    raise SystemExit(3)

def needs(size):
    return task

class Gym:
    action_space = reset = None
"""


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A folder with modules."""
    folder = tmp_path_factory.mktemp("code")
    (folder / "own_craft.py").write_text(CODE)
    (folder / "own_package").mkdir()
    (folder / "own_package/crafts.py").write_text("from own_craft import make_task")
    (folder / "own_typo.py").write_text("def make_task(:")
    (folder / "own_needs.py").write_text("import no_such_module")
    (folder / "own_exits.py").write_text("raise SystemExit('usage: own')")
    return folder


@pytest.fixture(autouse=True)
def here(code, monkeypatch):
    """The folder is the current one, as for ``python -m``."""
    monkeypatch.chdir(code)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_registered", {})


def parsed(*arguments):
    return settings.parse(["run", *arguments])


@pytest.mark.parametrize("name", ["own_craft:make_task", "own_craft:task", "own_craft:Group.task",
                                  "own_package.crafts:make_task"])  # fmt: skip
def test_tasks_are_found_in_the_current_folder(name):
    env = envs.make(name, action_repeat=2)
    assert (env.name, env.episode_length, env.action_repeat) == ("craft", 4, 2)
    assert envs.make_task(name).observation_size == 2
    assert envs.is_own(name) and not envs.is_own("walker-walk")


def test_families_keep_their_colons():
    for name in ("gym/my_package:Own-v0", "brax/a:b", "playground/a:b"):
        assert not envs.is_own(name)


def test_functions_receive_the_fields_that_they_have_parameters_for():
    assert envs.make("own_craft:engine", 1, "mjx", assets="there").name == "mjx-there"
    assert envs.make("own_craft:env", 2).action_repeat == 2
    assert envs.about("own_craft:engine").backend == "host"  # its own default
    with pytest.raises(ConfigError, match=r"env.action_repeat = 2: own_craft:fixed is an Env made"):
        envs.make("own_craft:fixed", 2)
    with pytest.raises(ConfigError, match="is an Env, not a Task; envs.make takes it"):
        envs.make_task("own_craft:fixed")


MISTAKES = {
    "own_craft": "'own_craft'",
    "own_craft.py:make_task": "must be MODULE:ATTRIBUTE, for example my_tasks:reach: dots instead",
    "own/craft:make_task": "must be MODULE:ATTRIBUTE",
    "own_craft:": "must be MODULE:ATTRIBUTE",
    "own_craft:make_task()": "must be MODULE:ATTRIBUTE",
    "os:abort": "os is a module of Python's own; must be MODULE:ATTRIBUTE",
    "own_crft:make_task": "there is no module own_crft; did you mean own_craft? (modules of /",
    "own_package.craft:make_task": "no module own_package.craft; did you mean own_package.crafts?",
    "own_craft:mak_task": "own_craft has no 'mak_task'; did you mean make_task?",
    "own_craft:number.x": "own_craft.number has no 'x'",
    "own_craft:Group.tsk": "own_craft.Group has no 'tsk'; did you mean task?",
    "own_typo:make_task": "own_typo cannot be imported: SyntaxError",
    "own_needs:make_task": "cannot be imported: ModuleNotFoundError: No module named 'no_such_mod",
    "own_exits:make_task": "own_exits cannot be imported: SystemExit: usage: own (own_exits.py, l",
    "own_craft:number": "is int; must be a Task, an Env or a function",
    "own_craft:broken": "RuntimeError: no model (own_craft.py, line ",
    "own_craft:ends": "SystemExit: 3 (own_craft.py, line ",
    "own_craft:needs": "has the parameter 'size' without a default; must be callable without arg",
    "own_craft:Gym": "returns a gymnasium environment (gym/ID and gym/MODULE:ID name those)",
    "own_craft:deaf": "AttributeError: ",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_before_anything_is_written(name, tmp_path, capsys):
    workdir = tmp_path / "run"
    for flags in ([f"{FILES}/debug.py:{name}"], [f"{FILES}/debug.py", f"--config.env.task={name}"]):
        assert run_module.main(["run", *flags, f"--workdir={workdir}"]) == 2
        text = capsys.readouterr()
        assert not text.out or text.out.startswith("preset ") and "\n" not in text.err[:-1]

        assert text.err.startswith("error: ") and text.err.count("\n") == 1
        assert MISTAKES[name] in text.err and not workdir.exists()


@hypothesis.given(st.from_regex(r"[a-z./\\ \n]{0,9}:.{0,9}") | st.text(max_size=12))
def test_any_text_is_a_known_name_or_an_error_of_one_line(name):
    try:
        envs.check_name(name)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert name in envs.available()


@pytest.mark.parametrize("name", [3, "", "a:b", "own/ant", "a,b"])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(ValueError, match="register: name = .*: must be letters") as error:
        envs.register(name, lambda: None)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="register: 'lander' is int; must be a Task"):
        envs.register("lander", 3)
    with pytest.raises(ValueError, match="name = 'walker-walk': is a task of the package"):
        envs.register("walker-walk", lambda: None)


def test_registered_names_are_known_everywhere():
    import own_craft

    envs.register("lander", own_craft.make_task)
    assert envs.make("lander", 2).action_repeat == 2 and envs.is_own("lander")
    made = parsed(f"{FILES}/small.py:lander").config
    validation.validate_config(made)
    assert made.agent.world_model.termination
    with pytest.raises(ConfigError, match="did you mean lander?"):
        parsed(f"{FILES}/small.py:landr")
    envs.register("lander", own_craft.never)  # a cell of a notebook that runs again
    assert envs.about("lander").terminates is False


def test_facts_choose_values_of_configurations():
    """As an argument of the file, and as a field."""

    def values(file, task, *more):
        config = parsed(f"{FILES}/{file}.py:{task}", *more).config
        assert config == parsed(f"{FILES}/{file}.py", f"--config.env.task={task}", *more).config
        validation.validate_config(config)
        return config

    made = values("quickstart", "own_craft:make_task")
    assert made.env.task == "own_craft:make_task" and made.env.action_repeat == 4
    # Rewards of unknown size: the default range, not dm_control's.
    assert made.agent.world_model.num_bins == 101 and made.agent.world_model.termination
    assert not values("quickstart", "own_craft:never").agent.world_model.termination
    fewer = values("dm_control", "own_craft:never").agent.mppi.iterations
    assert values("dm_control", "own_craft:many").agent.mppi.iterations == fewer + 2
    assert values("small", "own_craft:fixed").env.action_repeat == 3
    assert values("small", "own_craft:engine").env.backend == "host"
    assert values("small", "own_craft:engine", "--config.env.backend=mjx").env.backend == "mjx"
    assert values("small", "own_craft:never").env.backend == "mjx"


def test_facts_for_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def get_config(): return {'env': {'action_repeat': 2}}")
    config = parsed(f"--config={path}", "--config.env.task=own_craft:fixed").config
    assert config.env.action_repeat == 3 and config.agent.world_model.termination
    assert parsed(f"--config={path}").config.env.task == "cartpole-swingup"


def test_folders_have_no_colons():
    for argument in (":own_craft:make_task,tdmpc2", ":,tdmpc2"):
        flag = f"{FILES}/small.py{argument}"
        made = parsed(flag, "--config.env.task=own_craft:make_task")
        assert str(made.workdir) == "runs/small/own_craft_make_task-tdmpc2"


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("backend=host", "env.backend = 'host': own_craft:make_task is no function with a para"),
        ("assets=there", "env.assets = 'there': own_craft:make_task is no function with a param"),
    ],
)
def test_fields_that_a_task_would_not_see(field, message):
    config = parsed(f"{FILES}/debug.py:own_craft:make_task", f"--config.env.{field}").config
    with pytest.raises(ConfigError, match=message):
        validation.validate_config(config)


FLAGS = (
    f"{FILES}/debug.py:own_craft:make_task,tdmpc2",
    "--config.train.seed_decisions=20",
    "--config.train.pretrain_updates=2",
    "--config.train.total_decisions=60",
    "--config.train.capacity=64",
    "--config.train.chunk_decisions=10",
    "--config.train.eval_decisions=60",
    "--config.train.eval_episodes=2",
    "--config.train.checkpoint_decisions=20",
)


def trainer(workdir, *more, **options):
    """As the command line makes it, without its signal handlers."""
    made = parsed(*FLAGS, f"--workdir={workdir}", *more)
    return Trainer(made.config, made.workdir, **options)


@pytest.fixture(scope="module")
def run(code, tmp_path_factory):
    """A run that was stopped and resumed."""
    workdir = tmp_path_factory.mktemp("runs") / "craft"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(code)
        control, rows = Control(Progress()), []

        def stop(row):
            rows.append(row)
            if row["decisions"] > 30:
                control.request(130, "stopped by SIGINT")

        assert trainer(workdir, control=control, on_row=[stop]).run().code == 130
        assert checkpoint.steps(workdir / "checkpoints")[-1] < 60
        outcome = trainer(workdir).run()
        assert outcome.code == 0 and outcome.decisions == 60
    return workdir


def test_a_run_is_resumed_by_its_name(run):
    about = json.loads((run / "config.json").read_text())
    assert about["env"]["task"] == "own_craft:make_task"
    assert json.loads((run / "run.json").read_text())["resumed_at"] > 0
    assert checkpoint.restore(run / "checkpoints").config.env.task == "own_craft:make_task"


def test_evaluate_finds_the_task(run, tmp_path, capsys):
    arguments = [str(run), "--episodes=2", "--actor=policy"]
    assert evaluate.main(arguments) == 0
    first = capsys.readouterr().out
    assert "own_craft:make_task after 60 decisions" in first
    assert evaluate.main([*arguments, "--task=own_package.crafts:make_task"]) == 0  # moved code
    assert capsys.readouterr().out.splitlines()[2] == first.splitlines()[2]
    out = tmp_path / "agent"
    assert export.main([str(run), f"--out={out}"]) == 0
    assert evaluate.main([str(out), *arguments[1:]]) == 0
    assert capsys.readouterr().out.splitlines()[-2] == first.splitlines()[2]


def test_pictures_tables_and_reports_of_a_run(run, tmp_path, capsys):
    assert plot.main([str(run), f"--out={tmp_path / 'curve.png'}"]) == 0
    assert aggregate.main([str(run)]) == 0 and "own_craft:make_task" in capsys.readouterr().out
    assert report.main([str(run), f"--out={tmp_path / 'page.html'}"]) == 0
    assert "own_craft:make_task" in (tmp_path / "page.html").read_text()
    states = tmp_path / "states.npz"
    assert render.main([str(run), f"--out={states}", "--actor=policy"]) == 0
    assert np.load(states)["observation"].shape[1] == 2


def test_a_task_that_has_changed_is_one_line(run, capsys, monkeypatch):
    import own_craft

    monkeypatch.setattr(own_craft, "make_task", own_craft.wide)
    assert evaluate.main([str(run)]) == 2
    text = "env.task = 'own_craft:make_task': has 1 observations and 1 actions, the agent 2 and 1"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {text}"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"has 2 observations and 1 actions, env.task = 'own_cr"):
        trainer(run, "--config.train.total_decisions=64").run()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_task_that_has_gone_is_one_line(run, capsys, monkeypatch):
    import own_craft

    monkeypatch.delattr(own_craft, "make_task")
    assert evaluate.main([str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "own_craft has no 'make_task'" in error
    assert error.endswith("; if it has moved, --task=MODULE:ATTRIBUTE names its code")


def test_a_folder_of_runs_names_them(run, capsys):
    assert evaluate.main([str(run.parent)]) == 2
    assert f"holds no checkpoint; did you mean {run}?" in capsys.readouterr().err


def test_sweeps_and_suites(code, capsys):
    grid = ["--grid=policy.entropy_coef=1e-4,1e-3", "--print_config"]
    assert sweep.main(["sweep", *FLAGS, *grid]) == 0
    assert "env.task = own_craft:make_task" in capsys.readouterr().out
    suite = {
        "config": f"{ROOT}/experiments/configs/debug.py",
        "tasks": ["own_craft:make_task"],
        "methods": {"tdmpc2": {}},
    }
    Path("suite.json").write_text(json.dumps(suite))
    assert reproduce.main(["--suite=suite.json", "--dry-run"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "debug.py:own_craft:make_task,tdmpc2" in line
    assert "--workdir=runs/reproduce/suite/own_craft_make_task/tdmpc2" in line


def test_a_long_run_gets_a_cheaper_proposal_of_the_same_task(monkeypatch):
    monkeypatch.setattr(cost, "measure", lambda: Machine(180e9, 2))
    monkeypatch.chdir(ROOT)  # where its files are
    config = parsed(f"{FILES}/dm_control.py:examples.own_task:make_task").config
    assert config.agent.world_model.termination
    env = envs.make(config.env.task, config.env.action_repeat)
    program = SimpleNamespace(env=env, mesh=None)
    trainer = SimpleNamespace(config=config, functions=SimpleNamespace(program=program))
    assert "small.py:examples.own_task:make_task has a model for" in run_module.cheaper(trainer)


def test_a_task_needs_no_command_line(tmp_path):
    config = config_lib.replace(Config(), {"env.task": "own_craft:never", "env.action_repeat": 1})
    made = Trainer(config, tmp_path / "run")
    assert made.functions.program.env.name == "craft"
    keys = jax.random.split(jax.random.key(0), 2)
    assert jax.eval_shape(made.functions.program.env.reset, keys)[1].obs.shape == (2, 2)
