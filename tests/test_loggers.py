"""TensorBoard and Weights & Biases: what they receive, and that they never end a training."""

import importlib.util
import json
import struct
import sys

import pytest
import tiny

from pomcp_jax import cells
from pomcp_jax.config import ConfigError
from pomcp_jax.running import loggers
from pomcp_jax.running.background import Control
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.trainer import Trainer

CONFIG = tiny.run(train__num_seeds=2, train__eval_decisions=30, train__checkpoint_decisions=20)


@pytest.fixture(scope="module", autouse=True)
def one_program_for_equal_runs():
    with tiny.shared_programs():
        yield


class Stream:
    """A log file in memory."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return False


def train(workdir, config=CONFIG, stop=None, **options):
    """Run a trainer, stopped at ``stop`` decisions; returns its outcome and what it printed."""
    stream = Stream()
    control = Control(Progress(stream, interval=float("inf")))

    def end(row):
        if stop and row["decisions"] >= stop:
            control.request(5, "enough")

    trainer = Trainer(config, workdir, control=control, on_row=[end], **options)
    return trainer.run(), stream.text


def events(folder):
    """``{tag: [(step, value), ...]}`` of all event files of a folder, oldest file first."""
    from tensorboardX.proto import event_pb2

    out = {}
    for path in sorted(folder.glob("events.*")):
        data = path.read_bytes()
        while data:  # length, its checksum, event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                out.setdefault(value.tag, []).append((event.step, value.simple_value))
    return out


def rows(workdir, seed):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row for row in lines if row["seed"] == seed]


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """A run that was stopped and resumed, with the loggers that are installed."""
    installed = {n: importlib.util.find_spec(n) is not None for n in ("tensorboardX", "wandb")}
    if not any(installed.values()):
        pytest.skip("neither tensorboardX nor wandb is installed")
    workdir = tmp_path_factory.mktemp("runs") / "both"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        project = "pomcp-test" if installed["wandb"] else ""
        options = {"tensorboard": installed["tensorboardX"], "wandb": project}
        first = train(workdir, stop=30, **options)
        second = train(workdir, **options)
    assert (first[0].code, second[0].code) == (5, 0)
    return workdir, first[1] + second[1]


def test_tensorboard_overlays_seeds(offline):
    pytest.importorskip("tensorboardX")
    workdir, said = offline
    assert "warning" not in said
    first, second = (events(workdir / "tensorboard" / f"seed_{i}") for i in range(2))
    assert first.keys() == second.keys() and {"train/return", "loss/model"} < first.keys()
    for seed, found in enumerate((first, second)):
        written = {row["decisions"]: row["env/invalid"] for row in rows(workdir, seed)}
        assert dict(found["env/invalid"]) == written
        # The last evaluation is no row of metrics.csv.
        assert found["eval/policy_return"][-1][0] == 60


def wandb_records(path):
    """Records of an offline run: a log in LevelDB's format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32_768 - place % 32_768
        if left < 7:  # no record header fits into the block
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def test_wandb_has_a_run_for_each_seed_and_continues_it(offline):
    pytest.importorskip("wandb")
    workdir, said = offline
    ids = json.loads((workdir / "wandb.json").read_text())["ids"]
    assert sorted(ids) == ["seed 0", "seed 1"] and len(set(ids.values())) == 2
    assert said.count(f"`wandb sync {workdir}/wandb/offline-run-*` uploads") == 2
    for seed in range(2):
        steps, summary = {}, {}
        files = sorted((workdir / "wandb").glob(f"offline-run-*/run-{ids[f'seed {seed}']}.wandb"))
        assert len(files) == 2  # one for each sitting, with the same id
        for record in (record for path in files for record in wandb_records(path)):
            if record.HasField("run"):
                run = record.run
                assert run.project == "pomcp-test" and run.run_group == "probe/truncated/po_mpc"
                assert run.display_name == f"probe/truncated/po_mpc seed {seed}"
                config = {item.key: item.value_json for item in run.config.update}
                assert json.loads(config["train"])["num_seeds"] == 2
            for item in record.summary.update:
                summary["/".join(item.nested_key) or item.key] = item.value_json
            if record.HasField("history"):
                values = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                steps[values["decisions"]] = values
        written = {row["decisions"]: row for row in rows(workdir, seed)}
        assert steps.keys() == written.keys()
        for decisions, values in steps.items():
            assert values["env/invalid"] == written[decisions]["env/invalid"]
        assert "eval/policy_return" in summary


def test_a_run_that_starts_over_has_new_ids(tmp_path):
    store = tmp_path / "wandb.json"
    options = loggers.Options(CONFIG, tmp_path, wandb="a")
    seeds = loggers.seeds([_cell()], [None])
    first = loggers._ids(options, seeds, pytest.fail)
    assert loggers._ids(options, seeds, pytest.fail) == first
    assert not set(loggers._ids(options._replace(wandb="b"), seeds, pytest.fail).values()) & {
        *first.values()
    }
    store.write_text("{")
    said = []
    assert loggers._ids(options, seeds, said.append).keys() == first.keys()
    assert "wandb.json: is unreadable" in said[0]


def _cell():
    return cells.cells(CONFIG, {})[0]


def test_cells_of_a_sweep_have_folders_of_their_own(tmp_path):
    pytest.importorskip("tensorboardX")
    swept = cells.cells(CONFIG, {"agent.policy.kl_coef": (0.1, 9.0)})
    one = loggers.Loggers(pytest.fail)
    one.open(loggers.Options(CONFIG, tmp_path, tensorboard=True), loggers.seeds(swept, [None, 5]))
    for cell in swept:
        one.row((cell.name, 1), {"decisions": 10, "seed": 1, "loss": cell.values["policy.kl_coef"]})
    one.close(0)
    for cell in swept:
        found = events(tmp_path / cell.name / "tensorboard" / "seed_1")
        assert found["loss"] == [(10, pytest.approx(cell.values["policy.kl_coef"]))]


def test_groups_name_task_method_and_cell(monkeypatch):
    assert loggers._group(_cell()) == "probe/truncated/po_mpc"
    assert loggers._group(_cell()._replace(name="a=1")) == "probe/truncated/po_mpc a=1"
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    assert loggers._group(_cell()) == "mine"


@pytest.mark.parametrize("where", ["open", "row", "result", "close"])
def test_a_logger_that_fails_is_one_warning(where, monkeypatch):
    """Nothing is raised, and the other logger receives everything."""
    calls, said = [], []

    def fake(kind):
        def note(name):
            def call(*args):
                if kind == "wandb" and name == where:
                    raise RuntimeError("the server\nis away")
                calls.append((kind, name))

            return call

        def begin(options, seeds, say):
            note("open")()
            return {
                s.key: loggers.Logger(note("row"), note("result"), note("close")) for s in seeds
            }

        return begin

    for kind in loggers.PLACES:
        monkeypatch.setattr(loggers, f"_{kind}", fake(kind))
    one = loggers.Loggers(said.append)
    one.open(
        loggers.Options(CONFIG, None, tensorboard=True, wandb="x"), loggers.seeds([_cell()], [None])
    )
    for _ in range(2):
        one.row(("", 0), {"decisions": 10, "seed": 0, "loss": 1.0, "none": float("nan")})
        one.result(("", 0), {"decisions": 10})
    one.close(0)
    one.close(0)
    assert said == ["warning: no more Weights & Biases: RuntimeError: the server is away"]
    steps = ("open", "row", "result", "row", "result", "close", "close")
    assert [name for kind, name in calls if kind == "tensorboard"] == list(steps)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensorboard": True}, "--tensorboard: needs `pip install tensorboardX`"),
        ({"wandb": "x"}, "--wandb: needs `pip install wandb`"),
        ({"wandb": "a/b"}, "--wandb = 'a/b': must be the name of a project"),
    ],
)
def test_a_missing_package_is_one_line_and_writes_nothing(tmp_path, monkeypatch, options, words):
    for name in ("tensorboardX", "wandb"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError) as caught:
        Trainer(CONFIG, tmp_path / "run", **options)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_without_a_login_it_says_so_and_does_not_ask(tmp_path, monkeypatch):
    pytest.importorskip("wandb").teardown()  # forgets the settings of earlier tests
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="not logged in; `wandb login` does, or set WANDB_MODE"):
        loggers.check(loggers.Options(CONFIG, tmp_path, wandb="x"))
