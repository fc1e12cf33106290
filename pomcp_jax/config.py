"""Configuration: frozen dataclasses that are pytrees.

Integers, strings, booleans and optional sizes are *static* (part of the
compilation key); floats are *traced leaves*, so changing a coefficient never
recompiles and a sweep can ``vmap`` over it. ``static()`` marks the few floats
that decide a shape or a structure.

``validate`` raises :class:`ConfigError` with one line naming the field, its
value and what would be right; nothing is compiled before it has passed.
Formulas and symbols are those of docs/method.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from pomcp_jax import nearest, values

C = TypeVar("C")


class ConfigError(ValueError):
    """A configuration that cannot work; the message is one line for the user."""


def static(default: float) -> Any:
    """A float field that is part of the compilation key."""
    return dataclasses.field(default=default, metadata={"static": True})


def is_traced(field: dataclasses.Field) -> bool:
    """Whether a field is a leaf of its configuration's pytree."""
    return field.type is float and not field.metadata.get("static", False)


def config(cls: type[C]) -> type[C]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its float fields.

    Constructing one takes numbers of numpy, too. What is no number stays as it is in a
    leaf: JAX rebuilds configurations with leaves of all kinds.
    """

    def __post_init__(self: Any) -> None:
        for name, kind, traced in kinds:
            value = getattr(self, name)
            if not traced and type(value) is not kind:
                object.__setattr__(self, name, _taken(cls.__name__, name, kind, value))
            elif isinstance(value, np.generic | np.ndarray):
                object.__setattr__(self, name, values.scalar(value))

    cls.__post_init__ = __post_init__
    cls = dataclasses.dataclass(frozen=True)(cls)
    # Annotations are what a user writes; JAX rebuilds configurations with leaves of all kinds.
    cls.__no_type_check__ = True  # type: ignore[attr-defined]
    fields = dataclasses.fields(cls)
    nested = [field.name for field in fields if dataclasses.is_dataclass(field.type)]
    kinds = [(f.name, f.type, is_traced(f)) for f in fields if f.name not in nested]
    meta = [name for name, _, traced in kinds if not traced]
    data = [field.name for field in fields if field.name not in meta]
    return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)


def _taken(group: str, name: str, kind: type, value: Any, traced: bool = False) -> Any:
    path = f"{group}.{name}" if group else name
    try:
        return values.taken(kind, traced, value)
    except TypeError as error:
        raise ConfigError(f"{path} = {values.shown(value)}: {error}") from None


@config
class EnvConfig:
    """The task. ``num_envs`` is N, the parallel environments of one seed."""

    task: str = "cartpole-swingup"
    action_repeat: int = 2
    num_envs: int = 1
    backend: str = "mjx"
    """``mjx``: physics on the accelerator. ``host``: dm_control's tasks in MuJoCo's C
    code on the CPU, original models, much cheaper there for bodies with contacts."""


@config
class WorldModelConfig:
    """Sizes and output conventions; the defaults are TD-MPC2's 5M model."""

    latent_size: int = 512
    encoder_width: int = 256
    encoder_layers: int = 2
    """Layers of the encoder, the last (to the latent) included."""
    mlp_width: int = 512
    simnorm_group: int = 8
    num_bins: int = 101
    bin_low: float = -10.0
    bin_high: float = 10.0
    critic: str = "q"
    """``q``: Q(z, a). ``v``: V(z), trained on model-based TD targets as in BMPC."""
    num_heads: int = 5
    dropout: float = static(0.01)
    termination: bool = False
    """Learn a termination head and let the planner see it."""
    squash: str = "clip_straight_through"
    """``tanh``: a = tanh(m + s eps). ``clip``: a = clip(tanh(m) + s eps, -1, 1), densities
    of the unclipped Gaussian; ``clip_straight_through`` lets gradients pass the clip."""
    log_std_min: float = -3.0
    log_std_max: float = 1.0
    compute_dtype: str = "float32"


@config
class MppiConfig:
    """MPPI of TD-MPC2; see :func:`pomcp_jax.mppi.plan`."""

    horizon: int = 3
    num_samples: int = 512
    """All candidates of an iteration, proposals included."""
    num_proposals: int = 24
    """Of a model's proposal policy; without one it has no effect."""
    num_elites: int = 64
    iterations: int = 6
    temperature: float = 0.5
    """Elites weigh ``softmax(temperature * return)``, as in TD-MPC2: the inverse of the
    temperature of MPPI's papers. Higher averages over fewer; 0 over all elites alike."""
    std_min: float = 0.05
    std_max: float = 2.0
    select: str = "sample"
    """How the executed elite is chosen: ``sample`` (Gumbel) or ``argmax``."""
    record: str = "sampled_elite"
    """What is stored as the prior: ``sampled_elite``, ``mean`` or ``best_elite``."""


@config
class CriticConfig:
    """Value targets (docs/method.md, "World model")."""

    target_reduce: str = "min"
    target_actor: str = "policy"
    soft_target: bool = False
    """Subtract the policy's closed-form KL to the prior at the next state (needs a prior)."""
    soft_target_clip: float = 10.0
    num_target_heads: int = 2
    num_tail_heads: int = 2
    """Heads, drawn anew for each plan, whose mean is the value at a plan's end."""
    tail_penalty: float = 0.0
    """Standard deviations over those heads that are subtracted from their mean."""


@config
class PolicyConfig:
    """The one policy loss of the family (docs/method.md, "Policy")."""

    q_coef: float = 1.0
    q_source: str = "critic"
    """``critic``: Q(z, a) of a Q critic. ``model``: R(z, a) + gamma V(d(z, a)) of a V critic.
    ``none``: the loss has no value term."""
    kl_coef: float = 1.0
    kl_tuning: str = "fixed"
    """``dual`` multiplies ``kl_coef`` by a factor that is learned so that the divergence per
    dimension approaches ``kl_target``."""
    kl_target: float = 0.1
    """Nats per dimension."""
    dual_rate: float = 1e-3
    """Change of the factor's logarithm per update and nat."""
    kl_dim_power: float = 0.0
    """The KL term is multiplied by A to this power: 0 sums over dimensions, -1 averages."""
    entropy_coef: float = 1e-4
    entropy_dim_power: float = 1.0
    """The Gaussian log-density in the bonus is multiplied by A to this power."""
    entropy: str = "gaussian"
    """``gaussian``: of the unsquashed Gaussian; ``squashed`` adds sum log(1 - a^2)."""
    prior: str = "learned"
    """Source of the prior: ``none``, ``stored``, ``replanned``, ``learned``, or ``mixture``:
    the normalised geometric mean of the learned one and the record."""
    prior_mix: float = 0.5
    """Weight of the learned prior in a mixture."""
    proposer: str = "policy"
    """Who proposes plans: ``policy``, the learned ``prior``, or ``both``, half of them each."""
    seed_record: str = "standard"
    """Record of random actions: ``standard`` N(0, 1) or ``action`` N(action, seed_std)."""
    seed_std: float = 1.0
    divergence: str = "reverse"
    """``reverse`` KL(pi || p), ``forward`` KL(p || pi), ``cross_entropy`` -log p(a), ``nll``."""
    kl_scale: str = "own"
    """What divides the KL term: its ``own`` running scale, that of ``q``, or ``none``."""
    kl_gate: float = 0.0
    """The KL term acts only while the Q scale exceeds this."""
    prior_std_min: float = 0.0
    prior_std_from: str = "prior"
    """``policy`` replaces the prior's std by the (stopped) policy's."""
    value_weight: bool = False
    """Weight the KL of an example by B softmax(Q / S_Q / value_weight_temperature)."""
    value_weight_temperature: float = 1.0
    q_reduce: str = "mean"
    num_q_heads: int = 2
    last_state: bool = True
    """Use all H + 1 latents of a window, or only the H that were acted in."""
    scale_rate: float = 0.01
    train_in_pretraining: bool = True

    @property
    def learns_prior(self) -> bool:
        """Whether there is a learned prior."""
        return self.prior in ("learned", "mixture")

    @property
    def uses_records(self) -> bool:
        """Whether the loss itself looks at planner records."""
        return self.prior in ("stored", "replanned", "mixture")


@config
class PriorConfig:
    """Fitting of the learned prior to stored planner records."""

    divergence: str = "reverse"
    gate: bool = False
    """Fit a record only where its plan's value is at least the prior's own."""


@config
class ReplanConfig:
    """Lazy re-planning (docs/method.md); ``interval`` 0 switches it off."""

    interval: int = 0
    batch_size: int = 20
    """Windows planned anew each time, ``mppi.horizon`` states of each."""
    select: str = "first"
    """Which windows of the batch: the ``first`` (a random choice), those with the ``oldest``
    records, or those with the largest ``kl`` of the policy to its records."""
    num_samples: int = 0
    """Candidates of an iteration when planning anew; 0: as many as ``mppi.num_samples``."""
    iterations: int = 0
    """Iterations when planning anew; 0: as many as ``mppi.iterations``."""
    proposal_log_std_min: float = -2.0
    proposal_log_std_max: float = 1.0


@config
class OptimizerConfig:
    """Optimisation and the world-model loss."""

    learning_rate: float = 3e-4
    encoder_rate_scale: float = 0.3
    policy_epsilon: float = 1e-5
    grad_clip: float = 20.0
    target_rate: float = 0.01
    discount: float = 0.99
    rho: float = 0.5
    consistency_coef: float = 20.0
    reward_coef: float = 0.1
    value_coef: float = 0.1
    termination_coef: float = 1.0
    batch_size: int = 256


@config
class AgentConfig:
    """Everything the learner needs, and nothing of environments or training length."""

    world_model: WorldModelConfig = WorldModelConfig()
    mppi: MppiConfig = MppiConfig()
    critic: CriticConfig = CriticConfig()
    policy: PolicyConfig = PolicyConfig()
    prior: PriorConfig = PriorConfig()
    replan: ReplanConfig = ReplanConfig()
    optimizer: OptimizerConfig = OptimizerConfig()


@config
class TrainConfig:
    """Length, phases and bookkeeping of a run; counts are per seed."""

    seed: int = 0
    num_seeds: int = 1
    total_decisions: int = 500_000
    seed_decisions: int = 2_500
    pretrain_updates: int = 2_500
    updates_per_decision: float = static(1.0)
    capacity: int = 500_000
    """Rows of replay per seed, over all its environments."""
    chunk_decisions: int = 1_000
    """Decisions between two returns to Python: progress, metrics, signals."""
    eval_decisions: int = 25_000
    """Decisions between evaluations; 0 evaluates at the end only."""
    eval_episodes: int = 10
    eval_select: str = "sample"
    checkpoint_decisions: int = 50_000
    """Decisions between checkpoints; 0 saves at the end only."""
    checkpoint_keep: int = 3
    """Newest checkpoints to keep, besides the best one."""
    memory_limit_gb: float = static(16.0)
    max_bad_updates: int = 20
    """Consecutive non-finite updates after which a seed counts as broken."""
    on_broken_seed: str = "stop"
    """``stop``: the run stops with code 3. ``leave``: the seed is marked and counts no more.
    ``reset``: its agent starts anew, with its replay. Other seeds do not change by a bit."""
    num_devices: int = 0
    """Over which the seeds are spread; must divide their number. 0: the most that do."""
    max_seed_resets: int = 3
    """Of a seed, after which ``reset`` is ``leave``."""


@config
class Config:
    """A whole run: environment, agent, training."""

    env: EnvConfig = EnvConfig()
    agent: AgentConfig = AgentConfig()
    train: TrainConfig = TrainConfig()


def to_dict(cfg: Any) -> dict[str, Any]:
    """Nested dictionary of a configuration; arrays and tracers stay as they are."""
    pairs = ((field.name, getattr(cfg, field.name)) for field in dataclasses.fields(cfg))
    return {k: to_dict(v) if dataclasses.is_dataclass(v) else v for k, v in pairs}


def flatten(cfg: Any, prefix: str = "") -> dict[str, Any]:
    """``{"agent.mppi.horizon": 3, ...}`` of a configuration or nested mapping."""
    items = cfg if isinstance(cfg, Mapping) else to_dict(cfg)
    out: dict[str, Any] = {}
    for name, value in items.items():
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{prefix}{name}."))
        else:
            out[prefix + name] = value
    return out


def from_dict(cls: type[C], items: Mapping[str, Any], path: str = "") -> C:
    """Build configuration ``cls`` from a (partial) nested mapping; ``path`` is where it stands.

    Raises:
      ConfigError: for an unknown field (with the nearest name) or a wrong type.
    """
    return _changed(cls(), items, path)


def _changed(cfg: C, items: Any, path: str) -> C:
    """``cfg`` with the fields of a nested mapping."""
    if not isinstance(items, Mapping):
        where = f"{path} = " if path else "configuration = "
        raise ConfigError(f"{where}{values.shown(items)}: must be a group of fields")
    fields = {field.name: field for field in dataclasses.fields(cfg)}
    changes: dict[str, Any] = {}
    for name, value in items.items():
        full = f"{path}.{name!s:.100}" if path else f"{name!s:.100}"
        if name not in fields:
            hint = nearest.hint(name, fields, f"{path}.{{}}" if path else "{}")
            raise ConfigError(f"{full}: unknown field{hint} (fields: {', '.join(fields)})")
        field = fields[name]
        if not dataclasses.is_dataclass(field.type):
            changes[name] = _taken(path, name, field.type, value, is_traced(field))
        elif isinstance(value, field.type):
            changes[name] = value
        else:
            changes[name] = _changed(getattr(cfg, name), value, full)
    return dataclasses.replace(cfg, **changes)


def replace(cfg: C, changes: Mapping[str, Any]) -> C:
    """Copy of ``cfg`` with dotted fields replaced: ``{"mppi.horizon": 5}``.

    Traced floats may be arrays, one for each row of a sweep, or tracers: this works under
    ``jit`` and ``vmap``. A group takes a configuration, or a mapping of what differs in it.

    Raises:
      ConfigError: as :func:`from_dict`.
    """
    known = flatten(cfg)
    groups = {path.rsplit(".", i)[0] for path in known for i in range(1, path.count(".") + 1)}
    for path, value in changes.items():
        if path not in known and path not in groups:
            raise ConfigError(f"{path}: unknown field{nearest.hint(path, known)}")
        for name in reversed(path.split(".")):
            value = {name: value}
        cfg = _changed(cfg, value, "")
    return cfg


def check_finite(cfg: Any) -> None:
    """Raise :class:`ConfigError` for a NaN or infinite number anywhere; tracers pass."""
    for path, value in flatten(cfg).items():
        if isinstance(value, jax.core.Tracer) or not isinstance(value, float | jax.Array):
            continue
        if not np.isfinite(value).all():
            raise ConfigError(f"{path} = {values.shown(value)}: must be finite")
