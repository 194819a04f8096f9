"""How is code set up in an instance that has an earlier version of it already?

`main` runs a target in a process whose `create_backend` and `create_endpoint` take what exists to what is asked for, and then removes what
only earlier versions have set up. What clients see of an endpoint changes in one transaction.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Mapping
from types import FrameType
from typing import Any, Final

import click
import msgspec

from headgate import arguments, serve
from headgate.cli import output
from headgate.cli.reload import Job, Names
from headgate.cli.target import failure, perform
from headgate.config import BackendConfig, parse_config, parse_options
from headgate.core.messages import Deploy, DeployedBackend, EndpointEntry
from headgate.core.plan import as_it_is
from headgate.errors import AlreadyExistsError, ChangedMeanwhileError
from headgate.replica import definition
from headgate.serve import Instance

FAILED: Final = 1

_create_backend = Instance.create_backend


class _Version:
    """The version that this process sets up: what it has come to, and what was before."""

    def __init__(self, before: Names, told: io.FileIO) -> None:
        self.names = Names()
        self.gone = before  # what earlier ones have set up, and this one has not, so far
        self._told = told

    def has(self, names: Names) -> None:
        """It sets that up now. It is told at once, in case this process is killed."""
        self._told.write(msgspec.json.encode(names) + b"\n")
        self.names.add(names)
        self.gone.backends -= names.backends
        self.gone.endpoints -= names.endpoints


_version: _Version


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
    """`Instance.create_backend`, but where there is such a backend its code, config and options are replaced."""
    _version.has(Names(backends={arguments.text("a backend tag", tag)}))
    existing = self.list_backends().get(tag)
    if existing is None:
        try:
            _create_backend(self, tag, func_or_class, *init_args, config=config, ray_actor_options=ray_actor_options, **init_kwargs)
            return
        except AlreadyExistsError:  # what an earlier change has begun, whose program is gone, was finished first
            existing = self.list_backends()[tag]
    old, new = existing.config, parse_config(config)
    options = self._connection.way.check(parse_options(ray_actor_options))
    if existing.options != options:
        described = definition.describe(func_or_class, init_args, init_kwargs)
        serve._warn(definition.http_warnings(described, new.http_methods))
        _replace(self, DeployedBackend(tag, self._connection.way.portable(described), new, options))
        return
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


def _replace(instance: Instance, backend: DeployedBackend) -> None:
    """Also with other options than it has, which no verb for a backend alone changes."""

    def changed(all_of_it: Deploy) -> Deploy:
        backends = {given.tag: given for given in all_of_it.backends} | {backend.tag: backend}
        return msgspec.structs.replace(all_of_it, backends=tuple(backends.values()))

    _change(instance, changed)


def create_endpoint(
    self: Instance, name: str, route: str | None = None, methods: Collection[str] = ("GET",), *, backend: str | None = None
) -> None:
    """`Instance.create_endpoint`, but where there is such an endpoint it gets this route, these methods and this backend."""
    _version.has(Names(endpoints={arguments.text("an endpoint name", name)}))
    arguments.text_or_none("a route", route)
    checked = arguments.methods(methods)
    arguments.text_or_none("a backend tag", backend)

    def changed(all_of_it: Deploy) -> Deploy | None:
        endpoints = {entry.name: entry for entry in all_of_it.endpoints}
        old = endpoints.get(name) or EndpointEntry(name, None, ())
        weights = old.weights if backend is None else {backend: 1.0}
        endpoints[name] = EndpointEntry(name, route, checked, weights, old.shadows)
        if old == endpoints[name]:
            return None
        for other in _version.gone.endpoints & endpoints.keys():
            if route is not None and endpoints[other].route == route:  # it gets another one, or is removed
                endpoints[other] = msgspec.structs.replace(endpoints[other], route=None)
        return msgspec.structs.replace(all_of_it, endpoints=tuple(endpoints.values()))

    _change(self, changed)


def remove_the_rest(instance: Instance) -> None:
    """Remove what only earlier versions have set up, unless what stays needs it."""
    staying: dict[str, str] = {}  # backends that are no longer set up, and the endpoint that sends requests there

    def changed(all_of_it: Deploy) -> Deploy | None:
        staying.clear()
        kept = [entry for entry in all_of_it.endpoints if entry.name not in _version.gone.endpoints]
        for entry in kept:
            users = {*entry.shadows, *(tag for tag, weight in entry.weights.items() if weight > 0)}
            staying.update(dict.fromkeys(users & _version.gone.backends, entry.name))
        going = _version.gone.backends - staying.keys()
        endpoints = tuple(_without(entry, going) for entry in kept)
        backends = tuple(given for given in all_of_it.backends if given.tag not in going)
        smaller = Deploy(backends, endpoints, all_of_it.based_on)
        return None if smaller == all_of_it else smaller

    _change(instance, changed)
    for tag, endpoint in staying.items():
        output.note(f"{tag} is no longer set up, and stays: endpoint {endpoint} sends requests there")


def _without(entry: EndpointEntry, tags: Collection[str]) -> EndpointEntry:
    """Where it has a weight of 0 for them, that would lead nowhere."""
    return msgspec.structs.replace(entry, weights={tag: weight for tag, weight in entry.weights.items() if tag not in tags})


def _change(instance: Instance, changed: Callable[[Deploy], Deploy | None]) -> None:
    """Have the instance run what `changed` makes of what it runs, in one transaction; None: nothing is to be done."""
    while (wanted := changed(as_it_is(instance.status()))) is not None:
        try:
            instance._verb(wanted)
        except ChangedMeanwhileError:  # look again
            continue
        return


def main() -> int:
    """Do the job that the command line has; returns the exit status."""
    global _version
    number = int(sys.argv[1])
    os.set_inheritable(number, False)
    signal.signal(signal.SIGTERM, _exit)
    file = io.FileIO(number, "r+")
    job = msgspec.json.decode(file.read(), type=Job)
    _version = _Version(job.before, file)
    Instance.create_backend = create_backend  # type: ignore[method-assign]  # for the code that this process runs, and nothing else
    Instance.create_endpoint = create_endpoint  # type: ignore[method-assign]  # as above
    serve.host(serve.Host(job.where.name, job.where.engine, job.where.address))
    log_is_here = False
    try:
        instance = serve.connect(job.where.name, engine=job.where.engine, address=job.where.address)
        log_is_here = job.where.log_is_here(instance.status())
        try:
            perform(job.target, job.arguments)
        except SystemExit as asked:
            if asked.code:
                raise
        took, made = output.seconds_text(time.monotonic() - job.began), sorted(_version.names.backends)
        output.note(f"set up in {took}: {', '.join(made) or 'no backend'}")
        if not instance.ended:
            remove_the_rest(instance)
    except KeyboardInterrupt:
        return FAILED
    except click.ClickException as error:
        output.note(error.format_message())
        return FAILED
    except Exception as error:  # noqa: BLE001  # user code
        output.note(failure(error, log_is_here=log_is_here))
        return FAILED
    return 0


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
