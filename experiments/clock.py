"""Process start time, and the first import of JAX, whose time counts; its errors are one line."""

import sys
import time

STARTED = time.monotonic()

TIME_IS_UP = 75
"""Exit code of a program that ``--minutes`` stopped: EX_TEMPFAIL of sysexits.h, try again."""

try:
    import jax  # noqa: F401
except ModuleNotFoundError as error:  # another Python than the one that this was installed into
    print(
        f"error: {error.name} is not installed in {sys.executable}; `source .venv/bin/activate`"
        " chooses the Python that has it, `pip install -e .` installs it",
        file=sys.stderr,
    )
    sys.exit(2)
except ValueError as error:  # JAX reads its environment variables when it is imported
    text = " ".join(str(error).replace("JAX flag ", "").split())
    print(f"error: a variable of the environment, JAX_...: {text}", file=sys.stderr)
    sys.exit(2)
