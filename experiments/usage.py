"""Plain ``--help`` of every command, printed without importing JAX.

Imported before JAX: if the command line asks for this help, it is printed on import, and the
process exits without the seconds that JAX takes.
"""

import importlib.util
import sys
from collections.abc import Iterator, Sequence

from experiments import parsers, streams
from pomcp_jax import attribute_docs

FLAGS = ("--help", "-h", "-help", "--helpfull", "--helpshort")
CONFIG = "pomcp_jax.config"

RUN = """\
usage: python -m experiments.run --config=FILE[:task,preset,size] [--config.any.field=value ...]
           [--size=SIZE] [--workdir=DIR] [--resume=MODE] [--tensorboard] [--wandb=PROJECT]
           [--minutes=M] [--num_devices=N] [--cache_dir=DIR|none] [--print_config]
           [--help[=TOPIC]]
           [--coordinator=HOST:PORT --num_processes=P --process_id=0|1|... | --coordinator=auto]

recipes, each behind `python -m experiments.run`; C is experiments/configs:
  --config=C/quickstart.py                                 swing a pole up, in minutes
  --config=C/dm_control.py:cheetah-run,bmpc                another task and member, 5M parameters
  --config=C/dm_control.py:dog-run --size=19M              a larger world model
  --config=C/small.py --config.train.num_seeds=5 --config.agent.policy.kl_coef=9 --workdir=runs/a
                                                           other settings, in a folder of their own
  --config=C/small.py:,tdmpc2 --print_config               every field of a run, without training

  --config       configuration file; behind a colon task, preset and size, each may be left out
  --config.F     override of a field, for example --config.train.num_seeds=5
  --size         size of the world model
  --workdir      folder of records, pictures and checkpoints (default runs/NAME/task-preset)
  --resume       what to do with an earlier run in the workdir. auto (default): resume it, bit for
                 bit. never: move it to previous-N and start over. reset_envs: resume with fresh
                 episodes, after an upgrade that changed the environments. change_seeds: resume with
                 another train.num_seeds: drop the last ones, or train further ones up to where the
                 run stopped, then all together
  --tensorboard  write TensorBoard events too, a folder for each seed (`pip install tensorboardX`)
  --wandb        log to this project of Weights & Biases too, a run for each seed (`pip install
                 wandb`; WANDB_MODE=offline without a network)
  --minutes      stop, save and exit with code 75 after this time, of which compiling is a part
                 (a minute at first); the same command resumes
  --num_devices  devices for the seeds: a number, or `cores` (default): as many as help, of the
                 cores of a CPU or of all GPUs; a run that resumes keeps its number
  --cache_dir    persistent compilation cache (default ~/.cache/pomcp_jax/xla)
  --print_config print the resolved configuration and stop
  --coordinator  one run over several processes, each with a share of the seeds and the same command
                 apart from --process_id: HOST of process 0 and a free PORT there; auto: from SLURM
                 or another cluster. Stops at once if a process is gone (code 75); the same commands
                 resume. --join_timeout (60) and --heartbeat_timeout (30) are in seconds
  --help=TOPIC   a section of fields, or a field: type, range or choices, default, the value in
                 --config if that is given, meaning. Also: configs, tasks, presets, sizes, all

sections of fields:
"""


SWEEP = """\
usage: python -m experiments.sweep --config=experiments/configs/NAME.py[:task,preset,size]
           --grid="policy.kl_coef=0,0.1,1,9" [--grid="optimizer.learning_rate=3e-4,1e-3"]
           [--seeds=K] [--config.any.field=value ...] [--size=SIZE] [--workdir=DIR]
           [--tensorboard] [--wandb=PROJECT] [--minutes=M] [--num_devices=N]
           [--cache_dir=DIR|none] [--print_config] [--help[=TOPIC]]
           [--resume=auto|never|reset_envs]

  --grid         a field of the agent and its values; several, or `;` in one, span a product
  --seeds        seeds of every cell (default config.train.num_seeds)
  --config       configuration file; behind a colon task, preset and size
  --config.F     override of a field that is the same in all cells
  --workdir      one folder per cell, summary.csv, sweep.png (default runs/sweep/NAME/task-preset)
  --tensorboard  write TensorBoard events too, a folder for each seed (`pip install tensorboardX`)
  --wandb        log to this project of Weights & Biases too, a run for each seed of each cell
                 (`pip install wandb`; WANDB_MODE=offline without a network)
  --minutes      stop, save and exit with code 75 after this time, of which compiling is a part
                 (a minute at first); the same command resumes
  --num_devices  devices for the seeds: a number, or `cores` (default): as many as help, of the
                 cores of a CPU or of all GPUs; a run that resumes keeps its number
  --cache_dir    persistent compilation cache (default ~/.cache/pomcp_jax/xla)
  --resume       what to do with an earlier sweep in the workdir: auto (default) resumes it bit for
                 bit; never moves it to previous-N and starts over; reset_envs resumes with fresh
                 episodes
  --print_config print the resolved configuration and stop
  --help=TOPIC   a section of fields, or a field; also configs, tasks, presets, sizes, all

Only floats of `agent` can be swept: they are traced numbers. Sizes, names and switches are part
of the compiled program; run those value by value with experiments.run.

sections of fields:
"""

CAPACITY = """\
usage: python -m experiments.capacity --config=FILE[:task,preset,size]
           [--config.any.field=value ...] [--size=SIZE] [--help[=TOPIC]]

Prints what the replay of a run takes, and the train.capacity for which half of this device's
memory has room. Arguments are those of experiments.run; nothing is trained or written.

sections of fields:
"""


def sections() -> Iterator[tuple[str, str]]:
    """Dotted name of each group of fields and the first line of its documentation."""
    # The source is parsed: importing pomcp_jax.config would import JAX.
    spec = importlib.util.find_spec(CONFIG)
    classes = attribute_docs.read(spec.loader.get_source(CONFIG))  # type: ignore[union-attr]

    def walk(name: str, path: str) -> Iterator[tuple[str, str]]:
        inner = {field: kind for field, kind in classes[name].types.items() if kind in classes}
        if not inner:
            yield path, attribute_docs.first_line(classes[name].doc)
        for field, kind in inner.items():
            yield from walk(kind, f"{path}.{field}" if path else field)

    return walk("Config", "")


def short_help(usage: str = RUN) -> str:
    """``usage`` with one line for each section of fields."""
    names = [(name.rpartition(".")[2], text) for name, text in sections()]
    return usage + "\n".join(f"  {name:<13}{text}" for name, text in names)


def is_plain(argv: Sequence[str]) -> bool:
    """Whether a command line requests the short help."""
    return any(arg in FLAGS for arg in argv[1:])


def answer(program: str) -> int:
    """Print the help of one of our programs, the module ``__main__``; returns the exit code."""
    if program in SHORT:
        print(short_help(SHORT[program]))
    else:
        print(parsers.ALL[program](sys.modules["__main__"].__doc__).format_help(), end="")
    return 0


SHORT = {
    "experiments.run": RUN,
    "experiments.sweep": SWEEP,
    "experiments.capacity": CAPACITY,
}
"""Programs whose flags are fields of the configuration; the others have a parser."""
_SPEC = getattr(sys.modules.get("__main__"), "__spec__", None)
_NAME = "" if _SPEC is None else _SPEC.name
if _NAME in SHORT or _NAME in parsers.ALL:
    if is_plain(sys.argv):
        sys.exit(streams.guarded(lambda: answer(_NAME)))
