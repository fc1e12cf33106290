"""What acting refuses, under x64 too, and derivatives of the world model in both modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import CONFIG

from pomcp_jax import acting, maths, world_model
from pomcp_jax.acting import AgentParams
from pomcp_jax.config import ConfigError

OBS, A, N = 5, 2, 3
