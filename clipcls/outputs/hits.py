"""Write what a search found: a table to read, TSV, JSON lines, or bare paths."""

import base64
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence

from clipcls.errors import printable
from clipcls.outputs.formats.tsv import escaped
from clipcls.records import Hit


class HitFormat(ABC):
    """A way to write hits; `several` tells whether there are several queries."""

    @abstractmethod
    def text(self, query: str, hits: Sequence[Hit], several: bool) -> str:
        """Return the lines of a query's hits, with their ends."""


class TableHits(HitFormat):
    """Columns for people: score, similarity and path, below the query if there are several."""

    def text(self, query: str, hits: Sequence[Hit], several: bool) -> str:
        lines = [f"{hit.score:7.4f} {hit.similarity:10.4f}  {printable(hit.path)}" for hit in hits]
        lines = [f"{'score':>7} {'similarity':>10}  path", *lines] if hits else ["  (nothing)"]
        return "".join(f"{line}\n" for line in ([printable(query), *lines, ""] if several else lines))


class TsvHits(HitFormat):
    """`score<TAB>path`, with several queries `query<TAB>score<TAB>path`."""

    def text(self, query: str, hits: Sequence[Hit], several: bool) -> str:
        before = f"{escaped(query)}\t" if several else ""
        return "".join(f"{before}{hit.score:.6f}\t{escaped(hit.path)}\n" for hit in hits)


class JsonlHits(HitFormat):
    """An object a hit; a path that isn't UTF-8 gets replacement characters, and `path_b64`."""

    def text(self, query: str, hits: Sequence[Hit], several: bool) -> str:
        return "".join(f"{json.dumps(hit_fields(hit), ensure_ascii=False)}\n" for hit in hits)


class PathHits(HitFormat):
    """Paths, each ended by NUL."""

    def text(self, query: str, hits: Sequence[Hit], several: bool) -> str:
        return "".join(f"{hit.path}\0" for hit in hits)


#: All formats by their names; bare paths are asked for by `-0`.
HIT_FORMATS: dict[str, HitFormat] = {"table": TableHits(), "tsv": TsvHits(), "jsonl": JsonlHits(), "paths": PathHits()}


def hit_fields(hit: Hit) -> dict[str, object]:
    """Return a hit in JSON types; a path that isn't UTF-8 gets replacement characters, and `path_b64`."""
    raw = os.fsencode(hit.path)
    path = raw.decode("utf-8", "replace")
    numbers = {"score": float(f"{hit.score:.7g}"), "similarity": float(f"{hit.similarity:.7g}")}
    odd = {} if path == hit.path else {"path_b64": base64.b64encode(raw).decode("ascii")}
    return {"query": os.fsencode(hit.query).decode("utf-8", "replace"), "path": path, **numbers, **odd}
