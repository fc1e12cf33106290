"""A run from its first chunk to its last checkpoint, as a library: no argv, no signal handlers."""
