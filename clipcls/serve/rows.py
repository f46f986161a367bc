"""Write answers of many rows as JSON on a thread, a row at a time, so that other requests are answered meanwhile."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

_T = TypeVar("_T")


class JSONText(str):
    """A value that is written as JSON already."""


async def json_lines(make: Callable[[_T], Any], items: Sequence[_T]) -> list[str]:
    """Return what is made of each item, as a line of JSON that has its spaces where the command line's have."""
    return await run_in_threadpool(lambda: [json.dumps(make(item), ensure_ascii=False) for item in items])


async def json_rows(make: Callable[[_T], Any], items: Sequence[_T]) -> JSONText:
    """Return what is made of each item, as an array."""
    return JSONText(await run_in_threadpool(lambda: f"[{','.join(_dumped(make(item)) for item in items)}]"))


def json_object(**fields: Any) -> Response:
    """Return the answer that has these fields."""
    texts = (
        f"{_dumped(name)}:{value if isinstance(value, JSONText) else _dumped(value)}" for name, value in fields.items()
    )
    return Response(f"{{{','.join(texts)}}}", media_type="application/json")


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
