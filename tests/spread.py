"""Checks with 8 devices, run by test_seed_axis.py: ``python tests/spread.py FOLDER``.

11 seeds: 8 devices have 2 each, 5 rows of padding among them; 3 devices have 4 each, 1 of padding.
"""

import faulthandler
import functools
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import tiny
from jax.sharding import Mesh
from test_resume import Interruption, Tiny, assert_same_end, table

from pomcp_jax import Trainer, arrays, checkpoint, envs, seed_axis, train
from pomcp_jax import config as config_lib
from pomcp_jax.config import Config
from pomcp_jax.envs import host_engine
from pomcp_jax.running import process, starting, workdirs

SEEDS = 11
SICK, COPY = 4, 12
"""A seed that diverges, and a row of padding that does."""
LOOSE = {"seed", "num_devices"}
"""Columns that are compared exactly, or not at all."""
close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
"""Products over another number of seeds round otherwise."""


def leaves(state, num_seeds=None):
    """All arrays as checkpoints store them."""
    shot = checkpoint.snapshot(state, num_seeds)
    return shot.agent | shot.run


def check_restored(tiny_run, workdir, saved):
    """A checkpoint restores equal arrays with the right placement on any number of devices."""
    state = starting.begin(tiny_run.options(workdir), tiny_run.functions.program).state
    mesh = tiny_run.functions.program.mesh
    jax.tree.map(np.testing.assert_array_equal, leaves(state, SEEDS), saved)
    for name, leaf in arrays.named(state).items():
        assert len(leaf.sharding.device_set) == seed_axis.mesh_size(mesh), name
    rows = SEEDS + seed_axis.padding(SEEDS, seed_axis.shares(mesh))
    for name, leaf in leaves(state).items():
        if leaf.ndim:  # padding is a copy of the last seed; environments have several rows each
            width = len(leaf) // rows
            last = leaf[(SEEDS - 1) * width : SEEDS * width]
            copies = np.split(leaf[SEEDS * width :], rows - SEEDS) if rows > SEEDS else []
            for copy in copies:
                np.testing.assert_array_equal(copy, last, err_msg=name)


def numbers(rows, name):
    return np.array([float(row[name] or "nan") for row in rows])


def check_each_seed_is_itself_alone(spread):
    """Every seed of a batch that is padded trains as it does in a run of its own."""
    own = tiny.run(train__num_seeds=1)
    single, program = train.build(own, spread.program.env), spread.program
    works = [*program.seeding, *program.pretraining, program.training[0]]

    def play(program, config, state):
        for work in works:
            state, means = program.chunk(state, config, work)
        return jax.device_get((arrays.key_data(state), means))

    config = tiny.run(train__num_seeds=SEEDS)
    together, means = play(program, config, program.init(config))
    assert {len(x) for x in means.values()} == {SEEDS}
    for seed in range(SEEDS):
        start = single.init(own, jnp.array([seed], jnp.int32))
        alone, expected = play(single, own, start)
        last = seed_axis.first(together, len(together.keys), seed + 1)
        for (name, mine), other in zip(
            arrays.named(last).items(), jax.tree.leaves(alone), strict=True
        ):
            mine = mine[-len(other) :] if mine.ndim else mine
            close(mine, other, err_msg=f"{seed}{name}")
        for name in expected:
            close(means[name][seed], expected[name][0], err_msg=name)


def check_handed_on(on, folder):
    """Uninterrupted on one device; resumed on eight, one and eight, and read on three."""
    alone, handed = folder / "alone", folder / "handed"
    on[1].sit(alone)
    for k, at in ((8, 5), (1, 2), (8, None)):
        run = on[k].sit(handed, Interruption(at))
        if at is not None:
            for other in on.values():
                check_restored(other, handed, leaves(run.state, SEEDS))
    assert run.done == 60 and run.stopped is None
    assert checkpoint.read(handed / "checkpoints", 60).sizes[2] == SEEDS
    ours, theirs = (table(workdir / "metrics.csv") for workdir in (handed, alone))
    used = [row["num_devices"] for row in ours[::SEEDS]]
    assert used[0] == "8" and "1" in used and used[-1] == "8", used
    assert [row["num_devices"] for row in theirs] == ["1"] * len(theirs) == ["1"] * len(ours)
    for name in ("decisions", "seed", "updates", "train/episodes", "refused_updates", "broken"):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name
    # Until rounding has changed which elite is drawn: the same numbers before, other ones of the
    # same kind after.
    for name in ours[0]:
        if name not in LOOSE:
            mine, other = (numbers(rows[: 2 * SEEDS], name) for rows in (ours, theirs))
            close(mine, other, err_msg=name)
    assert np.isfinite(numbers(ours[-SEEDS:], "loss/model")).all()
    evaluated = table(handed / "evaluations.csv")
    assert {row["seed"] for row in evaluated} == {str(seed) for seed in range(SEEDS)}


def check_interrupted(spread, folder):
    """On the same devices an interruption changes no bit; returns the folder of the whole run."""
    whole, cut = folder / "whole", folder / "cut"
    said, lines = Interruption(), []
    said.progress.say = lines.append
    spread.sit(whole, said)
    assert "11 seeds on 8 CPU devices (2 each, 5 rows of padding)" in lines
    for at in (5, 3):
        spread.sit(cut, Interruption(at))
    spread.sit(cut)
    assert_same_end(cut, whole)
    return whole


def check_diverged(spread, folder, whole):
    """A seed that diverges is reset, padding that diverges is nobody; other seeds keep each bit."""
    whole_functions, config = spread.functions, spread.config
    changed = Tiny.__new__(Tiny)
    changed.config = config_lib.replace(
        config, {"train.on_broken_seed": "reset", "train.max_bad_updates": 3}
    )
    program = whole_functions.program

    def chunk(state, config, work):
        if int(state.iteration) == 15:
            rows = jnp.array([SICK, COPY])
            policy = jax.tree.map(lambda x: x.at[rows].set(jnp.nan), state.agent.params.policy)
            params = state.agent.params._replace(policy=policy)
            state = state._replace(agent=state.agent._replace(params=params))
            state = seed_axis.place(state, program.mesh, train.SPECS)
        return program.chunk(state, config, work)

    changed.functions = whole_functions._replace(program=program._replace(chunk=chunk))
    run = changed.sit(folder / "sick")
    assert run.stopped is None and run.lost() == {}
    assert run.books.resets.tolist() == [int(seed == SICK) for seed in range(SEEDS)]
    ours, theirs = (table(place / "metrics.csv") for place in (folder / "sick", whole))
    for mine, other in zip(ours, theirs, strict=True):
        if mine["seed"] != str(SICK):
            assert mine == other
    assert np.isfinite(numbers(ours[-SEEDS:], "loss/model")).all()


def check_sweep(folder):
    """Nine rows on five devices: every cell has its own value and its own seeds."""
    values = (0.1, 1.0, 9.0)
    made = Trainer(
        tiny.run(train__num_seeds=3, train__total_decisions=40),
        folder / "sweep",
        grid={"policy.kl_coef": values},
    )
    mesh = made.functions.program.mesh
    assert (
        seed_axis.describe(9, mesh, "rows") == "9 rows on 5 CPU devices (2 each, 1 row of padding)"
    )

    def coefficient(config: Config, x):
        return x + config.agent.policy.kl_coef * jnp.ones((config.train.num_seeds,))

    both = (None, seed_axis.SPLIT), seed_axis.SPLIT
    read = jax.jit(seed_axis.spread(coefficient, mesh, *both))
    out = read(made.config, seed_axis.pad(jnp.zeros(9), 9, mesh))
    np.testing.assert_array_equal(out, np.float32([*np.repeat(values, 3), 9.0]))

    outcome = made.run()
    assert outcome.code == 0 and outcome.evaluation.shape == (9,)
    about = workdirs.read_json(folder / "sweep" / "sweep.json")
    assert about["num_devices"] == 5 and about["rows"] == 9
    for cell in outcome.cells:
        assert cell.planner.shape == (3,)
        rows = table(cell.cell.folder(folder / "sweep") / "metrics.csv")
        assert {row["seed"] for row in rows} == {"0", "1", "2"}
    # The same seeds draw the same numbers in every cell until the coefficient is used.
    first = [table(cell.cell.folder(folder / "sweep") / "metrics.csv")[0] for cell in outcome.cells]
    assert len({row["train/return"] for row in first}) == 1
    # Another trainer of that folder keeps its devices.
    assert workdirs.devices(folder / "sweep", "sweep.json") == 5


def check_physics_on_the_host():
    """Devices that call MuJoCo at the same time get what one gets for all rows, to the bit."""
    env = envs.make("ball_in_cup-catch", backend="host")
    mesh, specs = Mesh(np.array(jax.devices()), (seed_axis.AXIS,)), seed_axis.SPLIT
    keys = jax.random.split(jax.random.key(0), 16)
    actions = jax.random.uniform(jax.random.key(1), (16, 100, 2), minval=-1, maxval=1)

    def play(keys, actions):
        state, _ = env.reset(keys)
        _, rows = jax.lax.scan(env.step, state, jnp.swapaxes(actions, 0, 1))
        return jnp.swapaxes(rows.obs, 0, 1)

    alone = jax.jit(play)(keys, actions)
    shared = jax.jit(seed_axis.spread(play, mesh, (specs, specs), specs))(keys, actions)
    assert len(shared.sharding.device_set) == 8 and np.abs(alone[:, -1] - alone[:, 0]).min() > 0
    np.testing.assert_array_equal(shared, alone)


PENDULUM = """<mujoco><worldbody><body><joint axis="0 1 0"/><geom size="1" mass="1" pos="0 0 1"/>
</body></worldbody></mujoco>"""


def check_large_batches_on_the_host():
    """Calls whose arguments JAX would copy on threads that wait in such calls end all the same."""
    engine = host_engine.make(mujoco.MjModel.from_xml_string(PENDULUM), ())
    mesh, specs = Mesh(np.array(jax.devices()), (seed_axis.AXIS,)), seed_axis.SPLIT

    def play(qpos):
        none = jnp.zeros((0,))
        motion, _ = jax.vmap(lambda q: engine.start(q, jnp.zeros_like(q), none))(qpos)
        step = jax.vmap(lambda now: engine.advance(now, none, 1)[0])
        return jax.lax.fori_loop(0, 3, lambda _, now: step(now), motion).qpos

    qpos = jnp.linspace(0.1, 1.0, 8 * 16_384)[:, None]
    faulthandler.dump_traceback_later(120, exit=True)
    shared = jax.jit(seed_axis.spread(play, mesh, (specs,), specs))(qpos)
    np.testing.assert_array_equal(shared, jax.jit(play)(qpos))
    faulthandler.cancel_dump_traceback_later()


def main(folder):
    warnings.simplefilter("error")
    process.commit = lambda: "0123456789ab"
    assert jax.device_count() == 8
    on = {k: Tiny(train__num_seeds=SEEDS, train__num_devices=k) for k in (1, 3, 8)}
    assert [seed_axis.mesh_size(on[k].functions.program.mesh) for k in on] == [1, 3, 8]
    check_each_seed_is_itself_alone(on[8].functions)
    check_handed_on(on, folder)
    whole = check_interrupted(on[8], folder)
    check_diverged(on[8], folder, whole)
    check_sweep(folder)
    check_physics_on_the_host()
    check_large_batches_on_the_host()
    print("all is well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
