"""One run over several processes: flags, agreement, parts of the workdir, one end for all."""

import hashlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

from experiments.clock import TIME_IS_UP
from experiments.settings import Settings
from pomcp_jax import checkpoint, parts
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.running import arranging, group, process, workdirs
from pomcp_jax.running.background import RESUMES, Control, Stop
from pomcp_jax.running.group import ENDED, GREETING, Group, Place
from pomcp_jax.running.options import Together

AUTO = "auto"
VISIBLE = 30.0
"""Seconds until a file of process 0 must be seen by the others: network file systems cache."""
PATIENCE = 30.0
"""Seconds of waiting for a slower process after which a line says so."""
LAST = 6.0
"""Seconds beyond the heartbeat's limit after which a process ends at once if another is gone."""


def own_flags() -> flags.FlagValues:
    """The flags of a run over several processes."""
    values = flags.FlagValues()
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, or auto", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "processes of the run", flag_values=values)
    flags.DEFINE_integer("process_id", None, "number of this process", flag_values=values)
    flags.DEFINE_float("join_timeout", 60.0, "seconds to join", flag_values=values)
    flags.DEFINE_float("heartbeat_timeout", 30.0, "seconds of silence", flag_values=values)
    return values


def place(values: flags.FlagValues) -> Place | None:
    """Where this process meets the others; None for a process alone.

    Raises:
      ConfigError: one line about a flag.
    """
    count, index = values.num_processes, values.process_id
    if values.coordinator is None:
        for name, number in (("num_processes", count), ("process_id", index)):
            if number is not None:
                raise ConfigError(f"--{name} = {number}: needs --coordinator=HOST:PORT")
        return None
    for name in ("join_timeout", "heartbeat_timeout"):
        seconds = float(values[name].value or 0.0)
        if not 1.0 <= seconds <= 86_400.0:
            raise ConfigError(f"--{name} = {seconds:g}: must be from 1 to 86400 seconds")
    address = values.coordinator
    if address == AUTO:
        address, count, index = _detected(count, index)
    host, port = _address(address)
    for name, number in (("num_processes", count), ("process_id", index)):
        if number is None:
            raise ConfigError(f"--{name}: missing; --coordinator = {address!r} needs it")
    if count < 1:
        raise ConfigError(f"--num_processes = {count}: must be >= 1")
    if not 0 <= index < count:
        raise ConfigError(f"--process_id = {index}: must be >= 0 and < --num_processes = {count}")
    return Place(host, port, index, count, values.join_timeout, values.heartbeat_timeout)


def most_seeds(values: flags.FlagValues, options: Settings) -> int:
    """Seeds of the largest share of a process.

    Raises:
      ConfigError: as :func:`place`.
    """
    here = place(values)
    return math.ceil(options.config.train.num_seeds / (here.processes if here else 1))


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    digits = port.isascii() and port.isdecimal() and len(port) <= 5
    try:
        # A name that has no form for name servers fails deep inside of a connection.
        named = bool(host.encode("idna")) and "\0" not in host
    except UnicodeError:
        named = False
    if not (named and digits and 0 < int(port) < 65_536):
        raise ConfigError(
            f"--coordinator = {text!r:.300}: must be HOST:PORT of process 0, or {AUTO}"
        )
    return host, int(port)


def _detected(count: int | None, index: int | None) -> tuple[str, int | None, int | None]:
    """Address, number of processes and number of this one from the cluster that JAX detects."""
    # ``jax.distributed.initialize`` detects and connects in one call.
    from jax._src import clusters

    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, count, index, [], None, 60
        )
        address, count, index, _ = found
    except Exception as error:  # variables or services that the cluster should have
        text = " ".join(str(error).split())
        raise ConfigError(f"--coordinator = {AUTO}: {text or type(error).__name__}") from None
    if address is None:
        raise ConfigError(
            f"--coordinator = {AUTO}: no cluster is found (SLURM, Open MPI, Kubernetes, TPU); must"
            " be HOST:PORT, with --num_processes and --process_id"
        )
    return address, count, index


def sources() -> str:
    """Digest of all source files of the package and the command lines."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for folder in ("pomcp_jax", "experiments"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def facts(options: Settings) -> dict[str, str]:
    """What all processes of a run must have in common, the code first."""
    code = {f"version of {name}": text for name, text in checkpoint.versions().items()}
    code |= {"commit": str(process.commit()), "source digest": sources()}
    config = {name: str(value) for name, value in config_lib.flatten(options.config).items()}
    return code | config | {"--resume": options.resume}


def enter(values: flags.FlagValues, options: Settings) -> Group | None:
    """Join the other processes; None for a process alone, or one that only prints.

    Raises:
      ConfigError: one line.
    """
    here = place(values)
    if here is None or options.print_only:
        return None
    if here.processes > 1 and options.resume == "change_seeds":
        raise ConfigError("--resume = 'change_seeds': needs one process; resume with more later")
    train = options.config.train
    parts.shares(train.seed, train.num_seeds, here.processes)  # called for its check alone
    if here.processes > 1:
        print(f"process {here.process} of {here.processes}: joining at {here.address}", flush=True)
    return group.join(here, facts(options))


def assigned(
    joined: Group | None, options: Settings, say: Callable[[str], None], command: str
) -> tuple[Settings, int | None]:
    """Settings of this process's part, after process 0 has arranged the workdir.

    Returns:
      The settings, and a descriptor whose file is the workdir's lock, if this process has it.

    Raises:
      ConfigError: one line.
      Stop: another process has refused, or is gone.
    """
    workdir, config = options.workdir, options.config
    if joined is None or joined.count == 1:
        staged = (workdir / parts.RECORD, workdir / arranging.STAGED)
        if options.print_only or not any(path.exists() for path in staged):
            return options, None
        alone = workdirs.lock(workdir)
        try:
            for line in arranging.arrange(workdir, config, 1, options.resume):
                say(line)
        finally:
            os.close(alone)
        return options, None
    shares = parts.shares(config.train.seed, config.train.num_seeds, joined.count)
    part = shares[joined.index]
    lock: int | None = None
    if joined.index == 0:
        lock = workdirs.lock(workdir)
        for line in arranging.arrange(workdir, config, joined.count, options.resume):
            say(line)
        about = {"status": "running", "exit_code": None, "command": command}
        joined.post("arranged", arranging.write_record(workdir, config, shares, about))
    else:
        _await(joined, lambda: 0 in joined.read("arranged"))
        _check_visible(workdir, joined.read("arranged")[0])
    # The first part's process has moved an earlier run aside for all.
    resume = "auto" if options.resume == "never" else options.resume
    seeds = f"{part.first}" if part.num_seeds == 1 else f"{part.first} to {part.seeds.stop - 1}"
    plural = "seed" if part.num_seeds == 1 else "seeds"
    say(f"process {joined.index} of {joined.count}: {plural} {seeds} in {workdir / part.folder}/")
    own = options._replace(
        config=parts.config(config, part), workdir=workdir / part.folder, resume=resume
    )
    return own, lock


def _check_visible(workdir: Path, identity: str) -> None:
    """Wait until the record that process 0 wrote is here.

    Raises:
      ConfigError: the workdirs are different folders.
    """
    deadline = time.monotonic() + VISIBLE
    while True:
        try:
            record = parts.read(workdir)
            if record is not None and record.values.get("id") == identity:
                return
        except ConfigError:  # of a file system that is behind
            pass
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--workdir = {str(workdir)!r:.300}: lacks the files of process 0; must be one"
                " folder for all processes, on a shared file system"
            )
        time.sleep(0.2)


def _await(joined: Group, ready: Callable[[], bool]) -> None:
    """Wait for all others before training.

    Raises:
      Stop: another process has refused, or is gone.
    """
    if not joined.wait(ready, lambda: bool(joined.read(ENDED))):
        raise Stop(*(reason(joined) or (2, "another process has ended")))


def reason(joined: Group) -> tuple[int, str] | None:
    """Why this process must end with another: exit code and text; None if there is no reason."""
    name = f"of {joined.count}"
    for index, (code, text) in sorted(joined.read(ENDED).items()):
        if code and index != joined.index:
            return code, f"process {index} {name}: {text}"
    for index, (code, text) in sorted(joined.read("stop").items()):
        if index != joined.index:
            return code, f"{text} (process {index} {name})"
    for index, gone in sorted(joined.gone.items()):
        return TIME_IS_UP, f"process {index} {name} is gone ({gone.why}){RESUMES}"
    return None


def checked(joined: Group | None) -> None:
    """Wait until every process has made all its checks, so that none compiles in vain.

    Raises:
      Stop: another process has refused, or is gone.
    """
    if joined is not None:
        joined.post("checked", True)
        _await(joined, lambda: len(joined.read("checked")) == joined.count)


def together(joined: Group | None, workdir: Path, control: Control) -> Together | None:
    """How this process's checkpoints keep step with those of the others."""
    if joined is None or joined.count == 1:
        return None
    joined.post("steps", checkpoint.steps(workdir / "checkpoints"))

    def others() -> list[list[int]]:
        return [steps for i, steps in joined.read("steps").items() if i != joined.index]

    def common(own: Sequence[int]) -> int:
        # Zero, so that all are kept, while there is none in common.
        every = others()
        shared = set(own).intersection(*every) if len(every) == joined.count - 1 else {0}
        return max(shared, default=0)

    def saved(own: Sequence[int]) -> None:
        joined.post("steps", list(own))
        # One interval ahead is enough to never wait on equal machines. Further ahead nothing is
        # gained, as the run ends with its slowest process, and checkpoints pile up.
        if len(own) < 2:
            return
        late, notes = _after(PATIENCE), [f"waiting for processes that are before {own[-2]:,}"]

        def over() -> bool:
            if notes and late():
                control.progress.say(notes.pop())
            return control.requested or bool(joined.read(ENDED))

        joined.wait(lambda: all(steps and steps[-1] >= own[-2] for steps in others()), over)

    return Together(common, saved)


def watch(joined: Group | None, control: Control) -> None:
    """Pass on a stop of this process to the others, and theirs to this one, in a thread."""

    def loop() -> None:
        assert joined is not None
        while True:
            stop = control.reason
            if stop is not None and joined.index not in joined.read("stop"):
                joined.post("stop", [stop.code, str(stop)])
            if why := reason(joined):
                control.request(*why)
            heard = min((gone.heard for gone in joined.gone.values()), default=float("inf"))
            if time.monotonic() > heard + joined.heartbeat + LAST:
                assert why is not None
                print(f"error: {why[1]}", file=sys.stderr, flush=True)
                os._exit(TIME_IS_UP)
            time.sleep(0.1)

    if joined is not None:
        threading.Thread(target=loop, daemon=True).start()


def leave(joined: Group | None, options: Settings, code: int, text: str) -> int:
    """Announce the end of this process and wait for those of the others; returns the exit code.

    ``options`` are those of the whole run.
    """
    if joined is None:
        return code
    joined.post(ENDED, [code, text])
    limit = joined.heartbeat + LAST if code else float("inf")
    behind = [i for i in range(joined.count) if i not in joined.read(ENDED)]
    if behind and not code:
        print(f"waiting for process {', '.join(map(str, behind))}", flush=True)
    joined.wait(lambda: len(joined.read(ENDED)) == joined.count, _after(limit))
    why = reason(joined)
    if why and (joined.gone or not code):
        code, text = code or why[0], why[1]
        print(f"error: {text}", file=sys.stderr, flush=True)
    if joined.index == 0 and joined.count > 1:
        _note_end(options.workdir, code, text)
    joined.close()
    return code


def _after(seconds: float) -> Callable[[], bool]:
    deadline = time.monotonic() + seconds
    return lambda: time.monotonic() > deadline


def _note_end(workdir: Path, code: int, text: str) -> None:
    """Write the end of the whole run to its record, if it got as far as having one."""
    try:
        record = parts.read(workdir)
        if record is not None:
            ended = record.values | {"status": text, "exit_code": code}
            arranging.files.write_json(workdir / parts.RECORD, ended)
    except (ConfigError, OSError):  # the parts' own records are what counts
        pass


def fails(joined: Group | None, options: Settings, error: ConfigError | Stop) -> None:
    """Tell the others that this process does not train."""
    if joined is None:
        return
    code = error.code if isinstance(error, Stop) else 2
    joined.post(ENDED, [code, str(error)])
    joined.wait(lambda: len(joined.read(ENDED)) == joined.count, _after(GREETING))
    if joined.index == 0 and isinstance(error, Stop):
        _note_end(options.workdir, code, str(error))
    joined.close()
