"""Cells as tasks of a Ray cluster: ``reproduce --launcher=ray``.

A cell is a task with the resources of its flags. Cells train in their folders on a file system that
all nodes share; a task whose worker or node is lost is repeated elsewhere and resumes there. With
``--fetch`` no folder is shared: a cell trains in a folder of its node, and its files are brought
back at the end.
"""

import argparse
import hashlib
import logging
import os
import secrets
import signal
import socket
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import gpus
from experiments.launchers import cell, checks, plans, ray_task, table
from experiments.launchers.cell import Ending
from experiments.launchers.plans import Outcome, Plan, Ready
from experiments.launchers.ray_task import Order
from experiments.launchers.study import Study
from pomcp_jax import __version__, files
from pomcp_jax.config import ConfigError
from pomcp_jax.reporting import keeping

RETRIES = 10
"""Default of ``--retries``."""
VARIABLES = ("JAX_", "XLA_", "MUJOCO_", "WANDB_", "TF_CPP_")
"""Beginnings of the names of environment variables that cells get from the launcher."""
ANSWER = 120.0
"""Seconds within which a node has to answer."""


def prepare(args: argparse.Namespace, study: Study, todo: list[Plan]) -> Ready:
    """Check what can be checked without the cluster.

    Raises:
      ConfigError: one line for the user.
    """
    _imported()
    if args.memory_per_cell is not None:
        what = f"--memory_per_cell = {args.memory_per_cell:g}"
        checks.check_memory(todo, args.memory_per_cell, what)
    limit = f"{args.jobs} at once" if args.jobs else "as many at once as fit"
    return Ready(
        f"{limit} on Ray",
        lambda begin: run(args, study, todo, begin),
        lambda: [described(args, len(todo))],
    )


def described(args: argparse.Namespace, cells: int) -> str:
    """What would be submitted, in one line."""
    needed = resources(args)
    memory = f", {needed['memory'] / 1e9:g} GB" if needed["memory"] else ""
    retries = RETRIES if args.retries is None else args.retries
    limit = f", at most {args.jobs} at once" if args.jobs else ""
    return (
        f"{cells} tasks of Ray at {args.address or 'a running cluster, else this machine'}{limit},"
        f" each {needed['CPU']:g} CPU, {needed['GPU']:g} GPU{memory}, up to {retries} retries"
    )


def run(
    args: argparse.Namespace, study: Study, todo: list[Plan], begin: Callable[[], None]
) -> Outcome:
    """Train the cells on the cluster, after calling ``begin`` once all is checked.

    Raises:
      ConfigError: the cluster cannot be reached, or cannot do this; no cell was started.
    """
    ray = connect(args.address)
    try:
        order = _order(args, study)
        try:
            check_nodes(ray, args, todo, order)
            begin()
            return Launch(ray, args, study, order, todo).follow()
        finally:
            Path(order.token).unlink(missing_ok=True)
    finally:
        ray.shutdown()


def _imported() -> ModuleType:
    """Ray.

    Raises:
      ConfigError: it is not installed.
    """
    # Read on import; cells of a study are nobody else's business.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A GPU stays hidden from cells that asked for none.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own imports
            import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--launcher = 'ray': {error.name} is not installed; `pip install 'pomcp_jax[ray]'`"
        ) from None
    return ray


def connect(address: str | None) -> ModuleType:
    """Connect to a cluster, or start one on this machine; returns Ray.

    Raises:
      ConfigError: there is no cluster at ``address``.
    """
    ray = _imported()
    if ray.is_initialized():
        return ray
    _check_reachable(address or "")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address,
                configure_logging=True,
                logging_level=logging.CRITICAL,
                log_to_driver=False,
                include_dashboard=False if address == "local" else None,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(
            f"--address = {address or 'auto'!r}: no Ray cluster ({text:.200})"
        ) from None
    return ray


def _check_reachable(address: str) -> None:
    """Refuse a ``HOST:PORT`` that nothing listens at: Ray itself tries for minutes.

    Raises:
      ConfigError: one line.
    """
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()) or "/" in host:
        return
    try:
        socket.create_connection((host, int(port)), timeout=20.0).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--address = {address!r}: no Ray cluster ({error})") from None


def _order(args: argparse.Namespace, study: Study) -> Order:
    """What all cells of this launch have in common; writes the token.

    Raises:
      ConfigError: the study's folder cannot be written.
    """
    by = f"ray {secrets.token_hex(4)}"
    token = study.work.absolute() / f".{by.replace(' ', '-')}"
    given = {k: v for k, v in os.environ.items() if k.startswith(VARIABLES)}
    share = args.gpus_per_cell or 0
    if 0 < share < 1:
        # Several cells on a GPU: each reserves its share of the memory.
        given.setdefault(gpus.FRACTION, f"{gpus.SHARE * share:.2f}")
    scratch = hashlib.sha256(f"{token.parent} {study.suite}".encode()).hexdigest()[:16]
    try:
        token.write_text(by)
    except OSError as error:
        raise ConfigError(f"--work = {str(study.work)!r}: {error.strerror}") from None
    return Order(by, str(token), given, args.fetch or "", f"{study.name}-{scratch}")


def resources(args: argparse.Namespace) -> dict[str, float]:
    """What a cell needs, by Ray's names."""
    needed = {"CPU": float(args.cpus_per_cell or 1), "GPU": float(args.gpus_per_cell or 0)}
    return needed | {"memory": (args.memory_per_cell or 0.0) * 1e9}


def check_nodes(
    ray: ModuleType, args: argparse.Namespace, todo: Sequence[Plan], order: Order
) -> None:
    """Refuse a cluster without a node that has what a cell needs, sees the folder and answers.

    Raises:
      ConfigError: one line for the user.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    flags = {"CPU": "cpus_per_cell", "GPU": "gpus_per_cell", "memory": "memory_per_cell"}
    needed = resources(args)
    for name, amount in needed.items():
        most = max((node["Resources"].get(name, 0.0) for node in nodes), default=0.0)
        if amount > most:
            scale = 1e9 if name == "memory" else 1.0
            raise ConfigError(
                f"--{flags[name]} = {amount / scale:g}: no node of the Ray cluster has more than"
                f" {most / scale:.4g}"
            )
    fitting = [
        node
        for node in nodes
        if all(node["Resources"].get(name, 0.0) >= amount for name, amount in needed.items())
    ]
    if not fitting:
        raise ConfigError(f"--launcher = 'ray': no node has {needed} together")
    most = max(node["Resources"].get("memory", 0.0) for node in fitting) / 1e9
    checks.check_memory(todo, most, "the memory of the largest node of the Ray cluster")
    answers = _answers(ray, fitting, order)
    if not any(answers):
        raise ConfigError("--launcher = 'ray': every node that has the resources is gone")
    for node, facts in zip(fitting, answers, strict=True):
        if not facts:
            continue
        host = node["NodeManagerHostname"]
        if facts["version"] != __version__:
            raise ConfigError(
                f"node {host} has pomcp_jax {facts['version']}; must be {__version__} as here"
            )
        if not (facts["sees"] or order.fetch):
            raise ConfigError(
                f"node {host} does not see {Path(order.token).parent}; name a shared folder with"
                " --work and --out, or --fetch=results brings results back"
            )


GONE = ("TaskUnschedulableError", "NodeDiedError")
"""Ray's errors of a task that is bound to a node which no longer exists."""


def _answers(ray: ModuleType, nodes: Sequence[Any], order: Order) -> list[dict[str, Any]]:
    """Facts about every node; empty for one that is lost, which Ray may list for a while.

    Raises:
      ConfigError: a node does not answer, or lacks this package.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(ray_task.probe)
    asked = [
        probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], False)
        ).remote(order)
        for node in nodes
    ]
    answers = []
    for node, reference in zip(nodes, asked, strict=True):
        try:
            answers.append(ray.get(reference, timeout=ANSWER))
        except Exception as error:  # of many kinds, also those of the import over there
            if type(error).__name__ in GONE:
                answers.append({})
                continue
            text = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"node {node['NodeManagerHostname']} cannot run cells: {text[-1]:.200}; install"
                " pomcp_jax there"
            ) from None
    return answers


class Launch:
    """Tasks of a launch, and how they end."""

    def __init__(
        self, ray: ModuleType, args: argparse.Namespace, study: Study, order: Order,
        todo: Sequence[Plan],
    ):  # fmt: skip
        """Start nothing."""
        self._ray, self._study, self._order, self._args = ray, study, order, args
        self._todo = list(reversed(todo))
        self._places = [plan.place for plan in todo]
        self._live: dict[Any, Plan] = {}
        self._ended: dict[str, list[Plan]] = {kind: [] for kind in cell.ENDINGS}
        self._received = 0
        self._screen = table.Screen()
        self._limit = args.jobs or len(todo)
        needed = resources(args)
        self._task = ray.remote(ray_task.train).options(
            num_cpus=needed["CPU"],
            num_gpus=needed["GPU"],
            memory=needed["memory"] or None,
            max_retries=RETRIES if args.retries is None else args.retries,
            retry_exceptions=[cell.Lost],
        )

    def follow(self) -> Outcome:
        """Submit the cells and wait for them, or for a signal."""
        self._catch_signals()
        shown, rows, announced = 0.0, [], False
        while self._live or (self._todo and not self._received):
            self._submit()
            if self._received and not announced:
                announced = True
                self._screen.say("stopping after the current chunks; signal again to stop at once")
                for reference in list(self._live):
                    self._ray.cancel(reference, force=False, recursive=False)
            done, _ = self._ray.wait(list(self._live), timeout=0.5)
            for reference in done:
                self._end(self._live.pop(reference), reference)
            if time.monotonic() >= shown:
                begin = time.monotonic()
                rows = self._show(rows)
                # At most a twentieth of the time, however many cells there are.
                shown = time.monotonic() + max(2.0, 20 * (time.monotonic() - begin))
        return Outcome(self._ended, self._received)

    def _catch_signals(self) -> None:
        def handle(number: int, _frame: Any) -> None:
            if self._received:
                os._exit(128 + number)  # guards of the runs see it and let them save
            self._received = number

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handle)

    def _submit(self) -> None:
        while self._todo and len(self._live) < self._limit and not self._received:
            plan = self._todo.pop()
            moved = plans.make_ready(plan)
            if moved:
                self._screen.say(f"{plan.name}: an earlier attempt moved to {moved}/")
            self._live[self._task.remote(plan.job, self._order)] = plan

    def _end(self, plan: Plan, reference: Any) -> None:
        try:
            ending, brought = self._ray.get(reference)
            if brought:
                keep_brought(plan, brought, ending)
        except self._ray.exceptions.TaskCancelledError:
            ending = Ending("stopped")
        except Exception as error:  # a lost worker or node, out of memory: of many kinds
            text = " ".join(str(error).split())
            kind = "lost" if isinstance(error, self._ray.exceptions.RayError) else "broke"
            ending = Ending("stopped" if self._received else kind, text[-300:])
        self._ended[ending.kind].append(plan)
        where = f" on {ending.host}" if ending.host else ""
        text = f": {ending.text}" if ending.text and ending.kind != "finished" else ""
        self._screen.say(f"{ending.kind:<9}{plan.name}{where}{text}")

    def _show(self, known: Sequence[table.Row]) -> list[table.Row]:
        live = {plan.name: self._order.by for plan in self._live.values()}
        rows = table.rows(self._places, live, known)
        head = table.summary(self._args.suite, rows, self._args.gpus_per_cell or 0.0)
        self._screen.show(head, table.lines(rows))
        return rows


def keep_brought(plan: Plan, brought: Mapping[str, bytes], ending: Ending) -> None:
    """Write a cell's files where it would have trained, and keep its results.

    Raises:
      OSError: they cannot be written.
    """
    home = plan.workdir.resolve()
    # What says that others are there comes last.
    for name in sorted(brought, key=lambda name: (name == "run.json", "manifest" in name, name)):
        path = plan.log if name == ".log" else plan.workdir / name
        if name != ".log" and not path.resolve().is_relative_to(home):
            raise OSError(f"{name}: is outside of the cell's folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, brought[name])
    if ending.kind in ("finished", "paused") or ending.code == cell.DIVERGED:
        keeping.keep(plan.workdir, plan.folder, plan.facts)
