"""Measurements; most modules print markdown tables and are run with ``python -m``."""
