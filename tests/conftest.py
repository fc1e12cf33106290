"""Strict modes for every test: silent promotion and broadcasting are errors here."""

import os
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
# Programs that tests start compute with one device, too: results are compared bit for bit.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "1")
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

import hypothesis  # noqa: E402

from experiments import xla  # noqa: E402

xla.save_memory()
# Tests compile far more than they compute: a training step takes 46 s of CPU with LLVM's
# optimiser, 10 s without.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

hypothesis.settings.register_profile("default", deadline=None, max_examples=25, print_blob=True)
hypothesis.settings.load_profile("default")
