"""Layers: NormedLinear, MLP and stacked ensembles. The only file that imports flax.

Architecture and initialisation are those of [TD-MPC2] (``common/layers.py``,
``common/init.py``): Linear -> LayerNorm -> Mish, normal kernels with sigma 0.02,
zero biases.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from pomcp_jax import maths
from pomcp_jax.types import Key, Params

# [TD-MPC2] common/init.py: trunc_normal_(std=0.02) cut at +-2, a hundred sigma away:
# a plain normal.
kernel_init = nn.initializers.normal(0.02)
zeros_init = nn.initializers.zeros
Module = nn.Module


def _row(vector: Float[Array, " M"], like: Float[Array, "*batch M"]) -> Float[Array, "*ones M"]:
    return vector.reshape((1,) * (like.ndim - 1) + vector.shape)


def _widened(x: Float[Array, "..."], dtype: jnp.dtype) -> Float[Array, "..."]:
    """``x`` in the wider of its own dtype and ``dtype``, under strict promotion too."""
    with jax.numpy_dtype_promotion("standard"):
        return x.astype(jnp.promote_types(x.dtype, dtype))


def _held(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype of parameters: float32, whatever the default is, or wider if computing is."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(dtype, jnp.float32)


class Linear(nn.Module):
    """Affine map of the concatenation of its inputs, without concatenating.

    Each input ``[..., D_i]`` has its own kernel, so an input that does not vary
    over a vmapped axis (the root latent of a plan) is multiplied only once.
    """

    features: int
    kernel_init: Callable = kernel_init
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Float[Array, "*batch D"]) -> Float[Array, "*batch M"]:
        """Sum of one matrix product per input, plus the bias."""
        out, held = None, _held(self.dtype)
        for i, x in enumerate(inputs):
            kernel = self.param(f"kernel_{i}", self.kernel_init, (x.shape[-1], self.features), held)
            y = x.astype(self.dtype) @ kernel.astype(self.dtype)
            out = y if out is None else out + y
        bias = self.param("bias", nn.initializers.zeros, (self.features,), held)
        return out + _row(bias.astype(self.dtype), out)


class NormedLinear(nn.Module):
    """Linear -> dropout -> LayerNorm -> activation; the norm is computed in float32."""

    features: int
    activation: Callable | None = maths.mish
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, *inputs: Float[Array, "*batch D"], dropout_key: Key | None = None
    ) -> Float[Array, "*batch M"]:
        """Without ``dropout_key`` nothing is dropped."""
        x = Linear(self.features, dtype=self.dtype, name="linear")(*inputs)
        held = _held(self.dtype)
        scale = self.param("scale", nn.initializers.ones, (self.features,), held)
        offset = self.param("offset", nn.initializers.zeros, (self.features,), held)
        x = _widened(x, scale.dtype)
        if self.dropout > 0.0 and dropout_key is not None:
            # 16 random bits an element: the rate is exact to 1/65536 at half the cost.
            bits = jax.random.bits(dropout_key, x.shape, jnp.uint16)
            keep = bits >= jnp.uint16(round(self.dropout * 65536))
            x = jnp.where(keep, x / (1.0 - self.dropout), 0.0)
        x = maths.layer_norm(x, scale, offset)
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
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, *inputs: Float[Array, "*batch D"], dropout_key: Key | None = None
    ) -> Float[Array, "*batch M"]:
        """All layers in order; ``dropout_key`` goes to the first."""
        x = inputs
        for i, width in enumerate(self.hidden):
            layer = NormedLinear(
                width, dropout=self.dropout if i == 0 else 0.0, dtype=self.dtype, name=f"layer_{i}"
            )
            x = (layer(*x, dropout_key=dropout_key if i == 0 else None),)
        if self.final_activation is not None:
            return NormedLinear(self.features, self.final_activation, dtype=self.dtype, name="out")(
                *x
            )
        out = Linear(self.features, self.final_init, dtype=self.dtype, name="out")(*x)
        return _widened(out, jnp.float32)


def init(module: nn.Module, key: Key, *sizes: int) -> Params:
    """Parameters of ``module`` for unbatched inputs of the given sizes."""
    return module.init(key, *(jnp.zeros((size,), jnp.float32) for size in sizes))["params"]


def apply(module: nn.Module, params: Params, *inputs: Array, dropout_key: Key | None = None):
    """``module`` at ``params``, on any leading shape."""
    return module.apply({"params": params}, *inputs, dropout_key=dropout_key)


def init_ensemble(module: nn.Module, key: Key, num_heads: int, *sizes: int) -> Params:
    """Independent parameters of ``num_heads`` copies, stacked on a leading axis ``E``."""
    return jax.vmap(lambda k: init(module, k, *sizes))(jax.random.split(key, num_heads))


def apply_ensemble(
    module: nn.Module, params: Params, *inputs: Array, dropout_key: Key | None = None
) -> Float[Array, "E *batch M"]:
    """All heads found in ``params`` on the same inputs; heads are the leading axis."""
    if dropout_key is None:
        return jax.vmap(lambda p: apply(module, p, *inputs))(params)
    num_heads = jax.tree.leaves(params)[0].shape[0]
    keys = jax.random.split(dropout_key, num_heads)
    return jax.vmap(lambda p, k: apply(module, p, *inputs, dropout_key=k))(params, keys)


def select_heads(params: Params, index: Array) -> Params:
    """The ensemble members at ``index`` (``[n]`` integers) of stacked ``params``."""
    return jax.tree.map(lambda x: jnp.take(x, index, axis=0, unique_indices=True), params)
