"""Robustness against hostile command lines, files, signals and pipes.

    python -m experiments.benchmarks.abuse [--list] [--only=PATTERN] [--kinds=arguments,damage]
        [--out=experiments/results/abuse.json]
    python -m experiments.benchmarks.abuse --endings=60 [--seed=0]

The inputs are data (:mod:`experiments.benchmarks.abuse_inputs`). The verdict on each is ``refused``
(one line and a documented exit code), ``survived`` (it worked, perhaps with a warning) or
``wrong``: a traceback, several lines of errors, an undocumented exit code, or bytes of a run that
are no longer anywhere in its folder. Runs use the debug configuration; if only the start matters,
training is skipped. ``--endings`` stops real runs at random instants by SIGINT, SIGTERM, SIGHUP or
a closed pipe, and starts each of them again. Exit codes: 0 nothing was wrong, 1 something was, 2
bad input.
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
"""Documented exit codes (docs/reliability.md)."""
MOST_SECONDS = 570


class Outcome(NamedTuple):
    """Verdict on an input."""

    name: str
    kind: str
    verdict: str
    """``refused``, ``survived`` or ``wrong``."""
    code: int
    text: str
    """Reasons why it is wrong, or the line that refused it."""


def judge(tried: Input, code: int, err: str, lost: list[str], wanted: int | None = None) -> Outcome:
    """Verdict on an exit code, the text on stderr, and lost files."""
    # argparse prints its usage before the error; progress and warnings are no errors.
    skipped = ("usage:", " ", "compiling", "warning: ")
    lines = [line for line in err.splitlines() if line.strip() and not line.startswith(skipped)]
    last = lines[-1] if lines else ""
    reasons = []
    if "Traceback" in err:
        reasons.append("traceback")
    if code not in CODES or (wanted is not None and code != wanted):
        reasons.append(f"exit code {code}" + (f", not {wanted}" if wanted is not None else ""))
    if code in (1, 2, 4) and len(lines) != 1:
        reasons.append(f"{len(lines)} lines")
    if lost:
        reasons.append(f"lost {', '.join(lost[:3])}")
    if code == 1:  # documented, but every input here is one that must be expected
        reasons.append("unexpected exception")
    if reasons:
        return Outcome(tried.name, tried.kind, "wrong", code, f"{'; '.join(reasons)}: {last[:200]}")
    return Outcome(
        tried.name, tried.kind, "refused" if code in (2, 4) else "survived", code, last[:200]
    )


def called(main: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of a program called in this process, which saves its start-up time."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:  # its code may be None (0) or a text (1)
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            code = -1
            traceback.print_exc()
    return code, err.getvalue()


@contextlib.contextmanager
def nothing_trains() -> Iterator[list[int]]:
    """Let :func:`experiments.run.main` do all but train; yields the decisions it would start at."""
    began: list[int] = []

    def finish(training: Run, _: str) -> Ended:
        began.append(training.done)
        for line in training.start.notes:
            print(line, file=sys.stderr if line.startswith("warning") else sys.stdout)
        return trainer.outcome(training, 0, "not trained", "")

    # A command line replaces the handlers of the process, here those of the benchmark itself.
    handlers = {number: signal.getsignal(number) for number in early.SIGNALS}
    try:
        with mock.patch.object(trainer, "finish", finish):
            yield began
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def start(workdir: Path, *more: str) -> tuple[int, str, list[int]]:
    """Exit code, stderr, and decisions at which a run starts that does not train."""
    with nothing_trains() as began:
        code, err = called(run.main, ["run", DEBUG, f"--workdir={workdir}", *more])
    return code, err, began


class Abuse:
    """Tries inputs; prepares whole runs once, when the first input needs them."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._prepared: dict[str, Path] = {}

    def prepared(self, kind: str) -> Path:
        """Folder of a debug run that is ``finished`` or ``interrupted``."""
        if kind not in self._prepared:
            workdir = self._folder / kind
            if kind == "finished":
                subprocess.run(command(workdir), check=True, capture_output=True)
            else:
                interrupt(workdir)
            self._prepared[kind] = workdir
        return self._prepared[kind]

    def fresh(self) -> Path:
        """New empty folder."""
        return Path(tempfile.mkdtemp(dir=self._folder))

    def attempt(self, tried: Input) -> Outcome:
        """Try one input."""
        return getattr(self, f"_{tried.kind}")(tried)

    def _arguments(self, tried: Input) -> Outcome:
        work = self.fresh()
        given = [DEBUG if text == "DEBUG" else text for text in tried.how]
        return judge(tried, *called(run.main, ["run", *given, "--print_config"]), listing(work))

    def _files(self, tried: Input) -> Outcome:
        file = self.fresh() / "config.py"
        file.write_bytes(tried.how[0].encode(errors="surrogateescape"))
        return judge(tried, *called(run.main, ["run", f"--config={file}", "--print_config"]), [])

    def _workdir(self, tried: Input) -> Outcome:
        work = self.fresh()
        action, name = tried.how
        prepare(work, action, name)
        before = bytes_of(work)
        code, err, _ = start(Path(os.path.join(work, name)))
        return judge(tried, code, err, missing(before, work, changed=["config.json"]))

    def _damage(self, tried: Input) -> Outcome:
        kind, pattern, action = tried.how
        workdir = self.fresh() / "run"
        shutil.copytree(self.prepared(kind), workdir)
        for path in sorted(workdir.glob(pattern)):
            if path.is_file() or "**" not in pattern:  # "**" also matches folders on the way
                damage(path, action)
        return self._again(tried, workdir, kind)

    def _manifest(self, tried: Input) -> Outcome:
        path, value = tried.how
        workdir = self.fresh() / "run"
        shutil.copytree(self.prepared("interrupted"), workdir)
        newest = checkpoint.steps(workdir / "checkpoints")[-1]
        rewrite(workdir / "checkpoints" / str(newest) / digests.NAME, path, value)
        return self._again(tried, workdir, "interrupted")

    def _again(self, tried: Input, workdir: Path, kind: str) -> Outcome:
        """Start a damaged run twice; neither start may lose anything.

        The second one finds what the first has moved aside or repaired.
        """
        more = LONG if kind == "interrupted" else ()
        before, changed, outcomes = bytes_of(workdir), ["config.json", "run.json"], []
        for _ in range(2):
            code, err, _ = start(workdir, *more)
            outcomes.append(judge(tried, code, err, missing(before, workdir, changed)))
        return outcomes[1] if outcomes[1].verdict == "wrong" else outcomes[0]

    def _tool(self, tried: Input) -> Outcome:
        module, *how = tried.how
        work = self.fresh()
        given = [DEBUG if x == "DEBUG" else x.replace("{work}", str(work)) for x in how]
        given = [module, *given] if module == "experiments.sweep" else given
        return judge(tried, *called(importlib.import_module(module).main, given), [])

    def _shell(self, tried: Input) -> Outcome:
        wanted, line = tried.how
        work = self.fresh()
        line = line.replace("RUN", " ".join(command(work / "run")))
        if "DRAW" in line:
            run_ = self.prepared("finished")
            line = line.replace("DRAW", f"PYTHON -m experiments.plot {run_} --out={work}/x.png")
        line = line.replace("PYTHON -", f"{sys.executable} -")
        done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=MOST_SECONDS)
        # subprocess reports a death by signal n as -n, shells as 128 + n.
        code = 128 - done.returncode if done.returncode < 0 else done.returncode
        if code == 124 and line.startswith("timeout"):
            code = wanted  # timeout(1) replaces the exit code; run.json is compared below
        err = done.stderr.decode(errors="replace")
        lost = []
        about = work / "run" / "run.json"
        if about.exists() and json.loads(about.read_text())["exit_code"] not in (code, None):
            lost = ["the exit code in run.json"]
        lines = [x for x in err.splitlines() if x.startswith("error") or "Traceback" in x]
        return judge(tried, code, "\n".join(lines), lost, wanted)


def command(workdir: Path, *more: str) -> list[str]:
    """Command line of a debug run."""
    return [sys.executable, "-m", "experiments.run", DEBUG, f"--workdir={workdir}", *more]


def interrupt(workdir: Path) -> None:
    """Train until there are two checkpoints and an evaluation, then kill the process."""
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
    """Names of files in a folder that should be empty."""
    return sorted(path.name for path in folder.iterdir())


KINDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None)


def ending(number: signal.Signals | None, draw: random.Random, workdir: Path) -> dict[str, Any]:
    """Stop a run at a random instant; ``None`` closes the pipe it writes to, then interrupts it.

    Returns:
      A row of the results; ``wrong`` lists deviations from the documented behaviour.
    """
    child = subprocess.Popen(
        command(workdir, *LONG),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    rows = workdir / "metrics.jsonl"
    # One in five while it imports and compiles, where other code handles signals.
    at_start = draw.random() < 0.2
    while not at_start and child.poll() is None and not rows.exists():
        time.sleep(0.01)
    time.sleep(draw.uniform(0.0, 10.0 if at_start else 5.0))
    wrong = [] if child.poll() is None else ["it ended without a signal"]
    if number is None:
        child.stdout.close()
        time.sleep(draw.uniform(0.0, 3.0))  # a closed pipe alone must not end the run
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
        wrong.append(f"resumes at {began}, not {done}: {err[-200:]}")
    name = "pipe" if number is None else number.name
    return {"how": name, "decisions": done, "seconds": round(seconds, 2), "wrong": wrong}


def endings(count: int, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Results of ``count`` endings, all kinds in turn."""
    draw, results = random.Random(seed), []
    # Under nohup children would inherit that SIGHUP is ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for i in range(count):
        results.append(ending(KINDS[i % len(KINDS)], draw, folder / f"ended-{i}"))
        print(json.dumps(results[-1]), flush=True)
        shutil.rmtree(folder / f"ended-{i}", ignore_errors=True)
    return results


def table(outcomes: list[Outcome]) -> str:
    """Markdown table of verdicts by kind, then a line for every wrong one."""
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
    made.add_argument("--only", default="*", help="pattern of names to try, like '*csv*'")
    made.add_argument("--kinds", help="comma-separated kinds to try (default all)")
    made.add_argument("--endings", type=int, default=0, help="only stop this many real runs")
    made.add_argument("--seed", type=int, default=0, help="seed of the instants")
    made.add_argument("--out", type=Path, help="JSON file for the results")
    return made


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(parser().parse_args(argv)))


def _main(args: argparse.Namespace) -> int:
    kinds = args.kinds.split(",") if args.kinds else None
    chosen = [
        tried
        for tried in abuse_inputs.inputs()
        if fnmatch.fnmatch(tried.name, args.only) and (kinds is None or tried.kind in kinds)
    ]
    if not chosen:
        print(f"error: --only={args.only}: no input has such a name", file=sys.stderr)
        return 2
    if args.list:
        print("\n".join(f"{tried.kind:<10} {tried.name}" for tried in chosen))
        print(f"{len(chosen)} inputs")
        return 0
    with tempfile.TemporaryDirectory() as name:
        if args.endings:
            results: dict[str, Any] = {"endings": endings(args.endings, args.seed, Path(name))}
            wrong = sum(bool(tried["wrong"]) for tried in results["endings"])
            print(f"{args.endings} endings, {wrong} wrong")
        else:
            abuse, outcomes = Abuse(Path(name)), []
            for tried in chosen:
                outcomes.append(abuse.attempt(tried))
                print(f"{outcomes[-1].verdict:<9}{tried.kind}: {tried.name!r:.100}", flush=True)
            print(table(outcomes))
            wrong = sum(outcome.verdict == "wrong" for outcome in outcomes)
            results = {"inputs": [outcome._asdict() for outcome in outcomes]}
    if args.out is not None:
        about = process.describe(process.command("experiments.benchmarks.abuse", sys.argv))
        files.write_json(args.out, results | about)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
