"""Share of the environment in the time of a training step.

    python -m experiments.benchmarks.share [--size tiny --size 5M] [--task walker-walk ...]

A decision of one environment at action repeat 2 consists of two control steps, a plan and an
update. Each is timed in its own loop, as wall-clock time; for every task the networks have the
sizes of walker's observations and actions.
"""

import argparse

from experiments import xla
from experiments.benchmarks import envs, speed

REPEAT = 2


def main() -> None:
    xla.save_memory()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", action="append", help="of the world model; may be repeated")
    parser.add_argument("--task", action="append", help="of dm_control; may be repeated")
    args = parser.parse_args()
    agents = {}
    for size in args.size or ["tiny", "5M"]:
        config = speed.agent_config(size)
        times = 40 if size in ("tiny", "small") else 4
        calls = (speed.plan_call(config, 1, times), speed.update_call(config, times))
        agents[size] = [speed.median_ms(call, 7) / times for call in calls]
    print("| task | backend | size | environment, ms | plan, ms | update, ms | share |")
    print("|---|---|---|---|---|---|---|")
    for task in args.task or ["cartpole-swingup", "walker-walk"]:
        for backend in ("mjx", "host"):
            step = REPEAT * 1e3 * envs.speed(task, 1, backend).step.wall
            for size, (plan, update) in agents.items():
                share = step / (step + plan + update)
                cells = f"{step:.2g} | {plan:.3g} | {update:.3g} | {100 * share:.1f} %"
                print(f"| {task} | {backend} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
