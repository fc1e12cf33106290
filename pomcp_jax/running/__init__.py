"""The run loop as a library, without command-line arguments, signal handlers or exit codes."""
