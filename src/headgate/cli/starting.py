"""`headgate run` and `headgate start`: how does an instance begin, what is set up in it, and when does it end?

`run` stays in the foreground: its instance ends with it. `start` leaves it running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import click

from headgate import DEFAULT_NAME
from headgate.cli import completing, init_options, output, service_manager
from headgate.cli.target import Target, failure, parse, perform
from headgate.cli.where import Where, starting_instance

if TYPE_CHECKING:
    from headgate.core.reports import Description
    from headgate.serve import Instance

_LOOK_S: Final = 0.25
_TELL_AFTER_S: float = 5.0
"""So long replicas may start in silence."""
_TERMINATED: Final = 128 + signal.SIGTERM


@click.command(cls=init_options.InitCommand, context_settings={"allow_interspersed_args": False})
@starting_instance
@click.option("--reload", is_flag=True, help="When a file changes, set it up anew; the old code serves until the new is ready.")
@click.option(
    "--watch", "watched", type=click.Path(exists=True), multiple=True, help="With --reload: what to watch, instead of the target's folder."
)
@click.argument("target", shell_complete=completing.files)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(where: Where, target: str, arguments: tuple[str, ...], reload: bool, watched: tuple[str, ...], **values: Any) -> int:
    """Start an instance, have TARGET set it up, and serve until Ctrl-C or SIGTERM.

    TARGET is a file, which is run as `python FILE ARGUMENTS` would, or module:function, which is called. There serve.init() connects
    with this instance, whatever its name. When TARGET has ended, serving goes on. With a --state-dir it meets what was kept, and has to
    look first.

    The first Ctrl-C, or SIGTERM, refuses new requests and finishes those that were admitted, with exit status 0; a second one ends
    everything at once, with 130. Where TARGET fails it is 1. A service manager that gives NOTIFY_SOCKET is told when it is ready and when
    it drains.

    \b
    Examples:
      headgate run app.py
      headgate run --http-port 9000 app.py --model large
      headgate run --name staging package.module:setup
      headgate run --reload app.py
    """
    service_manager.take()
    parsed, given = parse(target), init_options.given(values)
    _say_if_misplaced(arguments)
    _refuse_running(where, needs_cluster=False)
    if reload:
        from headgate.cli.reload import Reloader

        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a file that changes twice in a second may look the same to what was compiled
        with _started(where, given) as instance, Reloader(where, parsed, arguments, watched) as reloader:
            return _until_told(instance, lambda: _serve(instance, reloader.step))

    def set_up_and_serve() -> int:
        status = _set_up(where, instance, parsed, arguments)
        if status != 0 or instance.ended:
            return status
        _say_what_serves(instance, parsed)
        service_manager.tell(service_manager.READY, f"serving {parsed.text}")
        return _serve(instance, lambda: time.sleep(_LOOK_S))

    with _started(where, given) as instance:
        return _until_told(instance, set_up_and_serve)


@click.command(cls=init_options.InitCommand, context_settings={"allow_interspersed_args": False})
@starting_instance
@click.argument("target", required=False, shell_complete=completing.files)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def start(where: Where, target: str | None, arguments: tuple[str, ...], **values: Any) -> int:
    """Start an instance that outlives this command, and have TARGET, if given, set it up.

    TARGET is as for `headgate run`. Returns when it has ended; where it fails, or Ctrl-C or SIGTERM comes before that, nothing is
    left running. `headgate stop` ends the instance.

    \b
    Examples:
      headgate start
      headgate start --state-dir /var/lib/headgate app.py
      headgate start --name staging --http-port 9000 package.module:setup
    """
    parsed, given = parse(target) if target is not None else None, init_options.given(values)
    _say_if_misplaced(arguments)
    _refuse_running(where, needs_cluster=True)
    with to_stay(where, given) as instance:
        _say_where(where, given, instance)
        status = _set_up(where, instance, parsed, arguments) if parsed is not None else 0
        if status != 0:
            instance.shutdown()
            return status
    _say_what_serves(instance, parsed)
    if log_dir := instance.status().log_dir:
        output.say(f"its log: {log_dir}")
        if "log_dir" not in given:
            output.note("it goes when the instance ends; --log-dir FOLDER keeps one")
    return 0


@contextlib.contextmanager
def to_stay(where: Where, given: dict[str, Any]) -> Iterator[Instance]:
    """An instance that outlives this process, unless what is done with it here raises. It may be others', who were faster."""
    from headgate import serve
    from headgate.engines.local import sigterm

    instance = None
    with sigterm.exits_within():
        try:
            with output.working(f"starting {where.name}"):
                instance = serve.init(where.name, engine=where.engine, address=where.address, detached=True, **given)
            yield instance
        except BaseException:
            if instance is not None and instance.started:
                instance.shutdown()
            raise


def _refuse_running(where: Where, *, needs_cluster: bool) -> None:
    from headgate import serve
    from headgate.errors import ClusterUnreachableError

    try:
        running = serve.list_instances(engine=where.engine, address=where.address)
    except ClusterUnreachableError:
        if needs_cluster or where.address is not None:
            raise
        return  # `init` makes one, which ends with this process
    if where.name in running:
        raise _running_already(where)


def _running_already(where: Where) -> click.ClickException:
    ends_it = f"`headgate stop --name {where.name}` ends it"
    return click.ClickException(
        f"instance {where.name!r} is running already; {ends_it}, and --name OTHER --http-port 0 starts one beside it"
    )


def _started(where: Where, given: dict[str, Any]) -> Instance:
    from headgate import serve

    with output.working(f"starting {where.name}"):
        instance = serve.init(where.name, engine=where.engine, address=where.address, **given)
    _say_where(where, given, instance)
    return instance


def _say_where(where: Where, given: dict[str, Any], instance: Instance) -> None:
    if not instance.started:  # others were faster, and it is theirs
        raise _running_already(where)
    say_urls(where, instance)
    if "admin_address" in given:
        output.note(f"commands are taken at tcp://{instance.status().admin_address}")


def say_urls(where: Where, instance: Instance) -> None:
    """Where an instance that has just started is reached."""
    output.note(f"{where.name}: {' '.join(instance.http_urls)}")
    output.note(f"dashboard: {instance.http_url}/-/")


def _set_up(where: Where, instance: Instance, target: Target, arguments: tuple[str, ...]) -> int:
    """Returns the status with which to exit, 0 where it went well. What it raises is said."""
    from headgate import serve

    before = instance.status()
    serve.host(serve.Host(where.name, where.engine, where.address))
    try:
        with _telling_what_starts(instance):
            perform(target, arguments)
    except SystemExit as asked:
        if asked.code == _TERMINATED:
            raise
        if isinstance(asked.code, str):
            output.note(asked.code)
        return asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except KeyboardInterrupt:
        raise
    except click.ClickException:
        raise
    except BaseException as error:  # noqa: BLE001  # user code
        output.note(failure(error, log_is_here=where.log_is_here(before)))
        output.note(f"{target.text} failed, so nothing is served{_of_what_was_kept(error, before)}")
        return 1
    finally:
        serve.host(None)
    return 0


@contextlib.contextmanager
def _telling_what_starts(instance: Instance) -> Iterator[None]:
    """Who loads a large model looks at a silent terminal for minutes: say there what is waited for, ever more seldom."""
    from headgate.errors import HeadgateError

    if not output.to_stderr().is_terminal:
        yield
        return
    over = threading.Event()

    def tell() -> None:
        after_s = _TELL_AFTER_S
        while not over.wait(after_s):
            after_s *= 2
            with contextlib.suppress(HeadgateError):  # then it is said by whoever waits
                for tag, coming in instance.status().coming.items():
                    output.note(f"{tag}: {coming.ready} of {coming.replicas} replicas are ready so far; their constructors go on")

    thread = threading.Thread(target=tell, name="headgate-tells", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LOOK_S)  # longer only where the controller can't be reached, for which nobody waits


def _of_what_was_kept(error: BaseException, before: Description) -> str:
    from headgate.errors import AlreadyExistsError

    if not isinstance(error, AlreadyExistsError) or not (before.backends or before.endpoints):
        return ""
    return (
        f": it creates what {before.state_dir} has kept. Have it look first, by `if not serve.list_backends():`, or have it bring what is "
        "there to what a file says, by serve.deploy(); with another --state-dir it begins anew"
    )


def _until_told(instance: Instance, work: Callable[[], int]) -> int:
    """Do that until it ends, or this process is told to: then what was admitted is finished first."""
    try:
        return work()
    except KeyboardInterrupt:
        return _drain(instance, "Ctrl-C")
    except SystemExit as asked:
        if asked.code != _TERMINATED:
            raise
        return _drain(instance, "SIGTERM")


def _drain(instance: Instance, again: str) -> int:
    from headgate import serve
    from headgate.errors import NotRunningError

    try:
        output.note(f"draining; {again} again ends it at once")
        service_manager.tell(service_manager.STOPPING, "finishing what was admitted")
        instance.shutdown()
    except NotRunningError:
        pass  # others were faster
    except KeyboardInterrupt:
        serve.abandon(instance)
        raise
    return 0


def _serve(instance: Instance, step: Callable[[], object]) -> int:
    """Do that until the instance ends."""
    while not instance.ended:
        step()
    output.note(f"{instance.name} {instance.ended}")
    return 0 if instance.ended == "was shut down" else 1


def _say_what_serves(instance: Instance, target: Target | None) -> None:
    from headgate.cli.rows import weights_text

    endpoints = instance.list_endpoints()
    at = "" if instance.name == DEFAULT_NAME else f"--name {instance.name} "
    for endpoint in endpoints.values():
        where = f"{instance.http_url}{endpoint.route}" if endpoint.route else "by handle"
        answers = weights_text(endpoint.traffic) or f"no traffic yet: headgate traffic {at}{endpoint.name} TAG=100%"
        output.note(f"{endpoint.name}: {where} ({','.join(endpoint.methods)}) {answers}")
    if target is not None and not endpoints:
        output.note(f"{target.text} has created no endpoint, so nothing can be asked yet: serve.create_endpoint creates one")


def _say_if_misplaced(arguments: tuple[str, ...]) -> None:
    """An option behind the target is the program's, which people who meant this command would not notice."""
    ctx = click.get_current_context()
    own = {name for option in ctx.command.get_params(ctx) for name in option.opts if name.startswith("--")} - {"--help"}
    for name in sorted(own.intersection(argument.partition("=")[0] for argument in arguments)):
        output.note(f"{name} stands behind the program, so it is the program's argument; options of this command stand before it")
