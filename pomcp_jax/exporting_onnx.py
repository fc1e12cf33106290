"""The bare policy, or the learned prior, as an ONNX graph for runtimes without JAX.

The graph is ``observation [N, O] -> action [N, A]`` with any N: the encoder, the actor and the mode
of its distribution, ``tanh`` of its mean for every squash of :mod:`pomcp_jax.actors`. Draws are not
offered, and neither is the planner: its loop over samples is a program, not a network
(:mod:`pomcp_jax.exporting`). Written with ``onnx.helper``; converters of JAX programs need other
versions of our packages.

Symbols: N observations at once, O observation size, A action size, L latent size.
"""

import functools
import importlib.util
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from pomcp_jax import normalising
from pomcp_jax.acting import AgentParams, AgentSpec
from pomcp_jax.config import AgentConfig, WorldModelConfig
from pomcp_jax.normalising import Moments
from pomcp_jax.types import Params

OPSET, IR = 18, 8
"""Operator set and file format of December 2022, the first with Mish, so that older runtimes read
the file."""
ACTORS = ("policy", "prior")
INPUT, OUTPUT = "observation", "action"


class Graph(NamedTuple):
    """A graph under construction; both lists grow."""

    nodes: list[Any]
    constants: list[Any]


def check_available() -> None:
    """Check that the library that writes ONNX is installed.

    Raises:
      ValueError: one line with the command that installs it.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("an .onnx file needs onnx: pip install onnx")


def check_actor(actor: str) -> None:
    """Refuse actors that are no network.

    Raises:
      ValueError: one line that says what to use instead.
    """
    if actor == "planner":
        raise ValueError(
            "actor = 'planner': ONNX has the bare policy only; must be 'policy' or 'prior', or"
            " export the planner as .stablehlo"
        )
    if actor not in ACTORS:
        raise ValueError(f"actor = {actor!r}: must be one of {', '.join(ACTORS)}")


def export(
    params: AgentParams,
    config: AgentConfig,
    spec: AgentSpec,
    *,
    actor: str = "policy",
    facts: Mapping[str, str] | None = None,
) -> Any:
    """The actor as an ``onnx.ModelProto``, checked by ``onnx.checker``.

    Args:
      params: parameters of one seed.
      config: configuration of the agent; the graph computes in float32, whatever its dtype.
      spec: static part of the agent.
      actor: ``policy`` or ``prior``.
      facts: entries of the file's metadata.

    Raises:
      ValueError: one line: the actor is no network, the agent learned no prior, or onnx is missing.
    """
    check_available()
    check_actor(actor)
    network = params.policy if actor == "policy" else params.prior
    if network is None:
        raise ValueError(
            f"actor = 'prior': this agent learned none (policy.prior = {config.policy.prior!r});"
            " must be 'policy'"
        )
    import onnx
    from onnx import TensorProto, helper

    graph = Graph([], [])
    seen = INPUT if params.moments is None else _normalised(graph, params.moments, INPUT)
    latent = _encoder(graph, params.model.encoder, seen, config.world_model)
    hidden = _hidden(graph, network, latent, "policy")
    # The second half of the outputs is the log-std, which the mode does not depend on.
    mean = _linear(graph, network["out"], hidden, "policy/out", columns=spec.action_size)
    graph.nodes.append(helper.make_node("Tanh", [mean], [OUTPUT]))
    sizes: dict[str, list[str | int | None]] = {
        INPUT: ["N", spec.obs_size],
        OUTPUT: ["N", spec.action_size],
    }
    ends = [helper.make_tensor_value_info(x, TensorProto.FLOAT, sizes[x]) for x in sizes]
    model = helper.make_model(
        helper.make_graph(graph.nodes, actor, ends[:1], ends[1:], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
        producer_name="pomcp_jax",
    )
    helper.set_model_props(model, dict(facts or {}))
    onnx.checker.check_model(model, full_check=True)
    return model


def deviation(model: Any, expected: Any, obs: Any) -> float:
    """Largest difference of the graph's actions from ``expected`` [N, A], at ``obs`` [N, O].

    Computed by the reference implementation of ONNX in NumPy.
    """
    from onnx.reference import ReferenceEvaluator

    inputs = {INPUT: np.asarray(obs, np.float32)}
    actions: Any = list(ReferenceEvaluator(model).run([OUTPUT], inputs))[0]
    return float(np.max(np.abs(actions - np.asarray(expected))))


def _constant(graph: Graph, name: str, value: Any, dtype: Any = np.float32) -> str:
    from onnx import numpy_helper

    graph.constants.append(numpy_helper.from_array(np.asarray(value, dtype), name))
    return name


def _node(graph: Graph, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
    from onnx import helper

    graph.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
    return name


def _linear(graph: Graph, params: Params, x: str, name: str, columns: int | None = None) -> str:
    """:class:`pomcp_jax.networks.Linear` of one input; the first ``columns`` outputs."""
    kernel = _constant(graph, f"{name}/kernel", np.asarray(params["kernel_0"])[:, :columns])
    bias = _constant(graph, f"{name}/bias", np.asarray(params["bias"])[:columns])
    return _node(graph, "Gemm", [x, kernel, bias], name)


def _normed(graph: Graph, params: Params, x: str, name: str) -> str:
    """:class:`pomcp_jax.networks.NormedLinear` without its activation."""
    x = _linear(graph, params["linear"], x, f"{name}/linear")
    scale = _constant(graph, f"{name}/scale", params["scale"])
    offset = _constant(graph, f"{name}/offset", params["offset"])
    return _node(graph, "LayerNormalization", [x, scale, offset], f"{name}/norm", epsilon=1e-5)


def _hidden(graph: Graph, params: Params, x: str, name: str) -> str:
    """The hidden layers of :class:`pomcp_jax.networks.MLP`."""

    def layer(x: str, i: int) -> str:
        here = f"{name}/layer_{i}"
        return _node(graph, "Mish", [_normed(graph, params[f"layer_{i}"], x, here)], f"{here}/mish")

    return functools.reduce(layer, range(len(params) - 1), x)  # all but "out"


def _normalised(graph: Graph, moments: Moments, x: str) -> str:
    """:func:`pomcp_jax.normalising.apply`."""
    _, shift, mean, variance = map(np.asarray, moments)
    scale = 1.0 / np.sqrt(variance + np.float32(normalising.EPSILON))
    steps = ("Sub", "shift", shift), ("Sub", "mean", mean), ("Mul", "scale", scale)
    for kind, name, value in steps:
        number = _constant(graph, f"observations/{name}/value", value)
        x = _node(graph, kind, [x, number], f"observations/{name}")
    bounds = ("least", -normalising.MOST), ("most", normalising.MOST)
    ends = [_constant(graph, f"observations/{name}", value) for name, value in bounds]
    return _node(graph, "Clip", [x, *ends], "observations")


def _encoder(graph: Graph, params: Params, x: str, config: WorldModelConfig) -> str:
    """Latents ``[N, L]``: hidden layers, a normed layer and :func:`pomcp_jax.maths.simnorm`."""
    x = _normed(graph, params["out"], _hidden(graph, params, x, "encoder"), "encoder/out")
    latent, group = len(params["out"]["scale"]), config.simnorm_group
    contiguous = config.arranged_for == "gpu"
    groups = [latent // group, group] if contiguous else [group, latent // group]
    # 0 keeps the axis of observations, whose size is known at run time only.
    split = _constant(graph, "simnorm/groups", [0, *groups], np.int64)
    joined = _constant(graph, "simnorm/latent", [0, latent], np.int64)
    x = _node(graph, "Reshape", [x, split], "simnorm/split")
    x = _node(graph, "Softmax", [x], "simnorm/softmax", axis=2 if contiguous else 1)
    return _node(graph, "Reshape", [x, joined], "simnorm")
