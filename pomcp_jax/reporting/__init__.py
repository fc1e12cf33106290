"""What runs left behind, read and drawn: curves, result sets, statistics, figures; no JAX."""
