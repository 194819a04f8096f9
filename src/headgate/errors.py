"""Every error of Headgate: its HTTP status, whether a retry helps, and how it crosses a process boundary.

Each class derives from `HeadgateError` and from the built-in that a caller would expect to catch.
A message names the object, what was given, and what to do about it.
"""

from __future__ import annotations

import contextlib
import pickle
import traceback as traceback_module
from types import FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any, ClassVar, Final

import msgspec

CALLER_LEFT: Final = 499
"""The status that is counted and noted where whoever asked has left, or given up, before the answer."""


class HeadgateError(Exception):
    """The root of all errors that Headgate raises.

    `status` is the HTTP status that a client gets; `retry` says whether the same call may succeed later, unchanged.
    """

    status: ClassVar[int] = 500
    retry: ClassVar[bool] = False

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


# What a caller gave is wrong: nothing has changed.


class InvalidValueError(HeadgateError, ValueError):
    """A value of the right type that can't be accepted."""

    status = 400


class InvalidTypeError(HeadgateError, TypeError):
    """A value of the wrong type."""

    status = 400


class ConfigError(InvalidValueError):
    """A configuration key that is unknown or out of range, or an `init` that contradicts the running instance."""


class DeclaredStateError(ConfigError):
    """A file of declared state, or a dict, that is wrong: one line for each mistake, with the line in the file and the key."""


class ConfigTypeError(ConfigError, TypeError):
    """A configuration key whose value has the wrong type."""


class AlreadyExistsError(InvalidValueError):
    """A tag, endpoint name or route that is taken."""


class ChangedMeanwhileError(HeadgateError, RuntimeError):
    """What is asked for of an instance was changed by others since a plan was made; a new plan shows it."""

    status = 409
    retry = True


class InUseError(InvalidValueError):
    """A backend that endpoints still send requests to."""


class NotFoundError(HeadgateError, LookupError):
    """A tag or endpoint that does not exist."""

    status = 404


class BadRequestError(InvalidValueError):
    """An HTTP request that a client must change before it is sent again."""


class UnsupportedMediaTypeError(BadRequestError):
    """`request.json` was read, and the request's content type isn't JSON."""

    status = 415


class NotHttpError(HeadgateError, AttributeError):
    """An attribute of an HTTP request was read in a call that came from Python."""


# The instance and its surroundings.


class NotRunningError(HeadgateError, RuntimeError):
    """No instance: `serve.init()` was not called in this process, or it was shut down."""


class InReplicaError(HeadgateError, RuntimeError):
    """A verb that a replica must not use, or not while its definition is imported or constructed."""


class NoCallError(HeadgateError, RuntimeError):
    """`serve.context` was read outside a call of user code."""


class AddressInUseError(HeadgateError, OSError):
    """The HTTP port is taken by another program or instance."""


class StateDirInUseError(HeadgateError, OSError):
    """Another running instance holds this state directory."""


class LogDirInUseError(HeadgateError, OSError):
    """Another running instance writes its log to this folder."""


class StateDirUnsafeError(HeadgateError, PermissionError):
    """The state directory can be written by others; its contents are unpickled, so it is refused."""


class InstanceStartError(HeadgateError, RuntimeError):
    """The processes of an instance could not be started; nothing is left running."""


class ClusterUnreachableError(HeadgateError, ConnectionError):
    """There is no cluster at that address, or it doesn't let this process in."""

    retry = True


class AdminTokenError(HeadgateError, PermissionError):
    """An admin token that is missing, can't be one, or isn't that of the instance."""


class AdminUnreachableError(HeadgateError, ConnectionError):
    """At that address no instance takes commands from afar, or what is there can't be trusted, such as its certificate."""

    retry = True


class FromAfarError(HeadgateError, RuntimeError):
    """What only a process on the instance's own machine, or its cluster, can do. The message says what can be done instead."""


class InsufficientResourcesError(HeadgateError, RuntimeError):
    """What was asked for does not fit into what is free now."""

    retry = True


class ReplicaStartError(HeadgateError, RuntimeError):
    """A replica's import or constructor raised, or took too long. `remote_traceback` is its text."""

    def __init__(self, message: str = "", *, remote_traceback: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.remote_traceback = remote_traceback

    def __str__(self) -> str:
        return f"{self.message}\n\n{self.remote_traceback}" if self.remote_traceback else self.message


# The fate of one request.


class UnavailableError(HeadgateError, RuntimeError):
    """The request was refused on admission: nothing of it ran. `reason` says by which rule."""

    status = 503
    retry = True

    def __init__(self, message: str = "", *, reason: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class QueueFullError(UnavailableError):
    """Too many requests wait for this backend already."""


class DeadlineExceededError(HeadgateError, TimeoutError):
    """Time ran out after admission. If the request was still queued it never started; otherwise it may run on."""

    status = 504
    retry = True


class ReplyTimeoutError(HeadgateError, TimeoutError):
    """`result(timeout_s)` or `serve.get` has waited that long; the call runs on, and its reply can be asked again."""

    status = 504
    retry = True


class ReplicaDiedError(HeadgateError, ConnectionError):
    """The replica died while it ran the request; whether its effects took place is unknown."""

    status = 502
    retry = True


class RequestCancelledError(HeadgateError):
    """The caller gave the request up."""

    status = CALLER_LEFT


class EndpointRemovedError(HeadgateError, LookupError):
    """The endpoint does not exist, or no longer."""

    status = 404


class EncodeError(HeadgateError, TypeError):
    """User code returned something that can't be sent; the message names its type."""


class SignatureError(HeadgateError, TypeError):
    """A handler needs arguments that an HTTP request can't give; the message names them."""


class BatchResultError(HeadgateError, TypeError):
    """A batch handler returned something that is not one answer for each request."""


class ObjectLostError(HeadgateError, LookupError):
    """An argument of a call is a reference, such as a `ray.ObjectRef`, and its object is lost, or its owner has ended."""


class UserCodeError(HeadgateError):
    """User code raised. Also an instance of the class that was raised, where that can be rebuilt here.

    `remote_traceback` is the traceback's text in the replica; `cause` the rebuilt exception, or None.
    """

    status = 500  # said again, because it may also be an instance of another class of these
    retry = False

    def __init__(
        self, message: str = "", *, remote_traceback: str = "", cause: BaseException | None = None, retry_after_s: float | None = None
    ) -> None:
        HeadgateError.__init__(self, message, retry_after_s=retry_after_s)
        self.remote_traceback = remote_traceback
        self.cause = cause

    def __str__(self) -> str:
        return f"{self.message}\n\n{self.remote_traceback}" if self.remote_traceback else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # Its class may be made up here: one that passes on through another backend is put together again at each end.
        return _user_error, (self.message, self.remote_traceback, self.cause)


class WireError(HeadgateError, ValueError):
    """Bytes on a link or control connection that are not of the protocol; that connection is closed."""


def _subclasses(root: type[HeadgateError]) -> dict[str, type[HeadgateError]]:
    found = {root.__name__: root}
    for sub in root.__subclasses__():
        found.update(_subclasses(sub))
    return found


_BY_NAME = _subclasses(HeadgateError)


class ErrorInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error on its way between processes. `pickled` is user data: opened only where the caller's own types live."""

    kind: str
    message: str
    traceback: str = ""
    reason: str = ""
    retry_after_s: float | None = None
    pickled: bytes = b""

    @property
    def status(self) -> int:
        """The HTTP status of this error."""
        return _BY_NAME.get(self.kind, HeadgateError).status


def describe(error: BaseException) -> ErrorInfo:
    """Turn an error of Headgate into its record; anything else is an internal failure that keeps its traceback."""
    if isinstance(error, UserCodeError):
        return ErrorInfo("UserCodeError", _text(error.message), _text(error.remote_traceback), pickled=_pickle(error.cause))
    if isinstance(error, HeadgateError):
        return ErrorInfo(
            type(error).__name__,
            _text(error.message),
            _text(getattr(error, "remote_traceback", "")),
            _text(getattr(error, "reason", "")),
            None if error.retry_after_s is None else float(error.retry_after_s),
        )
    return ErrorInfo("HeadgateError", f"internal error: {in_one_line(error)}", format_traceback(error))


def describe_user_error(error: BaseException) -> ErrorInfo:
    """Turn what user code raised into a record: message, traceback, and the exception itself where it pickles."""
    return ErrorInfo("UserCodeError", in_one_line(error), format_traceback(error), pickled=_pickle(error))


def in_one_line(error: BaseException) -> str:
    """Its class and what it says, whatever its own code does."""
    try:
        said = str(error)
    except BaseException:  # noqa: BLE001 - user code: its `__str__` may raise anything
        said = "<its __str__ raised>"
    return _text(f"{type(error).__name__}: {said}")


def _text(said: str) -> str:
    """The same with whatever UTF-8 can't say written out: half of a surrogate pair, as JSON and names of files may have."""
    return said.encode("utf-8", "backslashreplace").decode()


def rebuild(info: ErrorInfo) -> HeadgateError:
    """Turn a record back into an error. Opens `pickled`, so call it only where the caller's code runs."""
    cls = _BY_NAME.get(info.kind, HeadgateError)
    if cls is UserCodeError:
        return _rebuild_user_error(info)
    extra: dict[str, Any] = {"retry_after_s": info.retry_after_s}
    if issubclass(cls, ReplicaStartError):
        extra["remote_traceback"] = info.traceback
    if issubclass(cls, UnavailableError):
        extra["reason"] = info.reason
    return cls(info.message, **extra)


_CALLS_USER_CODE: Final = ("_invoke", "construct")


def format_traceback(error: BaseException) -> str:
    """The traceback as text, without the frames of Headgate that called user code; empty where no others are left."""
    frames = error.__traceback__
    while frames is not None and "/headgate/replica/" in frames.tb_frame.f_code.co_filename:
        if frames.tb_next is None:
            # Here Headgate itself failed, unless the arguments of the call to user code didn't fit: then the message is all.
            if isinstance(error, TypeError) and frames.tb_frame.f_code.co_name in _CALLS_USER_CODE:
                return ""
            break
        frames = frames.tb_next
    return _text("".join(traceback_module.format_exception(type(error), error, frames)))


class WithoutConstructor:
    """Pickles as an exception, which is put together where it is opened without the constructor of its class.

    Pickle calls that with `args`: what it gave to `Exception.__init__`, which need not be what it takes itself.
    """

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        error = self._error
        return _put_together, (type(error), error.args, _beside_dictionary(error), vars(error))


def portable(error: BaseException) -> BaseException | WithoutConstructor:
    """What to pickle for `error`: itself, where its class doesn't leave that to `Exception` with a constructor of its own."""
    own = isinstance(type(error).__init__, FunctionType) and not isinstance(type(error).__reduce__, FunctionType)
    return WithoutConstructor(error) if own else error


def _put_together(cls: type[BaseException], args: tuple[Any, ...], beside: dict[str, Any], attributes: dict[str, Any]) -> BaseException:
    native: Any = next(kind for kind in cls.__mro__ if "__init__" in vars(kind) and not isinstance(vars(kind)["__init__"], FunctionType))
    error: BaseException = native.__new__(cls, *args)
    native.__init__(error, *args)
    _set_beside_dictionary(error, beside)
    error.__dict__.update(attributes)
    return error


_UNSET = object()


def _beside_dictionary(error: BaseException) -> dict[str, Any]:
    """What classes keep beside the dictionary: slots, and such as `errno` in built-in ones."""
    found: dict[str, Any] = {}
    for kind in type(error).__mro__:
        for name, field in vars(kind).items():
            if isinstance(field, MemberDescriptorType | GetSetDescriptorType) and not name.startswith("__") and name != "args":
                with contextlib.suppress(AttributeError, TypeError):
                    found[name] = getattr(error, name)
    return found


def _set_beside_dictionary(error: BaseException, values: dict[str, Any]) -> None:
    for name, value in values.items():
        with contextlib.suppress(AttributeError, TypeError):
            if getattr(error, name, _UNSET) is not value:  # to set `filename2` to None is not the same as to leave it
                setattr(error, name, value)


def _pickle(error: BaseException | None) -> bytes:
    if error is None:
        return b""
    try:
        data = pickle.dumps(portable(error))
        pickle.loads(data)
    except BaseException:  # noqa: BLE001 - user classes may fail to pickle in any way; the message and traceback still travel
        return b""
    return data


def _rebuild_user_error(info: ErrorInfo) -> UserCodeError:
    cause: BaseException | None = None
    if info.pickled:
        try:
            loaded = pickle.loads(info.pickled)
        except Exception:  # noqa: BLE001 - the class may not exist here; the message and traceback still arrive
            loaded = None
        cause = loaded if isinstance(loaded, BaseException) else None
    return _user_error(info.message, info.traceback, cause)


def _user_error(message: str, remote_traceback: str, cause: BaseException | None) -> UserCodeError:
    # An iterator that raised StopIteration would seem to have ended well.
    if isinstance(cause, Exception) and not isinstance(cause, StopIteration | StopAsyncIteration):
        error = _as_its_own_class(message, remote_traceback, cause)
        if error is not None:
            return error
    return UserCodeError(message, remote_traceback=remote_traceback, cause=cause)


def _as_its_own_class(message: str, remote_traceback: str, cause: Exception) -> UserCodeError | None:
    """An error that is an instance of the class of `cause` as well, with its attributes; None where that can't be made.

    No constructor is called: those of users take arguments of their own.
    """
    user_class = type(cause)
    try:
        cls = _class_with(user_class)
        error = cls.__new__(cls, *cause.args)
        error.args = cause.args  # which `OSError.__new__` leaves to its constructor
        _set_beside_dictionary(error, _beside_dictionary(cause))
        error.__dict__.update(vars(cause))
        error.__dict__.update(message=message, remote_traceback=remote_traceback, cause=cause, retry_after_s=None)
    except Exception:  # noqa: BLE001 - a user class may refuse this in any way
        return None
    return error


def _class_with(user_class: type[Exception]) -> type[UserCodeError]:
    if issubclass(user_class, UserCodeError):  # an error of a call further down, passed on
        return user_class
    return type(f"UserCodeError[{user_class.__name__}]", (UserCodeError, user_class), {"__module__": __name__})
