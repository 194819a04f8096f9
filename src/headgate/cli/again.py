"""How is code set up in an instance that has an earlier version of it already?

`main` runs a target in a process whose `create_backend` and `create_endpoint` take what exists to what is asked for. At its end it tells
who started it which names it has set up.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any, Final

import click
import msgspec

from headgate import serve
from headgate.cli import output
from headgate.cli.reload import Job, Names
from headgate.cli.target import failure, perform
from headgate.config import BackendConfig, parse_config, parse_options
from headgate.errors import AlreadyExistsError, ConfigError
from headgate.serve import Instance

FAILED: Final = 1

names = Names()
_create_backend, _create_endpoint = Instance.create_backend, Instance.create_endpoint


def create_backend(
    self: Instance,
    tag: str,
    func_or_class: Callable[..., Any],
    /,
    *init_args: Any,
    config: Mapping[str, Any] | BackendConfig | None = None,
    ray_actor_options: Mapping[str, Any] | None = None,
    **init_kwargs: Any,
) -> None:
    """`Instance.create_backend`, but where there is such a backend its code and config are replaced."""
    names.backends.add(tag)
    existing = self.list_backends().get(tag)
    if existing is None:
        try:
            _create_backend(self, tag, func_or_class, *init_args, config=config, ray_actor_options=ray_actor_options, **init_kwargs)
            return
        except AlreadyExistsError:  # what an earlier change has begun, whose program is gone, was finished first
            existing = self.list_backends()[tag]
    old, new = existing.config, parse_config(config)
    if existing.options != parse_options(ray_actor_options):
        raise ConfigError(
            f"backend {tag!r}: its ray_actor_options have changed, which takes a new instance; end headgate run, and start it again"
        )
    if new.max_batch_size >= old.max_batch_size:
        self.update_backend(tag, func_or_class, *init_args, **init_kwargs)
        self.update_backend_config(tag, new)
        return
    self.update_backend_config(tag, new)  # first, because code that takes no batches is refused where batches are configured
    try:
        self.update_backend(tag, func_or_class, *init_args, **init_kwargs)
    except BaseException:
        self.update_backend_config(tag, old)
        raise


def create_endpoint(
    self: Instance, name: str, route: str | None = None, methods: Collection[str] = ("GET",), *, backend: str | None = None
) -> None:
    """`Instance.create_endpoint`, but where there is such an endpoint it gets this route, these methods and this backend."""
    names.endpoints.add(name)
    existing = self.list_endpoints().get(name)
    if existing is None:
        _create_endpoint(self, name, route, methods, backend=backend)
    elif existing.route != route or {*existing.methods} != {*methods}:
        self.delete_endpoint(name)
        _create_endpoint(self, name, route, methods, backend=backend)
        if backend is None and existing.traffic:
            self.set_traffic(name, existing.traffic)
        for tag, proportion in existing.shadows.items():
            self.shadow_traffic(name, tag, proportion)
    elif backend is not None and existing.traffic != {backend: 1.0}:
        self.set_traffic(name, {backend: 1.0})


def main() -> int:
    """Do the job that the command line has; returns the exit status."""
    told, job = int(sys.argv[1]), msgspec.json.decode(sys.argv[2], type=Job)
    os.set_inheritable(told, False)
    signal.signal(signal.SIGTERM, _exit)
    Instance.create_backend = create_backend  # type: ignore[method-assign]  # for the code that this process runs, and nothing else
    Instance.create_endpoint = create_endpoint  # type: ignore[method-assign]  # as above
    serve.host(serve.Host(job.where.name, job.where.engine, job.where.address))
    try:
        serve.connect(job.where.name, engine=job.where.engine, address=job.where.address)
        perform(job.target, job.arguments)
    except KeyboardInterrupt:
        return FAILED
    except click.ClickException as error:
        output.note(error.format_message())
        return FAILED
    except Exception as error:  # noqa: BLE001  # user code
        output.note(failure(error))
        return FAILED
    finally:
        with open(told, "wb") as file:
            file.write(msgspec.json.encode(names))
    return 0


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
