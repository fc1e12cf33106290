"""Standard streams that are closed, full or of another encoding; signals; hostile inputs."""

import errno
import io
import os
import signal
import subprocess
import sys
import time

import pytest
from test_cli import ENVIRONMENT, ROOT

from experiments import clock, early, signals, start, streams
from experiments.benchmarks import abuse, abuse_files, abuse_inputs
from pomcp_jax.running import crash
from pomcp_jax.running.background import Control, Saver, Stop
from pomcp_jax.running.progress import Progress


class Failing(io.StringIO):
    def __init__(self, error):
        super().__init__()
        self.error = error

    def write(self, text):
        raise self.error

    def flush(self):
        raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError(errno.EIO, "gone"),
    OSError(errno.ENOSPC, "full"), BlockingIOError(errno.EAGAIN, "later"), ValueError("closed"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
def test_no_write_raises(error, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Failing(error))
    with streams.tolerant():
        print("x", flush=True)
        sys.stdout.writelines(["a", "b"])
        Progress(sys.stdout).say("y")
    assert isinstance(sys.stdout, Failing)


def test_closed_streams_and_other_encodings(monkeypatch):
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", narrow)
    monkeypatch.setattr(sys, "stderr", None)
    with streams.tolerant():
        print("a\N{SNOWMAN}\udcff")
        print("b", file=sys.stderr, flush=True)
    assert narrow.buffer.getvalue() == b"a\\u2603\\udcff\n"


def test_what_a_program_raises_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path))

    def program():
        raise TypeError("of\ntwo lines")

    assert streams.guarded(program) == 1
    err = capsys.readouterr().err
    assert err == f"error: TypeError: of two lines (traceback: {tmp_path}/crash.txt)\n"
    assert "def program" not in err and "Traceback" in (tmp_path / "crash.txt").read_text()
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    assert crash.report(ValueError(), None) == "ValueError (no traceback: no file can be written)"


@pytest.fixture
def handlers():
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_asks_for_an_end(number, handlers, monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    control = Control(Progress())
    signals.install(control)
    control.check()
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # its echo
    assert control.requested and not ended
    with pytest.raises(Stop) as stop:
        control.check()
    assert stop.value.code == 128 + number and number.name in str(stop.value)
    monkeypatch.setattr(signals, "ECHO", -1.0)  # the next one is no echo
    os.kill(os.getpid(), number)
    assert ended == ([] if number == signal.SIGHUP else [128 + number])


def test_time_that_is_up_asks_for_an_end(monkeypatch):
    monkeypatch.setattr(clock, "STARTED", time.monotonic() - 58.0)
    control = Control(Progress())
    start.limit(control, 60.0)
    assert not control.requested
    start.limit(control, 0.97)  # 0.2 s from now: the process has used the others
    deadline = time.monotonic() + 30.0
    while not control.requested and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(Stop, match="stopped after 0.97 minutes; the same command resumes") as stop:
        control.check()
    assert stop.value.code == 75


def test_nohup_is_respected(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    control = Control(Progress())
    signals.install(control)
    os.kill(os.getpid(), signal.SIGHUP)
    assert not control.requested


def test_a_saver_without_threads_reports_a_failure(monkeypatch):
    saver = Saver()

    def none(*args):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(saver._pool, "submit", none)
    saver.start(print)
    assert not saver.busy
    with pytest.raises(RuntimeError, match="can't start"):
        saver.collect(wait=True)


HELP = "-m experiments.run --help"


@pytest.mark.parametrize(
    "line",
    [
        f"PY {HELP} | head -1; exit ${{PIPESTATUS[0]}}",
        f"PY {HELP} >&-",
        f"PY {HELP} >/dev/full",
        f"PY {HELP} <&- >&- 2>&-",
        "PY -m experiments.plot --help | true; exit ${PIPESTATUS[0]}",
        "PY -m experiments.reproduce --suite=debug --dry_run | head -1; exit ${PIPESTATUS[0]}",
    ],
)
def test_programs_whose_readers_leave(line):
    done = subprocess.run(
        ["bash", "-c", line.replace("PY", sys.executable)],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_importing_ends_without_a_traceback(number, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", "experiments.run"]
    command += ["--config=experiments/configs/debug.py", f"--workdir={tmp_path / 'run'}"]
    # Shells start background jobs with SIGINT ignored, which children inherit. (A preexec_fn
    # would fork, which JAX warns about.)
    start = f"import os, signal; signal.signal({int(number)}, signal.SIG_DFL); "
    process = subprocess.Popen(
        [sys.executable, "-c", f"{start}os.execv({sys.executable!r}, {command!r})"],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for line in process.stderr:
        if "experiments.early" in line:
            break
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert not (tmp_path / "run").exists()


def test_the_list_of_abuse_is_long_and_names_are_unique(capsys):
    found = abuse_inputs.inputs()
    assert len(found) >= 500 and len({(one.kind, one.name) for one in found}) == len(found)
    assert all(hasattr(abuse.Abuse, f"_{one.kind}") for one in found)
    assert abuse.main(["--list", "--only=*metrics.csv*"]) == 0
    assert "metrics.csv" in capsys.readouterr().out
    assert abuse.main(["--only=nothing like it"]) == 2


def test_abuse_knows_what_is_wrong(tmp_path):
    one = abuse_inputs.Input("x", "arguments", ())
    verdict = {
        (0, ""): "survived",
        (2, "error: a\n"): "refused",
        (2, "error: a\nerror: b\n"): "wrong",
        (2, ""): "wrong",
        (1, "error: a\n"): "wrong",
        (7, "error: a\n"): "wrong",
        (0, "Traceback (most recent call last):"): "wrong",
    }
    for (code, err), wanted in verdict.items():
        assert abuse.judge(one, code, err, []).verdict == wanted
    assert abuse.judge(one, 2, "error: a\n", ["metrics.csv"]).verdict == "wrong"
    assert abuse.judge(one, 0, "", [], 2).verdict == "wrong"
    (tmp_path / "metrics.csv").write_text("a\nb\n")
    (tmp_path / "x").write_text("c")
    before = abuse_files.bytes_of(tmp_path)
    (tmp_path / "metrics.csv").write_text("a\n")
    (tmp_path / "x").rename(tmp_path / "y")
    assert abuse_files.missing(before, tmp_path) == []
    (tmp_path / "metrics.csv").write_text("other")
    (tmp_path / "y").unlink()
    assert abuse_files.missing(before, tmp_path) == ["metrics.csv", "x"]


def test_abuse_of_arguments_in_one_process(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert abuse.main(["--only=agent.mppi.num_samples = '[-9x]*", "--kinds=arguments"]) == 0
    assert "| all | " in capsys.readouterr().out


def test_alarms_of_xla_are_hidden_unless_wanted(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    early.hide_alarms()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    early.hide_alarms()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"
