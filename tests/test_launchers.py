"""What all launchers share: a cell in its folder, the study's lock, the table of cells."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import launching
import pytest

from experiments import clock, reproduce
from experiments.launchers import cell, checks, plans, study, table
from pomcp_jax.config import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def handlers():
    """Restore signal handlers."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train(job, **kwargs):
    return cell.train(job, os.environ, "me", patience=0.0, **kwargs)


def when(condition, seconds=60.0):
    """Wait until a condition is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def done(job):
    return cell.read(job.workdir / "run.json").get("last_checkpoint") or 0


def test_exit_codes_are_those_of_runs():
    assert cell.TIME_IS_UP == clock.TIME_IS_UP


def test_a_cell_trains_and_its_record_says_where(tmp_path):
    plan = launching.cells(tmp_path)[0]
    ending = train(plan.job)
    assert (ending.kind, ending.text) == ("finished", "trained 3")
    assert launching.same_results([plan], 3)
    record = cell.read(plan.job.record)
    assert (record["by"], record["attempt"], record["ending"]) == ("me", 1, "finished")
    assert cell.read(plan.folder / "run.json")["method"] == "tdmpc2"


def test_a_stopped_cell_saves_and_resumes(tmp_path):
    plan = launching.cells(tmp_path, 40, 0.02)[0]

    def stop(training):
        threading.Timer(0.0, lambda: (when(lambda: done(plan.job) > 2), training.stop())).start()

    ending = train(plan.job, on_start=stop)
    assert ending.kind == "stopped" and 2 < done(plan.job) < 40 and not plan.folder.exists()
    assert train(plan.job).kind == "finished"
    assert launching.same_results([plan], 40) and cell.read(plan.job.record)["attempt"] == 2


WORKER = """
import os, pickle, sys
from experiments.launchers import cell
job = cell.Job(*eval(sys.argv[1]))
cell.train(job._replace(workdir=cell.Path(job.workdir), folder=cell.Path(job.folder)), os.environ)
"""


@pytest.mark.parametrize("victim", ["worker", "guard"])
def test_a_run_whose_worker_is_killed_saves_and_frees_the_cell(tmp_path, victim):
    job = launching.cells(tmp_path, 1000, 0.02)[0].job
    values = (job.name, job.command, str(job.workdir), str(job.folder), dict(job.facts))
    worker = subprocess.Popen([sys.executable, "-c", WORKER, repr(values)], cwd=ROOT)
    when(lambda: done(job) > 2)
    pid = worker.pid
    if victim == "guard":
        asked = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
        pid = int(asked.stdout)
    os.kill(pid, signal.SIGKILL)
    when(lambda: not cell.is_locked(job.log))
    assert cell.read(job.workdir / "run.json")["exit_code"] == 143  # it was asked, not killed
    worker.wait()
    if victim == "guard":
        assert cell.read(job.record)["ending"] == "lost"


def test_a_run_that_is_stopping_is_not_asked_again_when_its_launcher_dies(tmp_path):
    log = tmp_path / "signals"
    code = (
        "import signal, sys, time\n"
        f"log = open({str(log)!r}, 'ab', buffering=0)\n"
        "for n in (2, 15): signal.signal(n, lambda n, _: log.write(b'%d ' % n))\n"
        "log.write(b'ready ')\n"
        "until = time.monotonic() + 2.0\n"
        "while time.monotonic() < until: time.sleep(0.05)\n"
    )
    with open(tmp_path / "lock", "w") as lock:
        guard = subprocess.Popen(
            [sys.executable, "-I", "-S", str(cell.GUARD), str(lock.fileno()), sys.executable]
            + ["-c", code],
            stdin=subprocess.PIPE,
            pass_fds=(lock.fileno(),),
        )
    when(lambda: log.exists() and "ready" in log.read_text())
    guard.send_signal(signal.SIGINT)
    when(lambda: "2 " in log.read_text())
    guard.stdin.close()
    assert guard.wait() == 0 and log.read_text() == "ready 2 "


def test_a_run_whose_record_cannot_be_written_is_stopped(tmp_path, monkeypatch):
    plan = launching.cells(tmp_path, 1000, 0.02)[0]
    pids = []

    def full(path, values):
        pids.append(values["pid"])
        raise OSError("no space left on device")

    monkeypatch.setattr(cell.files, "write_json", full)
    ending = train(plan.job)
    assert (ending.kind, ending.text) == ("broke", "no space left on device") and pids
    assert not cell.is_locked(plan.log) and done(plan.job) < 1000


def test_runs_of_launchers_that_are_gone_are_known(tmp_path):
    job = launching.cells(tmp_path)[0].job
    train(job)
    record = cell.read(job.record)
    gone = subprocess.Popen(["true"])
    gone.wait()

    def is_orphan(**changes):
        job.record.write_text(json.dumps(record | {"ending": None, "pid": gone.pid} | changes))
        return cell.is_orphan(job, "me")

    assert is_orphan()
    assert not is_orphan(pid=os.getpid()) and not is_orphan(by="7_1")
    assert not is_orphan(host="far") and not is_orphan(ending="stopped") and not is_orphan(pid="x")


def test_workers_need_neither_jax_nor_numpy():
    code = "import sys, experiments.launchers.cell, experiments.launchers.slurm_job"
    code += ", experiments.launchers.ray_task, experiments.launchers.status"
    code += "; print({'jax', 'numpy', 'ray', 'submitit'} & {*sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr


def test_a_second_launcher_is_refused_by_name(tmp_path, capsys):
    flags = ["--suite=debug", f"--work={tmp_path / 'w'}", f"--out={tmp_path / 'o'}"]
    with study.launching(tmp_path / "w"):
        assert reproduce.main(flags) == 2
        error = capsys.readouterr().err
        assert f"process {os.getpid()} on " in error and "launches this suite" in error
        assert error.count("\n") == 1
        assert reproduce.main([*flags, "--list"]) == 0
        assert reproduce.main([*flags, "--status"]) == 0
        assert reproduce.main([*flags, "--dry-run"]) == 0
        with study.launching(tmp_path / "w", shared=True):  # --cell, as in an array job
            pass
    with study.launching(tmp_path / "w"):
        pass


def test_of_two_launchers_started_at_once_one_trains(tmp_path):
    """Real processes; whoever is first is left alone, and resumes after Ctrl-C."""
    folders = [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    command = [sys.executable, launching.__file__, "100000", "0.05", "--suite=debug", *folders]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    job = launching.cells(tmp_path)[0].job
    try:
        when(lambda: any(process.poll() is not None for process in both), 240.0)
        first, second = sorted(both, key=lambda process: process.poll() is not None)
        out, err = second.communicate()
        assert second.returncode == 2 and not out
        assert err.startswith(f"error: --work = '{tmp_path / 'work'}': ")
        assert "launches this suite; wait for it or end it" in err and err.count("\n") == 1
        when(lambda: done(job) > 2)
        assert cell.read(job.record)["by"] == "local"
    finally:
        for process in both:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130 and out.endswith("stopped; the same command resumes\n"), err
    assert cell.read(job.workdir / "run.json")["exit_code"] == 130
    record = cell.read(job.record)
    assert (record["attempt"], record["ending"]) == (1, "stopped")


def test_other_configurations_in_the_folders_of_a_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "make_plans", launching.pretending(3, 0.01))
    launching.check_other_configurations(tmp_path, capsys)


def test_a_record_of_another_launcher_is_replaced(tmp_path, capsys, monkeypatch):
    """A node that is gone left a cell that seems to train there."""
    monkeypatch.setattr(plans, "make_plans", launching.pretending(3, 0.01))
    job = launching.cells(tmp_path)[0].job
    job.workdir.mkdir(parents=True)
    job.record.write_text('{"by": "ray 1", "host": "far", "attempt": 2, "ending": null}')
    flags = ["--suite=debug", f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'out'}"]
    assert reproduce.main([*flags, "--cell", "0"]) == 0
    record = cell.read(job.record)
    assert (record["by"], record["attempt"], record["ending"]) == ("local", 3, "finished")
    assert reproduce.main([*flags, "--status"]) == 0
    assert "1 finished, 3 to train" in capsys.readouterr().out


@pytest.mark.parametrize("flag", checks.FLAGS)
def test_flags_without_effect_are_refused(flag, capsys):
    launcher = next(x for x in ("ray", "local", "slurm") if x not in checks.FLAGS[flag])
    value = {"sbatch": "a=b", "cluster": "local", "fetch": "all"}.get(flag, "1")
    given = f"--{flag}" if flag == "detach" else f"--{flag}={value}"
    assert reproduce.main(["--suite=debug", f"--launcher={launcher}", given]) == 2
    assert f"error: --{flag} = " in capsys.readouterr().err


def state(plan, **about):
    plan.workdir.mkdir(parents=True, exist_ok=True)
    (plan.workdir / "run.json").write_text(json.dumps(about))
    (plan.workdir / "config.json").write_text('{"train": {"total_decisions": 600}}')


def test_the_table_has_every_state(tmp_path, capsys):
    some = launching.copies(launching.cells(tmp_path)[0], 7)
    finished, training, stopped, diverged, failed, queued, _ = some
    train(finished.job)
    state(training, exit_code=None, last_checkpoint=300, seconds=90)
    training.job.record.write_text('{"host": "far", "attempt": 2, "ending": null, "by": "7_1"}')
    state(stopped, exit_code=143, last_checkpoint=200, seconds=60)
    state(diverged, exit_code=3, status="training broke: seed 1", last_checkpoint=100)
    failed.job.record.write_text('{"ending": "broke", "text": "exit code 4", "host": "near"}')
    rows = table.rows([plan.place for plan in some], {training.name: "7_1", queued.name: "7_5"})
    assert [row.state for row in rows] == [
        "finished", "training", "stopped", "failed", "failed", "queued", "to train",
    ]  # fmt: skip
    assert table.summary("s", rows, gpus=2.0) == (
        "s: 7 cells: 1 finished, 1 training, 1 queued, 1 stopped, 2 failed, 1 to train;"
        " 0.0 cell-hours, 0.1 GPU-hours"
    )
    name = "probe/lqr m0"
    assert table.lines(rows) == [
        f"{name}1  training  300 of 600 decisions, 1:30, far, attempt 2",
        f"{name}2  stopped   200 of 600 decisions, 1:00",
        f"{name}3  failed    100 of 600 decisions, 0:00, training broke: seed 1",
        f"{name}4  failed    0 decisions, 0:00, near, exit code 4",
    ]


def test_a_cell_that_trains_is_not_queued_because_of_a_job_that_was_cancelled(tmp_path):
    plan = launching.copies(launching.cells(tmp_path)[0], 1)[0]
    plan.workdir.mkdir(parents=True, exist_ok=True)
    state(plan, exit_code=None, last_checkpoint=300, seconds=90)
    host = cell.socket.gethostname()
    plan.job.record.write_text(json.dumps({"host": host, "by": "local", "ending": None}))
    jobs = {plan.name: "7_1"}
    assert table.rows([plan.place], jobs)[0].state == "queued"
    with cell.locked(plan.log):
        assert table.rows([plan.place], jobs)[0].state == "training"


@pytest.mark.parametrize(
    "text",
    ['{"attempt": "abc", "ending": "weird"}', "[1]", '{"attempt": Infinity}', "[" * 100_000,
     '{"host": "a\\n\\u001b[2J", "ending": "broke", "text": "\\u0007"}'],
)  # fmt: skip
def test_damaged_records_are_shown_as_they_can_be(text, tmp_path):
    plan = launching.cells(tmp_path)[0]
    plan.workdir.mkdir(parents=True)
    plan.job.record.write_text(text)
    (plan.workdir / "run.json").write_text('{"exit_code": 1, "seconds": 1' + "0" * 400 + "}")
    lines = table.lines(table.rows([plan.place], {}))
    assert len(lines) == 1 and lines[0].isprintable()
    assert cell.attempts(cell.read(plan.job.record)) == 0


def test_a_cell_without_a_line_for_long_is_silent(tmp_path):
    (plan, *_) = launching.cells(tmp_path)
    state(plan, exit_code=None, last_checkpoint=300)
    plan.job.record.write_text('{"host": "far", "ending": null}')
    plan.log.touch()
    os.utime(plan.log, (0, time.time() - 3600))
    assert table.row(plan.place, {}).text.startswith("silent for 1:00:0")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_the_table_in_place(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("LINES", "4")
    stream = Terminal()
    screen = table.Screen(stream)
    screen.show("head", ["a" * 30, "b"])
    screen.say("said")
    screen.show("head", [])
    wanted = "head\n" + "a" * 19 + "\n\x1b[2F\x1b[J" + "said\n" + "head\n"
    assert stream.getvalue() == wanted


def test_a_log_gets_the_summary_every_minute():
    stream = io.StringIO()
    screen = table.Screen(stream)
    for _ in range(3):
        screen.show("head", ["below"])
    assert stream.getvalue() == "head\n"


def test_status_needs_no_jax_and_reads_only(tmp_path):
    some = launching.cells(tmp_path)
    train(some[0].job)
    before = sorted(tmp_path.rglob("*"))
    command = [sys.executable, "-X", "importtime", "-m", "experiments.reproduce", "--suite=debug"]
    command += ["--status", f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert out.stdout == "debug: 4 cells: 1 finished, 3 to train; 0.0 cell-hours\n", out.stderr
    assert not {"jax", "numpy"} & {x.rpartition("|")[2].strip() for x in out.stderr.splitlines()}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_replay_beyond_a_cell_s_memory_is_refused(tmp_path):
    cells = plans.make_plans(
        launching.study_of(tmp_path), overrides=["--config.train.capacity=10_000_000"]
    )
    with pytest.raises(ConfigError, match=r"probe/lqr tdmpc2: .*replay needs [\d.]+ GB; must be"):
        checks.check_memory(cells, 0.5, "--memory_per_cell = 0.5")
    checks.check_memory(cells, 16.0, "")  # train.memory_limit_gb bounds it
