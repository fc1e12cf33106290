"""Suites on a Ray cluster of two nodes on this machine, one of which is lost."""

import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import launching
import pytest

from experiments import reproduce
from experiments.launchers import cell, plans, ray_cluster
from pomcp_jax.config import ConfigError

pytest.importorskip("ray")
# Ray forks to start a node; JAX warns of that once an earlier test of the process has used it.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
SMALL = {"num_cpus": 2, "object_store_memory": 80_000_000}


@pytest.fixture(scope="module")
def cluster():
    """A head with two cores; tests add other nodes."""
    # Ray lowers the priority of workers, which on a busy machine would wait for everything else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray_cluster._imported()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args=SMALL | {"include_dashboard": False})
    yield made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.shutdown()


@pytest.fixture(autouse=True)
def handlers():
    """Restore signal handlers."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def launch(cluster, folder, some, *flags):
    args = launching.arguments("--launcher=ray", f"--address={cluster.address}", *flags)
    which = launching.study_of(folder)
    which.work.mkdir(exist_ok=True)
    return ray_cluster.prepare(args, which, some).run(lambda: None)


def done(plan):
    return cell.read(plan.workdir / "run.json").get("last_checkpoint") or 0


def meanwhile(action):
    """Run ``action`` in a thread; returns a function that waits for it."""
    failed = []

    def run():
        try:
            action()
        except Exception as error:  # raised again by the test
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def join():
        thread.join()
        assert not failed, failed

    return join


def when(condition, seconds=120.0):
    """Wait until a condition is true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def test_a_lost_worker_and_a_lost_node_lose_no_decision(cluster, tmp_path, capfd):
    other = cluster.add_node(**SMALL)
    some = launching.copies(launching.cells(tmp_path, 60, 0.1)[0], 6)

    def spoil():
        when(lambda: sum(done(plan) > 2 for plan in some) >= 4)  # all cores of both nodes
        pids = [cell.read(plan.job.record)["pid"] for plan in some if done(plan) > 2]
        os.kill(pids[0], signal.SIGKILL)
        when(lambda: any((cell.read(p.job.record).get("attempt") or 0) == 2 for p in some))
        cluster.remove_node(other, allow_graceful=False)

    join = meanwhile(spoil)
    outcome = launch(cluster, tmp_path, some)
    join()
    assert sorted(outcome.ended["finished"]) == sorted(some)
    assert launching.same_results(some, 60)
    attempts = [cell.read(plan.job.record)["attempt"] for plan in some]
    assert sum(attempts) >= len(some) + 2  # a worker's, and at least one of the node's
    assert "6 finished" not in capfd.readouterr().out  # stdout belongs to results
    assert not list((tmp_path / "work").glob(".ray-*"))


def test_without_a_shared_folder_results_are_brought_back(cluster, tmp_path, monkeypatch):
    home, order = tmp_path / "node", ray_cluster._order
    monkeypatch.setattr(
        ray_cluster, "_order", lambda *a: order(*a)._replace(scratch=str(home), token="/nowhere")
    )
    some = launching.cells(tmp_path)[:2]
    outcome = launch(cluster, tmp_path, some, "--fetch=results")
    assert sorted(outcome.ended["finished"]) == sorted(some)
    assert launching.same_results(some, 3)
    for plan in some:
        assert {path.name for path in plan.workdir.iterdir()} == {
            "config.json", "run.json", "metrics.csv", "evaluations.csv",
        }  # fmt: skip
        assert "trained 3" in plan.log.read_text()
    assert (home / "probe_lqr/tdmpc2/checkpoints/state.json").is_file()
    with pytest.raises(ConfigError, match="does not see / ?; name a shared folder with --work"):
        launch(cluster, tmp_path, some)


def test_fetch_brings_all_files_by_the_command(cluster, tmp_path, capsys, monkeypatch):
    """A cell that trains and one that breaks; then the same command, and another launcher."""
    home, order = tmp_path / "node", ray_cluster._order
    monkeypatch.setattr(
        ray_cluster, "_order", lambda *a: order(*a)._replace(scratch=str(home), token="/nowhere")
    )
    one, two, *_ = launching.cells(tmp_path)
    broken = two._replace(command=[sys.executable, "-c", "exit('no luck')", two.command[-1]])
    monkeypatch.setattr(plans, "make_plans", lambda *args: [one, broken])
    flags = ["--suite=debug", f"--out={tmp_path / 'out'}", f"--work={tmp_path / 'work'}"]
    remote = [*flags, "--launcher=ray", f"--address={cluster.address}", "--fetch=all"]
    assert reproduce.main(remote) == 3
    streams = capsys.readouterr()
    assert "1 of 2 cells finished" in streams.out
    assert f"error: {two.name}: broke; see {two.log}\n" in streams.err
    assert "no luck" in two.log.read_text() and not two.folder.exists()
    there = {path: path.read_bytes() for path in (home / "probe_lqr/tdmpc2").rglob("*.*")}
    assert any(path.name == "state.json" for path in there)
    for path, data in there.items():
        assert (one.workdir / path.relative_to(home / "probe_lqr/tdmpc2")).read_bytes() == data
    monkeypatch.setattr(plans, "make_plans", lambda *args: [one, two])
    for command, left in ((remote, 1), (flags, 0)):
        assert reproduce.main(command) == 0
        counts = f"2 cells, {2 - left} finished, {left} to train"
        streams = capsys.readouterr()
        assert counts in streams.err and "2 of 2 cells finished" in streams.out
    assert launching.same_results([one, two], 3)


def test_what_is_brought_stays_in_the_folder_of_its_cell(tmp_path):
    (plan, *_) = launching.cells(tmp_path)
    for name in ("../other/run.json", str(tmp_path / "run.json")):
        with pytest.raises(OSError, match="is outside of the cell's folder"):
            ray_cluster.keep_brought(plan, {name: b"{}"}, cell.Ending("finished"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_ctrl_c_saves_and_the_same_command_resumes(cluster, tmp_path):
    some = launching.copies(launching.cells(tmp_path, 60, 0.05)[0], 3)

    def interrupt():
        when(lambda: sum(done(plan) > 2 for plan in some) >= 2)
        os.kill(os.getpid(), signal.SIGINT)

    join = meanwhile(interrupt)
    outcome = launch(cluster, tmp_path, some)
    join()
    assert outcome.received == signal.SIGINT and not outcome.ended["finished"]
    when(lambda: not any(cell.is_locked(plan.log) for plan in some))
    assert sum(0 < done(plan) < 60 for plan in some) == 2
    outcome = launch(cluster, tmp_path, some, "--jobs=2")
    assert sorted(outcome.ended["finished"]) == sorted(some)
    assert launching.same_results(some, 60)


def test_cells_that_always_lose_their_worker_end(cluster, tmp_path):
    lost, broke, *_ = launching.cells(tmp_path)
    code = "import os; os.kill(os.getpid(), 9)"
    lost = lost._replace(command=[sys.executable, "-c", code, "--workdir=x"])
    broke = broke._replace(command=[sys.executable, "-c", "raise SystemExit(4)", "--workdir=x"])
    outcome = launch(cluster, tmp_path, [lost, broke], "--retries=1")
    assert outcome.ended["lost"] == [lost] and outcome.ended["broke"] == [broke]
    assert cell.read(lost.job.record)["attempt"] == 2
    assert cell.read(broke.job.record)["attempt"] == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gpus_per_cell=1"], "--gpus_per_cell = 1: no node of the Ray cluster has more than 0"),
        (["--cpus_per_cell=99"], "--cpus_per_cell = 99: no node of the Ray cluster has more"),
        (["--memory_per_cell=9000"], "--memory_per_cell = 9000: no node of the Ray cluster has"),
        (["--memory_per_cell=0.000001"], "its replay needs"),
        (["--gpus_per_cell=1.5"], "--gpus_per_cell = 1.5: must be a whole number, or a part of"),
        (["--detach"], "--detach = True: has no effect here; is a flag of --launcher=slurm"),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(cluster, flags, words, tmp_path, capsys):
    folders = [f"--out={tmp_path / 'o'}", f"--work={tmp_path / 'w'}"]
    address = f"--address={cluster.address}"
    assert reproduce.main(["--suite=debug", "--launcher=ray", address, *flags, *folders]) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1
    assert not [p for p in tmp_path.rglob("*") if p.name not in ("w", "launcher.lock")]


def test_no_cluster_is_one_line(tmp_path, capsys):
    flags = ["--suite=debug", "--launcher=ray", "--address=127.0.0.1:9", f"--work={tmp_path / 'w'}"]
    assert reproduce.main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --address = '127.0.0.1:9': no Ray cluster (")
    assert error.count("\n") == 1
    assert reproduce.main([*flags, "--dry_run", "--memory_per_cell=2", "--retries=3"]) == 0
    first, *cells = capsys.readouterr().out.splitlines()
    assert first == "4 tasks of Ray at 127.0.0.1:9, each 1 CPU, 0 GPU, 2 GB, up to 3 retries"
    assert len(cells) == 4 and all(" -m experiments.run " in line for line in cells)


def test_without_ray_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert reproduce.main(["--suite=debug", "--launcher=ray", f"--work={tmp_path / 'w'}"]) == 2
    assert "`pip install 'pomcp_jax[ray]'`" in capsys.readouterr().err
    assert not Path(tmp_path / "w").exists()
