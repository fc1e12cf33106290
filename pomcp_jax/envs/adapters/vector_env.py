"""Our environments as ``gymnasium.vector.VectorEnv``, for other people's agents.

A row that ended begins its next episode at the next step, which ignores the action: gymnasium's
``AutoresetMode.NEXT_STEP``. The last observation of an episode is therefore the one that the step
returns, and no ``final_obs`` is needed.
"""

from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from pomcp_jax.envs.protocol import Env, EnvState
from pomcp_jax.types import Key, TimeStep


class Vector(VectorEnv):
    """A batch of environments; observations, actions and rewards are float32 of NumPy.

    A row that breaks (a non-finite number) reports ``truncated`` with the observation before, and
    is marked in ``infos["invalid"]``; its next episode has begun by the next step.
    """

    def __init__(self, env: Env, num_envs: int = 1, seed: int = 0, *, owns: bool = False):
        """Prepare; nothing is compiled before the first reset.

        Args:
          env: the environment.
          num_envs: rows of the batch.
          seed: of the first ``reset`` without one; later ones continue its random numbers.
          owns: ``close`` also closes live environments of ``env`` on the host.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int) or num_envs < 1:
            raise ValueError(f"num_envs must be an int of at least 1, got {num_envs!r}")
        self.env, self.num_envs = env, num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}
        box = gymnasium.spaces.Box
        self.single_observation_space = box(-np.inf, np.inf, (env.observation_size,), np.float32)
        self.single_action_space = box(-1.0, 1.0, (env.action_size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._rng = np.random.default_rng(seed)
        self._reset, self._step = jax.jit(self._begin), jax.jit(env.step, donate_argnums=0)
        self._state: EnvState | None = None
        self._owns = owns
        self._obs = np.zeros((num_envs, env.observation_size), np.float32)
        self._over = np.zeros(num_envs, bool)

    def _begin(self, key: Key) -> tuple[EnvState, TimeStep]:
        return self.env.reset(jax.random.split(key, self.num_envs))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode in every row; row i depends on ``seed`` and ``num_envs`` only."""
        if options and "reset_mask" in options:
            raise ValueError("options['reset_mask']: rows reset by themselves at their next step")
        super().reset(seed=seed)
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        drawn = int(self._rng.integers(2**31)) if seed is None else seed
        self._state, timestep = self._reset(jax.random.key(np.uint32(drawn & 0xFFFFFFFF)))
        self._obs = np.array(timestep.obs)
        self._over = np.zeros(self.num_envs, bool)
        return self._obs.copy(), _infos(np.asarray(timestep.invalid))

    def step(
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One decision of every row; rows that ended begin their next episode instead."""
        if self._state is None:
            raise gymnasium.error.ResetNeeded("step() needs a reset() first")
        actions = np.asarray(actions, np.float32)
        if actions.shape != self.action_space.shape:
            wanted = list(self.action_space.shape or ())
            raise ValueError(f"actions have shape {list(actions.shape)}; must be {wanted}")
        self._state, timestep = self._step(self._state, jnp.clip(actions, -1.0, 1.0))
        out = jax.device_get(timestep)
        # An episode that ended without an announcement: its row broke.
        cut = out.is_first & ~self._over
        obs = np.where(cut[:, None], self._obs, out.obs)
        terminated, truncated = np.array(out.terminated), out.truncated | cut
        self._obs, self._over = obs, terminated | truncated
        return obs.copy(), np.array(out.reward), terminated, truncated, _infos(out.invalid)

    def close_extras(self, **kwargs: Any) -> None:
        """Forget the state, and close environments on the host that are its own."""
        self._state = None
        if self._owns and self.env.outside is not None:
            self.env.outside.close()


def _infos(invalid: np.ndarray) -> dict[str, Any]:
    return {"invalid": np.array(invalid), "_invalid": np.array(invalid)} if invalid.any() else {}
