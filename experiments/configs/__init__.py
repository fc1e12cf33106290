"""Configuration files for ``python -m experiments.run --config=experiments/configs/NAME.py``."""
