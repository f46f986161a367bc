"""Read the samples of WebDataset shards, pictures with captions, one after the other.

The files of a sample are neighbours and share the name up to its first dot: `0001.jpg` with `0001.txt` (one
caption; in CLIP_benchmark's shards for retrieval one a line) or `0001.json` (`caption`, `caption2`, …, `captions`), or
both.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from clipcls.errors import ImageError, UsageError, first_line
from clipcls.inputs.discover import EXTENSIONS
from clipcls.inputs.labelled.captions import listed_captions
from clipcls.inputs.labelled.examples import Example, ProblemReport, Truth
from clipcls.inputs.labelled.shard_files import TYPE, Beside
from clipcls.inputs.shards import DAMAGE, RESERVED, Mode, members
from clipcls.inputs.stores import in_store, open_named
from clipcls.records import FileStamp, ImageRef, Span

#: Opens a shard by its name.
Opener = Callable[[str], AbstractContextManager[Any]]

# a name's parts as webdataset splits it: the sample's key, and the rest
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")


def read_caption_shards(shards: Sequence[str]) -> Truth:
    """Read the usable samples of uncompressed shards on disk, without opening a picture.

    Returns:
        The samples, and behind those of a damaged shard a picture with its name and an error.

    Raises:
        UsageError: a shard is in a store, or there is no usable sample.
    """
    examples: list[Example] = []
    problems: list[str] = []

    def report(place: str, problem: str) -> None:
        if place in shards:
            examples.append(Example(ImageRef(place, problem)))
        else:
            problems.append(f"{place}: {problem}")

    by_line = Beside(shards, TYPE).lines(TYPE)[:1] == ["retrieval"]
    for shard in shards:
        if in_store(shard):
            raise UsageError(f"{shard}: in a store; copy it here first, for its pictures are read more than once.")
        for example in read_samples(shard, open_named, "r:", report, pictures=False, by_line=by_line):
            examples.append(example)
    if not any(example.captions for example in examples):
        damage = [f"{example.image.path}: {example.image.error}" for example in examples]
        first = next((f"; the first problem: {problem}" for problem in (*damage, *problems)), "")
        raise UsageError(f"{shards[0]}: no picture with a caption in a .txt or .json beside it{first}")
    return Truth(tuple(examples), problems=tuple(problems))


def read_samples(
    shard: str, opened: Opener, mode: Mode, report: ProblemReport, pictures: bool = True, by_line: bool = False
) -> Iterator[Example]:
    """Read the usable samples of a tar, in their order.

    Args:
        shard: its name.
        opened: opens the tar at its beginning.
        mode: see `inputs.shards.Mode`.
        report: is told of unusable samples, and of damage, behind which nothing is read.
        pictures: whether pictures are read; without, in an uncompressed file, they are `Span`s of it.
        by_line: whether each line of a `.txt` is a caption.
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
        found = again if key in met else _example(f"{shard}/{key}", sample, by_line)
        met.add(key)
        if isinstance(found, Example):
            yield found
        else:
            report(f"{shard}/{key}", found)


def _until_damage(
    shard: str, opened: Opener, mode: Mode, report: ProblemReport, pictures: bool
) -> Iterator[tuple[str, str, str, bytes | Span]]:
    """Yield key, extension, name and content of a tar's files, up to any damage."""
    try:
        with opened(shard) as stream:
            stamp = None if pictures else FileStamp.of(os.fstat(stream.fileno()))
            for member in members(stream, mode):
                header, name = member.header, member.header.name
                match = _KEY.match(name)
                if match and header.isreg() and not RESERVED.match(name):
                    is_span = not name.lower().endswith((".txt", ".json")) and header.sparse is None
                    content: bytes | Span
                    if stamp is not None and is_span:
                        content = Span(shard, header.offset_data, header.size, stamp)
                    else:
                        content = member.read()
                    yield match[1], match[2].lower(), name, content
    except (*DAMAGE, ImageError) as exc:
        report(shard, f"can't be read to its end: {first_line(exc)}")


def _example(path: str, sample: dict[str, Any], by_line: bool) -> Example | str:
    """Return a sample's picture and captions, or what is wrong with it."""
    extension = next((name for name in sample if f".{name}" in EXTENSIONS), None)
    if extension is None:
        return "no picture"
    captions = _captions(sample, by_line)
    if isinstance(captions, str):
        return captions
    return Example(ImageRef(f"{path}.{extension}", content=sample[extension]), captions=captions)


def _captions(sample: dict[str, Any], by_line: bool) -> tuple[str, ...] | str:
    """Return a sample's captions, those of both files once, since they often hold the same; or what is wrong."""
    try:
        text = sample.get("txt", b"").decode("utf-8-sig").strip()
        record = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError) as exc:
        return f"the caption can't be read: {first_line(exc)}"
    listed = listed_captions(record) if isinstance(record, dict) else ()
    if isinstance(listed, str):
        return listed
    texts = [line.strip() for line in (text.splitlines() if by_line else [text]) if line.strip()]
    return (*texts, *(caption for caption in dict.fromkeys(listed) if caption not in texts)) or "no caption"
