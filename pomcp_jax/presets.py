"""The members of the family as configuration values; no code path knows their names.

Rows of the table in docs/method.md. Sources: TD-MPC2 arXiv 2310.16828
(nicklashansen/tdmpc2), BMPC arXiv 2503.18871 (wertyuilife2/bmpc), PO-MPC arXiv
2510.04280. Every preset uses the 5M model; :func:`with_size` changes that.
"""

import difflib
from collections.abc import Callable

from pomcp_jax import config as config_lib
from pomcp_jax import world_model
from pomcp_jax.config import AgentConfig, ConfigError


def po_mpc(lambda_: float = 1.0, prior: str = "learned", fit: str = "reverse") -> AgentConfig:
    """PO-MPC: maximise Q while staying close to the planner, with strength ``lambda_``.

    Args:
      lambda_: the paper's table has 0.1, 1 and 9.
      prior: ``learned`` (a network fitted to stored planner records) or ``stored``
        (the records themselves, the paper's direct variant).
      fit: ``reverse`` or ``forward`` KL for fitting the learned prior.
    """
    return config_lib.replace(
        AgentConfig(),
        {
            "policy.prior": prior,
            "policy.kl_coef": float(lambda_),
            "policy.last_state": prior == "learned",
            "prior.divergence": fit,
        },
    )


def po_mpc_direct(lambda_: float = 1.0) -> AgentConfig:
    """PO-MPC whose prior is the planner record in replay."""
    return po_mpc(lambda_, prior="stored")


def tdmpc2() -> AgentConfig:
    """TD-MPC2: no prior; a tanh-squashed policy maximises Q plus an entropy bonus."""
    return config_lib.replace(
        AgentConfig(),
        {
            "world_model.squash": "tanh",
            "world_model.log_std_min": -10.0,
            "world_model.log_std_max": 2.0,
            "policy.prior": "none",
            "policy.kl_coef": 0.0,
        },
    )


def bmpc() -> AgentConfig:
    """BMPC: the policy imitates re-planned records; V critic on model-based TD targets."""
    return config_lib.replace(
        AgentConfig(),
        {
            "world_model.critic": "v",
            "world_model.num_heads": 2,
            "world_model.squash": "clip",
            "policy.q_coef": 0.0,
            "policy.kl_coef": 1.0,
            "policy.kl_dim_power": -1.0,
            "policy.prior": "replanned",
            "policy.last_state": False,
            "policy.train_in_pretraining": False,
            "critic.target_reduce": "mean",
            "replan.interval": 10,
        },
    )


PRESETS: dict[str, Callable[[], AgentConfig]] = {
    "po_mpc": po_mpc,
    "po_mpc_direct": po_mpc_direct,
    "tdmpc2": tdmpc2,
    "bmpc": bmpc,
}


def get(name: str) -> AgentConfig:
    """The preset called ``name``.

    Raises:
      ConfigError: for an unknown name, with the nearest one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"preset = {name!r}: unknown{hint} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]()


def with_size(config: AgentConfig, size: str) -> AgentConfig:
    """``config`` with a world model of another size; a V critic keeps its number of heads.

    Raises:
      ConfigError: for an unknown size.
    """
    if size not in world_model.SIZES:
        raise ConfigError(f"size = {size!r}: must be one of {', '.join(world_model.SIZES)}")
    changes = {f"world_model.{k}": v for k, v in world_model.SIZES[size].items()}
    if config.world_model.critic == "v":
        changes.pop("world_model.num_heads")
    return config_lib.replace(config, changes)
