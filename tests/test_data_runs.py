"""Runs that start from a file of transitions: replay, learning without acting, resuming."""

import csv

import jax
import numpy as np
import pytest
import tiny

from experiments import dataset
from pomcp_jax import (
    checkpoint,
    controller,
    datasets,
    exporting_run,
    normalising,
    prefill,
    replay,
    schedule,
    train,
    validation,
)
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.datasets import Rows
from pomcp_jax.running import cost
from pomcp_jax.running.background import Control
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.trainer import Trainer

EPISODES, STEPS = 6, 5
SMALL = {
    "train__num_seeds": 2,
    "train__seed_decisions": 0,
    "train__pretrain_updates": 0,
    "train__total_decisions": 40,
    "train__checkpoint_decisions": 20,
    "train__eval_decisions": 0,
    "env__history": 2,
}
AGENT = {"world_model__normalise_observations": True, "policy__data_record": "none"}


def count_up(episodes=EPISODES):
    """Episodes of ``probe/truncated``, whose observation counts its steps; no planner records."""
    steps = np.tile(np.arange(STEPS + 1, dtype=np.float32), episodes)
    last = steps == STEPS
    action = np.sin(np.arange(len(steps), dtype=np.float32))[:, None]
    return Rows(
        steps[:, None], action, np.float32(1) - last, last & False, last,
        np.zeros_like(action), np.zeros_like(action), np.zeros_like(steps),
    )  # fmt: skip


def config(path, **changes):
    return tiny.run("po_mpc", AGENT, train__buffer=str(path), **(SMALL | changes))


def trainer(workdir, path, on_row=(), control=None, **changes):
    control = control or Control(Progress(interval=float("inf")))
    return Trainer(config(path, **changes), workdir, control=control, on_row=on_row)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "steps.npz"
    datasets.write(path, count_up(), task="probe/truncated", action_repeat=1)
    return path


@pytest.fixture(scope="module")
def offline(file, tmp_path_factory):
    """A run without environment steps, and the same stopped half-way, its file then deleted."""
    with tiny.shared_programs():
        folder = tmp_path_factory.mktemp("runs")
        moved = folder / "moved.npz"
        moved.write_bytes(file.read_bytes())
        assert trainer(folder / "whole", moved, train__offline=True).run().code == 0
        control = Control(Progress(interval=float("inf")))

        def stop(row):
            if row["decisions"] >= 20:
                control.request(143, "stopped by a test")

        again = folder / "again"
        first = trainer(again, moved, [stop], control, train__offline=True).attempt()
        assert first.code == 143 and 20 <= first.decisions < 40
        moved.unlink()
        second = trainer(again, moved, train__offline=True)
        assert second.run().code == 0
        yield folder, second.functions


def started(functions, path, **changes):
    """A state with the rows of a file, by the functions of another run of equal sizes."""
    rows = datasets.with_history(datasets.read(path).rows, 2)
    laid = datasets.columns(rows, 2)
    made = config(path, **changes)
    program = functions.program
    begin = prefill.filling(
        lambda config, seeds: train.init(config, program.env, program.spec, seeds),
        lambda: prefill.Prefill(laid, ()),
        None,
    )
    return begin(made), made


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


# ---------------------------------------------------------------------- learning


def test_resumed_without_the_file_it_ends_bit_for_bit_as_it_would_have(offline):
    folder, _ = offline
    assert tiny.saved(folder / "whole", 40) == tiny.saved(folder / "again", 40)


def test_an_offline_run_steps_no_environment_and_is_evaluated_and_saved(offline):
    folder, _ = offline
    saved = tiny.saved(folder / "whole", 40)

    def array(name):
        dtype, shape, data = saved["run", name]
        return np.frombuffer(data, dtype).reshape(shape)

    assert array(".env.env.frames").max() == 0 and array(".timestep.is_first").all()
    assert array(".replay.inserted") == array(".replay.rows.reward").shape[1] == 19
    assert array(".iteration") * 2 == 40 and array(".updates") == 20
    np.testing.assert_array_equal(array(".stats.decisions"), [40, 40])
    rows = table(folder / "whole/metrics.csv")
    assert [row["decisions"] for row in rows[::2]] == ["10", "20", "30", "40"]
    assert {row["plan/std"] for row in rows} <= {""} and float(rows[-1]["loss/model"]) > 0
    assert table(folder / "whole/evaluations.csv")[0]["decisions"] == "40"


def test_every_seed_has_the_rows_of_the_file(offline, file):
    state, _ = started(offline[1], file)
    rows = datasets.with_history(datasets.read(file).rows, 2)
    for seed in range(2):
        ring = jax.tree.map(lambda x, s=seed: np.asarray(x[s]), state.replay.rows)
        assert (ring.made[:19] == -1).all(), "no row has a record"
        back = datasets.of_ring(
            Rows(ring.obs, ring.action, ring.reward, ring.terminated, ring.last, *ring.prior,
                 ring.prior_value),
            int(state.replay.inserted),
        )  # fmt: skip
        want = {tuple(rows.obs[t]) + tuple(rows.action[t]) for t in np.flatnonzero(~rows.last)}
        have = {tuple(back.obs[t]) + tuple(back.action[t]) for t in np.flatnonzero(~back.last)}
        assert want == have and back.transitions == rows.transitions == EPISODES * STEPS
    moments = jax.tree.map(lambda x: np.asarray(x[1]), state.agent.params.moments)
    exact = datasets.columns(rows, 2).obs.reshape(-1, 2).astype(np.float64)
    np.testing.assert_allclose(moments.shift + moments.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.variance, exact.var(axis=0), rtol=1e-6)
    assert isinstance(moments, normalising.Moments)


def test_a_seed_that_is_added_later_has_the_rows_of_the_file_too(file, tmp_path):
    path, run = tmp_path / "steps.npz", tmp_path / "run"
    path.write_bytes(file.read_bytes())
    more = config(path, train__offline=True)
    one = config_lib.replace(more, {"train.num_seeds": 1})
    quiet = lambda: Control(Progress(interval=float("inf")))  # noqa: E731
    assert Trainer(one, run, control=quiet()).run().code == 0
    path.rename(tmp_path / "elsewhere.npz")
    with pytest.raises(ConfigError, match="steps.npz"):
        Trainer(more, run, control=quiet(), resume="change_seeds").run()
    assert dict(tiny.saved(run, 40))["run", ".replay.rows.obs"][1][0] == 1
    (tmp_path / "elsewhere.npz").rename(path)
    assert Trainer(more, run, control=quiet(), resume="change_seeds").run().code == 0
    saved = tiny.saved(run, 40)
    for name in ("obs", "action", "reward", "last"):
        dtype, shape, data = saved["run", f".replay.rows.{name}"]
        rows = np.frombuffer(data, dtype).reshape(shape)[:, :19]
        assert len(rows) == 2
        np.testing.assert_array_equal(rows[0], rows[1])
    final = [row for row in table(run / "metrics.csv") if row["decisions"] == "40"]
    losses = [float(row["loss/model"]) for row in final]
    assert len(losses) == 2 and losses[0] != losses[1] and np.isfinite(losses).all()


def test_acting_continues_after_the_data_and_no_window_crosses_the_seam(offline, file):
    """The file's observations count the steps of their episodes: every step is +1."""
    functions = offline[1]
    state, made = started(functions, file)
    work = schedule.Work(10, 1, 0, False, True, False)
    state, _ = functions.program.chunk(state, made, work)
    assert state.replay.inserted == 19 + 10 and state.iteration == 10
    moments = state.agent.params.moments
    np.testing.assert_array_equal(moments.count, 2 * (19 + 10))
    renewed = functions.reset_agents(
        jax.tree.map(jax.numpy.copy, state), made, np.array([True, False])
    )
    jax.tree.map(np.testing.assert_array_equal, renewed.agent.params.moments, moments)
    ring = replay.Replay(jax.tree.map(lambda x: x[0], state.replay.rows), state.replay.inserted)
    batch = replay.sample(ring, jax.random.key(0), 400, 4)
    step = np.asarray(batch.rows.obs[1:, :, 1] - batch.rows.obs[:-1, :, 1])
    mask = np.asarray(batch.transition)
    start = np.asarray(batch.index.row[:-1])
    assert (step[mask & (start < 18)] == 1.0).all()
    assert mask[(start < 18)].any() and mask[start >= 19].any() and not mask[start == 18].any()
    planned = np.asarray(state.replay.rows.made[:, 19:29])
    assert (planned == 0).all(), "acted rows have records"


def test_phases_of_an_offline_run_count_time_and_updates():
    made = config("x.npz", train__offline=True, train__updates_per_decision=1.5)
    online = config_lib.replace(made, {"train.offline": False})
    works, acting = schedule.phases(made).training, schedule.phases(online).training
    assert len(works) == len(acting) == 4
    for one, other in zip(works, acting, strict=True):
        assert one.total_iterations == 0 and one.idle * one.groups == other.total_iterations
        assert one.total_updates == other.total_updates == 15
    machine = cost.Machine(1e10, 1)
    env = Trainer(tiny.run(), "/nowhere").functions.program.env
    assert cost.estimate(made, env, machine).decision < cost.estimate(online, env, machine).decision


def test_statistics_and_history_travel_with_the_agent(offline, tmp_path):
    """A controller of an exported seed is the run's own, with single observations."""
    run = offline[0] / "whole"
    agents = controller.load(run)
    exporting_run.write(tmp_path / "agent", run, agents, 1)
    moments = controller.load(tmp_path / "agent").state.params.moments
    np.testing.assert_array_equal(moments.mean[0], agents.state.params.moments.mean[1])
    assert moments.count[0] == 38 and (moments.variance > 0).all()
    ours = controller.load_controller(run, seed=1, actor="policy")
    theirs = controller.load_controller(tmp_path / "agent", actor="policy")
    for value in (0.0, 1.0, 4.0):
        obs = np.array([value], np.float32)
        np.testing.assert_array_equal(ours.act(obs), theirs.act(obs))


def test_an_export_that_cannot_be_put_in_place_leaves_nothing(offline, tmp_path, monkeypatch):
    rename = exporting_run.Path.replace

    def busy(path, target):
        if path.name == "agent":
            raise OSError(16, "Device or resource busy")  # as for a mount point
        return rename(path, target)

    run = offline[0] / "whole"
    agents = controller.load(run)
    monkeypatch.setattr(exporting_run.Path, "replace", busy)
    with pytest.raises(checkpoint.CheckpointError, match=r"agent: not written: Device or resource"):
        exporting_run.write(tmp_path / "new" / "agent", run, agents, 0)
    assert not list((tmp_path / "new").iterdir())


# --------------------------------------------------------------------- refusals


def refused(tmp_path, path, **changes):
    with pytest.raises(ConfigError) as error:
        trainer(tmp_path / "run", path, **changes)
    assert not (tmp_path / "run").exists() and "\n" not in str(error.value)
    return str(error.value)


def test_files_that_do_not_fit_the_run_are_refused_before_anything_is_written(tmp_path, file):
    assert "No such file" in refused(tmp_path, tmp_path / "none.npz")
    text = refused(tmp_path, file, env__task="probe/lqr")
    assert text.endswith(
        "observations of size 2 with env.history = 2; must be 4, those of 'probe/lqr'"
    )
    text = refused(tmp_path, file, env__action_repeat=2)
    assert "has decisions of action_repeat = 1; must be env.action_repeat = 2" in text
    text = refused(tmp_path, file, train__capacity=30)
    assert text.startswith("train.capacity = 30: must be >= 38, the rows of train.buffer = ")
    short = tmp_path / "short.npz"
    datasets.write(short, Rows(*(x[2:] for x in count_up(1))))
    assert "holds 3 transitions; must hold at least 5, a window of" in refused(tmp_path, short)
    text = refused(tmp_path, file, env__history=1, train__capacity=30)
    assert "train.capacity = 30" in text
    datasets.write(short, datasets.with_history(count_up(), 3), history=3)
    assert "has history = 3; must be 1, or env.history = 2" in refused(tmp_path, short)


@pytest.mark.parametrize("setting", [{"prior__gate": True}, {"prior__weight": "advantage"}])
def test_gates_and_advantages_need_the_value_of_plans(tmp_path, file, setting):
    gated = setting | {"policy__data_record": "action"}
    made = tiny.run("po_mpc", AGENT | gated, train__buffer=str(file), **SMALL)
    with pytest.raises(
        ConfigError, match="gate_value = 'plan': must be 'critic' with train.buffer"
    ):
        Trainer(made, tmp_path / "run")
    Trainer(config_lib.replace(made, {"agent.prior.gate_value": "critic"}), tmp_path / "run")


@pytest.mark.parametrize("setting", [{"prior__gate": True}, {"prior__weight": "advantage"}])
def test_plans_in_a_file_need_their_values(tmp_path, setting):
    rows = count_up()
    plans = rows._replace(prior_std=np.ones_like(rows.prior_std))
    for value, name in ((0.0, "without.npz"), (-1.5, "with.npz")):
        valued = plans._replace(prior_value=np.full_like(rows.reward, value))
        datasets.write(tmp_path / name, valued)
    made = tiny.run("po_mpc", AGENT | setting, train__buffer=str(tmp_path / "without.npz"), **SMALL)
    with pytest.raises(ConfigError, match="must be 'critic' .* whose plans have no prior_value"):
        Trainer(made, tmp_path / "run")
    made = config_lib.replace(made, {"train.buffer": str(tmp_path / "with.npz")})
    Trainer(made, tmp_path / "run")


def test_settings_that_need_a_file_or_updates():
    with pytest.raises(ConfigError, match="or train.buffer names a file"):
        validation.validate_run(tiny.run(train__seed_decisions=0))
    validation.validate_run(config("x.npz"))
    with pytest.raises(ConfigError, match="updates_per_decision = 0.0: must be > 0 when train.off"):
        validation.validate_run(config("x.npz", train__offline=True, train__updates_per_decision=0))


# ------------------------------------------------------------------ the command


def test_the_replay_of_a_run_becomes_a_file(offline, file, tmp_path, capsys):
    out = tmp_path / "out.npz"
    flags = [str(offline[0] / "whole"), f"--out={out}"]
    assert dataset.main([*flags, "--train-seed=1"]) == 0
    data = datasets.read(out)
    assert (data.task, data.action_repeat, data.history) == ("probe/truncated", 1, 2)
    assert data.rows.transitions == EPISODES * STEPS and not data.rows.recorded.any()
    assert "30 transitions of 6 episodes, seed 1" in capsys.readouterr().out
    assert dataset.main(flags) == 0
    assert datasets.read(out).rows.transitions == 2 * EPISODES * STEPS
    np.testing.assert_array_equal(datasets.read(out).rows.obs[:, 1].max(), STEPS)


def test_mistakes_of_the_command_are_one_line(offline, tmp_path, capsys):
    run, out = str(offline[0] / "whole"), tmp_path / "out.npz"
    for flags, text in (
        ([f"--out={tmp_path}/out.csv"], "must end in .npz"),
        ([f"--out={tmp_path}/none/out.npz"], "is no folder"),
        ([f"--out={out}", "--actor=policy"], "--actor: has no effect without --episodes"),
        ([f"--out={out}", "--episodes=0"], "--episodes = 0: must be >= 1"),
        ([f"--out={out}", "--train-seed=7"], "this run has the seeds 0 to 1"),
    ):
        assert dataset.main([run, *flags]) == 2
        err = capsys.readouterr().err
        assert text in err and err.count("\n") == 2 and not out.exists()
