"""The members of the family as configuration values; no code path knows their names.

Rows of the table in docs/method.md. Sources: TD-MPC2 arXiv 2310.16828
(nicklashansen/tdmpc2), TD-M(PC)^2 arXiv 2502.03550, BMPC arXiv 2503.18871
(wertyuilife2/bmpc), BOOM (molumitu/BOOM_MBRL), PO-MPC arXiv 2510.04280. Every preset uses the 5M
model; :func:`with_size` changes that.
"""

import math
from collections.abc import Callable

from pomcp_jax import config as config_lib
from pomcp_jax import nearest, world_model
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
            "policy.kl_coef": lambda_,
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
        AgentConfig(), _TANH | {"policy.prior": "none", "policy.kl_coef": 0.0}
    )


def tdmpc_square() -> AgentConfig:
    """TD-M(PC)^2: TD-MPC2 whose policy also raises the planner's density at its own action.

    Strength ``A^2 / 61`` in units of the value's scale, off until that exceeds 2.
    """
    changes = {"policy.kl_coef": 1.0 / 61.0, "policy.prior_std_min": 0.05}
    return config_lib.replace(AgentConfig(), _TANH | _SAMPLED | changes)


def boom(lambda_: float = 1.0 / 50.0) -> AgentConfig:
    """BOOM: the planner's mean under the policy's own width, weighted by value; minimum of 2 Q.

    Args:
      lambda_: 1/50 in the published code, 1/1000 for 24 to 48 actions (the dog), see
        :func:`boom_many_actions`. It bypasses SimNorm there, which this preset does not.
    """
    changes = {
        "policy.kl_coef": lambda_,
        "policy.prior_std_from": "policy",
        "policy.prior_std_min": 0.05,
        "policy.value_weight": True,
        "policy.q_reduce": "min",
    }
    return config_lib.replace(AgentConfig(), _TANH | _SAMPLED | changes)


def boom_many_actions() -> AgentConfig:
    """BOOM's strength for bodies with 24 to 48 actions."""
    return boom(1.0 / 1000.0)


def bmpc() -> AgentConfig:
    """BMPC: the policy imitates re-planned records; V critic on model-based TD targets."""
    changes = {"world_model.critic": "v", "world_model.num_heads": 2}
    return config_lib.replace(AgentConfig(), _IMITATION | changes)


def bmpc_v3() -> AgentConfig:
    """Variant 3 of the BMPC paper, PO-MPC's limit of infinite strength: imitation, Q critic."""
    return config_lib.replace(AgentConfig(), _IMITATION)


def qbmpc() -> AgentConfig:
    """PO-MPC on BMPC's V critic: the policy maximises ``R(z, a) + gamma V(d(z, a))`` as well.

    Branch ``qbmpc`` of ShaneFlandermeyer/bmpc-jax.
    """
    changes = {
        "world_model.critic": "v",
        "policy.q_source": "model",
        "policy.q_coef": 1.0,
        "policy.kl_dim_power": 0.0,
        "policy.num_q_heads": 5,
        "world_model.log_std_min": -5.0,
    }
    return config_lib.replace(AgentConfig(), _IMITATION | changes)


_TANH = {
    "world_model.squash": "tanh",
    "world_model.log_std_min": -10.0,
    "world_model.log_std_max": 2.0,
}
"""TD-MPC2's policy, which TD-M(PC)^2 and BOOM share."""
_SAMPLED = {
    "policy.prior": "stored",
    "policy.divergence": "cross_entropy",
    "policy.kl_dim_power": 2.0,
    "policy.kl_scale": "q",
    "policy.kl_gate": 2.0,
    "policy.entropy": "squashed",
    "policy.last_state": False,
    "policy.seed_record": "action",
    "policy.seed_std": math.exp(2.0),
}
"""A density term at the policy's sample, as in TD-M(PC)^2 and BOOM."""
_IMITATION = {
    "world_model.squash": "clip",
    "policy.q_coef": 0.0,
    "policy.q_source": "none",
    "policy.kl_coef": 1.0,
    "policy.kl_dim_power": -1.0,
    "policy.prior": "replanned",
    "policy.last_state": False,
    "policy.train_in_pretraining": False,
    "critic.target_reduce": "mean",
    "replan.interval": 10,
}
"""BMPC's policy: nothing but the mean divergence per dimension to re-planned records."""

PRESETS: dict[str, Callable[[], AgentConfig]] = {
    "po_mpc": po_mpc,
    "po_mpc_forward": lambda: po_mpc(fit="forward"),
    "po_mpc_direct": po_mpc_direct,
    "tdmpc2": tdmpc2,
    "tdmpc_square": tdmpc_square,
    "bmpc": bmpc,
    "bmpc_v3": bmpc_v3,
    "boom": boom,
    "boom_many_actions": boom_many_actions,
    "qbmpc": qbmpc,
}


def get(name: str) -> AgentConfig:
    """The preset called ``name``.

    Raises:
      ConfigError: for an unknown name, with the nearest one.
    """
    if name not in PRESETS:
        hint = nearest.hint(name, PRESETS)
        raise ConfigError(f"preset = {name!r}: unknown{hint} (presets: {', '.join(PRESETS)})")
    return PRESETS[name]()


def with_size(config: AgentConfig, size: str) -> AgentConfig:
    """``config`` with a world model of another size; a V critic keeps its number of heads.

    Where the policy uses more heads than that has, it uses them all.

    Raises:
      ConfigError: for an unknown size.
    """
    if size not in world_model.SIZES:
        hint = nearest.hint(size, world_model.SIZES)
        raise ConfigError(f"size = {size!r}: must be one of {', '.join(world_model.SIZES)}{hint}")
    changes = {f"world_model.{k}": v for k, v in world_model.SIZES[size].items()}
    if config.world_model.critic == "v":
        changes.pop("world_model.num_heads")
    out = config_lib.replace(config, changes)
    most = min(config.policy.num_q_heads, out.world_model.num_heads)
    return config_lib.replace(out, {"policy.num_q_heads": most})
