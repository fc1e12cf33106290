"""The trained agent that ``train.start_from`` names, read before anything is compiled."""

import jax

from pomcp_jax import controller, fine_tuning
from pomcp_jax.acting import AgentSpec
from pomcp_jax.checkpoint import CheckpointError
from pomcp_jax.config import Config, ConfigError
from pomcp_jax.fine_tuning import Learned
from pomcp_jax.running import workdirs


def learned(config: Config, spec: AgentSpec) -> Learned | None:
    """Parameters that the seeds of a run start from; None for fresh ones.

    Raises:
      ConfigError: one line; the folder holds no agent, several, or one of other sizes.
    """
    name = config.train.start_from
    if not name:
        return None
    field = f"train.start_from = {name!r:.300}"
    try:
        agents = controller.load(workdirs.expanded(name, "train.start_from"))
        if agents.num_seeds != 1:
            raise ConfigError(
                f"holds {agents.num_seeds} agents; must hold one (python -m experiments.export RUN"
                " --train-seed=SEED --out=FOLDER writes it)"
            )
        params, target = jax.tree.map(
            lambda x: x[0], (agents.state.params, agents.state.target_value)
        )
        origin = agents.config.agent
        return fine_tuning.adapted(params, target, origin, agents.spec, config.agent, spec)
    except (CheckpointError, ConfigError) as error:
        raise ConfigError(f"{field}: {error}") from None
