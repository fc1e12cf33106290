"""Process start time; imported first so that JAX's import time is counted."""

import sys
import time

STARTED = time.monotonic()

try:
    import jax  # noqa: F401
except ValueError as error:  # JAX reads its environment variables when it is imported
    text = " ".join(str(error).replace("JAX flag ", "").split())
    print(f"error: a variable of the environment, JAX_...: {text}", file=sys.stderr)
    sys.exit(2)
