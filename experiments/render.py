"""Film episodes of a trained agent, on machines without a display too.

    python -m experiments.render RUN --out=film.mp4 [--episodes=3] [--imagine]
    python -m experiments.render RUN --out=strip.png --size=320x240
    python -m experiments.render RUN --out=viewer.html

RUN is the workdir of a run, which may still be training. The suffix of --out is the format: .mp4,
.gif, .png (a strip of frames for each episode), .html (3D in a browser) or .npz (states, actions,
rewards). The last two need no GL library. --imagine draws the reward that the model predicts for
the plan and its elites beside every frame, with the reward that came. The episodes are those of
experiments.evaluate. Exit codes: 0 done, 1 drawing failed, 2 bad input.
"""

from experiments import early  # isort: skip  # noqa: F401
from experiments import usage  # isort: skip  # noqa: F401
from experiments import clock  # isort: skip

import argparse
import re
import signal
import sys
import time

from experiments import arguments, parsers, signals, streams, trained, xla
from pomcp_jax.checkpoint import Restored
from pomcp_jax.config import ConfigError
from pomcp_jax.rendering import film
from pomcp_jax.rendering.film import Picture, Take
from pomcp_jax.running.progress import duration


def prepare(args: argparse.Namespace) -> tuple[Restored, Take]:
    """Check the arguments and load the agents; compiles and writes nothing.

    Raises:
      ValueError: one line for the user.
    """
    trained.check_counts(args)
    camera = args.camera
    if camera is not None and re.fullmatch(r"-?\d{1,6}", camera):
        camera = int(camera)
    take = Take(
        episodes=args.episodes,
        actor=args.actor,
        seed=args.seed,
        imagine=args.imagine,
        picture=Picture(*_size(args.size), camera),
    )
    film.check(args.out, take, "--out")
    agents, select = trained.load(args)
    index = trained.seed_index(args.train_seed, agents)
    return agents, take._replace(select=select, agent=index)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if match is None:
        raise ValueError(f"--size = {text:.50}: must be WIDTHxHEIGHT in pixels, such as 640x480")
    return int(match[1]), int(match[2])


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    return streams.guarded(lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    xla.save_memory()
    args, _ = arguments.parse(parsers.render(__doc__), argv)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def failed(error: Exception, code: int) -> int:
        say(f"error: {' '.join(str(error).split())}")
        return code

    # The first line comes before anything is read or compiled.
    say(f"reading {args.run}")
    try:
        agents, take = prepare(args)
        name = f"seed {agents.config.train.seed + take.agent}, {take.actor}, select {take.select}"
        print(f"{trained.heading(agents)}: {name}, {take.episodes} episodes", flush=True)
        recordings = film.render(
            agents, args.out, env=trained.environment(args, agents), take=take, say=say
        )
    except (ConfigError, ValueError) as error:
        return failed(error, 2)
    except (RuntimeError, OSError) as error:
        return failed(error, 1)
    except KeyboardInterrupt as stop:
        say("stopped; nothing was written")
        return 128 + (stop.args or (signal.SIGINT,))[0]
    for i, recording in enumerate(recordings, 1):
        broke = "" if recording.valid else ", broken"
        steps = len(recording.reward)
        print(f"episode {i}: return {recording.returns()[-1]:.1f} in {steps} decisions{broke}")
    print(f"written: {args.out}")
    print(f"total time {duration(time.monotonic() - clock.STARTED)}")
    return 0


if __name__ == "__main__":
    signals.interrupt()
    sys.exit(main())
