"""Layers: NormedLinear, MLP and stacked ensembles. The only file that imports flax.

Architecture and initialisation are those of [TD-MPC2] (``common/layers.py``,
``common/init.py``): Linear -> LayerNorm -> Mish, normal kernels with sigma 0.02,
zero biases.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from pomcp_jax import maths, packing
from pomcp_jax.types import Key, Params

# [TD-MPC2] common/init.py: trunc_normal_(std=0.02) cut at +-2, a hundred sigma away:
# a plain normal.
kernel_init = nn.initializers.normal(0.02)
zeros_init = nn.initializers.zeros
Module = nn.Module


def _wider(a: DTypeLike, b: DTypeLike) -> jnp.dtype:
    """The wider dtype, under strict promotion too."""
    # ``promote_types`` obeys ``jax_numpy_dtype_promotion``, which users may set to strict.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(a, b)


def _widened(x: Float[Array, "..."], dtype: DTypeLike) -> Float[Array, "..."]:
    return x.astype(_wider(x.dtype, dtype))


class Linear(nn.Module):
    """Affine map of the concatenation of its inputs, without concatenating.

    Each input ``[..., D_i]`` has its own kernel, so the product of an input that does not vary
    (the root latent of a plan) can be computed once, by :func:`first_product`.
    """

    features: int
    kernel_init: Callable = kernel_init
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Float[Array, "..."]) -> Float[Array, "..."]:
        """Sum of one matrix product per input, plus the bias."""
        # Parameters stay float32 under bfloat16: small Adam steps would be rounded away.
        products, wide = [], _wider(self.dtype, jnp.float32)
        for i, x in enumerate(inputs):
            shape = (x.shape[-1], self.features)
            kernel = self.param(f"kernel_{i}", self.kernel_init, shape, wide)
            products.append(x.astype(self.dtype) @ kernel.astype(self.dtype))
        out = functools.reduce(operator.add, products)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), wide)
        return out + maths.along_last(bias.astype(self.dtype), out)


class NormedLinear(nn.Module):
    """Linear -> dropout -> LayerNorm -> activation; the norm is computed in float32."""

    features: int
    activation: Callable | None = maths.mish
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    two_pass: bool = False
    """As :func:`pomcp_jax.maths.layer_norm` has it."""

    @nn.compact
    def __call__(
        self,
        *inputs: Float[Array, "..."],
        dropout_key: Key | None = None,
        affine: Float[Array, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """Without ``dropout_key`` nothing is dropped; ``affine`` replaces the linear map."""
        x = affine
        if x is None:
            x = Linear(self.features, dtype=self.dtype, name="linear")(*inputs)
        wide = _wider(self.dtype, jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (self.features,), wide)
        offset = self.param("offset", nn.initializers.zeros, (self.features,), wide)
        # E[x^2] - E[x]^2 needs more bits than the 8 of bfloat16.
        x = _widened(x, scale.dtype)
        if self.dropout > 0.0 and dropout_key is not None:
            # 16 random bits an element: the rate is exact to 1/65536 at half the cost.
            # Before the norm, as in TD-MPC2; its JAX ports drop after the activation.
            bits = jax.random.bits(dropout_key, x.shape, jnp.uint16)
            keep = bits >= jnp.uint16(round(self.dropout * 65536))
            x = jnp.where(keep, x / (1.0 - self.dropout), 0.0)
        x = maths.layer_norm(x, scale, offset, self.two_pass)
        return x if self.activation is None else self.activation(x)


class MLP(nn.Module):
    """NormedLinear hidden layers, then a plain Linear or a NormedLinear with its own activation.

    ``dropout`` acts on the first layer only, before its norm, as in [TD-MPC2].
    """

    hidden: tuple[int, ...]
    features: int
    final_activation: Callable | None = None
    final_init: Callable = kernel_init
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    two_pass: bool = False

    @nn.compact
    def __call__(
        self,
        *inputs: Float[Array, "..."],
        dropout_key: Key | None = None,
        affine: Float[Array, "..."] | None = None,
    ) -> Float[Array, "..."]:
        """All layers in order; ``dropout_key`` and ``affine`` go to the first."""
        x = inputs
        normed = functools.partial(NormedLinear, dtype=self.dtype, two_pass=self.two_pass)
        for i, width in enumerate(self.hidden):
            layer = normed(width, dropout=self.dropout if i == 0 else 0.0, name=f"layer_{i}")
            first = {"dropout_key": dropout_key, "affine": affine} if i == 0 else {}
            x = (layer(*x, **first),)
        if self.final_activation is not None:
            return normed(self.features, self.final_activation, name="out")(*x)
        out = Linear(self.features, self.final_init, dtype=self.dtype, name="out")(*x)
        # The softmax over the bins and symexp amplify rounding, so outputs leave in float32.
        return _widened(out, jnp.float32)


def init(module: nn.Module, key: Key, *sizes: int) -> Params:
    """Parameters of ``module`` for unbatched inputs of the given sizes."""
    # flax takes only shapes from these inputs.
    return module.init(key, *(jnp.zeros((size,), jnp.float32) for size in sizes))["params"]


def apply(module: nn.Module, params: Params, *inputs: Array, dropout_key: Key | None = None):
    """``module`` at ``params``, packed or not, on any leading shape."""
    params = packing.unpack(params)
    return module.apply({"params": params}, *inputs, dropout_key=dropout_key)


def first_product(
    module: MLP, params: Params, index: int, x: Float[Array, "*batch D"]
) -> Float[Array, "*batch M"]:
    """Product of input ``index`` with its kernel in the first layer."""
    kernel = params["layer_0"]["linear"][f"kernel_{index}"]
    return x.astype(module.dtype) @ kernel.astype(module.dtype)


def after_products(module: MLP, params: Params, *products: Float[Array, "*batch M"]):
    """``module`` from every input's :func:`first_product` on; together they are :func:`apply`."""
    total = functools.reduce(operator.add, products)
    bias = params["layer_0"]["linear"]["bias"].astype(module.dtype)
    return module.apply({"params": params}, affine=total + maths.along_last(bias, total))


class JointHeads(NamedTuple):
    """An ensemble whose first layer is one product for all heads; made once, applied often."""

    kernels: tuple[Float[Array, "D EM"], ...]
    """For each input, the heads' kernels side by side."""
    heads: Params
    """All parameters, stacked; the kernels of the first layer are not used."""


def join_heads(params: Params) -> JointHeads:
    """Heads stacked on a leading axis ``E`` in the form that plans apply."""
    first = params["layer_0"]["linear"]
    kernels = [first[f"kernel_{i}"] for i in range(len(first) - 1)]
    side_by_side = (jnp.moveaxis(k, 0, 1).reshape(k.shape[1], -1) for k in kernels)
    return JointHeads(tuple(side_by_side), params)


def _apply_joint(module: MLP, joint: JointHeads, *inputs: Array) -> Float[Array, "E *batch M"]:
    products = [
        x.astype(module.dtype) @ kernel.astype(module.dtype)
        for x, kernel in zip(inputs, joint.kernels, strict=True)
    ]
    total = functools.reduce(operator.add, products)
    apart = jnp.moveaxis(total.reshape(*total.shape[:-1], -1, module.hidden[0]), -2, 0)
    return jax.vmap(lambda p, x: after_products(module, p, x))(joint.heads, apart)


def init_ensemble(module: nn.Module, key: Key, num_heads: int, *sizes: int) -> Params:
    """Independent parameters of ``num_heads`` copies, stacked on a leading axis ``E``."""
    return jax.vmap(lambda k: init(module, k, *sizes))(jax.random.split(key, num_heads))


def apply_ensemble(
    module: MLP, params: Params | JointHeads, *inputs: Array, dropout_key: Key | None = None
) -> Float[Array, "E *batch M"]:
    """All heads found in ``params`` on the same inputs; heads are the leading axis.

    :class:`JointHeads` have no dropout.
    """
    if isinstance(params, JointHeads):
        return _apply_joint(module, params, *inputs)
    params = packing.unpack(params)
    # One batched product per layer is cheaper than E small ones.
    if dropout_key is None:
        return jax.vmap(lambda p: apply(module, p, *inputs))(params)
    num_heads = jax.tree.leaves(params)[0].shape[0]
    keys = jax.random.split(dropout_key, num_heads)
    return jax.vmap(lambda p, k: apply(module, p, *inputs, dropout_key=k))(params, keys)


def select_heads(params: Params, index: Array) -> Params:
    """The ensemble members at ``index`` (``[n]`` integers) of stacked ``params``."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, unique_indices=True), params)
