"""`headgate call`: what does an endpoint answer?

Without options of HTTP the call goes by handle, as from Python: arguments are JSON, or else text. With one of them, or with something for
the query, it goes over HTTP, to the endpoint's route, and its items are those of a request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import click

from headgate.cli import completing, output
from headgate.cli.headers import Header, beside, parse
from headgate.cli.numbers import Number
from headgate.cli.where import Where, known, on_instance

if TYPE_CHECKING:
    import http.client

    from headgate.serve import Instance


class Items(NamedTuple):
    """What stands behind the endpoint's name, sorted by what it is."""

    positional: list[Any]
    named: dict[str, Any]
    query: list[tuple[str, str]]


@click.command
@on_instance
@click.argument("endpoint", shell_complete=completing.endpoints)
@click.argument("items", nargs=-1)
@click.option("--http", "over_http", is_flag=True, help="Over HTTP, to the endpoint's route.")
@click.option("--request", "-X", "verb", metavar="METHOD", help="HTTP method; else GET, or POST with a body.")
@click.option("--header", "-H", "headers", multiple=True, metavar="NAME:VALUE", help="HTTP header. Again for each.")
@click.option("--data", "-d", metavar="DATA", help="HTTP body; @FILE is what is in a file, @- standard input.")
@click.option("--method", metavar="NAME", help="The method of the backend's class to call.")
@click.option("--shard-key", metavar="KEY", help="The same key meets the same backend.")
@click.option("--timeout", type=Number(min=0, min_open=True), metavar="SECONDS", help="Give up after that.")
@click.option("--insecure", "-k", is_flag=True, help="Over HTTPS, don't check the certificate.")
def call(
    where: Where,
    endpoint: str,
    items: tuple[str, ...],
    over_http: bool,
    verb: str | None,  # as HTTP has it; `method` is that of a class
    headers: tuple[str, ...],
    data: str | None,
    method: str | None,
    shard_key: str | None,
    timeout: float | None,
    insecure: bool,
) -> int:
    """Call an endpoint, and print what it answers.

    JSON is indented on a terminal and on one line in a pipe; a stream is printed as it comes.

    By handle, each item is an argument: JSON, or text where it is none; name=text and name:=JSON are passed by name.
    Over HTTP, name=text and name:=JSON are fields of a JSON body, and name==text is in the query, as with httpie; -d is a body as it is,
    as with curl. Any of --http, -X, -H, -d and name==text has it go over HTTP.

    The exit status is 1 where the call fails, or is answered with a status of 400 or more.

    \b
    Examples:
      headgate call greet Ada
      headgate call digits '[[0, 0.5], [1, 0]]' top:=3
      headgate call greet --http name==Ada
      headgate call digits -d @digit.json -H 'Content-Type: application/json'
    """
    with_http = over_http or verb is not None or bool(headers) or data is not None or any(_split(item)[1] == "==" for item in items)
    parsed = parse_items(items, over_http=with_http)
    with where.connect() as instance:
        route = known("endpoint", endpoint, instance.list_endpoints(), "endpoints").route
        if not with_http:
            return _by_handle(instance, endpoint, parsed, method, shard_key, timeout)
        if route is None:
            raise click.UsageError(
                f"endpoint {endpoint!r} has no route, so it is not reached over HTTP; leave --http, -X, -H, -d and name==text out"
            )
        fields = [*map(parse, headers), *_named_headers(method, shard_key, timeout)]
        if parsed.named:
            fields = beside([("Content-Type", "application/json")], fields)
        body = _body(data, parsed.named)
        url = f"{where.http_url(instance)}{route}{'?' if parsed.query else ''}{urlencode(parsed.query)}"
        return _over_http(url, verb or ("GET" if body is None else "POST"), fields, body, timeout, insecure=insecure)


def parse_items(items: tuple[str, ...], *, over_http: bool) -> Items:
    """Sort them. Raises `click.BadParameter`."""
    found = Items([], {}, [])
    for item in items:
        name, sign, text = _split(item)
        if sign == "==":
            found.query.append((name, text))
        elif sign == ":=":
            found.named[name] = _json(text, item)
        elif sign == "=":
            found.named[name] = text
        elif over_http:
            raise click.BadParameter(f"{item!r} is none of name=text, name:=JSON, name==text", param_hint="ITEMS")
        else:
            found.positional.append(_json_or_text(item))
    return found


def _split(item: str) -> tuple[str, str, str]:
    """At the first sign behind a name; the sign is empty where there is none."""
    for position, char in enumerate(item):
        for sign in (":=", "==", "="):
            if item.startswith(sign, position):
                return (item[:position], sign, item[position + len(sign) :]) if position else ("", "", item)
        if not (char.isalnum() or char in "_-."):
            break
    return "", "", item


def _json(text: str, item: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} in {item!r} is no JSON: {error}", param_hint="ITEMS") from None


def _json_or_text(text: str) -> Any:
    """What begins as a list, an object or a string of JSON was meant as one."""
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("[", "{", '"'):
            raise click.BadParameter(f"{text!r} is no JSON: {error}", param_hint="ITEMS") from None
        return text


def _by_handle(instance: Instance, endpoint: str, items: Items, method: str | None, shard_key: str | None, timeout_s: float | None) -> int:
    from headgate.errors import InvalidTypeError, NotHttpError, UserCodeError

    handle = instance.get_handle(endpoint).options(method_name=method, shard_key=shard_key, timeout_s=timeout_s)
    reply = handle.remote(*items.positional, **items.named)
    try:
        with output.working(f"waiting for {endpoint}"):
            answer = reply.result()
    except NotHttpError as error:
        raise click.ClickException(f"{endpoint} wants an HTTP request, and this call went by handle; --http sends one") from error
    except InvalidTypeError as error:
        if isinstance(error, UserCodeError):
            raise
        for chunk in reply:  # what has no answer in one piece is a stream, or raises here what it raised there
            _print_chunk(chunk)
        return 0
    _print(answer)
    return 0


def _print_chunk(chunk: Any) -> None:
    if isinstance(chunk, bytes | str):
        _print_bytes(chunk if isinstance(chunk, bytes) else chunk.encode(), complete=False)
    else:
        _print(chunk)


def _print(answer: Any) -> None:
    if isinstance(answer, bytes | bytearray | memoryview):
        _print_bytes(bytes(answer))
    elif isinstance(answer, str):
        output.say(answer)
    else:
        from headgate.replica.response import encode_http

        _print_bytes(encode_http(answer).body, is_json=True)


def _print_bytes(data: bytes, *, is_json: bool = False, complete: bool = True) -> None:
    """On a terminal, JSON is indented and a last line is ended; a pipe gets the bytes as they are, and JSON on a line."""
    if is_json:
        import msgspec

        try:
            data = msgspec.json.format(data, indent=2 if output.is_terminal() else -1)
        except msgspec.DecodeError:  # it only says that it is
            pass
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    if complete and data and not data.endswith(b"\n") and (is_json or output.is_terminal()):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()


def _named_headers(method: str | None, shard_key: str | None, timeout_s: float | None) -> Iterator[Header]:
    if method is not None:
        yield "X-SERVE-CALL-METHOD", method
    if shard_key is not None:
        yield "X-SERVE-SHARD-KEY", shard_key
    if timeout_s is not None:
        yield "X-SERVE-TIMEOUT-MS", str(max(int(timeout_s * 1000), 1))


def _body(data: str | None, fields: Mapping[str, Any]) -> bytes | None:
    if data is not None and fields:
        raise click.UsageError("-d is the whole body; leave it out, or the fields")
    if fields:
        import json

        return json.dumps(fields).encode()
    return read_body(data)


def read_body(data: str | None) -> bytes | None:
    """What `--data` says: itself, a file behind `@`, or standard input for `@-`. Raises `click.BadParameter`."""
    if data is None:
        return None
    if data == "@-":
        return sys.stdin.buffer.read()
    if data.startswith("@"):
        try:
            with open(data[1:], "rb") as file:
                return file.read()
        except OSError as error:
            raise click.BadParameter(f"{data[1:]!r} can't be read: {error.strerror}", param_hint="--data") from None
    return data.encode()


def _over_http(url: str, verb: str, headers: list[Header], body: bytes | None, timeout_s: float | None, *, insecure: bool) -> int:
    import http.client
    import ssl

    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout_s, context=context)
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        with output.working(f"waiting for {url}"):
            connection.putrequest(verb, f"{parts.path}{'?' if parts.query else ''}{parts.query}", skip_host=True, skip_accept_encoding=True)
            own = [("Host", parts.netloc), ("Accept-Encoding", "identity"), ("Content-Length", str(len(body or b"")))]
            for name, value in beside(own if body is not None or verb in ("POST", "PUT", "PATCH") else own[:2], headers):
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
        _print_answer(answer)
        if answer.status < 400:
            return 0
        output.note(f"{answer.status} {answer.reason}")
        return 1
    except (OSError, http.client.HTTPException, ValueError) as error:  # also for what can't be sent, such as a header
        raise click.ClickException(f"{url}: {str(error) or type(error).__name__}") from None
    finally:
        connection.close()


def _print_answer(answer: http.client.HTTPResponse) -> None:
    kind = answer.headers.get_content_type()
    if kind == "application/json" or kind.endswith("+json"):
        _print_bytes(answer.read(), is_json=True)
        return
    ended = True
    while chunk := answer.read1(65536):
        _print_bytes(chunk, complete=False)
        ended = chunk.endswith(b"\n")
    if not ended and output.is_terminal():
        output.say()
