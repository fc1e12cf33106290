"""Measurements; each module prints markdown tables and is run with ``python -m``."""
