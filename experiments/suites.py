"""Suites for ``python -m experiments.reproduce``, as plain data.

A suite is tasks x methods x seeds with one configuration file. All seeds of a cell (one task, one
method) train as one program. Besides the suites here, a JSON file can be one (:func:`load`).
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pomcp_jax import nearest
from pomcp_jax.errors import ConfigError
from pomcp_jax.reporting.keeping import folder_name


class Method(NamedTuple):
    """A column of a suite."""

    preset: str
    overrides: Mapping[str, Any] = {}
    """Dotted fields of :class:`pomcp_jax.Config` that differ from the preset."""


class Suite(NamedTuple):
    """Trainings that are compared with each other."""

    about: str
    config: str
    """Configuration file."""
    tasks: tuple[str, ...]
    methods: Mapping[str, Method]
    """Methods by the name of their results and curves."""
    num_seeds: int
    overrides: Mapping[str, Any] = {}
    """Dotted fields that every cell sets."""


def of_presets(*names: str) -> dict[str, Method]:
    """Methods that are presets and nothing else."""
    return {name: Method(name) for name in names}


BEYOND: dict[str, dict[str, Any]] = {
    # Faster than the default dual_rate: there are only 10,000 updates.
    "dual": {"policy.kl_tuning": "dual", "policy.kl_target": 0.1, "policy.dual_rate": 1e-2},
    "mixture": {"policy.prior": "mixture", "policy.prior_mix": 0.5},
    "gate": {"prior.gate": True},
    "value_weight": {"policy.value_weight": True},
    "propose_both": {"policy.proposer": "both"},
    "propose_prior": {"policy.proposer": "prior"},
    "tail_penalty": {"critic.tail_penalty": 1.0},
    "soft_target": {"critic.soft_target": True},
    "target_prior": {"critic.target_actor": "prior"},
}
"""Settings beyond PO-MPC's paper, one at a time (docs/method.md, "Beyond the papers")."""

REPLANNING: dict[str, dict[str, Any]] = {
    "every_10": {},
    "every_30": {"replan.interval": 30},
    "never": {"policy.prior": "stored", "replan.interval": 0},
    "half": {"replan.num_samples": 64, "replan.iterations": 2},
    "oldest": {"replan.select": "oldest"},
    "kl": {"replan.select": "kl"},
}
"""BMPC's re-planning, cheaper re-planning, and other choices of windows."""

PARITY = {
    **{f"agent.world_model.{f}": 128 for f in ("latent_size", "encoder_width", "mlp_width")},
    "agent.world_model.num_heads": 2,
    "agent.optimizer.batch_size": 128,
    "agent.mppi.num_samples": 128,
    "agent.mppi.iterations": 4,
    # As many of these as TD-MPC2 has of 512: an eighth, and 5 %.
    "agent.mppi.num_elites": 16,
    "agent.mppi.num_proposals": 6,
    "train.total_decisions": 20_000,
    "train.capacity": 20_000,
    "train.eval_decisions": 2_500,
    # A chunk takes minutes on a busy core, and a stop waits for 15 s only: without a checkpoint
    # all is lost.
    "train.checkpoint_decisions": 2_500,
    "train.checkpoint_keep": 1,
}
"""Sizes at which a JAX port of TD-MPC2 published its training returns (docs/results.md)."""

LONG = {
    # dm_control's own engine: cheaper than MJX on a CPU.
    "env.backend": "host",
    "train.total_decisions": 50_000,
    # Room for three times the length: experiments.run can extend a cell's run, and the capacity of
    # a run is fixed.
    "train.capacity": 150_000,
    "train.checkpoint_decisions": 5_000,
    "train.checkpoint_keep": 1,
}
"""Cells that take an hour of a core: interrupted without loss, and long enough to be extended."""

SUITES: dict[str, Suite] = {
    "debug": Suite(
        about="everything once, in about a minute; not for learning",
        config="experiments/configs/debug.py",
        tasks=("probe/lqr", "probe/match"),
        methods=of_presets("tdmpc2", "po_mpc"),
        num_seeds=2,
    ),
    "classic3": Suite(
        about="the family on three small tasks, 100k frames, for a CPU",
        config="experiments/configs/small.py",
        tasks=("cartpole-swingup", "pendulum-swingup", "reacher-easy"),
        methods=of_presets("tdmpc2", "tdmpc_square", "bmpc", "boom", "po_mpc"),
        num_seeds=3,
        overrides={"train.total_decisions": 50_000},
    ),
    "beyond": Suite(
        about="PO-MPC and each setting beyond its paper, 40k frames, for a CPU",
        config="experiments/configs/small.py",
        tasks=("cartpole-swingup",),
        methods={
            "po_mpc": Method("po_mpc"),
            **{
                name: Method("po_mpc", {f"agent.{field}": value for field, value in more.items()})
                for name, more in BEYOND.items()
            },
            "updates_1.5": Method("po_mpc", {"train.updates_per_decision": 1.5}),
            # A tenth of the paper's weakest: at 0.1 the divergence is nearly the whole gradient of
            # small models (docs/results.md).
            "kl_coef_0.01": Method("po_mpc", {"agent.policy.kl_coef": 0.01}),
        },
        num_seeds=3,
        overrides={"train.total_decisions": 20_000, "train.eval_decisions": 5_000},
    ),
    "replanning": Suite(
        about="BMPC with dearer and cheaper re-planning, 40k frames, for a CPU",
        config="experiments/configs/small.py",
        tasks=("cartpole-swingup", "pendulum-swingup"),
        methods={
            name: Method("bmpc", {f"agent.{field}": value for field, value in more.items()})
            for name, more in REPLANNING.items()
        },
        num_seeds=3,
        overrides={"train.total_decisions": 20_000, "train.eval_decisions": 5_000},
    ),
    "parity": Suite(
        about="TD-MPC2's protocol at a small size, one update a decision, 40k frames, for a CPU",
        config="experiments/configs/dm_control.py",
        tasks=("cartpole-swingup",),
        methods=of_presets("tdmpc2"),
        num_seeds=5,
        overrides=PARITY,
    ),
    "highdim": Suite(
        about="the family with 38 and 21 actions, 100k frames, for a CPU; hours a cell",
        config="experiments/configs/small.py",
        tasks=("dog-stand", "humanoid-stand"),
        methods={
            "tdmpc2": Method("tdmpc2"),
            # The paper's strength: small.py lowers it, for tasks with one or two actions.
            "po_mpc": Method("po_mpc", {"agent.policy.kl_coef": 1.0}),
            "bmpc": Method("bmpc"),
        },
        num_seeds=5,
        overrides=LONG,
    ),
    "dev8": Suite(
        about="the family on eight tasks with 1 to 38 actions, 100k frames, for a CPU; days",
        config="experiments/configs/small.py",
        tasks=(
            "cartpole-swingup",
            "pendulum-swingup",
            "reacher-easy",
            "finger-spin",
            "cheetah-run",
            "walker-walk",
            "quadruped-walk",
            "dog-stand",
        ),
        methods={
            **of_presets("po_mpc_calibrated", "po_mpc_gated", "po_mpc_relative", "tdmpc2", "bmpc"),
            # The paper's strength on all tasks: small.py lowers it, for one or two actions.
            "po_mpc": Method("po_mpc", {"agent.policy.kl_coef": 1.0}),
            **of_presets("po_mpc_forward", "po_mpc_direct", "tdmpc_square", "boom"),
            **of_presets("bmpc_v3", "qbmpc", "gem_mpc"),
        },
        num_seeds=5,
        overrides=LONG,
    ),
    "humanoid": Suite(
        about="HumanoidBench with hands, 5M models, 2M frames, for a GPU; needs its model files",
        config="experiments/configs/humanoid.py",
        tasks=tuple(
            f"humanoid/h1hand-{task}"
            for task in (
                "walk",
                "stand",
                "run",
                "reach",
                "sit_hard",
                "balance_simple",
                "stair",
                "slide",
                "pole",
            )
        ),
        methods=of_presets("po_mpc", "tdmpc2", "bmpc", "boom"),
        num_seeds=3,
        overrides={"train.checkpoint_keep": 1},
    ),
    "h1": Suite(
        about="HumanoidBench without hands, tiny models, 100k frames, for a CPU; needs its files",
        config="experiments/configs/small.py",
        tasks=("humanoid/h1-walk",),
        methods={
            # The paper's strength for many actions, as in highdim.
            "po_mpc": Method("po_mpc", {"agent.policy.kl_coef": 1.0}),
            "tdmpc2": Method("tdmpc2"),
        },
        num_seeds=5,
        overrides={
            "train.total_decisions": 100_000,
            "train.capacity": 200_000,
            "train.checkpoint_decisions": 5_000,
            "train.checkpoint_keep": 1,
        },
    ),
    "gpu": Suite(
        about="5M models, action repeat 2, one update a decision, 1M frames, for a GPU",
        config="experiments/configs/dm_control.py",
        tasks=(
            "walker-run",
            "cheetah-run",
            "acrobot-swingup",
            "hopper-hop",
            "humanoid-run",
            "dog-run",
        ),
        methods=of_presets("po_mpc", "tdmpc2", "bmpc", "po_mpc_relative"),
        num_seeds=5,
        # On an H100 machine too: a control step of 16 walkers takes 23 ms on the GPU and 1.2 ms in
        # C on the host (docs/notebook.md).
        overrides={"env.backend": "host", "agent.world_model.arranged_for": "gpu"},
    ),
}


def known(what: str, name: str, names: Iterable[str]) -> str:
    """``name``, if it is one of ``names``.

    Raises:
      ConfigError: one line with the nearest name.
    """
    names = tuple(names)
    if name in names:
        return name
    hint = nearest.hint(name, names)
    raise ConfigError(f"{what} = {name!r}: unknown{hint} ({', '.join(names)})")


def get(name: str) -> Suite:
    """The suite called ``name``, or that of a file whose name ends in ``.json``.

    Raises:
      ConfigError: for an unknown name, with the nearest one, or an invalid file.
    """
    if name.lower().endswith(".json"):
        return load(Path(name))
    return SUITES[known("--suite", name, SUITES)]


EXAMPLE = """\
{"config": "experiments/configs/small.py", "num_seeds": 3,
 "tasks": ["cartpole-swingup", "walker-walk"],
 "methods": {"tdmpc2": {}, "strong": {"preset": "po_mpc", "agent.policy.kl_coef": 9.0}},
 "overrides": {"train.total_decisions": 20000}}
"""
"""A suite as a file. A method is its preset, by default its own name, and what differs from it."""


def _words(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(x) is str and x for x in value)


def _fields(value: Any) -> bool:
    scalars = (str, int, float, bool)
    return isinstance(value, dict) and all(isinstance(x, scalars) for x in value.values())


def _methods(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_fields, value.values()))


class Entry(NamedTuple):
    """An entry of a suite's file."""

    check: Callable[[Any], bool]
    kind: str
    """What it must be, for the error."""
    default: Any = None
    """None if it must be there."""


ENTRIES = {
    "about": Entry(lambda x: type(x) is str, "a text", ""),
    "config": Entry(lambda x: type(x) is str and x != "", "a configuration file"),
    "tasks": Entry(_words, "a list of names"),
    "methods": Entry(_methods, "an object of methods, each an object of fields"),
    "num_seeds": Entry(lambda x: type(x) is int and x > 0, "a number >= 1", 1),
    "overrides": Entry(_fields, "an object of fields", {}),
}


def load(path: Path) -> Suite:
    """The suite of a JSON file (:data:`EXAMPLE`).

    Raises:
      ConfigError: one line that names the file, the entry and what would be right.
    """
    name = f"--suite = {str(path)!r}"
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{name}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: is not JSON ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{name}: must be an object with {', '.join(ENTRIES)}")
    for key in values:
        known(f"{name}: entry", key, ENTRIES)
    for key, entry in ENTRIES.items():
        if key not in values and entry.default is None:
            raise ConfigError(f"{name}: {key} is missing; must be {entry.kind}")
        if key in values and not entry.check(values[key]):
            raise ConfigError(f"{name}: {key} = {values[key]!r:.80}: must be {entry.kind}")
    filled = {key: values.get(key, entry.default) for key, entry in ENTRIES.items()}
    methods = {}
    for label, fields in filled["methods"].items():
        if not _names_a_folder(label):
            raise ConfigError(f"{name}: methods has {label!r:.80}; must be the name of a folder")
        changes = {field: value for field, value in fields.items() if field != "preset"}
        methods[label] = Method(str(fields.get("preset", label)), changes)
    folders = [folder_name(task) for task in filled["tasks"]]
    for task, folder in zip(filled["tasks"], folders, strict=True):
        if folders.count(folder) > 1 or not _names_a_folder(folder):
            raise ConfigError(f"{name}: tasks has {task!r:.80}; must be a task with its own folder")
    for field in (*filled["overrides"], *(f for m in methods.values() for f in m.overrides)):
        if field.removeprefix("config.") == "env.task":
            raise ConfigError(f"{name}: overrides env.task; tasks are named in its entry tasks")
        if field.removeprefix("config.") == "train.num_seeds":
            raise ConfigError(f"{name}: overrides train.num_seeds; its entry num_seeds has it")
    return Suite(**filled | {"methods": methods, "tasks": tuple(filled["tasks"])})


def _names_a_folder(text: str) -> bool:
    """Whether a cell's folder may have this name; its log and record lie beside it."""
    taken = text.endswith((".log", ".job.json")) or text.startswith(".")
    return 0 < len(text) <= 100 and Path(text).name == text and text.isprintable() and not taken
