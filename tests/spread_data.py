"""Checks with 4 devices, run by test_data_axis.py: ``python tests/spread_data.py FOLDER``."""

import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tiny

from pomcp_jax import arrays, checkpoint, compiled, envs, seed_axis, train

ENVIRONMENTS, ROWS = 8, 512
AGENT = {
    "mppi__horizon": 2, "mppi__iterations": 1, "mppi__num_samples": 8, "mppi__num_proposals": 2,
    "mppi__num_elites": 2, "replan__interval": 2, "replan__batch_size": 4,
}  # fmt: skip
COLLECTIVES = r" = (\S.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("


class Spread(NamedTuple):
    """A program, its compiled step and the number of operations of that."""

    config: Any
    program: Any
    step: Any
    works: tuple

    def train(self, state, works=None):
        metrics = []
        for work in self.works if works is None else works:
            state, means = self.step(state, compiled.reduced(self.config, train.CHUNK_READS), work)
            metrics.append(jax.device_get(means))
        return state, metrics


def spread(devices, seeds=1):
    config = tiny.run(
        agent_changes=AGENT, env__num_envs=ENVIRONMENTS, train__num_seeds=seeds,
        train__capacity=ENVIRONMENTS * ROWS, train__devices_per_seed=devices,
        train__num_devices=0 if devices > 1 else 1, train__seed_decisions=64,
        train__total_decisions=512, train__chunk_decisions=64,
        train__updates_per_decision=1 / 16,
    )  # fmt: skip
    program = train.build(config, envs.make(config.env.task, config.env.action_repeat))
    works = program.seeding[0], program.pretraining[0], program.training[0]
    # Compiled by hand, so that the text and the results are of one compilation.
    step = program.chunk.lower(program.init(config), config, works[0]).compile()
    return Spread(config, program, step, works)


def same(state, wanted, seed=slice(None)):
    """Equal counters, keys and sampled rows; floats within rounding."""
    theirs = arrays.named(jax.device_get(arrays.key_data(wanted)))
    for name, ours in arrays.named(jax.device_get(arrays.key_data(state))).items():
        of_seed = ours
        if seed != slice(None) and name not in (".replay.inserted", ".iteration", ".updates"):
            is_flat = name.startswith((".env", ".timestep"))
            at = slice(seed * ENVIRONMENTS, (seed + 1) * ENVIRONMENTS) if is_flat else [seed]
            of_seed = ours[at]
        if np.issubdtype(ours.dtype, np.floating):
            np.testing.assert_allclose(of_seed, theirs[name], rtol=2e-4, atol=2e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(of_seed, theirs[name], err_msg=name)


def check_communication(one, many, devices):
    """Gradients and rows of environments travel between devices; replay and plans do not."""
    found = re.findall(COLLECTIVES, many.step.as_text())
    assert found
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
        for shapes, _ in found for shape in re.findall(r"\[([\d,]*)\]", shapes)
    ]  # fmt: skip
    params = one.program.init(one.config).agent.params
    largest = max(x.size for x in jax.tree.leaves(params))
    assert largest <= max(sizes) < ENVIRONMENTS * ROWS, (largest, max(sizes))
    # One for each of world model, policy and prior, and a few for means: not one for each array.
    assert sum(kind == "all-reduce" for _, kind in found) <= 12
    costs = [x.step.cost_analysis()["flops"] for x in (one, many)]
    assert costs[0] / costs[1] > devices / 2, costs


def main(folder):
    warnings.simplefilter("error")
    assert jax.device_count() == 4
    one, two, four, pair = spread(1), spread(2), spread(4), spread(2, seeds=4)
    sizes = [seed_axis.mesh_size(x.program.mesh) for x in (one, two, four, pair)]
    assert sizes == [1, 2, 4, 4]
    check_communication(one, four, 4)

    alone, metrics = one.train(one.program.init(one.config))
    for many in (two, four):
        state, theirs = many.train(many.program.init(many.config))
        same(state, alone)
        for mine, other in zip(theirs, metrics, strict=True):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4), mine, other
            )
    assert len(state.timestep.obs.sharding.device_set) == 4
    assert state.timestep.obs.addressable_shards[0].data.shape[0] == ENVIRONMENTS // 4

    # Four seeds, two on each pair of devices: as if they were alone.
    both, _ = pair.train(pair.program.init(pair.config))
    same(both, alone, seed=0)
    following = one.program.init(one.config, jnp.asarray([one.config.train.seed + 3], jnp.int32))
    same(both, one.train(following)[0], seed=3)

    # Saved on four devices, continued on two and on one.
    checkpoint.save(folder, 128, state, four.config, four.program.spec)
    wanted, _ = one.train(alone, one.program.training[1:2])
    for other in (two, one):
        shapes = jax.eval_shape(lambda: train.init(one.config, one.program.env, one.program.spec))
        read = checkpoint.restore_run(folder, checkpoint.read(folder, 128), shapes)
        mesh = other.program.mesh
        read = seed_axis.place(read, mesh, train.SPECS)
        placed = jax.tree.map(lambda x: x.sharding, read)
        after, _ = other.train(read, other.program.training[1:2])
        same(after, wanted)
        # Another placement than the program's own would compile it again.
        if mesh is not None:
            assert jax.tree.leaves(placed) == jax.tree.leaves(
                jax.tree.map(lambda x: x.sharding, after)
            )
    print("all is well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
