"""A trained agent acts in a loop of gymnasium's form; gymnasium itself is not needed.

    python examples/gym_loop.py [--run experiments/agents/cartpole-swingup] [--steps 250]

The environment is dm_control's own, in Python, behind ``reset`` and ``step`` as gymnasium has them.
Any environment with the observations of training, in their order and scale, can take its place.
"""

import argparse

import numpy as np

from pomcp_jax import load_controller


class Cartpole:
    """dm_control's cartpole-swingup with the interface of ``gymnasium.Env``."""

    def __init__(self, repeat: int):
        """``repeat``: control steps for which an action is applied, as in training."""
        self.repeat = repeat

    def reset(self, *, seed: int | None = None):
        """Begin an episode; returns ``(observation, info)``."""
        from dm_control import suite

        self.env = suite.load("cartpole", "swingup", task_kwargs={"random": seed})
        return _flat(self.env.reset().observation), {}

    def step(self, action: np.ndarray):
        """Returns ``(observation, reward, terminated, truncated, info)``."""
        reward, truncated = 0.0, False
        for _ in range(self.repeat):
            timestep = self.env.step(action)
            reward, truncated = reward + timestep.reward, timestep.last()
            if truncated:
                break
        return _flat(timestep.observation), reward, False, truncated, {}


def _flat(observation) -> np.ndarray:
    return np.concatenate([np.ravel(x) for x in observation.values()]).astype(np.float32)


def main():
    """Play an episode and print its return."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="experiments/agents/cartpole-swingup")
    parser.add_argument("--steps", type=int, default=250, help="decisions, at most one episode")
    args = parser.parse_args()
    # bounds=(lowest, highest) would scale actions to those of your environment.
    controller = load_controller(args.run)
    controller.warm_up()  # compiles, before the clock of a robot runs
    env = Cartpole(controller.action_repeat)
    observation, _ = env.reset(seed=0)
    controller.reset()
    total, count = 0.0, 0
    for _ in range(args.steps):
        observation, reward, terminated, truncated, _ = env.step(controller.act(observation))
        total, count = total + reward, count + 1
        if terminated or truncated:
            break
    print(f"return {total:.1f} in {count} decisions")


if __name__ == "__main__":
    main()
