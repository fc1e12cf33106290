"""When this process began; imported first, so that loading JAX counts as time too."""

import time

STARTED = time.monotonic()
