"""Suites as jobs, by submitit: its engine for one machine, and a SLURM of four small scripts."""

import os
import re
import signal
import stat
import sys
import time
from pathlib import Path

import launching
import pytest

from experiments import reproduce
from experiments.launchers import cell, plans, slurm, study
from pomcp_jax.config import ConfigError

pytest.importorskip("submitit")
# Processes of submitit's engine for one machine are left alone on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")
SCRIPT = Path(__file__).with_name("fake_slurm.py").read_text()


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    """Restore signal handlers; ask for states often."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(slurm, "POLL", {"slurm": 0.2, "local": 0.1})
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A machine with SLURM's commands; returns the folder of its jobs."""
    commands, home = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    home.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        (commands / name).write_text(f"#!{sys.executable} -IS\n{SCRIPT}")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(home))
    slurm._longest_array.cache_clear()
    yield home
    slurm._longest_array.cache_clear()


def launch(folder, some, *flags):
    args = launching.arguments("--launcher=slurm", *flags)
    return slurm.prepare(args, launching.study_of(folder), some).run(lambda: None)


def when(condition, seconds=60.0):
    """Wait until a condition is true; returns its value."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)
    return value


def done(plan):
    return cell.read(plan.workdir / "run.json").get("last_checkpoint") or 0


def test_cells_are_an_array_that_survives_its_time_limit(tmp_path, cluster, capfd):
    """Detached, attached again, requeued once: every decision is made once."""
    some = launching.copies(launching.cells(tmp_path, 25, 0.05)[0], 4)
    flags = (
        "--time=1:00:00 --partition=gpu --memory_per_cell=2.5 --gpus_per_cell=2 --sbatch qos=high"
    )
    args = launching.arguments("--launcher=slurm", *flags.split())
    shown = slurm.prepare(args, launching.study_of(tmp_path), some).preview()
    assert not [*cluster.iterdir()] and not (tmp_path / "work" / "slurm").exists()
    outcome = launch(tmp_path, some, "--detach", *flags.split())
    assert outcome.detached and "`scancel 100 101` ends them" in outcome.text
    text = (cluster / "100.sh").read_text()
    for option in ("array=0-2%", "time=60", "partition=gpu", "mem=2560MB", "gpus-per-node=2",
                   "qos=high", "requeue", "signal=USR2@180", "cpus-per-task=1"):  # fmt: skip
        assert f"#SBATCH --{option}" in text and f" --{option}" in shown[0], option
    for name, line in zip(("100", "101"), shown, strict=True):  # every flag, in this order
        submitted = re.findall("#SBATCH (.*)", (cluster / f"{name}.sh").read_text())
        assert line.endswith(f": sbatch {' '.join(submitted)}")
    jobs = study.submitted(launching.study_of(tmp_path))["jobs"]
    assert [jobs[plan.name] for plan in some] == ["100_0", "100_1", "100_2", "101"]
    shown = slurm.prepare(args, launching.study_of(tmp_path), some).preview()
    assert shown == [f"{plan.name}: has job {jobs[plan.name]} already" for plan in some]
    when(lambda: done(some[0]) > 2)
    os.kill(cell.read(some[0].job.record)["pid"], signal.SIGUSR2)
    outcome = launch(tmp_path, some)
    assert outcome.ended["finished"] and not outcome.text
    assert sorted(outcome.ended["finished"]) == sorted(some)
    assert len([*cluster.glob("*.sh")]) == 2  # nothing was submitted twice
    assert launching.same_results(some, 25)
    assert [cell.read(plan.job.record)["attempt"] for plan in some] == [2, 1, 1, 1]
    assert "attached to 4 jobs" in capfd.readouterr().err


def jobs_of(state):
    """Jobs that are all in this state; returns them and the cells that were submitted."""
    some = []

    def submit(plans):
        some.extend(plans)
        return [f"{len(some)}_{i}" for i in range(len(plans))]

    return slurm.Jobs(
        submit, lambda: {f"{n}_0": state for n in range(1, 9)}, 2, lambda: 1, str
    ), some


def test_jobs_of_other_cells_are_not_forgotten(tmp_path):
    """Selections launched one after the other; then the file of their numbers is damaged."""
    some = launching.copies(launching.cells(tmp_path)[0], 4)
    of, args = launching.study_of(tmp_path), launching.arguments("--launcher=slurm", "--detach")
    of.work.mkdir(parents=True, exist_ok=True)
    jobs, submitted = jobs_of("PENDING")
    for selection in (some[:1], some[1:2]):
        slurm.Launch(args, of, selection, jobs).follow()
    assert set(study.submitted(of)["jobs"]) == {plan.name for plan in some[:2]}
    # Two jobs live, and now only one may: none is submitted.
    slurm.Launch(args, of, some, jobs._replace(limit=1)).follow()
    assert submitted == some[:2]
    of.jobs.write_text('{"jobs": [')
    with pytest.raises(ConfigError, match=r"launch.json: is damaged; end the jobs"):
        slurm.Launch(args, of, some, jobs)


def test_what_sbatch_refuses_is_one_line(tmp_path, cluster):
    some = launching.cells(tmp_path)
    with pytest.raises(ConfigError, match="^sbatch: invalid partition specified: none$"):
        launch(tmp_path, some, "--partition=none")


def test_lost_jobs_are_repeated_and_resume(tmp_path, capfd):
    """submitit's own engine: a job and a run are killed, another is started by the same command."""
    some = launching.copies(launching.cells(tmp_path, 30, 0.05)[0], 2)
    assert launch(tmp_path, some, "--cluster=local", "--jobs=2", "--detach").detached
    when(lambda: all(done(plan) > 2 for plan in some))
    os.kill(cell.read(some[0].job.record)["pid"], signal.SIGKILL)
    outcome = launch(tmp_path, some, "--cluster=local", "--jobs=2")
    assert sorted(outcome.ended["finished"]) == sorted(some)
    assert launching.same_results(some, 30)
    assert [cell.read(plan.job.record)["attempt"] for plan in some] == [2, 1]
    assert f"again    {some[0].name}: job " in capfd.readouterr().err


def test_other_configurations_in_the_folders_of_a_study(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plans, "make_plans", launching.pretending(3, 0.01))
    flags = "--launcher=slurm", "--cluster=local", "--jobs=2"
    launching.check_other_configurations(tmp_path, capsys, *flags)
    folders = [f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"]
    assert reproduce.main(["--suite=debug", *folders, *flags, "--time=1:00:00", "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 jobs of this machine, 2 at once, each up to 60 minutes\nfinished  ")
    assert (out.count("\nfinished  "), out.count("\nto train  ")) == (2, 2)


def test_ctrl_c_leaves_jobs_alone(tmp_path, capfd):
    (one, *_) = launching.cells(tmp_path, 25, 0.05)
    handler = signal.getsignal(signal.SIGALRM)
    # Sent while the launcher waits.
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    outcome = launch(tmp_path, [one], "--cluster=local")
    signal.signal(signal.SIGALRM, handler)
    assert outcome.received == signal.SIGINT and "1 jobs stay" in outcome.text
    outcome = launch(tmp_path, [one], "--cluster=local")
    assert outcome.ended["finished"] == [one] and launching.same_results([one], 25)
    assert cell.read(one.job.record)["attempt"] == 1


def test_broken_cells_are_not_repeated(tmp_path):
    one = launching.cells(tmp_path)[0]
    one = one._replace(command=[sys.executable, "-c", "raise SystemExit(4)", "--workdir=x"])
    outcome = launch(tmp_path, [one], "--cluster=local")
    assert outcome.ended["broke"] == [one]
    assert cell.read(one.job.record)["attempt"] == 1


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("4:00:00", 240), ("1-12", 2160), ("1-00:30:00", 1470), ("10:30", 11)],
)
def test_times_of_slurm(text, minutes):
    assert slurm.minutes(text) == minutes


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "--launcher = 'slurm': there is no sbatch on PATH; run it on a login node"),
        (["--time=5"], "--time = '5': must be D-HH:MM:SS, HH:MM:SS or minutes, above 6 minutes"),
        (["--time=soon"], "--time = 'soon': must be"),
        (["--sbatch", "qos"], "--sbatch = 'qos': must be KEY=VALUE"),
        (["--sbatch", "array=0-9"], "--sbatch = 'array=0-9': array is set by the launcher"),
        (["--gpus_per_cell=0.5"], "--gpus_per_cell = 0.5: must be a whole number on SLURM"),
        (["--memory_per_cell=0.000001"], "replay needs"),
        (["--minutes=5"], "--minutes = 5.0: has no effect here; is a flag of --launcher=local"),
        (["--fetch=all"], "--fetch = 'all': has no effect here; is a flag of --launcher=ray"),
    ],
)
def test_bad_input_is_one_line_and_submits_nothing(flags, words, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = ["--cluster=local"] if flags else []
    folders = [f"--out={tmp_path / 'o'}", f"--work={tmp_path / 'w'}"]
    assert reproduce.main(["--suite=debug", "--launcher=slurm", *engine, *flags, *folders]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_submitit_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert reproduce.main(["--suite=debug", "--launcher=slurm", f"--work={tmp_path / 'w'}"]) == 2
    assert "`pip install 'pomcp_jax[slurm]'`" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
