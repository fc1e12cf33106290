"""Configuration files and overrides: every mistake is a one-line error that names it."""

import os
from pathlib import Path

import pytest

from experiments import aggregate, arguments, config_files, plot, reproduce, settings
from pomcp_jax import config as config_lib
from pomcp_jax import validation
from pomcp_jax.config import Config, ConfigError, TrainConfig

ROOT = Path(__file__).parent.parent
DEBUG = f"--config={ROOT}/experiments/configs/debug.py"

WORKS = {
    "a Config": "from pomcp_jax import Config\ndef get_config(): return Config()",
    "a dictionary": "def get_config(argument=None): return {'train': {'seed': 0}}",
    "a ConfigDict": (
        "import ml_collections\n"
        "def get_config(): return ml_collections.ConfigDict({'train': {'seed': 0}})"
    ),
    "nothing that differs": "get_config = lambda argument=None: {}",
    "a dataclass of its own": (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass Own:\n    seed: int = 0\n"
        "def get_config(): return {'train': {'seed': Own().seed}}"
    ),
}
BROKEN = {
    "None": ("def get_config(): pass", "its get_config returns NoneType; must return a ConfigDict"),
    "a list": ("def get_config(): return [1]", "its get_config returns list; must return"),
    "another dataclass": (
        "from pomcp_jax.config import AgentConfig\ndef get_config(): return AgentConfig()",
        "its get_config returns AgentConfig; must return",
    ),
    "an unknown field": (
        "def get_config(): return {'train': {'sead': 1}}",
        "train.sead: unknown field; did you mean train.seed?",
    ),
    "a wrong type": (
        "def get_config(): return {'train': {'seed': 'x'}}",
        "train.seed = 'x': must be int, not str",
    ),
    "no mapping": ("def get_config(): return {'train': 3}", "train = 3: must be a group of fields"),
    "an exception": (
        "def get_config():\n    return {}['x']",
        "line 2: KeyError: 'x'",
    ),
    "an exception at once": ("\nraise ValueError('a\\nb')", "line 2: ValueError: a b"),
    "an end": ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
    "a missing module": ("import no_such_module", "line 1: ModuleNotFoundError: No module named"),
    "not Python": ("def get_config(:", "line 1: not valid Python (invalid syntax)"),
    "zeros": ("\0\0", "not valid Python ("),
    "no function": ("x = 3", "has no function get_config; must have get_config(argument=None)"),
    "no function of that name": ("get_config = 3", "has no function get_config"),
    "arguments": ("def get_config(a, b): return {}", "its get_config needs arguments; must be"),
}


@pytest.mark.parametrize("case", WORKS)
def test_what_a_file_may_return(case, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(WORKS[case])
    assert config_files.load(str(file), None) == Config()


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_file_is_one_line(case, tmp_path):
    file = tmp_path / "file.py"
    text, expected = BROKEN[case]
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_files.load(str(file), None)
    message = str(error.value)
    assert message.startswith(f"--config = '{file}': ") and expected in message
    assert "\n" not in message


def test_an_argument_that_a_file_does_not_take(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("def get_config(): return {}")
    with pytest.raises(ConfigError, match="its get_config cannot be called with 'walker-walk'; mu"):
        config_files.load(str(file), "walker-walk")
    file.write_text("def get_config(seed): return {'train': {'seed': int(seed)}}")
    assert config_files.load(str(file), "3") == Config(train=TrainConfig(seed=3))


@pytest.mark.parametrize(
    "path,expected",
    [
        ("/dev/null", "is not a regular file; must be a file like experiments/"),
        ("experiments/configs", "is a folder; must be a file like experiments/configs/quickstart."),
        ("experiments/configs/quikstart.py", "did you mean experiments/configs/quickstart.py?"),
        ("quickstart", "did you mean experiments/configs/quickstart.py?"),
        ("experiments/configs/nothing_like_it.py", "no such file; for example experiments/configs"),
        ("cartpole-swingup", "a task: --config=experiments/configs/quickstart.py:cartpole-swingup"),
        ("walker-run,bmpc", "a task: --config=experiments/configs/quickstart.py:walker-run,bmpc"),
        ("bmpc", "a preset: --config=experiments/configs/quickstart.py:,bmpc"),
        ("a" * 300, "File name too long"),
        ("README.md", "not valid Python ("),
        ("docs/quickstart.png", "not valid Python ("),
    ],
)
def test_a_path_that_is_no_configuration(path, expected, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError) as error:
        config_files.load(path, None)
    message = str(error.value)
    assert expected in message and message.startswith("--config = ") and "\n" not in message
    assert message.count("--config = ") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read(tmp_path):
    file = tmp_path / "file.py"
    file.write_text("")
    file.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        config_files.load(str(file), None)


@pytest.mark.parametrize(
    "flag,field,value",
    [
        ("--config.train.total_decisions=1e6", "train.total_decisions", 1_000_000),
        ("--config.train.total_decisions=1_000_000", "train.total_decisions", 1_000_000),
        ("--config.train.total-decisions=2.0", "train.total_decisions", 2),
        ("--config.train.seed=-0.0", "train.seed", 0),
        ("--config.agent.policy.kl_coef=1", "agent.policy.kl_coef", 1.0),
        ("-config.agent.policy.kl_coef=1e-3", "agent.policy.kl_coef", 1e-3),
        ("--config.agent.policy.value_weight", "agent.policy.value_weight", True),
        ("--config.agent.policy.value_weight=1", "agent.policy.value_weight", True),
        ("--noconfig.agent.policy.last_state", "agent.policy.last_state", False),
        ("--config.agent.policy.last_state=False", "agent.policy.last_state", False),
        ("--config.agent.policy.kl-gate=2", "agent.policy.kl_gate", 2.0),
        ("--config.env.task=a=b-c", "env.task", "a=b-c"),
    ],
)
def test_overrides(flag, field, value):
    plain, changed = (settings.parse(["run", DEBUG, *more]).config for more in ([], [flag]))
    found = config_lib.flatten(changed)[field]
    assert found == value and type(found) is type(value)
    assert changed == config_lib.replace(plain, {field: value})


def test_the_last_override_holds_and_a_value_may_follow():
    flags = ["--config.train.seed=1", "--config.train.seed", "2", "--config.train.num_seeds", "3"]
    train = settings.parse(["run", DEBUG, *flags]).config.train
    assert (train.seed, train.num_seeds) == (2, 3)


@pytest.mark.parametrize(
    "flag,expected",
    [
        ("--config.train={}", "--config.train = '{}': is a group of fields, not a value; must be"),
        ("--config.agent.policy=5", "--config.agent.policy = '5': is a group of fields, not a val"),
        ("--config.train", "--config.train: is a group of fields"),
        ("--config.train.seed", "--config.train.seed: needs a value, for example 0"),
        ("--config.train.seed=", "--config.train.seed = '': must be int, for example 0"),
        ("--config.train.seed=1.5", "--config.train.seed = '1.5': must be int"),
        ("--config.train.seed=nan", "--config.train.seed = 'nan': must be int"),
        ("--config.train.seed=1e999", "--config.train.seed = '1e999': must be int"),
        ("--config.train.seed=True", "--config.train.seed = 'True': must be int"),
        ("--config.train.seed=" + 5_000 * "9", "999: must be int"),
        ("--config.agent.policy.kl_coef=x", "kl_coef = 'x': must be float, for example 1.0"),
        ("--config.agent.policy.value_weight=2", "value_weight = '2': must be bool, for example F"),
        ("--config.agent.policy.kl_cof=2", "did you mean --config.agent.policy.kl_coef?"),
        ("--config.kl_coef=2", "did you mean --config.agent.policy.kl_coef?"),
        ("--config.agent.zzz=2", "--config.agent.zzz = '2': unknown field; --help=all has a list"),
        ("--config.=2", "unknown field; --help=all has a list"),
    ],
)
def test_overrides_that_cannot_be(flag, expected):
    with pytest.raises(ConfigError) as error:
        settings.parse(["run", DEBUG, flag])
    message = str(error.value)
    assert expected in message and "\n" not in message and len(message) < 250


@pytest.mark.parametrize(
    "flags,expected",
    [
        (["--seed=3"], "--seed: unknown flag; did you mean --config.train.seed?"),
        (["--num-seeds=3"], "did you mean --config.train.num_seeds?"),
        (["--seeds=3"], "--seeds: unknown flag; did you mean --config.train.num_seeds?"),
        (["--task=walker-run"], "did you mean --config=FILE.py:TASK?"),
        (["--preset=bmpc"], "did you mean --config=FILE.py:TASK,PRESET?"),
        (["--steps", "3"], "did you mean --config.train.total_decisions?"),
        (["--horizon=3"], "did you mean --config.agent.mppi.horizon?"),
        (["--agent.mppi.horizon=3"], "did you mean --config.agent.mppi.horizon?"),
        (["--dry-run"], "did you mean --print_config?"),
        (["--model-size=5M"], "did you mean --size?"),
        (
            ["--size=5m"],
            "--size = '5m': must be one of tiny, small, 1M, 5M, 19M, 48M; did you mean 5M",
        ),
        (["--size="], "--size = '': must be one of tiny"),
        (["--workdirr=x"], "did you mean --workdir?"),
        (["--noconfig.train.seed=3"], "--noconfig.train.seed: unknown flag; did you mean --conf"),
        (["--noconfig.agent.policy.last_state=1"], "--noconfig.agent.policy.last_state: unknown"),
        (["--zzz=x"], "--zzz: unknown flag; see --help"),
        (["--resume=no"], "--resume = 'no': must be one of auto, never"),
        (["--resume=nevr"], "reset_envs, change_seeds; did you mean never?"),
        (["--workdir=~nosuchuser/x"], "there is no user ~nosuchuser"),
        (["--workdir="], "--workdir = '': must name a folder"),
        (["--cache_dir=~nosuchuser/x"], "--cache_dir = '~nosuchuser/x': there is no user"),
        ([DEBUG], "--config: given more than once"),
        (["--tensorboard=maybe"], "tensorboard"),
        (["--workdir"], "workdir"),
    ],
)
def test_flags_that_cannot_be(flags, expected):
    with pytest.raises(ConfigError) as error:
        settings.parse(["run", DEBUG, *flags])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_flags_may_have_dashes():
    options = settings.parse(["run", DEBUG, "--print-config", "--cache-dir=none", "--workdir=a-b"])
    assert options.print_only and options.cache_dir is None and str(options.workdir) == "a-b"
    assert arguments.underscored(["--dry-run", "--", "--a-b"]) == ["--dry_run", "--", "--a-b"]


def test_size_is_a_flag_and_part_of_the_argument():
    flag, argument = (
        settings.parse(["run", *flags])
        for flags in ([DEBUG + ":,bmpc", "--size=1M"], [DEBUG + ":,bmpc,1M"])
    )
    assert flag == argument and flag.config.agent.world_model.mlp_width == 384
    assert str(flag.workdir) == "runs/debug/bmpc-1M"
    field = "--config.agent.world_model.mlp_width=32"
    changed = settings.parse(["run", DEBUG, "--size=1M", field]).config.agent.world_model
    assert (changed.mlp_width, changed.latent_size) == (32, 128)


@pytest.mark.parametrize(
    "argument,size,workdir",
    [
        ("", "", "default"),
        ("walker-walk,bmpc", "", "walker-walk-bmpc"),
        ("brax/ant", "5M", "brax_ant-5M"),
        (",bmpc", "", "bmpc"),
        ("a,,1M", "", "a-1M"),
    ],
)
def test_default_workdir(argument, size, workdir):
    assert settings._default_workdir("x/file.py", argument, size) == f"runs/file/{workdir}"


def test_help_may_stand_anywhere():
    for flags in ([DEBUG, "--help"], ["--help", DEBUG], ["--zzz", "-h"]):
        with pytest.raises(settings.HelpWanted):
            settings.parse(["run", *flags])


def test_without_a_home_compiled_programs_are_not_kept(monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert settings.parse(["run", DEBUG]).cache_dir is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "gs://bucket/programs")
    assert settings.parse(["run", DEBUG]).cache_dir == "gs://bucket/programs"


@pytest.mark.parametrize(
    "program,flags,expected",
    [
        (reproduce, ["--suite=debug", "--zzz=3"], "'--zzz=3': unexpected argument"),
        (reproduce, ["--suite=debgu"], "--suite = 'debgu': unknown; did you mean debug?"),
        (reproduce, ["--suite=zzz"], "--suite = 'zzz': unknown (debug, classic3"),
        (reproduce, ["--dry-run"], "--suite: is missing; must be a name or a JSON file"),
        (reproduce, ["--suite=debug", "--jobs=x"], "argument --jobs: invalid int value: 'x'"),
        (plot, ["x", "--diagnostic"], "x: no such folder"),
        (plot, ["x", "--label=3", "--outt=y"], "--outt: unknown argument; did you mean --out?"),
        (aggregate, [], "the following arguments are required: runs"),
        (aggregate, ["x", "--zzz"], "--zzz: unknown argument; see --help"),
    ],
)
def test_the_other_programs_explain_in_one_line_too(program, flags, expected, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    try:
        code = program.main(flags)
    except SystemExit as end:
        code = end.code
    error = capsys.readouterr().err
    assert code == 2 and expected in error and error.count("\n") == 1
    assert error.startswith("error: ")


def test_a_dry_run_may_have_a_dash(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert reproduce.main(["--suite=debug", "--dry-run", "--tasks=probe/lqr"]) == 0
    assert "to train  probe/lqr tdmpc2: " in capsys.readouterr().out


HOSTILE = "|nan|inf|-1|0|1e400|-0.0|1e6|{}|None|True|\n|é|2147483648|1e-50|0x10|1e30|--x".split("|")


@pytest.mark.parametrize("field", sorted(config_lib.flatten(Config())))
def test_any_text_for_any_field_is_taken_or_refused_in_one_line(field):
    refused = 0
    for text in [*HOSTILE, "9" * 100]:
        try:
            validation.validate_config(config_files.changed(Config(), {field: text}))
        except ConfigError as error:
            refused += 1
            assert field in str(error) or "train." in str(error)
            assert "\n" not in str(error) and len(str(error)) < 400
    assert refused >= 8


def test_our_own_files_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = "experiments/configs/debug.py"
    assert path in config_files.known()
    assert config_files.load(path, None).env.task == "probe/lqr"
    (tmp_path / "experiments" / "configs").mkdir(parents=True)
    (tmp_path / path).write_text("def get_config(argument=None):\n    return {}\n")
    assert config_files.load(path, None).env.task == "cartpole-swingup"  # the one that is here
