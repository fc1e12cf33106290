"""Reading and drawing the results of runs: curves, result sets, statistics, figures; no JAX."""
