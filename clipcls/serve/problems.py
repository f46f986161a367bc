"""What may be wrong with a request, and how the answer says it."""

import re
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from clipcls.errors import (
    ClipclsError,
    ImageError,
    NotAnImageError,
    OutOfMemoryError,
    TooLargeError,
    UsageError,
    printable,
    shortened,
)
from clipcls.serve.batcher import QueueFullError

_OPTION = re.compile(r"--([a-z][a-z-]*)")
_KINDS = {401: "authentication_error", 503: "overloaded_error"}


class RequestError(Exception):
    """A request that gets no answer.

    Attributes:
        status: of HTTP.
        param: the field that is wrong, if it is one.
        retry_after: in how many seconds the same request may be answered.
    """

    def __init__(self, status: int, message: str, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.retry_after = retry_after


def not_ready() -> RequestError:
    """Return the error of a request that comes before the model is loaded."""
    return RequestError(503, "The model is being loaded.", retry_after=2)


def image_error(error: ImageError, name: str, param: str) -> RequestError:
    """Return the error of a request whose only picture can't be read."""
    status = 413 if isinstance(error, TooLargeError) else 415 if isinstance(error, NotAnImageError) else 422
    return RequestError(status, f"{printable(name)}: {error}.", param)


def problem_of(exc: BaseException) -> RequestError | None:
    """Return what is wrong with the request that ended with an exception; None for a fault of the server."""
    match exc:
        case RequestError():
            return exc
        case QueueFullError():
            return RequestError(503, "Too many pictures wait.", retry_after=1)
        case OutOfMemoryError() | MemoryError():
            return RequestError(503, "The memory doesn't hold this batch.", retry_after=1)
        case ImageError():
            return image_error(exc, "the picture", "images")
        case UsageError():
            return _in_fields(exc)
        case ClipclsError():
            return RequestError(500, str(exc))
        case ValidationError():
            return _of_fields(exc)
        case HTTPException():
            return RequestError(exc.status_code, f"{exc.detail}; /docs says what may be asked.")
        case _:
            return None


def response_to(problem: RequestError) -> JSONResponse:
    """Return the answer that says what is wrong, in the form that OpenAI's clients read."""
    kind = _KINDS.get(problem.status, "server_error" if problem.status >= 500 else "invalid_request_error")
    headers = {} if problem.retry_after is None else {"Retry-After": str(problem.retry_after)}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content: dict[str, Any] = {"message": problem.message, "type": kind, "param": problem.param, "code": None}
    return JSONResponse({"error": content}, problem.status, headers)


def _in_fields(exc: UsageError) -> RequestError:
    """Say in a request's fields what the command line's options are called."""
    text = str(exc)
    found = _OPTION.search(text)
    message = _OPTION.sub(lambda option: option[1].replace("-", "_"), text)
    return RequestError(422, message, None if found is None else found[1].replace("-", "_"))


def _of_fields(exc: ValidationError) -> RequestError:
    """Return the first of the fields' errors."""
    error = exc.errors(include_url=False, include_context=False)[0]
    # the names of a union's alternatives aren't the client's
    place = [str(part) for part in error["loc"] if isinstance(part, int) or part.isidentifier()]
    param = place[0] if place else None
    name = ".".join(place) or "the body"
    if error["type"] == "extra_forbidden":
        return RequestError(422, f"{shortened(name, 60)}: no such field; /docs names them.", param)
    given = "" if error["type"] == "missing" else f", not {shortened(repr(error['input']), 60)}"
    return RequestError(422, f"{name}: {error['msg'].removeprefix('Value error, ')}{given}.", param)
