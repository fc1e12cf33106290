"""The benchmark of growth: footprints, points, what is kept of a run, and layouts of a study."""

import argparse
import json
import math
import re
import types
from pathlib import Path

import pytest
import tiny

from experiments.benchmarks import footprint, layout, metadata, scaling, scaling_point
from pomcp_jax import config as config_lib
from pomcp_jax import train
from pomcp_jax.config import ConfigError
from pomcp_jax.running import functions

DEBUG = "experiments/configs/debug.py"


def known(config):
    return footprint.of(config, functions.environment(config))


# -------------------------------------------------------------------------- memory and a point


def test_a_seeds_bytes_are_its_replay_three_times_its_networks_and_targets():
    config = tiny.run()
    env = functions.environment(config)
    found = footprint.of(config, env)
    assert found.replay == train.replay_bytes(config, env) + 4  # and the count of inserted rows
    counts = 3 * 4  # Adam's step, of the model, the policy and the prior
    assert found.optimiser == 2 * found.parameters + counts
    assert 0 < found.targets < found.parameters and found.other > 0
    assert found.total == sum(found)


@pytest.mark.parametrize(
    ("changes", "grows"),
    [
        ({"train.num_seeds": 7}, set()),  # bytes are of one seed
        ({"train.capacity": 128}, {"replay"}),
        ({"env.num_envs": 4, "train.capacity": 128}, {"replay", "other"}),
        ({"agent.world_model.mlp_width": 32}, {"parameters", "targets", "optimiser"}),
    ],
)
def test_each_setting_grows_its_own_part(changes, grows):
    before = known(tiny.run())._asdict()
    after = known(config_lib.replace(tiny.run(), changes))._asdict()
    assert {name for name in after if after[name] > before[name]} == grows


def test_a_point_is_timed_with_full_replay():
    config = tiny.run()
    row = scaling_point.measure(config, seconds=0.0)
    assert row["decision, ms"] == pytest.approx(row["step, ms"] / config.env.num_envs)
    assert row["update of a seed, ms"] == row["update, ms"]
    for name in ("step", "update"):
        assert 0.0 < row[f"{name}, least ms"] <= row[f"{name}, ms"] < math.inf
    assert row["compile, s"] > 0.0 and row["peak, GB"] > 0.1
    json.dumps(row)


def test_the_state_of_a_point_is_that_of_a_run():
    import jax

    config = tiny.run(train__num_seeds=2)
    program = train.build(config, functions.environment(config))
    state = scaling_point.filled(program, config)
    shapes = jax.eval_shape(program.init, config)
    shape = lambda x: (x.shape, x.dtype)  # noqa: E731
    assert jax.tree.map(shape, state) == jax.tree.map(shape, shapes)
    assert int(state.replay.inserted) == 32 and not state.replay.rows.last.any()


# ---------------------------------------------------------------------------- axes and points


@pytest.fixture
def base():
    point = scaling.Point(1, 4, 100, 2, 16, "tiny")
    values = {
        "seeds": (1, 2, 4), "envs": (1, 4), "capacity": (50, 100, 200), "horizon": (1, 2),
        "samples": (16, 32), "size": ("tiny", "1M", "5M"),
    }  # fmt: skip
    return scaling.Base((f"--config={DEBUG}",), point, values)


def test_points_are_the_base_then_the_ends_of_each_axis(base):
    found = scaling.points(base, ["seeds", "size"])
    assert found[0] == base.point and len({*found}) == len(found) == 5
    assert [(p.seeds, p.size) for p in found[1:]] == [
        (4, "tiny"), (1, "5M"), (2, "tiny"), (1, "1M"),
    ]  # fmt: skip
    for point in scaling.points(base, scaling.AXES):
        assert sum(a != b for a, b in zip(point, base.point, strict=True)) <= 1


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_bases_of_both_kinds_of_device_and_all_their_points_can_work(platform):
    made = scaling.base_of(platform, None, [])
    todo = scaling.points(made, scaling.AXES)
    assert made.point in todo and len(todo) > 14
    for point in todo:
        config = scaling_point.configuration(scaling.flags(made, point))
        assert scaling.point_of(config) == point


def test_a_series_has_one_axis_in_its_order(base):
    table = [
        {**base.point._replace(**change)._asdict(), "kind": "computed"}
        for change in ({"size": "5M"}, {}, {"seeds": 4}, {"size": "1M"}, {"seeds": 2})
    ]
    assert [row["size"] for row in scaling.series(table, base.point, "size")] == [
        "tiny", "1M", "5M",
    ]  # fmt: skip
    assert [row["seeds"] for row in scaling.series(table, base.point, "seeds")] == [1, 2, 4]


# ------------------------------------------------------------------------------- whole command


@pytest.fixture
def command(tmp_path, monkeypatch):
    """The command on a tiny base, whose points are pretended; returns ``(call, measured)``."""
    measured, answers = [], {}
    values = {axis: (1, 2) for axis in scaling.AXES} | {
        "seeds": (1, 2, 4), "envs": (2,), "capacity": (1_000, 2_000), "horizon": (3,),
        "samples": (16, 32), "size": ("tiny", "1M"),
    }  # fmt: skip
    monkeypatch.setattr(scaling, "VALUES", {"cpu": values, "gpu": values})
    monkeypatch.setattr(scaling, "busy_cores", lambda: 0.0)

    def run(words, seconds):
        measured.append(list(words))
        if answers.get(len(measured)):
            return {}, answers[len(measured)]
        return {"step, ms": 1.0 + len(measured), "update, ms": 2.0, "peak, GB": 0.5}, ""

    monkeypatch.setattr(scaling, "run", run)
    shapes = footprint.Footprint(100, 30, 10, 60, 1)
    monkeypatch.setattr(footprint, "of", lambda config, env: shapes)
    monkeypatch.setattr(scaling, "too_slow", lambda config, seconds: "1M" in repr(config.agent))

    def call(*words):
        return scaling.main([f"--config={DEBUG}", f"--out={tmp_path / 'out'}", *words])

    return types.SimpleNamespace(
        call=call, measured=measured, answers=answers, out=tmp_path / "out"
    )


def test_points_are_measured_once_kept_and_drawn(command, capsys):
    command.answers[3] = "exit code 1: out of memory"
    assert command.call("--axes=seeds,capacity") == 3
    stored = json.loads((command.out / "scaling.json").read_text())
    assert [row["kind"] for row in stored["rows"]] == ["measured"] * 2 + ["computed"] + [
        "measured"
    ] * (len(stored["rows"]) - 3)
    assert stored["commit"] and stored["versions"]["jax"] and stored["device"]
    assert str(command.out.parent) not in (command.out / "scaling.json").read_text()
    assert "| 4 | measured |" in (command.out / "scaling.md").read_text()
    for name in ("seeds", "capacity", "scaling"):
        assert 1_000 < (command.out / f"{name}.png").stat().st_size < 100_000
    before = len(command.measured)
    assert command.call("--axes=seeds,capacity") == 0  # only what failed
    assert len(command.measured) == before + 1
    assert "out of memory" in capsys.readouterr().out


def test_computed_only_and_time_that_is_over(command, monkeypatch):
    assert command.call("--axes=samples", "--computed") == 0
    monkeypatch.setattr(scaling, "BEGAN", scaling.BEGAN - 3600.0)
    assert command.call("--axes=samples", "--minutes=1") == 75
    assert command.measured == []
    stored = json.loads((command.out / "scaling.json").read_text())
    assert {row["kind"] for row in stored["rows"]} == {"computed"}
    assert stored["note"].startswith("computed from shapes")
    few, many = (row["step, GFLOP"] for row in scaling.series(
        stored["rows"], scaling.Point(**stored["base"]), "samples"))  # fmt: skip
    assert 1.5 < many / few < 2.5


def test_results_of_another_machine_are_not_mixed(command, capsys):
    assert command.call("--axes=seeds", "--computed") == 0
    path = command.out / "scaling.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"device": "gpu: another"}))
    assert command.call("--axes=seeds") == 2
    error = capsys.readouterr().err
    assert "has device = gpu: another, now cpu" in error and error.count("\n") == 1
    assert command.measured == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--axes=seed"], "--axes = 'seed': 'seed' must be of .*did you mean seeds"),
        (["--minutes=0"], "--minutes = 0: must be above 0"),
        (["--minutes=nan"], "--minutes = nan: must be above 0"),
        (["walker"], "'walker': unexpected argument"),
        (["--config.train.capcity=3"], "capcity"),
    ],
)
def test_bad_input_is_one_line(command, words, said, capsys):
    assert command.call(*words) == 2
    error = capsys.readouterr().err
    assert re.search(said, error) and error.count("\n") == 1
    assert not command.out.exists()


def test_the_note_says_what_times_are_worth():
    measured = {"kind": "measured", "busy cores": 1.8}
    assert "ratios count, not times" in scaling.note([measured, {"kind": "computed"}])
    assert "ratios" not in scaling.note([measured | {"busy cores": 0.1}])
    assert "not known" in scaling.note([measured | {"busy cores": None}])


# ---------------------------------------------------------------------------------- layouts

PACE = layout.Pace(5, 0.01, 100.0, 50.0, 2.0, "5M", "gpu", "x")
STUDY = layout.Study(
    tasks=10, methods=2, seeds=10, decisions=100_000, evaluations=4, episodes=10, checkpoints=5,
    kept=2, seed_bytes=100_000_000, replay_bytes=40_000_000, filled=0.5,
)  # fmt: skip
FILES = layout.Files(files=20, operations=300.0)


def cluster(gpus=8, **changes):
    return layout.Cluster(gpus, 80.0, 2.0, 2000.0, 0.9)._replace(**changes)


def test_hours_follow_from_the_pace_in_proportion_to_seeds():
    # Start 150 s; ten seeds take twice as long as five: 2 x (1000 s + 4 x 10 x 2 s).
    assert layout.program_seconds(STUDY, PACE, 10) == pytest.approx(150.0 + 2 * 1080.0)
    few = layout.program_seconds(STUDY, PACE, 1)
    assert few == layout.program_seconds(STUDY, PACE, 5) == pytest.approx(1230.0)


def test_a_layout_by_hand():
    row = layout.lay_out(STUDY, PACE, cluster(8), FILES)
    assert (row["seeds on a GPU"], row["programs"], row["rounds"]) == (10, 20, 3)
    assert row["hours"] == pytest.approx(3 * 2310.0 / 3600)
    assert row["GPUs in use, share of the time"] == pytest.approx(20 / 24)
    assert row["checkpoints at the end, TB"] == pytest.approx(20 * 2 * 1e9 / 1e12)
    assert row["written on average, GB/s"] == pytest.approx(
        20 * 5 * 10 * 0.08 / (3600 * row["hours"])
    )
    assert row["files at the end"] == 20 * (8 + 2 * 20 + 4)
    assert row["writing if all save at once, s"] == pytest.approx(8 * 1.0 / 2.0)
    assert row["operations on names if all save at once, s"] == pytest.approx(8 * 300 / 2000)
    assert row["bottleneck"] == "idle GPUs in the last round (17 %)"


@pytest.mark.parametrize(
    ("study", "place", "bottleneck"),
    [
        ({}, {"gpus": 20}, "training; next: starting and compiling (6.5 %)"),
        ({"decisions": 1_000}, {"gpus": 20}, "starting and compiling"),
        ({}, {"gpus": 20, "disk_gb_s": 0.1}, "disk, writing checkpoints"),
        ({}, {"gpus": 20, "operations_s": 10.0}, "disk, names of files"),
        ({}, {"gpus": 64}, "idle GPUs in the last round (69 %)"),
    ],
)
def test_bottlenecks_are_named(study, place, bottleneck):
    row = layout.lay_out(STUDY._replace(**study), PACE, cluster(**place), FILES)
    assert row["bottleneck"].startswith(bottleneck)


def test_seeds_that_do_not_fit_are_divided_or_refused():
    large = STUDY._replace(seed_bytes=12_000_000_000)  # two of 24 GB in 72 GB, and temporaries
    row = layout.lay_out(large, PACE, cluster(), FILES)
    assert (row["seeds on a GPU"], row["programs"]) == (3, 80)
    with pytest.raises(ConfigError, match="--seeds_per_program = 4: must be 1 to 3"):
        layout.lay_out(large, PACE, cluster(), FILES, seeds=4)


def test_the_pace_of_the_stored_run_is_what_its_tables_say():
    pace = layout.paced_run(layout.PACE)
    assert (pace.seeds, pace.size) == (5, "5M") and "H100" in pace.device
    assert 8.9e-3 < pace.decision < 9.5e-3  # 109 decisions/s each, docs/benchmarks.md
    assert 70.0 < pace.start < 75.0
    assert 40.0 < pace.first_evaluation < 50.0 and 1.3 < pace.evaluation < 1.6
    assert pace.source == "experiments/results/gpu/walker-run/po_mpc"


def test_the_pace_of_a_measurement_of_ones_own(tmp_path):
    base = scaling.Point(1, 2, 1000, 3, 16, "tiny")
    row = {"kind": "measured", "step, ms": 4.0, "update, ms": 8.0}
    table = [row | base._replace(seeds=n)._asdict() for n in (1, 8, 2)]
    table.append(row | base._replace(seeds=16, samples=32)._asdict())
    path = tmp_path / "scaling.json"
    path.write_text(json.dumps({"rows": table, "base": base._asdict(), "device": "gpu: x"}))
    config = tiny.run(train__updates_per_decision=0.5, env__action_repeat=2)
    pace = layout.paced_scaling(path, config)
    assert (pace.seeds, pace.size) == (8, "tiny")
    assert pace.decision == pytest.approx(1e-3 * (4.0 / 2 + 0.5 * 8.0))
    assert pace.evaluation == pytest.approx(1.0)  # 500 decisions of 2 ms


def test_the_page_has_the_table_of_the_stored_layout(capsys):
    root = Path(__file__).parent.parent
    stored = json.loads((root / "experiments/results/scaling/layout.json").read_text())["rows"]
    assert list(stored[0]) == list(layout.lay_out(STUDY, PACE, cluster(), FILES))
    layout.show(stored)
    assert capsys.readouterr().out in (root / "docs" / "scaling.md").read_text()


def test_the_command_answers_from_stored_numbers(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "files_of", lambda: layout.Files(20, 300.0))
    words = ["--config=experiments/configs/dm_control.py:cartpole-swingup"]
    assert layout.main([*words, "--gpus=8,512", f"--json={tmp_path / 'layout.json'}"]) == 0
    out = capsys.readouterr().out
    assert "| GPUs | 8 | 512 |" in out and "| programs | 1,000 | 1,000 |" in out
    stored = json.loads((tmp_path / "layout.json").read_text())
    hours = [row["hours"] for row in stored["rows"]]
    assert 250 < hours[0] < 400 and hours[0] > 50 * hours[1]
    assert str(tmp_path) not in (tmp_path / "layout.json").read_text()


def test_files_of_a_checkpoint_are_the_counted_ones(tmp_path):
    counted = {"open": 200.0, "rename": 100.0, "files": 19.6}
    table = [{"what": what, "per checkpoint": number} for what, number in counted.items()]
    (tmp_path / "metadata.json").write_text(json.dumps({"rows": table}))
    assert layout.files_of(tmp_path / "metadata.json") == layout.Files(20, 300.0)
    stored = layout.files_of()
    assert 15 < stored.files < 40 and 10 < stored.operations / stored.files < 30


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus=0"], "--gpus = '0': must be numbers >= 1"),
        (["--gpus=8,x"], "--gpus = '8,x': must be numbers >= 1"),
        (["--tasks=0"], "--tasks = 0: must be above 0"),
        (["--disk_gb_s=nan"], "--disk_gb_s = nan: must be above 0"),
        (["--size=19M"], "was measured with 5M, the study has 19M; must be the same"),
        (["--pace=nowhere"], "--pace = 'nowhere': must be the folder of a run"),
        (["--pace=experiments"], "--pace = 'experiments': must be the folder of a run"),
        (["--seeds_per_program=11"], "--seeds_per_program = 11: must be 1 to 10"),
    ],
)
def test_layouts_refuse_bad_input_in_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr(layout, "files_of", lambda: FILES)
    monkeypatch.setattr(layout, "study_of", lambda args, config: STUDY)
    assert layout.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


# ------------------------------------------------------------------------- names of files

LOG = """\
12 openat(AT_FDCWD</work>, "/x/checkpoints/.1.partial/a", O_WRONLY|O_CREAT) = 3</x/checkpoints/a>
12 openat(AT_FDCWD</work>, "/usr/lib/python3/os.py", O_RDONLY) = 3</usr/lib/python3/os.py>
13 fsync(3</x/checkpoints/.1.partial/a> <unfinished ...>
13 <... fsync resumed>) = 0
12 rename("/x/checkpoints/.1.partial", "/x/checkpoints/1") = 0
12 newfstatat(AT_FDCWD</work>, "/x/checkpoints/1", {st_mode=S_IFDIR|0755}, 0) = 0
12 statfs("/x/checkpoints/1", {f_type=EXT2_SUPER_MAGIC}) = 0
"""


def test_operations_on_the_folder_are_counted_by_kind():
    found = metadata.calls(LOG.splitlines(), "/x/checkpoints")
    assert found == {"open": 1, "force to disk": 1, "rename": 1, "look up": 1, "other": 1}


def test_without_strace_nothing_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(metadata.shutil, "which", lambda name: None)
    assert metadata.main(["--saves=1"]) == 2
    assert capsys.readouterr().err == "error: strace: is not installed\n"
    assert metadata.main(["--saves=0"]) == 2


def test_parsers_know_their_defaults():
    for module in (footprint, layout, metadata, scaling):
        assert isinstance(module.parser().parse_args([]), argparse.Namespace)
