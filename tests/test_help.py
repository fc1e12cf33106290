"""Help: short and quick, sections and fields on request, and a page generated from the code."""

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from experiments import help_topics, parsers, settings, sweep, usage
from pomcp_jax import controller, fields, presets
from pomcp_jax.config import Config, ConfigError, WorldModelConfig
from pomcp_jax.reporting import columns, comparison, statistics

ROOT = Path(__file__).parent.parent
SMALL = f"--config={ROOT}/experiments/configs/small.py"


def answer(*flags):
    with pytest.raises(settings.HelpWanted) as wanted:
        settings.parse(["run", *flags])
    return wanted.value.answer


def test_short_help_is_short():
    command = [sys.executable, "-m", "experiments.run", "--zzz", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, usage.short_help() + "\n")
    assert len(done.stdout.splitlines()) < 50


@pytest.mark.parametrize(
    "name", "run sweep reproduce evaluate render export dataset plot aggregate".split()
)
def test_a_python_without_jax_is_one_line(name):
    """-S hides all installed packages, as another Python than that of the environment does."""
    command = [sys.executable, "-S", "-m", f"experiments.{name}", "--help=policy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: jax is not installed in ") and "activate" in done.stderr


def test_sections_are_the_groups_of_the_configuration():
    assert [name for name, _ in usage.sections()] == list(fields.groups(Config))
    assert all(text.endswith(".") for _, text in usage.sections())


def test_recipes_are_command_lines():
    lines = [line.split() for line in usage.RUN.splitlines() if line.startswith("  --config=C/")]
    assert len(lines) == 5
    for words in lines:
        flags = [word.replace("C/", f"{ROOT}/experiments/configs/") for word in words]
        settings.parse(["run", *(flag for flag in flags if flag.startswith("--"))])


def test_a_section_has_type_default_value_and_meaning():
    text = answer("--help=policy")
    assert text == answer("--help=agent.policy") == answer("--help=config.agent.policy")
    assert text.startswith("agent.policy: The one policy loss of the family")
    for name, spec in fields.specs(type(Config().agent.policy)).items():
        assert f"\n  {name}: {spec.allowed}; default {spec.default}\n      " in text
    assert "kl_coef: float >= 0; default 1.0\n      Weight of the divergence" in text
    text = answer("--help=policy", SMALL, "--config.agent.policy.q_coef=2")
    assert "\n  kl_coef: float >= 0; default 1.0; here 0.1\n" in text
    assert "\n  q_coef: float >= 0; default 1.0; here 2.0\n" in text


@pytest.mark.parametrize(
    "topic,words",
    [
        ("kl_coef", ["agent.policy.kl_coef: float >= 0"]),
        ("policy.kl_coef", ["agent.policy.kl_coef: float >= 0"]),
        ("divergence", ["agent.policy.divergence: reverse | ", "agent.prior.divergence: "]),
        ("train.seed", ["train.seed: int >= 0; default 0"]),
        ("presets", ["po_mpc_forward", *presets.PRESETS]),
        ("sizes", ["48M", *presets.SIZES]),
        ("configs", ["experiments/configs/debug.py       Tiny agent on a tiny problem"]),
        ("tasks", ["walker-walk", "brax/ant"]),
        ("all", ["walker-walk", "po_mpc_direct", "tiny", "on_broken_seed", "small.py"]),
    ],
)
def test_topics(topic, words):
    text = answer(f"--help={topic}")
    assert all(word in text for word in words)
    assert answer(f"--help={topic}", "--help=env") == f"{text}\n\n{answer('--help=env')}"


@pytest.mark.parametrize(
    "flags,expected",
    [
        (
            ["--help=polcy"],
            "--help = 'polcy': unknown topic; did you mean policy? (env, world_model",
        ),
        (["--help=kl_cof"], "did you mean agent.policy.kl_coef?"),
        (["--help="], "--help = '': unknown topic (env, "),
        (["--help=policy", SMALL + ":nonsense-task"], "task = 'nonsense-task': unknown"),
        (["--help=policy", SMALL, "--zzz"], "--zzz: unknown flag"),
    ],
)
def test_topics_that_do_not_exist(flags, expected):
    with pytest.raises(ConfigError) as error:
        settings.parse(["run", *flags])
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_sweeps_have_the_same_help(capsys):
    assert sweep.main(["sweep", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: python -m experiments.sweep") and "\n  policy       The" in out
    assert sweep.main(["sweep", "--help=prior"]) == 0
    assert capsys.readouterr().out == answer("--help=prior") + "\n"


def test_commands_and_code_of_the_page_on_configuration(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs/configuration.md").read_text()
    commands = re.findall(r"python -m experiments\.run (--help=.*)", text.replace("`", " # "))
    assert len(commands) == 4
    for command in commands:
        assert answer(*command.partition(" #")[0].partition(" >")[0].split())
    scope = {}
    exec(re.findall(r"```python\n(.*?)```", text, flags=re.S)[0], scope)
    assert scope["settings"].train.num_seeds == 3 and scope["agent"].policy.kl_coef == 0.1
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link


def test_the_page_of_fields_is_up_to_date():
    page = (ROOT / "docs/configuration_fields.md").read_text()
    update = "python -m experiments.run --help=markdown > docs/configuration_fields.md"
    assert page == help_topics.page() + "\n", f"update it: {update}"
    for name in fields.all_specs(Config):
        assert f"| `{name.rpartition('.')[2]}` | " in page


def loaded(done):
    """Modules in the output of ``-X importtime``."""
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize("name", [*usage.SHORT, *parsers.ALL])
def test_plain_help_comes_without_jax(name):
    command = [sys.executable, "-X", "importtime", "-m", name, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: python -m {name} ")
    assert "experiments.usage" in loaded(done)
    assert not {"jax", "numpy", "ml_collections", "pomcp_jax.config"} & loaded(done)
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_choices_are_those_of_the_modules_that_use_them():
    assert parsers.ACTORS == controller.ACTORS
    assert parsers.AXES == tuple(columns.AXES) and parsers.BANDS == tuple(comparison.BANDS)
    arranged_for = fields.specs(WorldModelConfig)["arranged_for"]
    assert parsers.DEVICES == arranged_for.choices
    text = " ".join(parsers.aggregate().format_help().split())
    assert f"in aggregates (default {statistics.MAX_RETURN:g};" in text
    assert (
        inspect.signature(controller.make_fns).parameters["select"].annotation
        == (Literal[parsers.SELECTIONS])
    )


SLOW = {"scipy.stats", "matplotlib", "orbax", "brax", "dm_control", "tensorboardX", "wandb", "PIL"}
"""Packages of half a second and more that no command needs for its first line."""


def test_a_first_line_needs_no_slow_package():
    """Everything that the commands import before they read their arguments."""
    code = "import sys, experiments.run, experiments.sweep, experiments.evaluate"
    code += ", experiments.render, experiments.export, experiments.plot, experiments.aggregate"
    code += f", experiments.reproduce; print({SLOW!r} & {{*sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
