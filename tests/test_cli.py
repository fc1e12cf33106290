"""The command line as users run it: in a subprocess, from the repository's root."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny

from pomcp_jax import checkpoint
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config

ROOT = Path(__file__).parent.parent
DEBUG = "--config=experiments/configs/debug.py"
STRICT = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION")
# Users do not run under the strict modes of this suite.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in STRICT} | {"PYTHONPATH": str(ROOT)}


def command(*args, module="experiments.run"):
    return [sys.executable, "-m", module, *args]


def call(*args, module="experiments.run", timeout=400):
    return subprocess.run(
        command(*args, module=module), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
        timeout=timeout,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One whole run of the debug configuration, two seeds."""
    workdir = tmp_path_factory.mktemp("runs") / "debug"
    done = call(DEBUG, f"--workdir={workdir}", "--config.train.num_seeds=2", "--tensorboard=false")
    assert done.returncode == 0, done.stderr
    return workdir, done


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_it_promises(run):
    workdir, done = run
    names = {p.name for p in workdir.iterdir()}
    assert names == {
        "config.json", "run.json", "metrics.jsonl", "metrics.csv", "evaluations.csv",
        "learning_curve.png", "checkpoints",
    }  # fmt: skip
    assert str(workdir) in done.stdout.splitlines()[-1]
    assert (workdir / "learning_curve.png").read_bytes()[:4] == b"\x89PNG"


def test_metrics_have_one_row_per_chunk_and_seed(run):
    table = rows(run[0] / "metrics.csv")
    lines = [json.loads(line) for line in (run[0] / "metrics.jsonl").read_text().splitlines()]
    # One seeding chunk, one of pre-training, then (600 - 100) / 100.
    assert len(table) == len(lines) == 2 * (1 + 1 + 5)
    first = ["seconds", "decisions", "frames", "seed", "train/return", "eval/return"]
    assert list(table[0])[:7] == [*first, "decisions_per_second"]
    assert [row["seed"] for row in table[:4]] == ["0", "1", "0", "1"]
    assert all(list(line) == list(table[0]) for line in lines)
    last = lines[-1]
    # 600 calls of the environment; the one after an episode's end of 50 decisions only resets.
    assert 580 <= last["decisions"] < 600 and last["frames"] == last["decisions"]
    assert last["loss/model"] > 0 and last["plan/std"] > 0 and last["updates"] == 20 + 250
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_evaluations_have_every_episode(run):
    table = rows(run[0] / "evaluations.csv")
    assert [r["actor"] for r in table] == ["planner"] * 4 + ["policy"] * 2
    for row in table:
        episodes = [float(row[f"episode_{i}"]) for i in range(3)]
        column = "eval/return" if row["actor"] == "planner" else "eval/policy_return"
        assert float(row[column]) == pytest.approx(sum(episodes) / 3)
    evaluated = [row for row in rows(run[0] / "metrics.csv") if row["eval/return"]]
    assert len(evaluated) == 4
    # Rows with an evaluation have diagnostics, other rows do not.
    for row in rows(run[0] / "metrics.csv"):
        known = [bool(value) for name, value in row.items() if name.startswith("diag/")]
        assert len(known) == 25 and (all(known) if row["eval/return"] else not any(known))


def test_record_of_what_ran(run):
    about = json.loads((run[0] / "run.json").read_text())
    assert about["exit_code"] == 0 and about["status"] == "done"
    assert {"commit", "versions", "device", "command", "peak_memory_gb", "seconds"} <= set(about)
    assert about["preset"] == "po_mpc"
    config = json.loads((run[0] / "config.json").read_text())
    assert config["train"]["num_seeds"] == 2 and config["env"]["task"] == "probe/lqr"


def test_configuration_and_progress_are_printed(run):
    out = run[1].stdout
    progress = run[1].stderr
    assert out.startswith("preset po_mpc, size tiny; fields that differ from them")
    assert "agent.mppi.num_samples = 16\n" in out and "env.task = probe/lqr\n" in out
    assert "agent.mppi.horizon = " not in out  # as in the preset
    assert "decisions/s" in progress and "frames/s" in progress and "left" in progress
    for word in ("evaluation", "training return", "peak memory", "files"):
        assert word in out


def test_checkpoints_can_be_restored(run):
    folder = run[0] / "checkpoints"
    assert checkpoint.steps(folder) == [300, 600]
    restored = checkpoint.restore(folder)
    assert restored.config.train.num_seeds == 2 and restored.decisions == 600


def test_the_same_folder_again_keeps_the_earlier_run(run):
    """Refused for another configuration."""
    workdir, _ = run
    other = call(DEBUG, f"--workdir={workdir}", "--config.train.num_seeds=3")
    assert other.returncode == 2
    assert "train.num_seeds = 2" in other.stderr and "choose another folder" in other.stderr
    assert not list(workdir.glob("previous-*"))


def test_a_finished_run_again_is_a_no_op(run):
    workdir, _ = run
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    again = call(DEBUG, f"--workdir={workdir}", "--config.train.num_seeds=2", "--tensorboard=false")
    assert again.returncode == 0 and "this run is complete: 600 decisions" in again.stdout
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_pictures_of_several_runs(run, tmp_path):
    out = tmp_path / "curve.png"
    done = call(str(run[0]), str(run[0]), f"--out={out}", module="experiments.plot")
    assert done.returncode == 0 and out.read_bytes()[:4] == b"\x89PNG"
    done = call(str(tmp_path), module="experiments.plot")
    assert done.returncode == 2 and "config.json" in done.stderr


BAD = {
    "no config": ([], "--config: missing"),
    "no such file": (["--config=experiments/configs/quikstart.py"], "quickstart.py"),
    "task": ([DEBUG + ":probe/lqq"], "did you mean probe/lqr?"),
    "preset": ([DEBUG + ":,po_mcp"], "did you mean po_mpc?"),
    "size": ([DEBUG + ":,,smal"], "did you mean small?"),
    "size flag": ([DEBUG, "--size=6M"], "--size = '6M': must be one of tiny, small, 1M, 5M"),
    "field": ([DEBUG, "--config.agent.mppi.horizn=3"], "config.agent.mppi.horizon"),
    "type": ([DEBUG, "--config.agent.mppi.horizon=x"], "must be int"),
    "group": ([DEBUG, "--config.agent.mppi=3"], "agent.mppi"),
    "flag": ([DEBUG, "--workdirr=x"], "workdir"),
    "argument": ([DEBUG, "extra"], "'extra'"),
    "elites": ([DEBUG, "--config.agent.mppi.num_elites=17"], "agent.mppi.num_elites = 17"),
    "horizon": ([DEBUG, "--config.agent.mppi.horizon=0"], "agent.mppi.horizon = 0"),
    "capacity": ([DEBUG, "--config.train.capacity=40"], "train.capacity = 40"),
    "group size": ([DEBUG, "--config.agent.world_model.latent_size=12"], "latent_size = 12"),
    "memory": ([DEBUG, "--config.train.capacity=900000000"], "train.memory_limit_gb"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_writes_nothing(case, tmp_path, capsys, monkeypatch):
    """In this process, for speed; test_bad_input_in_a_subprocess covers the whole path."""
    from experiments import run as run_module

    monkeypatch.chdir(ROOT)
    arguments, expected = BAD[case]
    workdir = tmp_path / "run"
    code = run_module.main(["run", *arguments, f"--workdir={workdir}"])
    text = capsys.readouterr()
    # The settings come before what only the built environments can tell.
    assert code == 2 and (not text.out or case == "memory" and text.out.startswith("preset "))
    assert text.err.startswith("error: ") and text.err.count("\n") == 1 and expected in text.err
    assert not workdir.exists()


def test_bad_input_in_a_subprocess(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    done = call(DEBUG, f"--workdir={file}")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == f"error: --workdir = '{file}': is a file; must be a folder\n"
    assert list(tmp_path.iterdir()) == [file] and file.read_text() == ""


def test_help_and_print_config(capsys, monkeypatch):
    from experiments import run as run_module

    monkeypatch.chdir(ROOT)
    assert run_module.main(["run", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: python -m experiments.run --config=")
    assert run_module.main(["run", DEBUG, "--help=horizon"]) == 0
    assert "agent.mppi.horizon: int >= 1; default 3; here 3" in capsys.readouterr().out
    assert run_module.main(["run", DEBUG, "--help=horizn"]) == 2
    assert "did you mean agent.mppi.horizon?" in capsys.readouterr().err
    assert run_module.main(["run", DEBUG, "--print_config"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "env.task = probe/lqr" in lines
    assert [line.partition(" = ")[0] for line in lines] == list(config_lib.flatten(Config()))


def test_a_limit_that_compiling_filled_is_explained(tmp_path, capsys):
    from experiments import clock
    from experiments import run as run_module
    from pomcp_jax.running.trainer import Outcome

    nothing = np.full(1, np.nan)
    end = Outcome(clock.TIME_IS_UP, "stopped", 0, 6.0, nothing, nothing, nothing, tmp_path)
    run_module.report(end, Config())
    assert "compiling is a part of --minutes" in capsys.readouterr().out.splitlines()[-1]
    run_module.report(end._replace(decisions=1000), Config())
    assert "hint" not in capsys.readouterr().out


def test_ctrl_c_ends_cleanly_and_keeps_what_is_there(run, tmp_path):
    workdir = tmp_path / "run"
    long = [f"--workdir={workdir}", "--config.train.total_decisions=1000000",
            "--config.train.num_seeds=2", "--config.train.capacity=1000"]  # fmt: skip
    process = subprocess.Popen(
        command(DEBUG, *long), cwd=ROOT, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 6:
            break
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "stopped by SIGINT" in out
    about = json.loads((workdir / "run.json").read_text())
    assert about["exit_code"] == 130 and "SIGINT" in about["status"]
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    saved = checkpoint.steps(workdir / "checkpoints")
    assert len(lines) >= 6 and saved and saved[-1] >= lines[-1]["decisions"]
    assert (workdir / "learning_curve.png").exists()


def test_killed_between_chunks_the_same_command_ends_with_the_same_bits(run, tmp_path):
    """SIGKILL right after a row was written; the same program as the fixture's."""
    workdir = tmp_path / "run"
    arguments = command(DEBUG, f"--workdir={workdir}", "--config.train.num_seeds=2")
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        steps = checkpoint.steps(workdir / "checkpoints")
        if steps and metrics.read_text().count("\n") >= 8:
            break
        time.sleep(0.02)
    process.kill()
    process.wait(timeout=60)
    done = call(*arguments[3:])
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert tiny.saved(workdir, 600) == tiny.saved(run[0], 600)
    clocks = {"seconds", "decisions_per_second", "frames_per_second"}
    for name in ("metrics.csv", "evaluations.csv"):
        tables = [rows(w / name) for w in (workdir, run[0])]
        mine, wanted = (
            [{k: v for k, v in row.items() if k not in clocks} for row in t] for t in tables
        )
        assert mine == wanted


def test_updates_that_keep_failing_stop_the_run_with_the_term_named(run, tmp_path):
    """A step so large that everything after it overflows; same program as the fixture's."""
    workdir = tmp_path / "run"
    done = call(
        DEBUG,
        f"--workdir={workdir}",
        "--config.train.num_seeds=2",
        "--config.agent.optimizer.learning_rate=1e30",
    )
    assert done.returncode == 3
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "updates in a row were not finite, first in: " in errors[0]
    assert json.loads((workdir / "run.json").read_text())["exit_code"] == 3
    refused = [int(row["refused_updates"]) for row in rows(workdir / "metrics.csv")]
    assert refused[0] == 0 and refused[-1] >= 20
    state = checkpoint.restore(workdir / "checkpoints").state
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("end", ["2>&1 | head -1; exit ${PIPESTATUS[0]}", "<&- >&- 2>&-"])
def test_nobody_reading_does_not_end_a_run(run, tmp_path, end):
    """A pipe that breaks, all streams closed: the same program as the fixture's."""
    workdir = tmp_path / "run"
    line = " ".join(command(DEBUG, f"--workdir={workdir}", "--config.train.num_seeds=2"))
    done = subprocess.run(
        ["bash", "-c", f"{line} {end}"], cwd=ROOT, env=ENVIRONMENT, capture_output=True, timeout=400
    )
    assert done.returncode == 0 and done.stderr == b""
    about = json.loads((workdir / "run.json").read_text())
    assert about["status"] == "done" and about["last_checkpoint"] == 600
    assert tiny.saved(workdir, 600) == tiny.saved(run[0], 600)
    assert not (workdir / "crash.txt").exists()


def test_a_terminal_that_closes_is_a_clean_end(run, tmp_path):
    """SIGHUP twice, as shells and the system send it, with the pipe gone before."""
    workdir = tmp_path / "run"
    arguments = ("--config.train.num_seeds=2", "--config.train.total_decisions=1000000")
    process = subprocess.Popen(
        command(DEBUG, f"--workdir={workdir}", *arguments, "--config.train.capacity=1000"),
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    metrics, deadline = workdir / "metrics.jsonl", time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 6:
            break
        time.sleep(0.1)
    assert json.loads((workdir / "run.json").read_text())["status"] == "running"
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 129
    about = json.loads((workdir / "run.json").read_text())
    assert about["exit_code"] == 129 and about["status"] == "stopped by SIGHUP"
    assert checkpoint.steps(workdir / "checkpoints")[-1] == about["decisions_per_seed"]
