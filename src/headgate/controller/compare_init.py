"""Does an `init` mean the instance that runs?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from headgate.engines.base import InstanceSettings
from headgate.errors import ConfigError


def compare_init(settings: InstanceSettings, http_urls: tuple[str, ...], given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` naming each explicit argument of an `init` that contradicts the running instance."""
    ports = {port for url in http_urls if (port := urlsplit(url).port) is not None} or {settings.http_port}
    differ = []
    for name, value in given.items():
        if name == "http_port":
            same, actual = value == 0 or value in ports, ", ".join(map(str, sorted(ports)))
        elif name == "state_dir":
            kept = settings.state_dir if settings.state_kept else None
            same, actual = (
                (value is None) == (kept is None) and (kept is None or os.path.realpath(value) == os.path.realpath(kept)),
                repr(kept),
            )
        elif name == "max_inflight_bytes" and value is None:
            continue  # asks for the default, whatever that was computed to be
        elif name == "resources":
            same, actual = (value or {}) == settings.resources, repr(settings.resources)
        elif name in ("ssl_certfile", "ssl_keyfile"):
            running = getattr(settings, name)
            same, actual = value == running or (value and running and os.path.realpath(value) == os.path.realpath(running)), repr(running)
        elif name == "admin_key":
            if value != settings.admin_key:
                actual = "none" if not settings.admin_key else "another one" if value else "one"
                differ.append(f"admin_token (it runs with {actual})")
            continue
        elif name == "admin_address":
            same, actual = (value or "") == settings.admin_address, repr(settings.admin_address or None)
        elif hasattr(settings, name):
            running = getattr(settings, name)
            same, actual = value == running, repr(running)
        else:
            continue  # which engine it is was settled by whoever found the instance
        if not same:
            differ.append(f"{name}={value!r} (it runs with {actual})")
    if differ:
        raise ConfigError(
            f"instance {settings.name!r} is running already, and differs in {'; '.join(differ)}; leave these out, or choose another name"
        )
