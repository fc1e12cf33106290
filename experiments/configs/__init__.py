"""Configuration files of ``python -m experiments.run --config=experiments/configs/NAME.py``."""
