"""Hostile inputs for :mod:`experiments.benchmarks.abuse`, as plain data.

``{work}`` is a new folder. The kind determines how an input is tried:

arguments  arguments of experiments.run, with ``--print_config``, in this process
files      contents of a configuration file, likewise
workdir    preparation of a folder (:func:`abuse_files.prepare`) and the ``--workdir`` in it
damage     run (``finished`` or ``interrupted``), pattern of files, action on each
manifest   path of a field of the newest manifest and its new value; the digest is correct
tool       module and its arguments
shell      a command line for bash; ``RUN`` is a whole debug run, ``DRAW`` draws a run
"""

import json
from typing import Any, NamedTuple


class Input(NamedTuple):
    """An input and how to try it."""

    name: str
    kind: str
    how: tuple[Any, ...]


VALUES = (
    "", "x", "None", "True", "1e999", "-1e999", "nan", "inf", "-inf", "-1", "0", "1.5", "1e3",
    "9" * 400, "0x10", "1_000", "१२", "日本", "\N{SNOWMAN}", "1,2", "(1,)", "[1]", "{}",
    "np.int64(3)",
    "3j", " 3", "3 ", "'3'", "$(id)", "../../etc/passwd", "%s%n", "--", "=",
)  # fmt: skip
# One field of each type: an integer of the program, a float, a choice, an integer of the run.
FIELDS = (
    "agent.mppi.num_samples",
    "agent.optimizer.learning_rate",
    "train.on_broken_seed",
    "train.num_seeds",
)
SINGLE = (
    "env.action_repeat=0", "env.num_envs=-3", "env.task=", "env.task=probe/",
    "env.task=/etc/passwd",
    "env.backend=cuda", "env.task=日本", "agent.mppi.horizon=-1", "agent.mppi.horizon=1000000000",
    "agent.mppi.num_elites=0", "agent.mppi.num_elites=17", "agent.mppi.temperature=nan",
    "agent.optimizer.discount=2", "agent.optimizer.discount=-0.5", "agent.optimizer.batch_size=0",
    "agent.world_model.latent_size=7", "agent.world_model.mlp_width=0", "agent=3", "train={}",
    "train=", "agent.mppi={}", "agent.policy.kl_coef=-1", "agent.policy.prior=nobody",
    "train.capacity=1", "train.capacity=99999999999", "train.total_decisions=-5",
    "train.total_decisions=1", "train.seed=-1", "train.seed=99999999999999999999",
    "train.eval_episodes=0", "train.checkpoint_keep=0", "train.checkpoint_decisions=-1",
    "train.chunk_decisions=0", "train.updates_per_decision=-1", "train.updates_per_decision=inf",
    "train.memory_limit_gb=0", "train.memory_limit_gb=nan", "train.num_devices=99",
    "train.max_bad_updates=-1", "train.__class__=3", "__init__=3", "agent.__dict__=1", "nothing=1",
    "agent.mppi.nothing=1", "agent..mppi=1", ".=1",
)  # fmt: skip
ARGUMENTS = (
    ("no configuration", ()),
    ("empty configuration", ("--config=",)),
    ("a folder", ("--config=experiments/configs",)),
    ("no such file", ("--config=experiments/configs/debugg.py",)),
    ("a binary file", ("--config=/bin/ls",)),
    ("a device", ("--config=/dev/null",)),
    ("a table", ("--config=README.md",)),
    ("colons", ("--config=experiments/configs/debug.py:::",)),
    ("an unknown task", ("--config=experiments/configs/debug.py:walker",)),
    ("an unknown preset", ("--config=experiments/configs/debug.py:probe/lqr,best",)),
    ("three parts", ("--config=experiments/configs/debug.py:probe/lqr,po_mpc,x",)),
    ("a word", ("DEBUG", "word")),
    ("two dashes", ("DEBUG", "--")),
    ("an unknown flag", ("DEBUG", "--workdirr=x")),
    ("a seed without its group", ("DEBUG", "--seed=3")),
    ("a flag without a value", ("DEBUG", "--workdir")),
    ("an empty workdir", ("DEBUG", "--workdir=")),
    ("resume by another name", ("DEBUG", "--resume=yes")),
    ("an empty resume", ("DEBUG", "--resume=")),
    ("no such user", ("DEBUG", "--workdir=~nosuchuser/x")),
    ("a flag twice", ("DEBUG", "--resume=auto", "--resume=never")),
    ("a truth of another kind", ("DEBUG", "--tensorboard=maybe")),
    ("an unreadable flag file", ("DEBUG", "--flagfile=/nonexistent")),
    ("other dashes", ("DEBUG", "--dry-run")),
    ("a field without a value", ("DEBUG", "--config.train.seed")),
    ("help among others", ("DEBUG", "--help")),
)
CONFIG_FILES = {
    "empty": "",
    "syntax error": "def get_config(:",
    "not utf-8": "# \udcff",
    "returns nothing": "def get_config(argument=None):\n    return None\n",
    "returns a number": "def get_config(argument=None):\n    return 3\n",
    "returns a dict": "def get_config(argument=None):\n    return {}\n",
    "returns a text": "def get_config(argument=None):\n    return 'x'\n",
    "returns a class": "def get_config(argument=None):\n    return dict\n",
    "raises": "def get_config(argument=None):\n    raise RuntimeError('two\\nlines')\n",
    "divides by zero": "x = 1 / 0\n",
    "takes two arguments": "def get_config(a, b):\n    return None\n",
    "is no function": "get_config = 3\n",
    "exits": "raise SystemExit(7)\n",
    "imports nothing": "import nothing_of_that_name\n",
    "other fields": "import ml_collections\n\ndef get_config(argument=None):\n"
    "    return ml_collections.ConfigDict({'x': 1})\n",
    "empty fields": "import ml_collections\n\ndef get_config(argument=None):\n"
    "    return ml_collections.ConfigDict({'train': None, 'agent': [], 'env': 'x'})\n",
    "a configuration of numpy": "import numpy\n\ndef get_config(argument=None):\n"
    "    return numpy.zeros(3)\n",
    "endless": "def get_config(argument=None):\n    return get_config(argument)\n",
}
WORKDIRS = (
    ("a file", "file", "x"), ("below a file", "file", "x/y"), ("a link to nothing", "dangling",
    "x"),
    ("a link to itself", "loop", "x"), ("a pipe", "fifo", "x"), ("a name of 300", "none",
    "x" * 300),
    ("a path of 5,000", "none", "/".join(["y" * 200] * 25)), ("not UTF-8", "none", "\udcff"),
    ("spaces", "none", " "), ("a line break", "none", "a\nb"), ("a snowman", "none", "\N{SNOWMAN}"),
    ("a device", "none", "/dev/null"), ("proc", "none", "/proc/x"), ("sys", "none", "/sys/x"),
    ("config.json is a folder", "folder config.json", "x"),
    ("run.json is a folder", "folder run.json", "x"),
    ("metrics.csv is a folder", "folder metrics.csv", "x"),
    ("evaluations.csv is a folder", "folder evaluations.csv", "x"),
    ("checkpoints is a file", "touch checkpoints", "x"),
    ("checkpoints is a link to itself", "loop checkpoints", "x"),
    ("config.json is a pipe", "fifo config.json", "x"),
    ("config.json is nested", "nest config.json", "x"),
    ("config.json is huge", "huge config.json", "x"),
    ("run.json is huge", "huge run.json", "x"),
    ("a temporary file is a folder", "folder .config.json.partial", "x"),
)  # fmt: skip
ACTIONS = ("delete", "empty", "half", "flip", "binary", "longer", "folder", "loop", "fifo", "huge")
DAMAGED = (
    "config.json", "run.json", "metrics.csv", "metrics.jsonl", "evaluations.csv",
    "learning_curve.png", "checkpoints/*/manifest.json", "checkpoints/*/agent/**/*",
    "checkpoints/*/run/**/*",
)  # fmt: skip
OTHER_DAMAGE = (
    ("all checkpoints deleted", "checkpoints", "delete"),
    ("all checkpoints called damaged", "checkpoints/*", "rename"),
    ("the folder of checkpoints is a file", "checkpoints", "binary"),
    ("the newest checkpoint is a file", "checkpoints/[0-9]*", "binary"),
    ("the newest checkpoint is a loop", "checkpoints/[0-9]*", "loop"),
    ("arrays are gone", "checkpoints/*/agent", "delete"),
    ("a stale temporary file", "run.json", "stale"),
)
FIELDS_OF_MANIFESTS = {
    "format": (1, 4, "2", None), "decisions": (-1, 1.5, "600", 10**30),
    "versions": ([], {"jax": 1}),
    "versions.mujoco": ("0.1",), "config": ([], {}), "config.train.seed": (7, "x", None),
    "config.agent.optimizer.discount": (0.5, "x", float("inf")), "config.env.task": ("x", 3),
    "config.train.num_seeds": (3, -1), "sizes": ([], [1, 2], [10**9] * 3), "score": ("x", [1]),
    "host": ([], {}, None), "host.finished": (3, None), "host.updates": ("x", -1, 10**30),
    "host.seconds": ("x", None), "host.returns": ([], "x", [[1]]), "host.evaluated": ([], {"x": 1}),
    "host.invalid": (None, ["x"]), "host.pending": (3, [], ["a", 1, 2, 3, 4]),
    "host.left": ([[1]], 3),
    "host.tables": ([], {}, [1, 2, 3, 4]), "host.commit": (3,), "host.resets": ("x", [1] * 99),
    "files": ({}, [], None, {"agent/../../x": {}}, {"other/x": {}}, {"agent/x": None}),
}  # fmt: skip
TOOLS = (
    ("experiments.plot", ()), ("experiments.plot", ("nowhere",)),
    ("experiments.plot", ("--out=x",)),
    ("experiments.plot", ("{work}", "--labels", "a", "b")),
    ("experiments.plot", ("--results={work}", "--out={work}/x.png")),
    ("experiments.plot", ("--results=README.md", "--diagnostics")),
    ("experiments.render", ()), ("experiments.render", ("nowhere", "--out={work}/x.mp4")),
    ("experiments.render", ("nowhere", "--out=x.avi")),
    ("experiments.aggregate", ("nowhere",)), ("experiments.aggregate", ("README.md",)),
    ("experiments.aggregate", ("{work}",)),
    ("experiments.reproduce", ("--suite=nothing",)), ("experiments.reproduce", ("--suite=",)),
    ("experiments.reproduce", ("--suite=debug", "--jobs=0")),
    ("experiments.reproduce", ("--suite=debug", "--jobs=-1")),
    ("experiments.reproduce", ("--suite=debug", "--tasks", "x")),
    ("experiments.reproduce", ("--suite=debug", "--config.x=1")),
    ("experiments.reproduce", ("--suite=debug", "word")),
    ("experiments.sweep", ()), ("experiments.sweep", ("DEBUG",)),
    ("experiments.sweep", ("DEBUG", "--grid=")), ("experiments.sweep", ("DEBUG", "--grid=x=1")),
    ("experiments.sweep", ("DEBUG", "--grid=policy.kl_coef=")),
    ("experiments.sweep", ("DEBUG", "--grid=policy.kl_coef=nan,inf")),
    ("experiments.sweep", ("DEBUG", "--grid=policy.kl_coef=1,1")),
    ("experiments.sweep", ("DEBUG", "--grid=policy.kl_coef=1", "--seeds=0")),
    ("experiments.sweep", ("DEBUG", "--grid=policy.kl_coef=1", "--resume=auto")),
)  # fmt: skip
SHELL = (
    ("stdout closed", 0, "RUN >&-"), ("stderr closed", 0, "RUN 2>&-"),
    ("both closed", 0, "RUN >&- 2>&-"), ("stdin closed", 0, "RUN <&-"),
    ("all closed", 0, "RUN <&- >&- 2>&-"), ("a full device behind stdout", 0, "RUN >/dev/full"),
    ("a full device behind stderr", 0, "RUN 2>/dev/full"),
    ("a reader that leaves", 0, "RUN 2>&1 | head -1; exit ${PIPESTATUS[0]}"),
    ("a reader that never reads", 0, "RUN 2>&1 | true; exit ${PIPESTATUS[0]}"),
    ("an ASCII terminal", 0, "PYTHONIOENCODING=ascii LC_ALL=C RUN"),
    ("no place for fonts", 0, "MPLCONFIGDIR=/dev/null/x RUN"),
    ("no such backend of matplotlib", 0, "MPLBACKEND=nothing RUN"),
    ("SIGINT at once", 130, "timeout -s INT 0.3 RUN"),
    ("SIGTERM while importing", 143, "timeout -s TERM 1.5 RUN"),
    ("SIGHUP while starting", 129, "timeout -s HUP 6 RUN"),
    ("SIGINT while compiling", 130, "timeout -s INT 9 RUN"),
    ("help for a reader that leaves", 0,
     "PYTHON -m experiments.run --help | head -1; exit ${PIPESTATUS[0]}"),
    ("help on a full device", 0, "PYTHON -m experiments.run --help >/dev/full"),
    ("help with stdout closed", 0, "PYTHON -m experiments.run --help >&-"),
    ("a picture for a reader that leaves", 0, "DRAW 2>&1 | head -0; exit ${PIPESTATUS[0]}"),
    ("a picture with all closed", 0, "DRAW <&- >&- 2>&-"),
    ("suites for a reader that leaves", 0,
     "PYTHON -m experiments.reproduce --help | head -1; exit ${PIPESTATUS[0]}"),
    ("a dry run for a reader that leaves", 0,
     "PYTHON -m experiments.reproduce --suite=debug --dry_run | head -1; exit ${PIPESTATUS[0]}"),
    ("no such platform", 2, "JAX_PLATFORMS=nothing RUN"),
    ("a platform without a device", 2, "JAX_PLATFORMS=cuda RUN"),
    ("x64", 0, "JAX_ENABLE_X64=1 RUN"), ("debug_nans", 0, "JAX_DEBUG_NANS=1 RUN"),
    ("no home", 0, "env -u HOME RUN"), ("a home that is a file", 0, "HOME=/dev/null RUN"),
    ("no renderer", 0, "MUJOCO_GL=nothing RUN"),
    ("unknown XLA flags", 2, "XLA_FLAGS=--nothing RUN"),
)  # fmt: skip


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 20 else f"{text[:17]}..."


def inputs() -> list[Input]:
    """All inputs; names are unique."""
    all_inputs = [Input(name, "arguments", how) for name, how in ARGUMENTS]
    all_inputs += [
        Input(f"{field} = {_short(value)!r}", "arguments", ("DEBUG", f"--config.{field}={value}"))
        for field in FIELDS
        for value in VALUES
    ]
    all_inputs += [Input(text[:60], "arguments", ("DEBUG", f"--config.{text}")) for text in SINGLE]
    all_inputs += [Input(f"a file that {k}", "files", (v,)) for k, v in CONFIG_FILES.items()]
    all_inputs += [Input(name, "workdir", how) for name, *how in WORKDIRS]
    all_inputs += [
        Input(f"{run}: {action} {pattern}", "damage", (run, pattern, action))
        for run in ("finished", "interrupted")
        for pattern in DAMAGED
        for action in ACTIONS
    ]
    all_inputs += [
        Input(f"{run}: {name}", "damage", (run, *how))
        for run in ("finished", "interrupted")
        for name, *how in OTHER_DAMAGE
    ]
    all_inputs += [
        Input(f"manifest: {path} = {_short(value)}", "manifest", (path, value))
        for path, values in FIELDS_OF_MANIFESTS.items()
        for value in values
    ]
    all_inputs += [
        Input(f"{module.split('.')[1]} {' '.join(how)}", "tool", (module, *how))
        for module, how in TOOLS
    ]
    all_inputs += [Input(name, "shell", how) for name, *how in SHELL]
    return [Input(entry.name, entry.kind, tuple(entry.how)) for entry in all_inputs]
