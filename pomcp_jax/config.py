"""Configuration: frozen dataclasses that are pytrees.

Integers, strings, booleans and floats marked ``STATIC`` are part of the compilation key; other
floats are *traced leaves*, so changing a coefficient never recompiles and a sweep can ``vmap``
over it.

Every field is declared once: its type with range or choices, its default and, below it, its
documentation (:mod:`pomcp_jax.fields`). :func:`check` compares values with their declarations;
rules between fields are in :mod:`pomcp_jax.validation`. Both raise
:class:`ConfigError` with one line naming the field, its value and what would be right, before
anything is compiled. Formulas and symbols are those of docs/method.md.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

import jax
import numpy as np

from pomcp_jax import fields, nearest, values
from pomcp_jax.errors import ConfigError
from pomcp_jax.fields import (
    OPTIONAL,
    STATIC,
    ActionBound,
    BelowOne,
    Count,
    CountOrZero,
    HostCount,
    HostCountOrZero,
    LogStd,
    NotNegative,
    Positive,
    Power,
    Range,
    Rate,
    Share,
    Symlog,
)

C = TypeVar("C")


@dataclass_transform(frozen_default=True)
def config(cls: type[C]) -> type[C]:
    """Make ``cls`` a frozen dataclass and a pytree whose leaves are its traced floats.

    The constructor converts numpy numbers to Python's. Any other value passes unchanged into a
    leaf, because JAX rebuilds configurations with leaves of all kinds.
    """

    def __post_init__(self: Any) -> None:
        for name, spec in specs.items():
            value = getattr(self, name)
            # Static values are hashed for the compilation key, so they get their plain type. Leaves
            # pass unchanged: JAX puts tracers, axes and None there.
            if spec.static and type(value) is not spec.kind:
                object.__setattr__(self, name, _converted(cls.__name__, name, spec, value))
            elif isinstance(value, np.generic | np.ndarray):
                object.__setattr__(self, name, values.scalar(value))

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    cls = dataclasses.dataclass(frozen=True)(cls)
    # Annotations describe what a user passes; JAX rebuilds configurations with any kind of leaf.
    cls.__no_type_check__ = True  # type: ignore[attr-defined]
    specs = fields.specs(cls)
    if specs:
        cls.__doc__ = fields.document(cls)
    # Groups are data too: their own leaves are traced.
    meta = [name for name, spec in specs.items() if spec.static]
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    data = [name for name in names if name not in meta]
    if not any(spec.optional for spec in specs.values()):
        return jax.tree_util.register_dataclass(cls, data_fields=data, meta_fields=meta)
    return _register_with_optional(cls, data, meta)


def _register_with_optional(cls: type[C], data: list[str], meta: list[str]) -> type[C]:
    """Register ``cls`` as a pytree whose optional floats are leaves only while they are on."""

    def flatten(cfg: Any) -> tuple[list, tuple]:
        on = tuple(name for name in data if fields.is_on(cfg, name))
        keyed = [(jax.tree_util.GetAttrKey(name), getattr(cfg, name)) for name in on]
        return keyed, (on, tuple(getattr(cfg, name) for name in meta))

    def unflatten(structure: tuple, leaves: Any) -> Any:
        on, static = structure
        return cls(**dict(zip(meta, static, strict=True)), **dict(zip(on, leaves, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def _converted(group: str, name: str, spec: fields.Spec, value: Any) -> Any:
    path = f"{group}.{name}" if group else name
    try:
        return values.taken(spec.kind, not spec.static, value)
    except TypeError as error:
        raise ConfigError(f"{path} = {values.shown(value)}: {error}") from None


@config
class EnvConfig:
    """The task and how many copies of it a seed acts in."""

    task: str = "cartpole-swingup"
    """Name of the task; ``pomcp_jax.envs.available()`` lists them. ``MODULE:ATTRIBUTE`` is a task
    of one's own: a ``Task``, an ``Env``, or a function that returns one."""
    action_repeat: Count = 2
    """Environment steps (frames) that one decision's action is repeated for."""
    num_envs: Count = 1
    """Parallel environments of one seed, N."""
    history: Count = 1
    """Observations of the last decisions that the agent sees at once, the oldest first; at an
    episode's start they are its first one. Replay stores all of them in every row."""
    backend: Literal["mjx", "host", "warp", "spring", "positional", "generalized"] = "mjx"
    """``mjx``: physics on the accelerator. ``host``: dm_control's tasks in MuJoCo's C code on the
    CPU, original models, much cheaper there for bodies with contacts; the only one of
    HumanoidBench's tasks. ``warp``: MuJoCo Warp, for NVIDIA GPUs. The others are brax's own."""
    assets: str = ""
    """Folder of HumanoidBench's checkout, for its tasks; empty: that of the environment variable
    ``HUMANOID_BENCH``, or the installed package ``humanoid_bench``."""
    workers: CountOrZero = 0
    """Processes that step gymnasium's environments, for slow ones; 0: the process that trains."""


@config
class WorldModelConfig:
    """Sizes and output conventions of the networks; the defaults are TD-MPC2's 5M model."""

    latent_size: Count = 512
    """Size of the latent state, a multiple of ``simnorm_group``."""
    encoder_width: Count = 256
    """Width of the encoder's hidden layers."""
    encoder_layers: Count = 2
    """Layers of the encoder, including the output layer to the latent state; at least two."""
    mlp_width: Count = 512
    """Width of the two hidden layers of every other network."""
    normalise_observations: bool = False
    """Bring every entry of an observation to mean 0 and variance 1, running statistics of all that
    replay was given; for entries of very different sizes or with large offsets."""
    simnorm_group: Count = 8
    """Entries of the latent state that SimNorm normalises together by a softmax."""
    num_bins: Annotated[int, Range(2)] = 101
    """Bins of the distributions over reward and value."""
    bin_low: Symlog = -10.0
    """Lowest bin, in symlog space."""
    bin_high: Symlog = 10.0
    """Highest bin, in symlog space."""
    critic: Literal["q", "v"] = "q"
    """``q``: Q(z, a). ``v``: V(z), trained on model-based TD targets as in BMPC."""
    num_heads: Count = 5
    """Value networks in the ensemble."""
    dropout: Annotated[BelowOne, STATIC] = 0.01
    """Dropout rate of the value networks' first layer, in training only."""
    termination: bool = False
    """Learn to predict terminations and let the planner see them."""
    squash: Literal["tanh", "clip", "clip_straight_through"] = "clip_straight_through"
    """``tanh``: a = tanh(m + s eps). ``clip``: a = clip(tanh(m) + s eps, -1, 1), densities of the
    unclipped Gaussian; ``clip_straight_through`` lets gradients pass the clip."""
    log_std_min: LogStd = -3.0
    """Lower bound of the log standard deviation of the policy and the learned prior."""
    log_std_max: LogStd = 1.0
    """Upper bound of the log standard deviation of the policy and the learned prior."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that networks compute in; parameters are float32."""
    arranged_for: Literal["cpu", "gpu"] = "cpu"
    """Device that the order of operations suits; both run on either. ``gpu``: half the kernels of
    a plan, and SimNorm's groups are contiguous, so that an agent keeps the value it began with."""


@config
class MppiConfig:
    """The planner, MPPI as in TD-MPC2; see :func:`pomcp_jax.mppi.plan`."""

    horizon: Count = 3
    """Steps of a plan, H, and of the model's unrolling in training windows."""
    num_samples: Count = 512
    """Candidate plans of an iteration, proposals included."""
    num_proposals: CountOrZero = 24
    """Candidates proposed by the model's policy; without a policy it has no effect."""
    num_elites: Count = 64
    """Best candidates of an iteration, to which the next distribution is fitted."""
    iterations: Count = 6
    """Iterations of sampling and fitting."""
    temperature: NotNegative = 0.5
    """Elites weigh ``softmax(temperature * return)``, as in TD-MPC2: the inverse of the
    temperature of MPPI's papers. Higher values favour the best; 0 weighs all elites equally."""
    temperature_scale: Literal["none", "std", "spread"] = "none"
    """Unit of the returns that ``temperature`` multiplies: ``none``, or the standard deviation of
    the elites' returns (``std``, formerly ``spread``, which still works), so that weights do not
    depend on the scale of rewards. With ``num_elites = num_samples`` it is that of the whole
    population, as in DIAL-MPC (arXiv 2409.15610)."""
    std_min: NotNegative = 0.05
    """Lower bound of the standard deviation of the fitted distribution, in units of half the range
    of actions, ``(high - low) / 2``: of 1 with the default bounds."""
    std_max: NotNegative = 2.0
    """Upper bound of that standard deviation, in the same unit."""
    std_init: Annotated[NotNegative, OPTIONAL] = 0.0
    """That standard deviation in the first iteration; 0: ``std_max``."""
    low: ActionBound = -1.0
    """Lowest action. A number, or one per input ``[A]``, as ``high`` and the three ``std``; in
    training it is -1, which environments scale to their own bounds."""
    high: ActionBound = 1.0
    """Highest action; 1 in training."""
    noise_correlation: Annotated[BelowOne, OPTIONAL] = 0.0
    """Correlation of the samples' noise between a step and the next: an Ornstein-Uhlenbeck process
    (AR(1)) with a variance of 1 at every step. Higher values search smoother plans, as the colored
    noise of iCEM (arXiv 2008.06389) does. A number, or one per input."""
    knots: CountOrZero = 0
    """Steps whose actions are searched, evenly spread from the first to the last; those between
    them are interpolated, as in MuJoCo MPC (arXiv 2212.00541). 0: every step."""
    interpolation: Literal["linear", "cubic"] = "linear"
    """Curve between knots: straight lines, or cubic Hermite splines with finite differences as
    slopes, clipped to the bounds."""
    action_rate_cost: Annotated[NotNegative, OPTIONAL] = 0.0
    """Cost of changing the action: this times ``|a_t - a_{t-1}|^2`` is subtracted from each
    reward that a plan predicts, in units of half the range. The first change is from the executed
    action before. A number, or one per input."""
    select: Literal["sample", "argmax"] = "sample"
    """How the executed elite is chosen: by its weight (``sample``) or the best one."""
    record: Literal["sampled_elite", "mean", "best_elite"] = "sampled_elite"
    """What is stored as the prior: a Gaussian around the chosen elite's first action, around the
    fitted mean, or around the best elite's first action."""


@config
class CriticConfig:
    """Value targets (docs/method.md, "World model")."""

    target_reduce: Literal["min", "mean"] = "min"
    """How a target combines its heads."""
    target_actor: Literal["policy", "prior", "stored", "best"] = "policy"
    """Whose action a target evaluates: the policy's, the learned ``prior``'s, the mean of the
    ``stored`` plan at the next state, or the ``best`` of policy and stored plan by the target's
    own heads."""
    target_action: Literal["sample", "mode"] = "sample"
    """The actor's action in a target: drawn, as in TD-MPC2, or without noise (``mode``)."""
    tail_action: Literal["sample", "mode"] = "sample"
    """The policy's action at a plan's end, likewise. Candidates that draw it are ranked by their
    luck too, which matters as soon as the policy is wider than the plans."""
    td_lambda: Share = 0.0
    """Weight of longer returns in a target: 0 bootstraps after one reward, as in TD-MPC2, 1 after
    all rewards until the window's end."""
    return_steps: Annotated[int, Range(0, 100)] = 0
    """Rewards of a window's longest return, and so transitions of a training window, of which the
    model is unrolled over the first ``mppi.horizon``; 0: ``mppi.horizon``."""
    soft_target: bool = False
    """Subtract the policy's closed-form KL to the prior at the next state (needs a prior)."""
    soft_target_clip: NotNegative = 10.0
    """Upper bound of that KL, in nats."""
    num_target_heads: Count = 2
    """Target heads per update, drawn at random."""
    num_tail_heads: Count = 2
    """Heads whose mean is the value at a plan's end; every plan draws its own."""
    tail_penalty: NotNegative = 0.0
    """Standard deviations over those heads that are subtracted from their mean."""


@config
class PolicyConfig:
    """The one policy loss of the family (docs/method.md, "Policy")."""

    q_coef: NotNegative = 1.0
    """Weight of the value term."""
    q_source: Literal["critic", "model", "none"] = "critic"
    """``critic``: Q(z, a) of a Q critic. ``model``: R(z, a) + gamma V(d(z, a)) of a V critic.
    ``none``: the loss has no value term."""
    q_scale: Literal["states", "prior"] = "states"
    """What divides the value term: the running range of Q over ``states``, as in TD-MPC2, or the
    running standard deviation of Q over the actions of the ``prior`` in a state. With the latter
    the optimum is KL = 1 / (2 kl_coef^2) nats away from a Gaussian prior where Q is linear,
    whatever the task and the number of actions (docs/method.md)."""
    kl_coef: NotNegative = 1.0
    """Weight of the divergence from the prior, the paper's lambda."""
    kl_tuning: Literal["fixed", "dual", "calibrated"] = "fixed"
    """A factor of ``kl_coef``. ``dual``: learned so that the divergence per dimension approaches
    ``kl_target``. ``calibrated``: at least 1, and rising while the critic values recent plans
    higher than what followed them by more than ``bias_limit`` (docs/method.md)."""
    kl_target: NotNegative = 0.1
    """Target of the dual factor, in nats per dimension of the action."""
    dual_rate: NotNegative = 1e-3
    """Change of the factor's logarithm per update and nat, or unit of ``bias_limit``."""
    bias_limit: Annotated[float, Range(0.0, 10.0, high_open=True)] = 0.0
    """Overestimation that ``calibrated`` tolerates, in standard deviations of value over replay."""
    bias_steps: Count = 100
    """Decisions whose rewards a value is compared with, at most; then the critic's value again."""
    kl_dim_power: Power = 0.0
    """The KL term is multiplied by A to this power: 0 sums over dimensions, -1 averages."""
    entropy_coef: NotNegative = 1e-4
    """Weight of the entropy bonus."""
    entropy_dim_power: Power = 1.0
    """The Gaussian log-density in the bonus is multiplied by A to this power."""
    entropy: Literal["gaussian", "squashed"] = "gaussian"
    """``gaussian``: of the unsquashed Gaussian; ``squashed`` adds sum log(1 - a^2)."""
    prior: Literal["none", "stored", "replanned", "learned", "mixture"] = "learned"
    """Source of the prior: ``none``, the planner's record in replay (``stored``), the same kept
    fresh by re-planning (``replanned``), a network fitted to records (``learned``), or
    ``mixture``: the normalised geometric mean of the learned one and the record."""
    prior_mix: Share = 0.5
    """Weight of the learned prior in a mixture."""
    proposer: Literal["policy", "prior", "both"] = "policy"
    """Source of proposals: ``policy``, the learned ``prior``, or ``both``, half of them each."""
    seed_record: Literal["standard", "action"] = "standard"
    """Record of random actions: ``standard`` N(0, 1) or ``action`` N(action, seed_std)."""
    seed_std: Positive = 1.0
    """Standard deviation of that record."""
    data_record: Literal["action", "none"] = "action"
    """Record of rows of ``train.buffer`` that have none: ``action`` N(action, data_std), so that
    the policy stays close to what the data did, or ``none``: whatever reads records leaves these
    rows out until they are re-planned."""
    data_std: Positive = 0.3
    """Standard deviation of that record."""
    divergence: Literal["reverse", "forward", "cross_entropy", "nll"] = "reverse"
    """``reverse`` KL(pi || p), ``forward`` KL(p || pi), ``cross_entropy`` -log p(a), ``nll``
    -log pi at the prior's mean."""
    kl_scale: Literal["own", "q", "none"] = "own"
    """What divides the KL term: its ``own`` running scale, that of ``q``, or ``none``."""
    kl_gate: NotNegative = 0.0
    """The KL term acts only while the Q scale exceeds this."""
    prior_std_min: NotNegative = 0.0
    """Lower bound of the prior's standard deviation."""
    prior_std_from: Literal["prior", "policy"] = "prior"
    """``policy`` replaces the prior's standard deviation by the policy's, without its gradient."""
    value_weight: bool = False
    """Weight the KL of an example by B softmax(Q / S_Q / value_weight_temperature)."""
    value_weight_temperature: Positive = 1.0
    """Higher values weigh examples more equally."""
    q_reduce: Literal["min", "mean"] = "mean"
    """How the value term combines its heads."""
    num_q_heads: Count = 2
    """Heads of the value term, drawn at random for every update."""
    last_state: bool = True
    """Use all H + 1 latents of a window, or only the H that were acted in."""
    scale_rate: Rate = 0.01
    """Rate at which the running scales of value and KL approach those of a batch."""
    train_in_pretraining: bool = True
    """Train policy and prior in the pre-training phase too, not only the world model."""
    interval: Count = 1
    """Updates of the world model for each one of policy and learned prior, which then learn with
    the first of them; TD3's delay is 2 (arXiv 1802.09477)."""
    average_updates: CountOrZero = 0
    """Policy and learned prior that are evaluated, saved and exported are running averages of those
    that learn and act in training, over about so many of their updates; 0: they are those."""

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

    divergence: Literal["reverse", "forward"] = "reverse"
    """``reverse`` KL(prior || record) or ``forward`` KL(record || prior)."""
    weight: Literal["equal", "precision", "recent", "advantage"] = "equal"
    """Weight of a record in the fit: ``equal``; in each dimension of the action its ``precision``
    1 / std^2 relative to the batch's mean, so that sure plans count more than wide ones, as in
    weighted least squares; more the more ``recent`` it is (``half_life``); or by its
    ``advantage``, how much more it is worth than the prior's mean action."""
    half_life: Positive = 0.1
    """Age at which a ``recent`` record has half the weight of the newest that is fitted in its
    batch, as a share of the updates before that one."""
    advantage_temperature: Positive = 1.0
    """With ``advantage``: the weight is exp(advantage / (this times S_Q)), at most e^3; S_Q is what
    divides the policy's value term (``policy.q_scale``)."""
    gate: bool = False
    """Fit a record only where it is worth at least what the critic gives the prior's mean."""
    gate_value: Literal["plan", "critic"] = "plan"
    """Worth of a record, for the gate and for ``advantage``: its ``plan``'s value when it was made,
    or what the present ``critic`` gives its mean action (the filter of CRR, arXiv 2006.15134)."""
    gate_tolerance: NotNegative = 0.0
    """With ``policy.kl_tuning = calibrated``: the gate also lets through what is worth less by up
    to this times S_Q (log m - 1), where the factor m is above e: it opens if the critic
    overestimates. S_Q is the policy's scale of values, 1 without a value term."""


@config
class ReplanConfig:
    """Lazy re-planning of stored records (docs/method.md)."""

    interval: CountOrZero = 0
    """Updates between two re-plannings; 0 switches them off."""
    batch_size: Count = 20
    """Windows that are re-planned together, ``mppi.horizon`` states of each."""
    select: Literal["first", "oldest", "kl"] = "first"
    """Which windows of the batch: the ``first`` (a random choice), those with the ``oldest``
    records, or those with the largest ``kl`` of the policy to its records."""
    num_samples: CountOrZero = 0
    """Candidates of an iteration when re-planning; 0: as many as ``mppi.num_samples``."""
    iterations: CountOrZero = 0
    """Iterations when re-planning; 0: as many as ``mppi.iterations``."""
    proposal_log_std_min: LogStd = -2.0
    """Lower bound of the policy's log standard deviation when it proposes plans here."""
    proposal_log_std_max: LogStd = 1.0
    """Upper bound of the policy's log standard deviation when it proposes plans here."""


@config
class OptimizerConfig:
    """Optimisation and the world-model loss."""

    learning_rate: Positive = 3e-4
    """Step size of Adam."""
    decay_updates: CountOrZero = 0
    """The step size falls in inverse proportion after so many updates; 0: it stays as it is."""
    encoder_rate_scale: NotNegative = 0.3
    """Factor of the encoder's step size."""
    policy_epsilon: Positive = 1e-5
    """Adam's epsilon for the policy and the learned prior."""
    grad_clip: Positive = 20.0
    """Largest norm of a gradient; longer ones are scaled down to it."""
    target_rate: Rate = 0.01
    """Rate at which target networks approach the trained ones, per update."""
    average_updates: CountOrZero = 0
    """World model and critic that are evaluated, saved and exported are a running average of those
    that learn and plan in training, over about so many updates; 0: they are those that learn.
    Average the policy as well, which sees the average's latents."""
    discount: BelowOne = 0.99
    """Discount per decision, gamma."""
    rho: Rate = 0.5
    """Step t of a window weighs ``rho ** t`` in every loss."""
    consistency_coef: NotNegative = 20.0
    """Weight of the prediction of latent states."""
    reward_coef: NotNegative = 0.1
    """Weight of the prediction of rewards."""
    value_coef: NotNegative = 0.1
    """Weight of the value loss."""
    termination_coef: NotNegative = 1.0
    """Weight of the prediction of terminations."""
    batch_size: Count = 256
    """Windows per update, B."""


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

    @property
    def window(self) -> int:
        """Transitions of a training window, W: H, or more for longer returns."""
        return self.critic.return_steps or self.mppi.horizon


@config
class TrainConfig:
    """Length, phases and bookkeeping of a run; counts are per seed."""

    seed: HostCountOrZero = 0
    """Number of the first seed; the others follow it."""
    num_seeds: HostCount = 1
    """Independent agents that are trained in one program."""
    total_decisions: HostCount = 500_000
    """Decisions of a run, the random ones included."""
    seed_decisions: HostCountOrZero = 2_500
    """Decisions at the start, before any update; 0 needs a ``buffer``."""
    seed_actions: Literal["random", "policy", "planner"] = "random"
    """Who makes those decisions: ``random`` draws uniformly; the ``policy`` (its own distribution
    is the record) or the ``planner`` suit an agent that is trained already."""
    start_from: str = ""
    """Folder of a trained agent, or of a run of one seed, whose parameters every seed starts from;
    empty: fresh ones. Sizes of the networks must be the same, the method may differ."""
    buffer: str = ""
    """File of transitions, .npz, that fill replay before training, the same for all seeds
    (docs/how-to/data.md); empty for none."""
    offline: bool = False
    """Learn from replay alone: after the first decisions the environment is never stepped, and a
    decision only counts the time of ``updates_per_decision`` updates."""
    pretrain_updates: HostCountOrZero = 2_500
    """Updates after the first decisions, before training."""
    updates_per_decision: Annotated[float, Range(0.0, 1000.0), STATIC] = 1.0
    """Updates per decision of training; any rational number."""
    capacity: HostCount = 500_000
    """Rows of replay per seed, over all its environments."""
    chunk_decisions: HostCount = 1_000
    """Decisions between two returns to Python: progress, metrics, signals."""
    eval_decisions: HostCountOrZero = 25_000
    """Decisions between evaluations; 0 evaluates at the end only."""
    eval_episodes: HostCount = 10
    """Episodes of an evaluation."""
    eval_select: Literal["sample", "argmax"] = "sample"
    """How the planner chooses its elite in evaluations; see ``mppi.select``."""
    checkpoint_decisions: HostCountOrZero = 50_000
    """Decisions between checkpoints, besides those of agents with the best evaluation yet (not in
    runs over several processes); 0 saves at the end only."""
    checkpoint_keep: HostCount = 3
    """Newest checkpoints to keep, besides the best one."""
    memory_limit_gb: Annotated[Positive, STATIC] = 16.0
    """Largest replay of all seeds, in GB; a larger one is refused."""
    max_bad_updates: HostCount = 20
    """Consecutive non-finite updates after which a seed counts as broken."""
    on_broken_seed: Literal["stop", "leave", "reset"] = "stop"
    """``stop``: the run stops with code 3. ``leave``: the seed is marked and no longer counts.
    ``reset``: it restarts with a fresh agent and keeps its replay. Other seeds do not change by a
    bit."""
    num_devices: HostCountOrZero = 0
    """Devices over which seeds are distributed, at most as many as seeds; 0: as many as help."""
    devices_per_seed: HostCount = 1
    """Devices that share one seed's environments and batches, for large models and thousands of
    environments; must divide ``env.num_envs`` and ``batch_size``. Of ``num_devices``, which is a
    multiple of it. More than 1 changes rounding, no random numbers."""
    max_seed_resets: HostCount = 3
    """Resets of a seed after which ``reset`` acts as ``leave``."""


@config
class Config:
    """A whole run: environment, agent, training."""

    env: EnvConfig = EnvConfig()
    agent: AgentConfig = AgentConfig()
    train: TrainConfig = TrainConfig()


def to_dict(cfg: Any) -> dict[str, Any]:
    """Nested dictionary of a configuration; arrays and tracers stay as they are."""
    # Not ``dataclasses.asdict``, which copies every leaf, arrays of a sweep included.
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
    """Build configuration ``cls`` from a (partial) nested mapping; ``path`` is its dotted name.

    Raises:
      ConfigError: for an unknown field (with the nearest name) or a wrong type.
    """
    return _changed(cls(), items, path)


def _changed(cfg: C, items: Any, path: str) -> C:
    """``cfg`` with the fields of a nested mapping."""
    if not isinstance(items, Mapping):
        where = f"{path} = " if path else "configuration = "
        raise ConfigError(f"{where}{values.shown(items)}: must be a group of fields")
    specs = fields.specs(type(cfg))
    known = [field.name for field in dataclasses.fields(cfg)]  # type: ignore[arg-type]
    changes: dict[str, Any] = {}
    for name, value in items.items():
        full = f"{path}.{name!s:.100}" if path else f"{name!s:.100}"
        if name not in known:
            hint = nearest.hint(name, known, f"{path}.{{}}" if path else "{}")
            raise ConfigError(f"{full}: unknown field{hint} (fields: {', '.join(known)})")
        if name in specs:
            changes[name] = _converted(path, name, specs[name], value)
        elif isinstance(value, type(getattr(cfg, name))):
            changes[name] = value
        else:
            changes[name] = _changed(getattr(cfg, name), value, full)
    return dataclasses.replace(cfg, **changes)  # type: ignore[type-var]


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
        # Nested, so that a single function checks names and converts values.
        for name in reversed(path.split(".")):
            value = {name: value}
        cfg = _changed(cfg, value, "")
    return cfg


def check(cfg: Any, path: str = "") -> None:
    """Compare every value of a configuration with its declared range or choices.

    Tracers pass; all numbers of an array are checked.

    Args:
      cfg: any configuration.
      path: dotted name of ``cfg`` in messages.

    Raises:
      ConfigError: one line naming the field, the value and what it must be.
    """
    present = flatten(cfg, f"{path}." if path else "")
    for name, spec in fields.all_specs(type(cfg), path).items():
        if hint := fields.refusal(spec, present[name]):
            raise ConfigError(f"{name} = {values.shown(present[name])}: {hint}")


def check_finite(cfg: Any) -> None:
    """Raise :class:`ConfigError` for a NaN or infinite number anywhere; tracers pass."""
    for path, value in flatten(cfg).items():
        if isinstance(value, jax.core.Tracer) or not isinstance(value, float | jax.Array):
            continue
        if not np.isfinite(value).all():
            raise ConfigError(f"{path} = {values.shown(value)}: must be finite")
