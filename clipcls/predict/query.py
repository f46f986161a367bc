"""Read queries: texts and pictures, added to and taken from one another."""

import os
import re
import shlex
from dataclasses import dataclass

from clipcls.errors import UsageError
from clipcls.inputs.discover import EXTENSIONS, is_frame, is_web

_OPERATOR = re.compile(r"(?<!\S)([+-])(?!\S)")
_WEIGHTED = re.compile(r"(\d+(?:\.\d*)?|\.\d+):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a query.

    Attributes:
        value: a text, or the path or address of a picture.
        weight: negative for a term that is taken away.
    """

    value: str
    weight: float = 1.0
    is_picture: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for.

    Attributes:
        text: as the user wrote it.
        terms: at least one.
    """

    text: str
    terms: tuple[Term, ...]

    @property
    def is_text(self) -> bool:
        """Whether it is one text, and nothing is added to it or taken from it."""
        return len(self.terms) == 1 and not self.terms[0].is_picture and self.terms[0].weight > 0


def parse_query(text: str) -> Query:
    """Read a query: terms joined by ` + ` and ` - `, each a text or a picture's path, with a weight as in `2:word`.

    A query that is a file's name as a whole is that picture.

    Raises:
        UsageError: a term is missing, or is a folder or a picture that isn't there.
    """
    if not text.strip():
        raise UsageError("The query is empty. Give a text or a picture's path.")
    if os.path.isfile(text):  # noqa: PTH113, names may be odd
        return Query(text, (Term(text, 1.0, is_picture=True),))
    first, *pairs = _OPERATOR.split(text)
    signed = [("+", first), *zip(pairs[::2], pairs[1::2], strict=True)]
    if not first.strip() and pairs:  # such as `- dog`
        signed = signed[1:]
    return Query(text, tuple(_term(value.strip(), sign, text) for sign, value in signed))


def _term(value: str, sign: str, query: str) -> Term:
    weight, is_picture = 1.0, _is_picture(value)
    weighted = None if is_picture else _WEIGHTED.fullmatch(value)
    if weighted is not None:
        weight, value = float(weighted[1]), weighted[2].strip()
        is_picture = _is_picture(value)
    if not value:
        raise UsageError(f"The query {query!r}: expected a text or a picture on both sides of + and -.")
    if os.path.isdir(value):  # noqa: PTH112
        raise UsageError(f"{value!r} is a folder; the query comes first: clipcls search 'a dog' {shlex.quote(value)}")
    if not is_picture and _looks_like_path(value):
        raise UsageError(f"The query {query!r}: {value}: no such file.")
    if weight == 0:
        raise UsageError(f"The query {query!r}: a weight of 0 leaves {value!r} out.")
    return Term(value, -weight if sign == "-" else weight, is_picture)


def _looks_like_path(value: str) -> bool:
    is_named_so = os.path.splitext(value)[1].lower() in EXTENSIONS and " " not in value  # noqa: PTH122
    return is_named_so or value.startswith(("/", "./", "../", "~/"))


def _is_picture(value: str) -> bool:
    return os.path.isfile(value) or is_web(value) or is_frame(value)  # noqa: PTH113
