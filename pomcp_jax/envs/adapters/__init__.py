"""Environments of other libraries behind our protocol."""
