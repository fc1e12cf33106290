"""Environments for the tests of the gymnasium adapter, registered when this module is imported."""

import os
import signal
import time

import gymnasium
import numpy as np
from gymnasium import spaces

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class Walk(gymnasium.Env):
    """A random walk that ends beyond 1; its actions have odd bounds."""

    action_space = spaces.Box(np.array([-2.0, 0.0]), np.array([2.0, 1.0]), dtype=np.float64)
    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.1, 0.1, 2)
        return self.place.copy(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.place = self.place + 0.1 * action + self.np_random.normal(0, 0.01, 2)
        gone = bool(np.abs(self.place).max() > 1.0)
        return self.place.copy(), -float(np.square(self.place).sum()), gone, False, {}


class Stored(Walk):
    """A walk that can store itself."""

    def get_state(self):
        state = self.np_random.bit_generator.state
        numbers = [state["state"][name].to_bytes(16, "little") for name in ("state", "inc")]
        return b"".join(numbers) + self.place.tobytes()

    def set_state(self, data):
        numbers = [int.from_bytes(data[i : i + 16], "little") for i in (0, 16)]
        state = self.np_random.bit_generator.state
        state["state"] = dict(zip(("state", "inc"), numbers, strict=True))
        self.np_random.bit_generator.state = state
        self.place = np.frombuffer(data[32:]).copy()


class Closed(Walk):
    """A walk that counts how many of its kind are open; closing it twice is an error."""

    alive = 0

    def __init__(self, broken=False):
        self.open, self.broken = True, broken
        Closed.alive += 1

    def step(self, action):
        assert self.open and not self.broken
        return super().step(action)

    def close(self):
        assert self.open
        self.open = False
        Closed.alive -= 1


class Nested(Walk):
    """Observations are a dictionary with an integer box, a discrete entry and a matrix."""

    observation_space = spaces.Dict(
        {
            "count": spaces.Box(0, 100, (1,), np.int64),
            "place": spaces.Box(-np.inf, np.inf, (1, 2), np.float64),
            "side": spaces.Discrete(2),
        }
    )

    def seen(self, place):
        side = int(place[0] > 0)
        return {"count": np.array([self.count]), "place": place[None], "side": side}

    def reset(self, *, seed=None, options=None):
        self.count = 0
        place, info = super().reset(seed=seed)
        return self.seen(place), info

    def step(self, action):
        self.count += 1
        place, *others = super().step(action)
        return self.seen(place), *others


class Faulty(Walk):
    """A walk that breaks in its third step, in the way that it is made with."""

    def __init__(self, fault="none"):
        if fault == "constructor":
            raise OSError("no such\nrobot")
        self.fault, self.steps = fault, 0
        self.action_space = {
            "discrete": spaces.Discrete(3),
            "infinite": spaces.Box(-np.inf, np.inf, (2,), np.float32),
            "integer": spaces.Box(0, 3, (2,), np.int64),
        }.get(fault, Walk.action_space)
        if os.environ.get("GYM_WORLDS_CHILD"):  # as an environment around a simulator
            self.child = os.fork()
            if self.child == 0:
                while True:
                    time.sleep(1)
        if fault == "text":
            self.observation_space = spaces.Text(3)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        obs, info = super().reset(seed=seed)
        if self.fault == "reset":
            raise RuntimeError("no reset")
        return (obs[:1], info) if self.fault == "first shape" else (obs, info)

    def step(self, action):
        self.steps += 1
        obs, reward, gone, cut, info = super().step(action)
        if self.fault == "tuple":
            return obs, reward, gone, info
        if self.steps == 3:
            if self.fault == "raise":
                raise RuntimeError("motor\noverheated")
            if self.fault == "exit":
                os.kill(os.getpid(), signal.SIGKILL)
            obs = {"nan": obs * np.nan, "shape": obs[:1]}.get(self.fault, obs)
            reward = {"nan reward": float("nan"), "reward": "much"}.get(self.fault, reward)
        return obs, reward, gone, cut, info


def register(name, cls, limit=20, **kwargs):
    gymnasium.register(f"{name}-v0", cls, max_episode_steps=limit, kwargs=kwargs)


FAULTS = (
    "none constructor discrete infinite integer text reset tuple raise exit nan shape reward"
).split()
for cls in (Walk, Stored, Closed, Nested):
    register(cls.__name__, cls)
for name in (*FAULTS, "first shape", "nan reward"):
    register(f"Faulty_{name.replace(' ', '_')}", Faulty, fault=name)
register("Endless", Walk, None)
