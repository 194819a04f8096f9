"""What does a handler see of an HTTP request?

`Request` has the synchronous names of Flask's and Werkzeug's request. It keeps the bytes that came over the link; the head is
decoded, and Werkzeug imported, when something is read that needs it: a handler that reads only `data` pays for neither.
"""

from __future__ import annotations

import io
import json
import pickle
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote_to_bytes

import msgspec

from headgate.core import wire
from headgate.errors import BadRequestError, NotHttpError, UnsupportedMediaTypeError

if TYPE_CHECKING:
    from werkzeug import wrappers

_decode_head = msgspec.msgpack.Decoder(wire.HttpHead).decode
_decode_json = msgspec.json.Decoder().decode
_UNREAD: Any = object()


class Request:
    """One HTTP request, whole.

    Beside the names here it has the attributes of `werkzeug.wrappers.Request`, such as `args` (the query, by name), `headers`, `form`,
    `files`, `values`, `cookies`, `url`, `base_url`, `host`, `full_path`, `authorization`, `user_agent`, `accept_mimetypes`.

    It can be pickled, so that it can be an argument of a call to another backend.
    """

    __slots__ = ("_body", "_data", "_head_bytes", "_json", "_read_head", "_stream", "_werkzeug")

    def __init__(self, head: bytes | msgspec.Raw, body: bytes | bytearray | memoryview) -> None:
        self._head_bytes = head
        self._body = body
        self._data: bytes | None = body if type(body) is bytes else None
        self._read_head: wire.HttpHead | None = None
        self._json: Any = _UNREAD
        self._stream: io.BytesIO | None = None
        self._werkzeug: wrappers.Request | None = None

    # The body.

    @property
    def data(self) -> bytes:
        """The body as it was sent, whatever its content type."""
        data = self._data
        if data is None:
            data = self._data = self._body = bytes(self._body)
        return data

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> bytes | str:
        """The body; as text it is decoded as UTF-8, with what isn't replaced. The other arguments change nothing here."""
        return self.data.decode("utf-8", "replace") if as_text else self.data

    @property
    def stream(self) -> io.BytesIO:
        """The body as a file to read from."""
        if self._stream is None:
            self._stream = io.BytesIO(self.data)
        return self._stream

    @property
    def json(self) -> Any:
        """The body as JSON: `get_json()`."""
        return self.get_json()

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body as JSON.

        A content type that isn't JSON's raises `UnsupportedMediaTypeError` unless `force`, a body that isn't JSON raises
        `BadRequestError`; the client gets 415 or 400 where the handler lets them pass. With `silent` both are None.
        With `cache` it is parsed once, and every call returns the same object.
        """
        if not force and not self.is_json:
            if silent:
                return None
            raise UnsupportedMediaTypeError(
                f"request.json: the content type is {self.content_type!r}, not application/json; send that, or use get_json(force=True)"
            )
        if cache and self._json is not _UNREAD:
            return self._json
        try:
            value = _parse(self.data)
        except (ValueError, RecursionError) as error:
            if silent:
                return None
            raise BadRequestError(f"request.json: the body is not JSON: {error}") from error
        if cache:
            self._json = value
        return value

    @property
    def is_json(self) -> bool:
        """Whether the content type is JSON's, such as application/json or application/ld+json."""
        mimetype = self.mimetype
        return mimetype == "application/json" or (mimetype.startswith("application/") and mimetype.endswith("+json"))

    # The head, as far as it can be had without Werkzeug.

    @property
    def method(self) -> str:
        """The method, such as GET."""
        return self._head.method

    @property
    def path(self) -> str:
        """The path, percent-decoded, without the query."""
        return unquote_to_bytes(_split(self._head.target)[0]).decode("utf-8", "replace")

    @property
    def query_string(self) -> bytes:
        """What follows the question mark, as it was sent; `args` has it decoded."""
        return _split(self._head.target)[1]

    @property
    def scheme(self) -> str:
        """http or https."""
        return self._head.scheme

    @property
    def remote_addr(self) -> str | None:
        """The client's address, where it is known."""
        return self._head.client or None

    @property
    def content_type(self) -> str | None:
        """The content type with its parameters."""
        return self._header(b"content-type")

    @property
    def mimetype(self) -> str:
        """The content type without its parameters, in lower case."""
        return (self._header(b"content-type") or "").partition(";")[0].strip().lower()

    @property
    def environ(self) -> dict[str, Any]:
        """A WSGI environment of this request."""
        return self._full.environ

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._full, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(name for name in dir(self._full) if not name.startswith("_"))})

    def __repr__(self) -> str:
        return f"<Request {self._head.method} {self._head.target.decode('latin-1')!r}>"

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        body: Any = self._body
        if protocol >= 5 and len(body) >= 1024:
            body = pickle.PickleBuffer(body)
        elif type(body) is not bytes:
            body = bytes(body)
        return Request, (bytes(self._head_bytes), body)

    @property
    def _head(self) -> wire.HttpHead:
        head = self._read_head
        if head is None:
            head = self._read_head = _decode_head(self._head_bytes)
        return head

    def _header(self, wanted: bytes) -> str | None:
        for name, value in self._head.headers:
            if name == wanted:
                return value.decode("latin-1")
        return None

    @property
    def _full(self) -> wrappers.Request:
        full = self._werkzeug
        if full is None:
            full = self._werkzeug = _full_request(self._head, self.data)
        return full


class PlaceholderRequest:
    """Stands where a handler expects the request, in a call from Python that gave nothing. Its attributes raise `NotHttpError`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise NotHttpError(
            f"request.{name}: this call came from Python, by a handle, without arguments, so there is no HTTP request; "
            "serve.context.web tells the two apart"
        )

    def __repr__(self) -> str:
        return "<no HTTP request: called from Python>"

    def __reduce__(self) -> tuple[type[PlaceholderRequest], tuple[()]]:
        return PlaceholderRequest, ()


def _parse(data: bytes) -> Any:
    try:
        return _decode_json(data)
    except msgspec.DecodeError:
        # Python's own clients also send NaN, UTF-16 and byte order marks, which only Python's parser takes.
        return json.loads(data)


def _split(target: bytes) -> tuple[bytes, bytes]:
    path, _, query = target.partition(b"?")
    if not path.startswith(b"/") and b"://" in path:  # the form that proxies get
        path = b"/" + path.partition(b"://")[2].partition(b"/")[2]
    return path, query


def _full_request(head: wire.HttpHead, body: bytes) -> wrappers.Request:
    from werkzeug import wrappers
    from werkzeug.datastructures import Headers

    path, query = _split(head.target)
    host, _, port = head.server.rpartition(":")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": head.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query.decode("latin-1"),
        "REQUEST_URI": head.target.decode("latin-1"),
        "RAW_URI": head.target.decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{head.version}",
        "SERVER_NAME": host.strip("[]") or "localhost",
        "SERVER_PORT": port or "80",
        "REMOTE_ADDR": head.client,
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": head.scheme,
        "wsgi.input": io.BytesIO(body),
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "CONTENT_LENGTH": str(len(body)),  # also of a chunked upload, which has arrived as a whole
    }
    pairs: list[tuple[str, str]] = []
    for raw_name, raw_value in head.headers:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        pairs.append((name.title(), value))
        if "_" in name or name == "content-length":
            continue  # in a WSGI environment x_y would be x-y
        key = "CONTENT_TYPE" if name == "content-type" else "HTTP_" + name.upper().replace("-", "_")
        if key in environ:
            value = environ[key] + ("; " if name == "cookie" else ",") + value
        environ[key] = value
    request = wrappers.Request(environ)
    # The body is in memory already, so its files need no temporary ones that somebody would have to close.
    request._get_file_stream = lambda *_args, **_kwargs: io.BytesIO()  # type: ignore[method-assign]  # meant to be replaced
    request.max_form_memory_size = None  # the body as a whole has its own limit
    request.headers = Headers(pairs)  # as they came: repeated ones apart, and none mistaken for another
    return request
