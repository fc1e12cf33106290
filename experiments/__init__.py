"""Command lines, their configuration files, and benchmarks."""
