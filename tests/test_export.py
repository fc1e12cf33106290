"""Exported agents: the same actions in a process without this package; refused arguments."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import tiny

from experiments import export as command
from pomcp_jax import acting, agent, checkpoint, controller, envs, exporting

CONFIG = tiny.run(train__seed=3, train__num_seeds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two agents whose actions differ between observations."""
    folder = tmp_path_factory.mktemp("run")
    env = envs.make(CONFIG.env.task)
    spec = acting.build(CONFIG.agent, env.observation_size, env.action_size)
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.vmap(lambda key: agent.init(key, CONFIG.agent, spec))(keys)
    # Fresh parameters are so small that all actions are nearly 0.
    loud = jax.tree.map(lambda x: 8.0 * x, (state.params.model.encoder, state.params.policy))
    model = state.params.model._replace(encoder=loud[0])
    state = state._replace(params=state.params._replace(model=model, policy=loud[1]))
    checkpoint.save(folder / "checkpoints", 10, state, CONFIG, spec)
    return folder


ELSEWHERE = """
import sys
import numpy as np
from jax import export
agent = export.deserialize(open(sys.argv[1], "rb").read())
inputs = np.load(sys.argv[2])
out = agent.call(*(inputs[name] for name in inputs.files))
assert not any(name.startswith("pomcp_jax") for name in sys.modules)
np.savez(sys.argv[3], *(out if isinstance(out, (tuple, list)) else [out]))
"""


def elsewhere(tmp_path, program, *inputs):
    """Outputs of the exported program in another process."""
    np.savez(tmp_path / "in.npz", *inputs)
    files = [program, tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-I", "-c", ELSEWHERE, *map(str, files)], check=True)
    out = np.load(tmp_path / "out.npz")
    return [out[name] for name in out.files]


def test_a_planner_acts_elsewhere(run, tmp_path, capsys):
    """Two decisions in a row: key and plan travel through the program."""
    out = tmp_path / "agent.stablehlo"
    assert command.main([str(run), f"--out={out}", "--train_seed=4", "--num=2"]) == 0
    shown = capsys.readouterr().out
    assert f"written: {out}" in shown and "probe/truncated after 10 decisions" in shown
    assert "largest difference of an action from the agent's own: 0.0e+00" in shown
    restored = controller.load(run)
    fns = controller.make_fns(CONFIG.agent, restored.spec)
    params = jax.tree.map(lambda x: x[1], restored.state.params)
    obs = np.random.default_rng(0).normal(size=(2, restored.spec.obs_size)).astype(np.float32)
    state = fns.init(jax.random.key(7), 2)
    inputs = [jax.random.key_data(state.key), obs, state.plan.mean, state.is_first]
    for _ in range(2):
        state, expected = jax.jit(fns.act)(params, state, obs)
        action, key, plan = elsewhere(tmp_path, out, *inputs)
        np.testing.assert_allclose(action, expected, atol=1e-6)
        np.testing.assert_allclose(plan, state.plan.mean, atol=1e-6)
        inputs = [key, obs, plan, np.zeros(2, bool)]


def test_a_policy_for_several_platforms(run, tmp_path):
    """Lowered for a GPU without one; the text names the program's types."""
    restored = controller.load(run)
    params = jax.tree.map(lambda x: x[0], restored.state.params)
    spec = restored.spec
    made = exporting.export(
        params, CONFIG.agent, spec, actor="policy", num=3, platforms=("cpu", "cuda")
    )
    assert made.platforms == ("cpu", "cuda")
    obs = np.linspace(-2.0, 2.0, 3 * spec.obs_size, dtype=np.float32).reshape(3, -1)
    fns = controller.make_fns(CONFIG.agent, spec, actor="policy")
    assert exporting.deviation(made, fns, params, obs) < 1e-6
    assert np.std(np.asarray(made.call(obs))) > 1e-2
    text = tmp_path / "agent.mlir"
    assert command.main([str(run), f"--out={text}", "--actor=prior", "--num=3"]) == 0
    assert "stablehlo" in text.read_text() and f"tensor<3x{spec.obs_size}xf32>" in text.read_text()


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--out=agent.onnx"], "--out = 'agent.onnx': must end in .stablehlo or .mlir"),
        (["--out=nowhere/agent.mlir"], "--out = 'nowhere/agent.mlir': nowhere is no folder"),
        (["--num=0"], "--num = 0: must be >= 1"),
        (["--platforms=cpu,gpu"], "--platforms = 'cpu,gpu': must be of cpu, cuda, tpu"),
        (["--train_seed=9"], "--train-seed = 9: this run has the seeds 3 to 4"),
        (["--checkpoint=7"], "7"),
    ],
)
def test_refused_arguments(run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    flags = flags if "--out" in flags[0] else ["--out=agent.mlir", *flags]
    assert command.main([str(run), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error and not list(tmp_path.iterdir())


def test_refused_in_python(run):
    restored = controller.load(run)
    params = jax.tree.map(lambda x: x[0], restored.state.params)
    for wrong, message in [
        ({"num": 0}, "num = 0"), ({"num": True}, "num = True"), ({"platforms": ()}, "empty"),
        ({"platforms": ("gpu",)}, "'gpu'"), ({"actor": "human"}, "actor = 'human'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            exporting.export(params, CONFIG.agent, restored.spec, **wrong)


def test_a_missing_library_is_named(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main([str(run), f"--out={tmp_path / 'agent.stablehlo'}"]) == 2
    assert "pip install flatbuffers" in capsys.readouterr().err
