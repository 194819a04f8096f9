"""Headgate serves models and functions to HTTP clients and Python callers. Start at `headgate.serve`."""

from typing import Final

__version__ = "0.1.0"

DEFAULT_NAME: Final = "default"
"""What an instance is called where nobody says."""
