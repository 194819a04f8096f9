"""Headgate serves models and functions to HTTP clients and Python callers. Start at `headgate.serve`."""

__version__ = "0.1.0"
