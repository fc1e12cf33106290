"""Exported agents: the same actions in a process without this package; refused arguments."""

import csv
import importlib
import json
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import onnx
import pytest
import tiny
from onnx.reference import ReferenceEvaluator

import pomcp_jax
from experiments import aggregate, evaluate, render
from experiments import export as command
from pomcp_jax import (
    acting,
    agent,
    checkpoint,
    controller,
    envs,
    exporting,
    exporting_onnx,
    exporting_run,
    networks,
)
from pomcp_jax import config as config_lib
from pomcp_jax.actors import AgentParams
from pomcp_jax.config import ConfigError
from pomcp_jax.running.trainer import Trainer
from pomcp_jax.world_model import ModelParams

CONFIG = tiny.run(train__seed=3, train__num_seeds=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two agents whose actions differ between observations."""
    folder = tmp_path_factory.mktemp("run")
    env = envs.make(CONFIG.env.task)
    spec = acting.build(CONFIG.agent, env.observation_size, env.action_size)
    keys = jax.random.split(jax.random.key(0), 2)
    state = jax.jit(jax.vmap(lambda key: agent.init(key, CONFIG.agent, spec)))(keys)
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


def pair(num_obs, num_actions, **changes):
    """Encoder and actors with random parameters everywhere; configuration and spec."""
    config = tiny.agent(**changes)
    spec = acting.build(config, num_obs, num_actions)
    random, size = np.random.default_rng(1), config.world_model.latent_size

    def drawn(module, inputs):
        shapes = jax.eval_shape(lambda: networks.init(module, jax.random.key(0), inputs))
        # Not the initial values, whose biases are 0 and whose scales are 1.
        scales = {1: 0.3, 2: 1.0}  # of vectors and of kernels
        return jax.tree.map(
            lambda x: np.float32(scales[x.ndim] * random.normal(size=x.shape)), shapes
        )

    encoder = drawn(spec.nets.encoder, num_obs)
    # Latents that are nearly one-hot vary most.
    encoder["out"]["scale"] *= 10.0
    policy, prior = (drawn(spec.nets.policy, size) for _ in range(2))
    return AgentParams(ModelParams(encoder, *[None] * 4), policy, prior), config, spec


def runtimes():
    """Implementations of ONNX: its reference in NumPy and, where it is installed, onnxruntime."""
    yield lambda data: ReferenceEvaluator(onnx.load_from_string(data))
    if importlib.util.find_spec("onnxruntime"):
        runtime = importlib.import_module("onnxruntime")
        yield lambda data: runtime.InferenceSession(data, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "num_obs,num_actions,actor,changes",
    [
        (3, 1, "policy", {}),
        (5, 2, "prior", {"world_model__encoder_layers": 4, "world_model__mlp_width": 24}),
        (24, 6, "policy", {"world_model__simnorm_group": 4, "world_model__squash": "clip"}),
        (7, 3, "policy", {"world_model__squash": "clip_straight_through"}),
        (4, 2, "policy", {"world_model__arranged_for": "gpu"}),
    ],
)
def test_onnx_acts_like_the_agent(num_obs, num_actions, actor, changes):
    params, config, spec = pair(num_obs, num_actions, **changes)
    data = exporting_onnx.export(params, config, spec, actor=actor).SerializeToString()
    fns = controller.make_fns(config, spec, actor=actor)
    obs = 3.0 * np.random.default_rng(0).normal(size=(33, num_obs)).astype(np.float32)
    _, expected = jax.jit(fns.act)(params, fns.init(jax.random.key(0), 33), obs)
    assert np.std(np.asarray(expected), axis=0).max() > 1e-2  # a thousand times the tolerance
    for runtime in runtimes():
        session = runtime(data)
        for rows in (slice(0, 1), slice(0, 33)):  # any number of observations
            (action,) = session.run(["action"], {"observation": obs[rows]})
            np.testing.assert_allclose(action, expected[rows], atol=1e-5)


@pytest.mark.skipif(
    importlib.util.find_spec("onnxruntime") is None,
    reason="onnxruntime is not installed (pip install onnxruntime): compared with onnx alone",
)
def test_onnxruntime_is_compared():
    assert len(list(runtimes())) == 2


def test_onnx_from_the_command_line(run, tmp_path, capsys):
    out = tmp_path / "policy.onnx"
    assert command.main([str(run), f"--out={out}", "--train_seed=4"]) == 0
    shown = capsys.readouterr().out
    assert "policy without noise: observation [N, " in shown and f"written: {out}" in shown
    model = onnx.load(out)
    about = {x.key: x.value for x in model.metadata_props}
    assert about["task"] == CONFIG.env.task and about["decisions"] == "10"
    assert about["action_size"] == str(controller.load(run).spec.action_size)
    # The agent of the seed that was asked for.
    restored = controller.load(run)
    obs = np.ones((2, restored.spec.obs_size), np.float32)
    fns = controller.make_fns(CONFIG.agent, restored.spec, actor="policy")
    params = jax.tree.map(lambda x: x[1], restored.state.params)
    _, expected = jax.jit(fns.act)(params, fns.init(jax.random.key(0), 2), obs)
    assert exporting_onnx.deviation(model, expected, obs) < 1e-5


def test_metadata_of_a_dm_control_task(run):
    """Sizes and order of the observations add up to the agent's own."""
    restored = controller.load(run)
    config = config_lib.replace(restored.config, {"env.task": "cartpole-swingup"})
    about = command.facts(restored._replace(config=config))
    assert json.loads(about["observations"]) == {"position": 3, "velocity": 2}
    assert json.loads(about["action_low"]) == [-1.0] and about["task"] == "cartpole-swingup"
    assert json.loads(about["versions"])["pomcp_jax"]


def tables(folder):
    """Rows of evaluations, and facts about a run, beside its checkpoints."""
    header = "seconds,decisions,frames,seed,actor,eval/return"
    lines = [f"1.0,10,10,{seed},planner,{100.0 + seed}" for seed in (3, 4)]
    (folder / "evaluations.csv").write_text("\n".join([header, *lines, ""]))
    (folder / "run.json").write_text(json.dumps({"preset": "po_mpc", "command": "/home/me"}))


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Seed 4 of the run as a folder of its own."""
    tables(run)
    out = tmp_path_factory.mktemp("agents") / "probe"
    assert command.main([str(run), f"--out={out}/", "--train_seed=4"]) == 0
    return out


def test_a_folder_holds_one_agent_and_nothing_else(run, folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoints", "config.json", "run.json", "evaluations.csv"}
    assert json.loads((folder / "run.json").read_text()) == {"preset": "po_mpc"}
    whole, alone = controller.load(run), controller.load(folder)
    assert alone.num_seeds == 1 and alone.config.train.seed == 4
    assert alone.state.opt is None and alone.decisions == 10
    chex.assert_trees_all_equal(
        alone.state.params, jax.tree.map(lambda x: x[1:], whole.state.params)
    )
    (row,) = csv.DictReader((folder / "evaluations.csv").read_text().splitlines())
    assert row["seed"] == "4" and row["eval/return"] == "104.0"

    def size(place):
        return sum(path.stat().st_size for path in place.rglob("*") if path.is_file())

    assert size(folder) < 0.4 * size(run / "checkpoints")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("evaluations.csv", "x,y\n1,2\n"),
        ("evaluations.csv", "seed,decisions,frames,seconds\n0,1,2,3,4\n"),
        ("evaluations.csv", "seed,decisions,frames,seconds\n0,1,2," + "3" * 200_000 + "\n"),
        ("run.json", ""),
        ("run.json", "3"),
        ("run.json", "[" * 100_000),
    ],
    ids=["columns", "long row", "long cell", "empty", "number", "nested"],
)
def test_a_damaged_record_is_named_and_nothing_is_written(folder, tmp_path, capsys, name, text):
    shutil.copytree(folder, tmp_path / "agent")
    (tmp_path / "agent" / name).write_text(text)
    assert command.main([str(tmp_path / "agent"), f"--out={tmp_path / 'again'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path / 'agent' / name}: "), error
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_folder_of_somebody_elses_is_kept(folder, tmp_path):
    precious = tmp_path / ".x.partial" / "precious"
    precious.parent.mkdir()
    precious.touch()
    assert command.main([str(folder), f"--out={tmp_path / 'x'}"]) == 0
    assert precious.exists() and (tmp_path / "x" / "config.json").exists()


def test_commands_accept_the_folder(folder, tmp_path, capsys):
    assert evaluate.main([str(folder), "--episodes=2", "--actor=policy"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "4"
    assert render.main([str(folder), f"--out={tmp_path / 'x.npz'}", "--actor=policy"]) == 0
    assert command.main([str(folder), f"--out={tmp_path / 'x.mlir'}", "--actor=policy"]) == 0
    assert command.main([str(folder), f"--out={tmp_path / 'again'}"]) == 0
    assert aggregate.main([str(folder), f"--out={tmp_path / 'x.md'}"]) == 0
    assert "104" in (tmp_path / "x.md").read_text()
    loaded = pomcp_jax.load_controller(folder, actor="policy")
    again = pomcp_jax.load_controller(tmp_path / "again", actor="policy")
    obs = np.ones(loaded.observation_size)
    np.testing.assert_array_equal(loaded.act(obs), again.act(obs))


def test_an_exported_agent_is_not_trained_further(folder):
    before = sorted(folder.rglob("*"))
    match = "without replay and optimiser; .* another --workdir .*start_from="
    with pytest.raises(ConfigError, match=match):
        Trainer(controller.load(folder).config, folder).run()
    assert sorted(folder.rglob("*")) == before


def test_scores_come_from_the_evaluation_of_the_checkpoint(run, tmp_path):
    whole = controller.load(run)
    host = {"evaluated_at": 10, "evaluated": {"eval/return": [1.5, 2.5]}}
    checkpoint.save(
        tmp_path / "run/checkpoints", 10, whole.state, CONFIG, whole.spec, score=2.0, host=host
    )
    exporting_run.write(tmp_path / "one", tmp_path / "run", whole, 1)
    assert checkpoint.scores(tmp_path / "one/checkpoints") == {10: 2.5}
    one = controller.load(tmp_path / "one")
    exporting_run.write(tmp_path / "two", tmp_path / "one", one, 0)
    assert checkpoint.scores(tmp_path / "two/checkpoints") == {10: 2.5}


@pytest.mark.parametrize(
    "flags,message",
    [
        (["--out=agent.pt"], "--out = 'agent.pt': must end in .stablehlo, .mlir, .onnx, or name a"),
        (
            ["--out=agent.onnx", "--actor=planner"],
            "or export the planner as .stablehlo",
        ),
        (["--out=agent.onnx", "--num=3"], "--num: has no effect on a .onnx file; leave it out"),
        (["--out=agent", "--actor=policy"], "--actor: has no effect on a folder; leave it out"),
        (["--out=nowhere/agent"], "--out = 'nowhere/agent': nowhere is no folder"),
        (["--out=nowhere/agent.mlir"], "--out = 'nowhere/agent.mlir': nowhere is no folder"),
        (["--num=0"], "--num = 0: must be >= 1"),
        (["--platforms="], "--platforms = '': must be of cpu, cuda, tpu"),
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


@pytest.mark.parametrize("suffix,library", [("stablehlo", "flatbuffers"), ("onnx", "onnx")])
def test_a_missing_library_is_named(run, tmp_path, monkeypatch, capsys, suffix, library):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command.main([str(run), f"--out={tmp_path / f'agent.{suffix}'}"]) == 2
    assert f"pip install {library}" in capsys.readouterr().err


def test_a_folder_in_use_is_not_replaced(run, capsys):
    before = sorted(run.rglob("*"))
    assert command.main([str(run), f"--out={run}"]) == 2
    assert "exists; must be a new folder" in capsys.readouterr().err
    assert sorted(run.rglob("*")) == before
