"""The members of the family, and sizes of the world model, as configuration values.

No code path knows the names of members. They are rows of the table in docs/method.md. Sources:
TD-MPC2 arXiv 2310.16828 (nicklashansen/tdmpc2), TD-M(PC)^2 arXiv 2502.03550, BMPC arXiv 2503.18871
(wertyuilife2/bmpc), BOOM (molumitu/BOOM_MBRL), PO-MPC arXiv 2510.04280, GEM-MPC arXiv
2609.21735. Every preset uses the 5M model; :func:`with_size` changes that.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from pomcp_jax import config as config_lib
from pomcp_jax import nearest
from pomcp_jax.config import AgentConfig, Config, ConfigError, WorldModelConfig


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
            # A window's last state may be final and without a record; a network covers it too.
            "policy.last_state": prior == "learned",
            "prior.divergence": fit,
        },
    )


def po_mpc_forward() -> AgentConfig:
    """PO-MPC whose learned prior is fitted by forward KL."""
    return po_mpc(fit="forward")


def po_mpc_direct(lambda_: float = 1.0) -> AgentConfig:
    """PO-MPC whose prior is the planner record in replay."""
    return po_mpc(lambda_, prior="stored")


def po_mpc_relative(lambda_: float = 1.0) -> AgentConfig:
    """PO-MPC whose strength means the same for every task and number of actions.

    The value term is relative to how much Q differs over the prior's actions, and the prior has
    the spread of the plans that it is fitted to: the policy ends ``1 / (2 lambda_^2)`` nats away
    from it where Q is linear (docs/method.md, "A strength that carries over").
    """
    changes = {
        "policy.kl_coef": lambda_,
        "policy.q_scale": "prior",
        # Its own scale would grow with the divergence and let it run off (docs/notebook.md).
        "policy.kl_scale": "none",
        # A policy as wide as the prior ranks plans and targets by the luck of its draws.
        "critic.tail_action": "mode",
        "critic.target_action": "mode",
        "critic.td_lambda": 1.0,
    }
    return config_lib.replace(po_mpc_forward(), changes)


def po_mpc_gated(lambda_: float = 1.0) -> AgentConfig:
    """:func:`po_mpc_relative` whose prior is a prior of good plans, not of all in replay.

    It is fitted only to records whose action is worth at least its own by the present critic, the
    binary filter of CRR (arXiv 2006.15134), and so improves with the critic.
    """
    changes = {"prior.gate": True, "prior.gate_value": "critic"}
    return config_lib.replace(po_mpc_relative(lambda_), changes)


def po_mpc_calibrated(lambda_: float = 1.0) -> AgentConfig:
    """:func:`po_mpc_gated` whose strength and gate follow the critic's error.

    While the critic overestimates recent actions by more than a tenth of its spread, as it does
    with many actions, the strength rises above ``lambda_``; from e times that on the gate lets
    worse plans through, because the critic that selects them is the one that errs.
    """
    changes = {
        "policy.kl_tuning": "calibrated",
        "policy.bias_limit": 0.1,
        "prior.gate_tolerance": 1.0,
    }
    return config_lib.replace(po_mpc_gated(lambda_), changes)


def gem_mpc() -> AgentConfig:
    """GEM-MPC by its abstract (arXiv 2609.21735): PO-MPC with more exchange between its actors.

    Both actors propose plans, and the prior is fitted only to plans that are better than itself.
    """
    changes = {"policy.proposer": "both", "prior.gate": True}
    return config_lib.replace(po_mpc(), changes)


def tdmpc2() -> AgentConfig:
    """TD-MPC2: no prior; a tanh-squashed policy maximises Q plus an entropy bonus."""
    return config_lib.replace(
        AgentConfig(), _TANH | {"policy.prior": "none", "policy.kl_coef": 0.0}
    )


def tdmpc_square() -> AgentConfig:
    """TD-M(PC)^2: TD-MPC2 whose policy also raises the planner's density at its own action.

    Strength ``A^2 / 61`` in units of the value's scale, off until that exceeds 2.
    """
    # A^2 / 61 is the published coefficient after all factors, 0.05 the planner's own floor.
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
    # BMPC's lower bound, -3, is the planner's: e^-3 = 0.05. That does not apply before a tanh.
    "world_model.log_std_min": -10.0,
    "world_model.log_std_max": 2.0,
}
"""TD-MPC2's policy, which TD-M(PC)^2 and BOOM share."""
_SAMPLED = {
    "policy.prior": "stored",
    "policy.divergence": "cross_entropy",
    # Their log-density helper multiplies by A, and the coefficient has another A.
    "policy.kl_dim_power": 2.0,
    "policy.kl_scale": "q",
    # Both ignore the planner until the scale of Q exceeds 2.
    "policy.kl_gate": 2.0,
    "policy.entropy": "squashed",
    "policy.last_state": False,
    "policy.seed_record": "action",
    # Their random actions get the largest std that the policy can have, e^2.
    "policy.seed_std": math.exp(2.0),
}
"""A density term at the policy's sample, as in TD-M(PC)^2 and BOOM."""
_IMITATION = {
    "world_model.squash": "clip",
    "policy.q_coef": 0.0,
    "policy.q_source": "none",
    "policy.kl_coef": 1.0,
    # BMPC averages over dimensions; PO-MPC's presets sum.
    "policy.kl_dim_power": -1.0,
    "policy.prior": "replanned",
    "policy.last_state": False,
    # BMPC has only records of random actions to imitate before the agent acts.
    "policy.train_in_pretraining": False,
    "critic.target_reduce": "mean",
    "replan.interval": 10,
}
"""BMPC's policy: nothing but the mean divergence per dimension to re-planned records."""

PRESETS: dict[str, Callable[[], AgentConfig]] = {
    "po_mpc": po_mpc,
    "po_mpc_forward": po_mpc_forward,
    "po_mpc_direct": po_mpc_direct,
    "po_mpc_relative": po_mpc_relative,
    "po_mpc_gated": po_mpc_gated,
    "po_mpc_calibrated": po_mpc_calibrated,
    "gem_mpc": gem_mpc,
    "tdmpc2": tdmpc2,
    "tdmpc_square": tdmpc_square,
    "bmpc": bmpc,
    "bmpc_v3": bmpc_v3,
    "boom": boom,
    "boom_many_actions": boom_many_actions,
    "qbmpc": qbmpc,
}


SIZES: dict[str, dict[str, int]] = {
    "tiny": dict(latent_size=64, encoder_width=64, mlp_width=64, num_heads=2),
    "small": dict(latent_size=128, encoder_width=128, mlp_width=128, num_heads=2),
    "1M": dict(latent_size=128, encoder_width=256, mlp_width=384, num_heads=2),
    "5M": dict(latent_size=512, encoder_width=256, mlp_width=512, num_heads=5),
    "19M": dict(latent_size=768, encoder_width=1024, mlp_width=1024, encoder_layers=3, num_heads=5),
    "48M": dict(latent_size=768, encoder_width=1792, mlp_width=1792, encoder_layers=4, num_heads=5),
}
"""Sizes of the world model; unnamed fields have their defaults. 1M to 48M are those of
TD-MPC2's table 8 (``common/__init__.py``)."""
SIZE_FIELDS = ("latent_size", "encoder_width", "encoder_layers", "mlp_width", "num_heads")
"""Fields of the world model that a size sets."""


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
    if size not in SIZES:
        hint = nearest.hint(size, SIZES)
        raise ConfigError(f"size = {size!r}: must be one of {', '.join(SIZES)}{hint}")
    changes = {name: getattr(WorldModelConfig(), name) for name in SIZE_FIELDS} | SIZES[size]
    # Published V critics have their own numbers of heads: BMPC 2, its JAX port 5.
    if config.world_model.critic == "v":
        del changes["num_heads"]
    out = config_lib.replace(config, {"world_model": changes})
    most = min(config.policy.num_q_heads, out.world_model.num_heads)
    return config_lib.replace(out, {"policy.num_q_heads": most})


class Origin(NamedTuple):
    """The preset and size nearest to a configuration, by its values."""

    preset: str
    size: str
    changes: dict[str, Any]
    """Dotted fields that differ from preset and size, and from the defaults elsewhere."""


def origin(config: Config) -> Origin:
    """The size, then the preset, from which ``config`` differs in the fewest fields.

    Floats must be plain numbers, not arrays of a sweep. Ties go to the first in the tables.
    """

    def changes(agent: AgentConfig) -> dict[str, Any]:
        base = config_lib.flatten(Config(agent=agent))
        return {k: v for k, v in config_lib.flatten(config).items() if v != base[k]}

    # The size first: its fields are the same in every preset but for the heads of a V critic.
    size = min(SIZES, key=lambda size: len(changes(with_size(config.agent, size))))
    every = {preset: changes(with_size(get(preset), size)) for preset in PRESETS}
    preset = min(every, key=lambda preset: len(every[preset]))
    return Origin(preset, size, every[preset])
