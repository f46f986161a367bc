"""Read the samples of WebDataset shards, pictures with captions, one after the other.

The files of a sample are neighbours and share the name up to its first dot: `0001.jpg` with `0001.txt` (one
caption) or `0001.json` (`caption`, `caption2`, …, `captions`), or both.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from clipcls.errors import ImageError, first_line
from clipcls.inputs.discover import EXTENSIONS
from clipcls.inputs.labelled.captions import listed_captions
from clipcls.inputs.labelled.examples import Example, ProblemReport
from clipcls.inputs.shards import DAMAGE, RESERVED, Mode, members
from clipcls.records import ImageRef

#: Opens a shard by its name.
Opener = Callable[[str], AbstractContextManager[Any]]

# a name's parts as webdataset splits it: the sample's key, and the rest
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def read_samples(
    shard: str, opened: Opener, mode: Mode, report: ProblemReport, pictures: bool = True
) -> Iterator[Example]:
    """Read the usable samples of a tar, in their order.

    Args:
        shard: its name.
        opened: opens the tar at its beginning.
        mode: see `inputs.shards.Mode`.
        report: is told of unusable samples, and of damage, behind which nothing is read.
        pictures: whether pictures are read, not skipped.
    """
    met: set[str] = set()
    files = _until_damage(shard, opened, mode, report, pictures)
    for key, group in itertools.groupby(files, key=lambda found: found[0]):
        sample: dict[str, Any] = {}
        for _, extension, name, data in group:
            if extension in sample:
                report(f"{shard}/{name}", "comes twice; the first is used")
            else:
                sample[extension] = data
        again = "other files of this sample lie further up in the shard"
        found = again if key in met else _example(f"{shard}/{key}", sample)
        met.add(key)
        if isinstance(found, Example):
            yield found
        else:
            report(f"{shard}/{key}", found)


def _until_damage(
    shard: str, opened: Opener, mode: Mode, report: ProblemReport, pictures: bool
) -> Iterator[tuple[str, str, str, bytes | None]]:
    """Yield key, extension, name and content of a tar's files, up to any damage."""
    try:
        with opened(shard) as stream:
            for member in members(stream, mode):
                name = member.header.name
                match = _KEY.match(name)
                if match and member.header.isreg() and not RESERVED.match(name):
                    is_read = pictures or name.lower().endswith((".txt", ".json"))
                    yield match[1], match[2].lower(), name, member.read() if is_read else None
    except (*DAMAGE, ImageError) as exc:
        report(shard, f"can't be read to its end: {first_line(exc)}")


def _example(path: str, sample: dict[str, Any]) -> Example | str:
    """Return a sample's picture and captions, or what is wrong with it."""
    extension = next((name for name in sample if f".{name}" in EXTENSIONS), None)
    if extension is None:
        return "no picture"
    captions = _captions(sample)
    if isinstance(captions, str):
        return captions
    return Example(ImageRef(f"{path}.{extension}", content=sample[extension]), captions=captions)


def _captions(sample: dict[str, Any]) -> tuple[str, ...] | str:
    """Return a sample's captions, each once, since both files often hold the same; or what is wrong with them."""
    try:
        text = sample.get("txt", b"").decode("utf-8-sig").strip()
        record = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError) as exc:
        return f"the caption can't be read: {first_line(exc)}"
    listed = listed_captions(record) if isinstance(record, dict) else ()
    if isinstance(listed, str):
        return listed
    return tuple(dict.fromkeys([text, *listed] if text else listed)) or "no caption"
