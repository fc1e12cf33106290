"""Errors for the user; imports nothing, so that commands can check their flags before JAX loads."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message is one line for the user."""
