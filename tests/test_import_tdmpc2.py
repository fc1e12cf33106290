"""Agents of TD-MPC2: the same numbers as its networks, and runs that start from them."""

import csv
import functools
import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference as ref
import tiny
import torch_files as files

from experiments import evaluate, export, import_tdmpc2, report
from pomcp_jax import (
    acting,
    actors,
    agent,
    checkpoint,
    controller,
    fine_tuning,
    importing_tdmpc2,
    presets,
    world_model,
)
from pomcp_jax import config as config_lib
from pomcp_jax.config import ConfigError
from pomcp_jax.importing_torch import TorchFileError
from pomcp_jax.running import functions
from pomcp_jax.running.background import Control
from pomcp_jax.running.progress import Progress
from pomcp_jax.running.trainer import Trainer

OBS, A, GROUP, TASK = 5, 2, 8, "probe/truncated"

# ------------------------------------------------------------- TD-MPC2's networks in float64


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def simnorm(x):
    """Groups of neighbours, as ``x.view(..., -1, 8)`` makes them."""
    return softmax(x.reshape(*x.shape[:-1], -1, GROUP)).reshape(x.shape)


def forward(state, prefix, x, final=None, head=None):
    """A network of torch's layout, ``x @ W.T + b``, with the input in one piece."""
    leaf = lambda i, name: ref.f64(state[f"{prefix}.{i}.{name}"])[  # noqa: E731
        ... if head is None else head
    ]
    number = len([k for k in state if k.startswith(f"{prefix}.") and k.endswith(".bias")])
    number -= len([k for k in state if k.startswith(f"{prefix}.") and k.endswith(".ln.bias")])
    for i in range(number):
        x = x @ leaf(i, "weight").T + leaf(i, "bias")
        if f"{prefix}.{i}.ln.weight" in state:
            x = ref.layer_norm(x, leaf(i, "ln.weight"), leaf(i, "ln.bias"))
            x = final(x) if i == number - 1 else ref.mish(x)
    return x


def theirs(state, obs, action):
    """Every output of an agent, by TD-MPC2's order of latent entries."""
    z = forward(state, "_encoder.state", ref.f64(obs), simnorm)
    both = np.concatenate([z, action], axis=-1)
    mean, raw = np.split(forward(state, "_pi", z), 2, axis=-1)
    low = float(state["log_std_min"])
    out = {
        "latent": z,
        "next": forward(state, "_dynamics", both, simnorm),
        "reward": ref.two_hot_decode(forward(state, "_reward", both)),
        "mean": np.tanh(mean),
        "log_std": ref.bounded_log_std(raw, low, low + float(state["log_std_dif"])),
    }
    for name, prefix in (("value", "_Qs.params"), ("target", "_target_Qs_params")):
        heads = range(len(state[f"{prefix}.0.bias"]))
        logits = [forward(state, prefix, both, head=i) for i in heads]
        out[name] = np.stack([ref.two_hot_decode(x) for x in logits])
    if "_termination.0.bias" in state:
        out["termination"] = forward(state, "_termination", z)[..., 0]
    return out


def configuration(arranged_for, termination=False):
    state = files.state_dict(OBS, A, latent=24, termination=termination)
    sizes = importing_tdmpc2._sizes(state)
    source = importing_tdmpc2.Source("", sizes, importing_tdmpc2.LOG_STD, state)
    agent = importing_tdmpc2.settings(source, presets.get("tdmpc2"))
    return config_lib.replace(agent.world_model, {"arranged_for": arranged_for})


@functools.cache
def ours(arranged_for, dtype, termination):
    """Every output of our networks, compiled once."""
    config = configuration(arranged_for, termination)
    nets = world_model.build(config, A)
    nets = type(nets)(*(net.clone(dtype=jnp.dtype(dtype)) for net in nets))
    bins = world_model.bins(config)

    @jax.jit
    def run(params, target, obs, action, log_std):
        model = params.model
        z = world_model.encode(nets, model.encoder, obs)
        step = world_model.step(nets, model, z, action, bins)
        dist = actors.distribution(nets, params.policy, z, config, log_std)
        out = {
            "latent": z,
            "next": step.latent,
            "reward": step.reward,
            "mean": actors.mode(dist, config.squash),
            "log_std": jnp.log(dist.std),
            "value": world_model.values(nets, model.value, z, action, bins),
            "target": world_model.values(nets, target, z, action, bins),
        }
        if termination:
            out["termination"] = world_model.termination_logits(nets, model.termination, z)
        return out

    return run


@pytest.mark.parametrize("layout", files.LAYOUTS)
@pytest.mark.parametrize("arranged_for", ["cpu", "gpu"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_outputs_are_those_of_its_networks(tmp_path, layout, arranged_for, dtype):
    state = files.state_dict(OBS, A, latent=24, termination=layout == "present")
    if layout == "published":  # such files have no bounds, its config.yaml has these
        state |= {"log_std_min": np.array(-10), "log_std_dif": np.array(12)}
    path = files.save(tmp_path / "agent.pt", files.LAYOUTS[layout](state))
    source = importing_tdmpc2.read(path)
    assert source.sizes[:3] == (OBS, A, 24)
    assert source.log_std == ((-10, 2) if layout == "published" else (-9, 1))
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(7, OBS)), rng.uniform(-1, 1, (7, A))
    termination = source.sizes.termination
    made = importing_tdmpc2.parameters(source, configuration(arranged_for, termination))
    with jax.enable_x64(dtype == "float64"):
        inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype), (*made, obs, action, source.log_std))
        out = jax.device_get(ours(arranged_for, dtype, termination)(*inputs))
    expected = theirs(state, obs, action)
    if arranged_for == "cpu":  # our entry ``j G + g`` is their ``g group + j``
        for name in ("latent", "next"):
            x = expected[name].reshape(7, -1, GROUP)
            members = [x[:, g, j] for j in range(GROUP) for g in range(x.shape[1])]
            expected[name] = np.stack(members, axis=-1)
    assert out.keys() == expected.keys()
    tolerance = 1e-6 if dtype == "float64" else 1e-5
    for name, x in expected.items():
        assert out[name].dtype == dtype and out[name].shape == x.shape
        # Relative to the largest entry: values pass symexp.
        atol = tolerance * max(1.0, np.max(np.abs(x)))
        np.testing.assert_allclose(out[name], x, rtol=0.0, atol=atol, err_msg=name)


# ------------------------------------------------------------------------ what is refused


def changed(**changes):
    """A state dictionary of the probe's sizes with other tensors; None removes one."""
    state = files.state_dict(1, 1) | {name.replace("__", "."): x for name, x in changes.items()}
    return {name: x for name, x in state.items() if x is not None}


NAN = np.full((16,), np.nan, np.float32)
STATES = {
    "multi-task": (changed(_task_emb__weight=np.zeros((2, 96), np.float32)), "multi-task agent"),
    "pixels": (changed(_encoder__rgb__2__bias=NAN), "observes pixels"),
    "nothing": ({}, "has no _encoder.state.0.weight: is no agent of TD-MPC2"),
    "missing": (changed(_pi__1__bias=None), "has no _pi.1.bias$"),
    "no targets": (
        {k: v for k, v in changed().items() if "target" not in k},
        r"has no _target_Qs_params.0.weight; .*; and 7 more",
    ),
    "extra": (changed(_decoder__0__bias=NAN), "_decoder.0.bias is unknown"),
    "shape": (
        changed(_reward__1__weight=np.zeros((16, 15), np.float32)),
        r"_reward.1.weight has the shape \[16, 15\], must have \[16, 16\]",
    ),
    "axes": (changed(_Qs__params__0__weight=NAN), r"_Qs.params.0.weight has the shape \[16\]"),
    "no tensor": (changed(_pi__1__bias="text"), "_pi.1.bias: holds no tensor"),
    "NaN": (changed(_dynamics__0__ln__bias=NAN), "_dynamics.0.ln.bias holds numbers that are no"),
    "huge": (changed(_pi__0__bias=np.full((16,), 1e300)), "_pi.0.bias holds numbers that are no"),
    "half of the bounds": (changed(log_std_dif=None), "log_std_min and log_std_dif: must be"),
    "groups": (files.state_dict(1, 1, latent=12), "must be a multiple of 8"),
}


@pytest.mark.parametrize("name", STATES)
def test_other_agents_are_refused(tmp_path, name):
    state, message = STATES[name]
    with pytest.raises(TorchFileError, match=message) as error:
        importing_tdmpc2.read(files.save(tmp_path / "agent.pt", state))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("state", [[], {"model": {1: 2}}, {"model": 3}])
def test_a_file_of_something_else_is_refused(tmp_path, state):
    path = files.write(tmp_path / "a.pt", files.entries(state, []))
    with pytest.raises(TorchFileError, match="must hold {'model': state_dict}"):
        importing_tdmpc2.read(path)


def test_a_bare_state_dictionary_is_read_too(tmp_path):
    made, storages = files.tensors(changed())
    path = files.write(tmp_path / "a.pt", files.entries(made, storages))
    assert importing_tdmpc2.read(path).sizes == importing_tdmpc2.Sizes(
        1, 1, 16, 16, 2, 16, 3, 21, False
    )


def test_encoders_of_more_layers(tmp_path):
    path = files.save(tmp_path / "a.pt", files.state_dict(1, 1, encoder=(16, 16, 16)))
    source = importing_tdmpc2.read(path)
    agent = importing_tdmpc2.settings(source, presets.get("tdmpc2"))
    params, _ = importing_tdmpc2.parameters(source, agent.world_model)
    fresh = jax.eval_shape(lambda: world_model.init(jax.random.key(0), agent.world_model, 1, 1))
    assert jax.tree.map(lambda x: x.shape, params.model) == jax.tree.map(lambda x: x.shape, fresh)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"file": "code"}, "asks for 'posix.system'; .* could run code"),
        ({"file": "cut"}, "is damaged, or was not written by torch.save"),
        ({"--task": "probe/lqr"}, "has 2 observations and 1 actions, the agent in .* 1 and 1"),
        ({"--task": "probe/trunc"}, "unknown environment 'probe/trunc'"),
        ({"--backend": "host"}, "has the backend mjx"),
        ({"--action_repeat": "0"}, "env.action_repeat = 0: must be >= 1"),
        ({"--episodes": "-1"}, "--episodes = -1: must be >= 0"),
        ({"--out": "there"}, "exists; must be a new folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, capsys, changes, message):
    path = files.save(tmp_path / "agent.pt", changed())
    (tmp_path / "there").mkdir()
    (tmp_path / "there/x").touch()
    given = {"--task": TASK, "--out": "new"} | changes
    if changes.get("file") == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    if changes.get("file") == "code":
        call = files.Call(os.system, "false")
        files.write(path, files.entries({"model": call}, []))
    given["--out"] = str(tmp_path / given["--out"])
    before = sorted(tmp_path.rglob("*"))
    arguments = [f"{name}={value}" for name, value in given.items() if name != "file"]
    assert import_tdmpc2.main([str(path), *arguments]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert sorted(tmp_path.rglob("*")) == before


# ------------------------------------------------------------------------ used and fine-tuned


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """An imported agent of the sizes of :mod:`tiny`, and the state dictionary that it is from."""
    place = tmp_path_factory.mktemp("imported")
    state = files.state_dict(1, 1)
    path = files.save(place / "agent.pt", files.older(state))
    arguments = [str(path), f"--task={TASK}", f"--out={place / 'agent'}", "--episodes=2"]
    assert import_tdmpc2.main(arguments) == 0
    return place / "agent", state


def test_an_imported_agent_is_used_like_every_other(imported, tmp_path, capsys):
    folder, _ = imported
    config = json.loads((folder / "config.json").read_text())
    assert config["agent"]["optimizer"]["discount"] == 0.95  # five decisions an episode
    assert config["agent"]["mppi"]["iterations"] == 6
    assert config["agent"]["world_model"]["squash"] == "tanh"
    about = json.loads((folder / "run.json").read_text())
    assert (about["status"], about["preset"]) == ("imported", "tdmpc2")
    assert len(about["imported"]["sha256"]) == 64 and about["imported"]["file"] == "agent.pt"
    assert evaluate.main([str(folder), "--episodes=3", "--actor=policy"]) == 0
    assert "0  5.0" in capsys.readouterr().out
    assert report.main([str(folder), f"--out={tmp_path / 'report.html'}"]) == 0
    assert export.main([str(folder), f"--out={tmp_path / 'again'}"]) == 0
    one, again = (controller.load(x) for x in (folder, tmp_path / "again"))
    assert again.state.target_value is None and one.state.target_value is not None
    jax.tree.map(np.testing.assert_array_equal, one.state.params, again.state.params)
    (about,) = (json.loads((tmp_path / "again/run.json").read_text())["imported"],)
    assert about["file"] == "agent.pt"


def start(folder, preset="po_mpc", agent_changes=None, **changes):
    """A tiny run that starts from ``folder``, its configuration and its first state."""
    changes = {"train__start_from": str(folder), **changes}
    config = tiny.run(preset, agent_changes, **changes)
    made = functions.build(config)
    return config, made, made.program.init(config)


def row(tree, index=0):
    return jax.tree.map(lambda x: np.asarray(x[index]), tree)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_run_starts_from_it(imported):
    """Every seed; the prior is a copy of the policy, optimiser and scales are fresh."""
    folder, state = imported
    config, made, begun = start(folder, train__num_seeds=2)
    fresh = tiny.run(train__num_seeds=2)
    fresh = functions.build(fresh).program.init(fresh)
    params, target = importing_tdmpc2.parameters(source_of(state), config.agent.world_model)
    for seed in range(2):
        same(row(begun.agent.params.model, seed), params.model)
        same(row(begun.agent.target_value, seed), target)
        same(row(begun.agent.params.policy, seed), params.policy)
        same(row(begun.agent.params.prior, seed), params.policy)
    same(begun.agent.opt, fresh.agent.opt)
    same(begun.agent.scales, fresh.agent.scales)
    same(jax.random.key_data(begun.keys), jax.random.key_data(fresh.keys))
    pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(begun.agent)]
    assert len(set(pointers)) == len(pointers)  # all of them are donated


def source_of(state):
    tensors = dict(state)
    log_std = importing_tdmpc2._log_std(tensors)
    return importing_tdmpc2.Source("", importing_tdmpc2._sizes(tensors), log_std, tensors)


def test_a_diverged_seed_restarts_from_it(imported):
    config, made, state = start(imported[0], train__num_seeds=2, train__on_broken_seed="reset")
    learned = row(state.agent.params)
    broken = state.agent._replace(params=jax.tree.map(lambda x: x + 1.0, state.agent.params))
    state = made.reset_agents(state._replace(agent=broken), config, np.array([False, True]))
    same(row(state.agent.params, 1), learned)
    moved = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), row(state.agent.params), learned)
    assert min(jax.tree.leaves(moved)) > 0.99


Z = np.random.default_rng(0).normal(size=(4, 16)).astype(np.float32)
ACTION = np.random.default_rng(1).uniform(-1, 1, (4, 1)).astype(np.float32)


def adapted(folder, preset, **agent_changes):
    """The imported agent, its configuration, and what a run of ``preset`` starts from."""
    agents = controller.load(folder)
    config = tiny.agent(preset, **agent_changes)
    spec = acting.build(config, 1, 1)
    params, target = row((agents.state.params, agents.state.target_value))
    origin = agents.config.agent
    learned = fine_tuning.adapted(params, target, origin, agents.spec, config, spec)
    return params, agents, learned, config, spec


def test_another_critic_starts_with_values_of_action_zero(imported):
    params, agents, learned, config, spec = adapted(imported[0], "bmpc")
    bins = world_model.bins(config.world_model)
    assert learned.params.prior is None and config.world_model.num_heads == 2
    got = world_model.values(spec.nets, learned.params.model.value, Z, None, bins)
    zero = np.zeros_like(ACTION)
    expected = world_model.values(agents.spec.nets, params.model.value, Z, zero, bins)
    np.testing.assert_allclose(got, expected[:2], rtol=1e-5, atol=1e-6)
    # And back: Q(z, a) is V(z) whatever the action.
    q = tiny.agent("tdmpc2", world_model__num_heads=2)
    back = fine_tuning.adapted(
        learned.params, learned.target_value, config, spec, q, acting.build(q, 1, 1)
    )
    nets = acting.build(q, 1, 1).nets
    value = world_model.values(nets, back.params.model.value, Z, ACTION, bins)
    np.testing.assert_allclose(value, got, rtol=1e-5, atol=1e-6)


def test_another_member_keeps_the_action_without_noise(imported):
    params, agents, learned, config, spec = adapted(imported[0], "po_mpc")
    modes = [
        actors.mode(actors.distribution(nets, x.policy, Z, model), model.squash)
        for nets, x, model in (
            (agents.spec.nets, params, agents.config.agent.world_model),
            (spec.nets, learned.params, config.world_model),
        )
    ]
    np.testing.assert_allclose(*modes, rtol=1e-6)


def test_an_agent_for_another_device_predicts_the_same(imported):
    """And has a termination head of its own, which stays fresh."""
    changes = {"world_model__arranged_for": "gpu", "world_model__termination": True}
    params, agents, learned, config, spec = adapted(imported[0], "po_mpc", **changes)
    assert learned.params.model.termination is None
    obs, results = ACTION[:, :1], []
    for nets, x in ((agents.spec.nets, params), (spec.nets, learned.params)):
        z = world_model.encode(nets, x.model.encoder, obs)
        z = world_model.dynamics(nets, x.model.dynamics, z, ACTION)
        heads = world_model.value_logits(nets, x.model.value, z, ACTION)
        results.append([heads, world_model.policy(nets, x.policy, z)])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *results)
    fresh = agent.init(jax.random.key(0), config, spec)
    many = jax.tree.map(lambda x: x[None], fresh)
    begun = fine_tuning.begin(many, learned)
    same(begun.params.model.termination, many.params.model.termination)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"agent_changes": {"world_model__mlp_width": 32}}, r"mlp_width = 16, this run 32; must"),
        (
            {"agent_changes": {"world_model__num_heads": 4}},
            r"num_heads = 3, this run 4; must",
        ),
        ({"agent_changes": {"world_model__bin_low": -9.0}}, r"bin_low = -10\.0, this run -9\.0"),
        ({"env__task": "probe/lqr"}, "was trained with 1 observations, env.task has 2"),
        ({"train__start_from": "no/such"}, "no/such: no such folder"),
    ],
)
def test_an_agent_that_does_not_fit_is_named(imported, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        start(imported[0], **changes)
    assert str(error.value).startswith("train.start_from = ")


def test_several_agents_are_refused(imported, tmp_path):
    agents = controller.load(imported[0])
    two = jax.tree.map(lambda x: jnp.concatenate([x, x]), agents.state)
    checkpoint.save(tmp_path / "checkpoints", 0, two, agents.config, agents.spec)
    with pytest.raises(ConfigError, match="holds 2 agents; must hold one .*experiments.export"):
        start(tmp_path)


def test_a_fine_tuning_run_starts_and_resumes(imported, tmp_path):
    """The planner fills replay, with plans as records; the rest is an ordinary run."""
    changes = {"train__start_from": str(imported[0]), "train__seed_actions": "planner"}

    def train(total):
        config = tiny.run(train__total_decisions=total, **changes)
        control = Control(Progress(interval=float("inf")))
        return Trainer(config, tmp_path / "run", control=control).run()

    with tiny.shared_programs():
        assert (train(40).code, train(60).decisions) == (0, 60)
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    seeding, pretraining = rows[1], rows[2]
    assert seeding["plan/std"] and not seeding["loss/model"]
    assert pretraining["loss/model"] and not pretraining["plan/std"]
    assert json.loads((tmp_path / "run/run.json").read_text())["resumed_at"] == 40
    stored = controller.load(tmp_path / "run", "newest")
    assert stored.config.train.start_from == str(imported[0])
