"""What becomes of hostile command lines, files, signals and pipes.

    python -m experiments.benchmarks.abuse [--list] [--only=PATTERN] [--kinds=arguments,damage]
        [--out=experiments/results/abuse.json]
    python -m experiments.benchmarks.abuse --endings=60 [--seed=0]

The inputs are data (:mod:`experiments.benchmarks.abuse_inputs`). Every one ends as ``refused`` (one
line, a documented exit code that says so), ``survived`` (it was fine, or a warning) or ``wrong``: a
traceback, more than two lines of errors, an undocumented exit code, or bytes of a run that are
nowhere in its folder any more. Runs are real ones of the debug configuration; where only the start
matters, training itself is left out. ``--endings`` ends real runs at random instants by SIGINT,
SIGTERM, SIGHUP and a pipe that closes, and starts each of them again. Exit codes: 0 nothing was
wrong, 1 something was, 2 bad input.
"""

from experiments import early  # isort: skip

import argparse
import collections
import contextlib
import fnmatch
import importlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from experiments import run, streams
from experiments.benchmarks import abuse_inputs
from experiments.benchmarks.abuse_files import bytes_of, damage, missing, prepare, rewrite
from experiments.benchmarks.abuse_inputs import Input
from pomcp_jax import checkpoint, digests, files
from pomcp_jax.running import process, trainer
from pomcp_jax.running.run import Run
from pomcp_jax.running.trainer import Outcome as Ended

DEBUG = "--config=experiments/configs/debug.py"
LONG = ("--config.train.total_decisions=100000", "--config.train.checkpoint_decisions=100")
CODES = {0, 1, 2, 3, 4, 129, 130, 143}
MOST_SECONDS = 570


class Outcome(NamedTuple):
    """What became of an input."""

    name: str
    kind: str
    verdict: str
    """``refused``, ``survived`` or ``wrong``."""
    code: int
    text: str
    """Why it is wrong, or the line that refused it."""


def judge(one: Input, code: int, err: str, lost: list[str], wanted: int | None = None) -> Outcome:
    """The verdict on an exit code, what was on stderr, and what was lost."""
    said = [line for line in err.splitlines() if line.strip()]
    # argparse prints its usage before the line that says what is wrong.
    told = [line for line in said if not line.startswith(("usage:", " ", "compiling", "warning: "))]
    last = told[-1] if told else ""
    reasons = []
    if "Traceback" in err:
        reasons.append("traceback")
    if code not in CODES or (wanted is not None and code != wanted):
        reasons.append(f"exit code {code}" + (f", not {wanted}" if wanted is not None else ""))
    if code in (1, 2, 4) and len(told) != 1:
        reasons.append(f"{len(told)} lines")
    if lost:
        reasons.append(f"lost {', '.join(lost[:3])}")
    if code == 1:
        reasons.append("unexpected exception")
    if reasons:
        return Outcome(one.name, one.kind, "wrong", code, f"{'; '.join(reasons)}: {last[:200]}")
    return Outcome(
        one.name, one.kind, "refused" if code in (2, 4) else "survived", code, last[:200]
    )


def called(main: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a program that is called in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = -1
            traceback.print_exc()
    return code, err.getvalue()


@contextlib.contextmanager
def nothing_trains() -> Iterator[list[int]]:
    """Let :func:`experiments.run.main` do all but train; gets the decisions it would go on at."""
    began: list[int] = []

    def finish(one: Run, _: str) -> Ended:
        began.append(one.done)
        for line in one.start.notes:
            print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
        return trainer.outcome(one, 0, "not trained", "")

    handlers = {number: signal.getsignal(number) for number in early.SIGNALS}
    try:
        with mock.patch.object(trainer, "finish", finish):
            yield began
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start(workdir: Path, *more: str) -> tuple[int, str, list[int]]:
    """Exit code, stderr and first decisions of a run that does not train."""
    with nothing_trains() as began:
        code, err = called(run.main, ["run", DEBUG, f"--workdir={workdir}", *more])
    return code, err, began


class Abuse:
    """Tries inputs; prepares whole runs when the first input needs them."""

    def __init__(self, folder: Path):
        self._folder, self._prepared = folder, {}

    def prepared(self, kind: str) -> Path:
        """A folder with a debug run that is ``finished`` or ``interrupted``."""
        if kind not in self._prepared:
            workdir = self._folder / kind
            if kind == "finished":
                subprocess.run(command(workdir), check=True, capture_output=True)
            else:
                interrupt(workdir)
            self._prepared[kind] = workdir
        return self._prepared[kind]

    def fresh(self) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def attempt(self, one: Input) -> Outcome:
        """Try one input."""
        return getattr(self, f"_{one.kind}")(one)

    def _arguments(self, one: Input) -> Outcome:
        work = self.fresh()
        given = [DEBUG if text == "DEBUG" else text for text in one.how]
        return judge(one, *called(run.main, ["run", *given, "--print_config"]), listing(work))

    def _files(self, one: Input) -> Outcome:
        file = self.fresh() / "config.py"
        file.write_bytes(one.how[0].encode(errors="surrogateescape"))
        return judge(one, *called(run.main, ["run", f"--config={file}", "--print_config"]), [])

    def _workdir(self, one: Input) -> Outcome:
        work = self.fresh()
        action, name = one.how
        prepare(work, action, name)
        before = bytes_of(work)
        code, err, _ = start(Path(os.path.join(work, name)))
        return judge(one, code, err, missing(before, work, changed=["config.json"]))

    def _damage(self, one: Input) -> Outcome:
        kind, pattern, action = one.how
        workdir = self.fresh() / "run"
        shutil.copytree(self.prepared(kind), workdir)
        for path in sorted(workdir.glob(pattern)):
            if path.is_file() or "**" not in pattern:
                damage(path, action)
        return self._again(one, workdir, kind)

    def _manifest(self, one: Input) -> Outcome:
        path, value = one.how
        workdir = self.fresh() / "run"
        shutil.copytree(self.prepared("interrupted"), workdir)
        newest = checkpoint.steps(workdir / "checkpoints")[-1]
        rewrite(workdir / "checkpoints" / str(newest) / digests.NAME, path, value)
        return self._again(one, workdir, "interrupted")

    def _again(self, one: Input, workdir: Path, kind: str) -> Outcome:
        """Start a damaged run twice: nothing may be lost, at the second time neither."""
        more = LONG if kind == "interrupted" else ()
        before, changed, outcomes = bytes_of(workdir), ["config.json", "run.json"], []
        for _ in range(2):
            code, err, _ = start(workdir, *more)
            outcomes.append(judge(one, code, err, missing(before, workdir, changed)))
        return outcomes[1] if outcomes[1].verdict == "wrong" else outcomes[0]

    def _tool(self, one: Input) -> Outcome:
        module, *how = one.how
        work = self.fresh()
        given = [DEBUG if x == "DEBUG" else x.replace("{work}", str(work)) for x in how]
        given = [module, *given] if module == "experiments.sweep" else given
        return judge(one, *called(importlib.import_module(module).main, given), [])

    def _shell(self, one: Input) -> Outcome:
        wanted, line = one.how
        work = self.fresh()
        line = line.replace("RUN", " ".join(command(work / "run")))
        if "DRAW" in line:
            run_ = self.prepared("finished")
            line = line.replace("DRAW", f"PYTHON -m experiments.plot {run_} --out={work}/x.png")
        line = line.replace("PYTHON -", f"{sys.executable} -")
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=MOST_SECONDS)
        code = 128 - done.returncode if done.returncode < 0 else done.returncode
        if code == 124 and line.startswith("timeout"):
            code = wanted  # timeout(1) hides the code of what it ended
        err = done.stderr.decode(errors="replace")
        lost = []
        about = work / "run" / "run.json"
        if about.exists() and json.loads(about.read_text())["exit_code"] not in (code, None):
            lost = ["the exit code in run.json"]
        lines = [x for x in err.splitlines() if x.startswith("error") or "Traceback" in x]
        return judge(one, code, "\n".join(lines), lost, wanted)


def command(workdir: Path, *more: str) -> list[str]:
    """A debug run."""
    return [sys.executable, "-m", "experiments.run", DEBUG, f"--workdir={workdir}", *more]


def interrupt(workdir: Path) -> None:
    """Kill a run when it has two checkpoints and an evaluation."""
    child = subprocess.Popen(
        command(workdir, *LONG), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    evaluations = workdir / "evaluations.csv"
    while child.poll() is None:
        steps = checkpoint.steps(workdir / "checkpoints")
        if len(steps) >= 2 and steps[-1] >= 600 and evaluations.stat().st_size:
            break
        time.sleep(0.01)
    child.kill()
    child.wait()


def listing(folder: Path) -> list[str]:
    """Names of what is there, although nothing should be."""
    return sorted(path.name for path in folder.iterdir())


KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None)


def ending(number: signal.Signals | None, draw: random.Random, workdir: Path) -> dict[str, Any]:
    """End a run at a random instant; ``None`` closes the pipe it writes to, then interrupts it.

    Returns:
      ``wrong``: what is not as it should be, nothing if all is.
    """
    child = subprocess.Popen(
        command(workdir, *LONG),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    rows = workdir / "metrics.jsonl"
    at_start = draw.random() < 0.2
    while not at_start and child.poll() is None and not rows.exists():
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 10.0 if at_start else 5.0))
    wrong = [] if child.poll() is None else ["it ended by itself"]
    if number is None:
        child.stdout.close()
        time.sleep(draw.uniform(0.0, 3.0))
        if child.poll() is not None:
            wrong.append("the pipe ended it")
    wanted = 128 + (number or signal.SIGINT)
    child.send_signal(number or signal.SIGINT)
    begin = time.monotonic()
    out = b"" if number is None else child.communicate(timeout=MOST_SECONDS)[0]
    code = child.wait(timeout=MOST_SECONDS)
    if code != wanted:
        wrong.append(f"exit code {code}, not {wanted}")
    if b"Traceback" in out:
        wrong.append("traceback")
    seconds, done, kept = time.monotonic() - begin, 0, 0
    if (workdir / "run.json").exists():
        about = json.loads((workdir / "run.json").read_text())
        done, kept = about["decisions_per_seed"], about["last_checkpoint"] or 0
        if about["exit_code"] != wanted or not about["status"].startswith("stopped by"):
            wrong.append(f"run.json says {about['status']!r}")
    if kept < done:
        wrong.append(f"saved at {kept} of {done} decisions")
    code, err, began = start(workdir, *LONG)
    if code or began != [done]:
        wrong.append(f"goes on at {began}, not {done}: {err[-200:]}")
    name = "pipe" if number is None else number.name
    return {"how": name, "decisions": done, "seconds": round(seconds, 2), "wrong": wrong}


def endings(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """``count`` endings, all kinds in turn."""
    draw, found = random.Random(seed), []
    # Children inherit what nohup around this process ignores.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for i in range(count):
        found.append(ending(KINDS[i % len(KINDS)], draw, folder / f"ended-{i}"))
        print(json.dumps(found[-1]), flush=True)
        shutil.rmtree(folder / f"ended-{i}", ignore_errors=True)
    return found


def table(outcomes: list[Outcome]) -> str:
    """Counts by kind, then every input that is wrong."""
    verdicts = ("refused", "survived", "wrong")
    count = collections.Counter((o.kind, o.verdict) for o in outcomes)
    lines = ["| kind | tried | refused | survived | wrong |", "|---|---|---|---|---|"]
    for kind in [*dict.fromkeys(o.kind for o in outcomes), "all"]:
        of = [
            sum(n for (k, v), n in count.items() if v == verdict and kind in (k, "all"))
            for verdict in verdicts
        ]
        lines.append(f"| {kind} | {sum(of)} | {' | '.join(map(str, of))} |")
    lines += [f"wrong: {o.kind}: {o.name}: {o.text}" for o in outcomes if o.verdict == "wrong"]
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--list", action="store_true", help="print all inputs and stop")
    made.add_argument("--only", default="*", help="names to try, a pattern like '*csv*'")
    made.add_argument("--kinds", help="kinds to try, with commas; all by default")
    made.add_argument("--endings", type=int, default=0, help="end so many runs, nothing else")
    made.add_argument("--seed", type=int, default=0, help="of the instants")
    made.add_argument("--out", type=Path, help="a JSON file")
    return made


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(parser().parse_args(argv)))


def _main(args: argparse.Namespace) -> int:
    kinds = args.kinds.split(",") if args.kinds else None
    chosen = [
        one
        for one in abuse_inputs.inputs()
        if fnmatch.fnmatch(one.name, args.only) and (kinds is None or one.kind in kinds)
    ]
    if not chosen:
        print(f"error: --only={args.only}: no input has such a name", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{one.kind:<10} {one.name}" for one in chosen))
        print(f"{len(chosen)} inputs")
        return 0
    with tempfile.TemporaryDirectory() as name:
        if args.endings:
            found: dict[str, Any] = {"endings": endings(args.endings, args.seed, Path(name))}
            wrong = sum(bool(one["wrong"]) for one in found["endings"])
            print(f"{args.endings} endings, {wrong} wrong")
        else:
            abuse, outcomes = Abuse(Path(name)), []
            for one in chosen:
                outcomes.append(abuse.attempt(one))
                print(f"{outcomes[-1].verdict:<9}{one.kind}: {one.name!r:.100}", flush=True)
            print(table(outcomes))
            wrong = sum(outcome.verdict == "wrong" for outcome in outcomes)
            found = {"inputs": [outcome._asdict() for outcome in outcomes]}
    if args.out is not None:
        about = process.describe(process.command("experiments.benchmarks.abuse", sys.argv))
        files.write_json(args.out, found | about)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
