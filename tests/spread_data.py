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
    "mppi__horizon": 1, "mppi__iterations": 1, "mppi__num_samples": 8, "mppi__num_proposals": 2,
    "mppi__num_elites": 2, "replan__interval": 2, "replan__batch_size": 4,
    "policy__interval": 2, "policy__average_updates": 2, "optimizer__decay_updates": 2,
    "optimizer__average_updates": 2,
    # Fewer and larger arrays, which are faster to compile.
    "world_model__arranged_for": "gpu",
}  # fmt: skip
COLLECTIVES = r" = (\S.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\("


class Spread(NamedTuple):
    """A program with its compiled step, and a run's first chunk of every phase."""

    config: Any
    program: Any
    step: Any
    works: tuple

    def train(self, state, works=None):
        """The state after these chunks, and the last means; the state is donated."""
        for work in self.works if works is None else works:
            state, means = self.step(state, compiled.reduced(self.config, train.CHUNK_READS), work)
        return state, jax.device_get(means)


def spread(devices, seeds=1, begun=None):
    """A run of so many devices per seed, and its initial state, that of ``begun`` if given."""
    config = tiny.run(
        agent_changes=AGENT, env__num_envs=ENVIRONMENTS, train__num_seeds=seeds,
        train__capacity=ENVIRONMENTS * ROWS, train__devices_per_seed=devices,
        train__num_devices=0 if devices > 1 else 1, train__seed_decisions=64,
        train__total_decisions=512, train__chunk_decisions=64,
        train__updates_per_decision=1 / 16,
    )  # fmt: skip
    program = train.build(config, envs.make(config.env.task, config.env.action_repeat))
    works = program.seeding[0], program.pretraining[0], program.training[0]
    if begun is None:
        state = program.init(config)
    else:
        state = seed_axis.place(jax.tree.map(jnp.copy, begun), program.mesh, train.SPECS)
    # Compiled by hand, so that the text and the results are of one compilation.
    step = program.chunk.lower(state, config, works[0]).compile()
    return Spread(config, program, step, works), state


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


def check_communication(one, many, begun, devices):
    """Gradients and rows of environments travel between devices; replay and plans do not."""
    found = re.findall(COLLECTIVES, many.step.as_text())
    assert found
    sizes = [
        int(np.prod([int(n) for n in shape.split(",") if n], dtype=np.int64))
        for shapes, _ in found for shape in re.findall(r"\[([\d,]*)\]", shapes)
    ]  # fmt: skip
    largest = max(x.size for x in jax.tree.leaves(begun.agent.params))
    assert largest <= max(sizes) < ENVIRONMENTS * ROWS, (largest, max(sizes))
    # One for each of world model, policy and prior, and a few for means: not one for each array.
    assert sum(kind == "all-reduce" for _, kind in found) <= 12
    costs = [x.step.cost_analysis()["flops"] for x in (one, many)]
    assert costs[0] / costs[1] > devices / 2, costs


def main(folder):
    warnings.simplefilter("error")
    assert jax.device_count() == 4
    one, begun = spread(1)
    alone, metrics = one.train(jax.tree.map(jnp.copy, begun))

    four, state = spread(4, begun=begun)
    check_communication(one, four, begun, 4)
    assert seed_axis.mesh_size(four.program.mesh) == 4
    placed = jax.tree.map(lambda x: x.sharding, state)
    state, theirs = four.train(state)
    same(state, alone)
    for name, value in metrics.items():
        np.testing.assert_allclose(theirs[name], value, rtol=2e-3, atol=1e-4, err_msg=name)
    assert state.timestep.obs.addressable_shards[0].data.shape[0] == ENVIRONMENTS // 4
    # What is placed as the program's own results never compiles it again.
    assert placed == jax.tree.map(lambda x: x.sharding, state)

    # Four seeds, two on each pair of devices: as if they were alone.
    pairs, state = spread(2, seeds=4)
    assert pairs.program.mesh.shape == {"seeds": 2, "data": 2}
    both, _ = pairs.train(state)
    same(both, alone, seed=0)
    following = one.program.init(one.config, jnp.asarray([one.config.train.seed + 3], jnp.int32))
    same(both, one.train(following)[0], seed=3)

    # Saved on one device, continued on four, and back. Without plans: once the agents differ in
    # rounding, a plan may draw another elite.
    shapes = jax.eval_shape(lambda: begun)
    works = one.works[:2]
    for number, (saved, by, other) in enumerate([(alone, one, four), (None, four, one)]):
        saved = resumed if saved is None else saved
        checkpoint.save(folder, number, saved, by.config, by.program.spec)
        wanted, _ = by.train(saved, works)
        read = checkpoint.restore_run(folder, checkpoint.read(folder, number), shapes)
        resumed, _ = other.train(seed_axis.place(read, other.program.mesh, train.SPECS), works)
        same(resumed, wanted)
    print("all is well")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
