"""One run over two real processes: killed, stopped, resumed, and refused."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from experiments import processes, settings
from pomcp_jax import checkpoint
from pomcp_jax.config import ConfigError

ROOT = Path(__file__).parent.parent
STRICT = ("JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in STRICT} | {"PYTHONPATH": str(ROOT)}
RUN = [
    sys.executable, "-m", "experiments.run", "--config=experiments/configs/debug.py",
    "--config.train.chunk_decisions=20", "--config.train.checkpoint_decisions=40",
    "--config.train.eval_decisions=0", "--config.train.total_decisions=400",
]  # fmt: skip
FOLDERS = ("seeds-0-0", "seeds-1-1")
CLOCKS = {"seconds", "decisions_per_second", "frames_per_second"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(*arguments):
    return subprocess.Popen(
        [*RUN, *arguments], cwd=ROOT, env=ENVIRONMENT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def pair(workdir, *more):
    """Both processes of a run of two seeds."""
    shared = ["--config.train.num_seeds=2", f"--workdir={workdir}", "--num_processes=2"]
    shared += [f"--coordinator=127.0.0.1:{free_port()}", "--join_timeout=200", *more]
    return [start(*shared, f"--process_id={i}") for i in range(2)]


def ends(running):
    """Exit codes, and what was printed to stdout and to stderr."""
    said = [process.communicate(timeout=300) for process in running]
    assert not any("Traceback" in text for texts in said for text in texts), said
    return [process.returncode for process in running], said


def until_saved(workdir, running):
    """Wait until both have made another checkpoint; the run is in the middle of its training."""
    places = [workdir / name / "checkpoints" for name in FOLDERS]
    before = [max(checkpoint.steps(place), default=0) for place in places]
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and all(process.poll() is None for process in running):
        now = [max(checkpoint.steps(place), default=0) for place in places]
        if all(a > b for a, b in zip(now, before, strict=True)):
            return
        time.sleep(0.01)


def rows(path):
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def record(workdir):
    return json.loads((workdir / "parts.json").read_text())


def test_killed_stopped_and_resumed_two_processes_train_what_one_each_does(tmp_path):
    workdir = tmp_path / "run"
    running = pair(workdir)
    until_saved(workdir, running)
    begin = time.monotonic()
    running[1].kill()
    codes, said = ends(running)
    assert codes == [75, -signal.SIGKILL]
    assert time.monotonic() - begin < 40.0
    last = said[0][1].splitlines()[-1]
    assert last.startswith("error: process 1 of 2 is gone (")
    assert last.endswith("); the same command resumes")
    assert record(workdir)["exit_code"] == 75

    running = pair(workdir)
    until_saved(workdir, running)
    running[1].terminate()
    codes, said = ends(running)
    assert codes == [143, 143]
    assert "stopped by SIGTERM (process 1 of 2)" in said[0][0]
    assert record(workdir)["status"] == "stopped by SIGTERM (process 1 of 2)"
    for name in FOLDERS:  # both saved their last chunk
        about = json.loads((workdir / name / "run.json").read_text())
        assert about["last_checkpoint"] == about["decisions_per_seed"] > 0

    running = pair(workdir)
    assert ends(running)[0] == [0, 0]
    assert record(workdir)["status"] == "done" and record(workdir)["exit_code"] == 0
    alone = tmp_path / "alone"
    codes, _ = ends([start("--config.train.seed=1", f"--workdir={alone}")])
    assert codes == [0]
    assert tiny.saved(workdir / FOLDERS[1], 400) == tiny.saved(alone, 400)
    for name in ("metrics.csv", "evaluations.csv"):
        assert rows(workdir / FOLDERS[1] / name) == rows(alone / name)

    running = pair(workdir, "--config.train.capacity=900")
    codes, said = ends(running)
    assert codes == [2, 2]
    for _, errors in said:
        (line,) = (x for x in errors.splitlines() if x.startswith("error"))
        assert "train.capacity = 1000, this one has 900; choose another" in line


def test_processes_with_unequal_commands_end_in_one_line_each(tmp_path):
    shared = ["--config.train.num_seeds=2", f"--workdir={tmp_path / 'run'}", "--num_processes=2"]
    shared.append(f"--coordinator=127.0.0.1:{free_port()}")
    codes, said = ends(
        [
            start(*shared, "--process_id=0"),
            start(*shared, "--process_id=1", "--config.train.capacity=900"),
        ]
    )
    assert codes == [2, 2]
    text = (
        "error: process 1 has train.capacity = 900, process 0 has 1000; all processes must have the"
        " same"
    )
    assert [errors.splitlines() for _, errors in said] == [[text], [text]]
    assert not (tmp_path / "run").exists()


DEBUG = "--config=experiments/configs/debug.py"


def parsed(*arguments):
    values = processes.own_flags()
    return settings.parse(["run", DEBUG, *arguments], values), values


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--num_processes=2"], "--num_processes = 2: needs --coordinator=HOST:PORT"),
        (["--process_id=0"], "--process_id = 0: needs --coordinator"),
        (["--coordinator=a:1"], "--num_processes: missing; --coordinator = 'a:1' needs it"),
        (["--coordinator=a:1", "--num_processes=2"], "--process_id: missing"),
        (["--coordinator=a:1", "--num_processes=0", "--process_id=0"], "--num_processes = 0"),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=2"],
            "--process_id = 2: must be >= 0 and < --num_processes = 2",
        ),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=-1"], "--process_id = -1: must"),
        (["--coordinator=a"], "--coordinator = 'a': must be HOST:PORT of process 0, or auto"),
        (["--coordinator=:1"], "must be HOST:PORT"),
        (["--coordinator=a:0"], "must be HOST:PORT"),
        (["--coordinator=a:65536"], "must be HOST:PORT"),
        (["--coordinator=a:1234567890123"], "must be HOST:PORT"),
        (["--coordinator=a:0655359"], "must be HOST:PORT"),
        (["--coordinator=..:1"], "--coordinator = '..:1': must be HOST:PORT"),
        (["--coordinator=" + "\u00e9" * 80 + ":1"], "must be HOST:PORT"),
        (["--coordinator=" + "a" * 64 + ":1"], "must be HOST:PORT"),
        (["--coordinator=a:1", "--join_timeout=0"], "--join_timeout = 0: must be from 1"),
        (["--coordinator=a:1", "--heartbeat_timeout=nan"], "--heartbeat_timeout = nan: must be"),
        (["--coordinator=auto"], "--coordinator = auto: no cluster is found"),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=0"],
            "--num_processes = 2: must be <= train.num_seeds = 1",
        ),
        (
            ["--coordinator=a:1", "--num_processes=2", "--process_id=0", "--resume=change_seeds"],
            "--resume = 'change_seeds': needs one process",
        ),
    ],
)
def test_bad_flags_are_one_line(arguments, error, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI")):
            monkeypatch.delenv(name)
    options, values = parsed(*arguments)
    with pytest.raises(ConfigError) as raised:
        processes.enter(values, options)
    assert error in str(raised.value) and "\n" not in str(raised.value)


def test_slurm_is_found(monkeypatch):
    facts = {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": "node[07-09],other", "SLURM_NTASKS": "4",
        "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_NODES": "4",
    }  # fmt: skip
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    _, values = parsed("--coordinator=auto", "--heartbeat_timeout=9")
    where = processes.place(values)
    assert where.host == "node07" and 61_000 < where.port < 65_536
    assert (where.process, where.processes, where.heartbeat) == (3, 4, 9.0)


def test_an_address_of_ipv6():
    _, values = parsed("--coordinator=[::1]:80", "--num_processes=1", "--process_id=0")
    assert processes.place(values)[:2] == ("::1", 80)


def test_facts_name_code_first_and_every_field():
    options, _ = parsed("--config.train.num_seeds=3")
    names = list(processes.facts(options))
    assert names[0] == "version of pomcp_jax" and "source digest" in names
    assert names.index("source digest") < names.index("train.num_seeds")
    assert processes.facts(options)["train.num_seeds"] == "3"
    assert len(processes.sources()) == 16
