"""Command lines and devices: how many a CPU is, and who says so."""

import os
import subprocess
import sys

import jax
import pytest
from test_cli import ROOT

from experiments import devices, run, settings
from experiments.sweep import num_cells
from pomcp_jax import files
from pomcp_jax.config import ConfigError
from pomcp_jax.running import process, trainer
from pomcp_jax.running.options import Options

DEBUG = "--config=experiments/configs/debug.py"


def parsed(seeds, *flags):
    return settings.parse(["run", DEBUG, f"--config.train.num_seeds={seeds}", *flags])


@pytest.mark.parametrize(
    "seeds, cores, flags, number",
    [
        (1, 4, [], 1),
        (2, 2, [], 2),
        (2, 1, [], 1),
        (5, 4, [], 3),  # two each, and no core more than that takes
        (3, 2, [], 2),
        (5, 4, ["--num_devices=cores"], 3),
        (5, 4, ["--num-devices=4"], 4),
        (5, 4, ["--num_devices=1"], 1),
        (5, 4, ["--num_devices=99"], 4),  # refused by the run, which counts them
        (5, 4, ["--config.train.num_devices=2"], 2),
        (4, 4, ["--config.env.backend=host"], 4),
        (5, 2, ["--config.env.backend=host", "--num_devices=1"], 1),
        (4, 4, ["--config.env.backend=host", "--num_devices=2"], 2),
        (4, 4, ["--config.env.task=gym/Pendulum-v1"], 1),
    ],
)
def test_a_cpu_is_as_many_devices_as_help(monkeypatch, tmp_path, seeds, cores, flags, number):
    monkeypatch.setattr(process, "cpu_cores", lambda: cores)
    options = parsed(seeds, f"--workdir={tmp_path}", *flags)
    assert devices.on_cpu(options, seeds) == number


@pytest.mark.parametrize(
    "earlier, flags, number",
    [
        (1, [], 1),
        (3, [], 3),
        (5, [], 4),  # the machine has them no more
        (1, ["--resume=never"], 4),
        (1, ["--num_devices=cores"], 4),
        (1, ["--num_devices=2"], 2),
        ("many", [], 4),
        (True, [], 4),
        (-1, [], 4),
    ],
)
def test_a_run_that_resumes_keeps_its_devices(monkeypatch, tmp_path, earlier, flags, number):
    monkeypatch.setattr(process, "cpu_cores", lambda: 4)
    files.write_json(tmp_path / "run.json", {"num_devices": earlier})
    assert devices.on_cpu(parsed(4, f"--workdir={tmp_path}", *flags), 4) == number


def test_devices_that_are_fixed_stay(monkeypatch):
    """These tests have JAX_NUM_CPU_DEVICES, and JAX has begun."""
    jax.devices()
    before = jax.config.jax_num_cpu_devices
    devices.use(7)
    assert jax.config.jax_num_cpu_devices == before
    # JAX itself refuses it now, which is no error of a run in a notebook.
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", -1, raising=False)
    devices.use(7)


def test_cores_are_a_number_once_jax_has_counted():
    assert devices.chosen(parsed(3), 3).train.num_devices == 0
    assert devices.chosen(parsed(3, "--num_devices=cores"), 3).train.num_devices == 1
    gym = parsed(3, "--num_devices=cores", "--config.env.task=gym/Pendulum-v1")
    assert devices.chosen(gym, 3).train.num_devices == 0
    assert parsed(3, "--num_devices=2").config.train.num_devices == 2


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--num_devices=0"], "--num_devices = '0': must be cores, or a number of devices >= 1"),
        (["--num_devices=-2"], "--num_devices = '-2': must be cores"),
        (["--num_devices=core"], "--num_devices = 'core': must be cores"),
        (["--num_devices="], "--num_devices = '': must be cores"),
        (["--num_devices=2.5"], "--num_devices = '2.5': must be cores"),
        (["--num_devices=9999999"], "--num_devices = '9999999': must be cores"),
        (["--num_devices=2", "--config.train.num_devices=2"], "is --config.train.num_devices too"),
        (["--devices=2"], "--devices: unknown flag; did you mean --num_devices?"),
    ],
)
def test_numbers_that_cannot_be(flags, expected):
    with pytest.raises(ConfigError) as error:
        parsed(2, *flags)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_sweep_counts_its_rows():
    assert num_cells(["policy.kl_coef=0,1,9", "optimizer.learning_rate=1e-3,1e-4"]) == 6
    assert num_cells(["nothing"]) == 1 == num_cells([])


CODE = """
import sys
from experiments import run, sweep
from pomcp_jax import seed_axis
module = {"run": run, "sweep": sweep}[sys.argv[1]]
trainer = module.prepare(["run", *sys.argv[2:]])[1]
print(seed_axis.describe(trainer.config.train.num_seeds, trainer.functions.program.mesh, "rows"))
"""


@pytest.mark.skipif(process.cpu_cores() < 2, reason="has one core")
@pytest.mark.parametrize(
    "program, flags, expected",
    [
        ("run", ["--config.train.num_seeds=2"], "2 rows on 2 CPU devices (1 each)"),
        ("sweep", ["--seeds=1", "--grid=policy.kl_coef=0,1,9", "--num_devices=2"],
         "3 rows on 2 CPU devices (2 each, 1 row of padding)"),
    ],
)  # fmt: skip
def test_several_seeds_use_every_core(tmp_path, program, flags, expected):
    """In a new process, pinned to two cores as a worker of ``reproduce`` may be."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    two = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    pinned = f"import os; os.sched_setaffinity(0, {{{two}}})"
    done = subprocess.run(
        [sys.executable, "-c", pinned + CODE, program, DEBUG, f"--workdir={tmp_path}", *flags],
        cwd=ROOT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == expected


@pytest.mark.parametrize(
    "field, value",
    [("devices_per_seed", 0), ("devices_per_seed", -1), ("num_seeds", 0), ("num_devices", -1)],
)
def test_numbers_that_are_none_are_refused_by_name(field, value, tmp_path):
    flags = [f"--config.train.{field}={value}", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(ConfigError, match=f"train.{field} = {value}: must be"):
        run.prepare(["run", DEBUG, *flags])
    assert not (tmp_path / "run").exists()


def test_a_trainer_keeps_the_devices_of_the_record(monkeypatch, tmp_path):
    config = parsed(4).config
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    for record, wanted in ((None, 0), (3, 3), (5, 0), (1, 1)):
        if record is not None:
            files.write_json(tmp_path / "run.json", {"num_devices": record})
        options = Options(config, tmp_path)
        assert trainer._as_before(config, options).train.num_devices == wanted
        assert trainer._as_before(config, options._replace(resume="never")) == config
    set_by_the_user = parsed(4, "--num_devices=2").config
    assert trainer._as_before(set_by_the_user, options) == set_by_the_user
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    files.write_json(tmp_path / "run.json", {"num_devices": 3})
    assert trainer._as_before(config, options).train.num_devices == 0
