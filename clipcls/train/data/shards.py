"""WebDataset shards, and Parquet files that hold pictures: read from their beginning to their end in each epoch."""

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import os
import random
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.folders import has_magic, matches
from clipcls.inputs.labelled.caption_shards import read_samples
from clipcls.inputs.labelled.class_folders import has_class_folders
from clipcls.inputs.labelled.examples import Example, ProblemReport
from clipcls.inputs.labelled.tables import read_captioned_rows
from clipcls.inputs.shards import expand_braces
from clipcls.inputs.stores import in_store, is_address, open_named
from clipcls.inputs.tables import is_parquet
from clipcls.labels.vocabulary import caption_words
from clipcls.train.data.corpus import Share

logger = logging.getLogger(__name__)

# Rows that each process shuffles among; they are in memory, their pictures as the shards hold them.
SHUFFLED = 1000
_STREAMS = ("pipe:", "http://", "https://")
_ENDINGS = (".tar", ".parquet")


def is_stream(name: str) -> bool:
    """Whether a name is a URL, or a command whose output is a shard, so that it is no path."""
    return name.startswith(_STREAMS)


def is_elsewhere(name: str) -> bool:
    """Whether a name of data is no path: a stream, or an address in a store."""
    return is_stream(name) or is_address(name)


def are_shards(name: str) -> bool:
    """Whether a name stands for shards: a .tar, a pattern or a folder of some or of Parquet files, or a stream."""
    if os.path.isdir(name):  # noqa: PTH112, a command may be longer than a path can be
        return bool(_shards_in(name)) and not has_class_folders(name)
    if is_parquet(name) and not is_stream(name):  # one file is a table, whose pictures may be files
        return (has_magic(name) or "{" in name) and not os.path.lexists(name)
    return is_stream(name) or name.endswith(".tar")


def open_shards(name: str, samples: int = 0) -> "Shards":
    """Find shards and read what they hold, but for the pictures; streams, and tars in a store, are opened later.

    Args:
        name: see `are_shards`; or one Parquet file. In a pattern, `{000..009}` and `{a,b}` count as in a shell, for
            streams, too.
        samples: rows in an epoch; 0 for as many as there are.

    Raises:
        UsageError: there is no usable sample; or shards that can't be counted come without `samples`, or streams
            without webdataset.
    """
    if is_stream(name):
        _require_webdataset()
    if not _are_counted(name) and not samples:
        raise UsageError(
            f"{name}: these shards can't be counted beforehand; say how many rows an epoch has, as in samples: 100000"
        )
    return Shards(name, expand_braces(name) if is_stream(name) else _named(name), samples)


def _are_counted(name: str) -> bool:
    """Whether all that counting takes is there, without the pictures."""
    return not is_stream(name) and (is_parquet(name) or not in_store(name))


class Shards:
    """The samples of shards, read anew in each epoch; a `Corpus`.

    Args:
        name: of all, for messages.
        shards: paths, addresses in a store, or streams.
        samples: rows in an epoch; 0 for as many as there are.

    Raises:
        UsageError: shards that are counted have no usable sample.
    """

    def __init__(self, name: str, shards: Sequence[str], samples: int = 0) -> None:
        self.name = name
        self._problems: dict[str, str] = {}  # by shard or sample, since each epoch meets them again
        self._scan: Scan | None = None
        if not _are_counted(name):
            self._shards, self.count = tuple(shards), samples
            return
        self._scan = _scanned(shards, self._report)
        self._shards = tuple(shard for shard, rows in self._scan.rows.items() if rows)
        found = sum(self._scan.rows.values())
        logger.info("%s: %d usable samples in %d shards", name, found, len(self._shards))
        self._require(found)
        self.count = samples or found

    @property
    def problems(self) -> Sequence[str]:
        """A message for each sample that can't be used, and each shard that isn't whole, of those read so far."""
        return list(self._problems.values())

    @property
    def words(self) -> frozenset[str] | None:
        """The words of all captions; None for shards that aren't counted."""
        return None if self._scan is None else self._scan.words

    def digest(self) -> str:
        """SHA-256 of captions, and of names and sizes of shards below a folder that may move; or of the names alone."""
        if self._scan is None:
            return hashlib.sha256("\0".join(self._shards).encode()).hexdigest()
        return self._scan.digest

    def batches(self, size: int, seed: int, share: Share, first: int = 0) -> Iterator[Sequence[Example]]:
        """See `Corpus`: each epoch deals the shards out anew; a process's batches follow on without regard to epochs.

        Raises:
            UsageError: there are fewer shards than processes, or they can't have equal parts of a batch.
        """
        self._check_share(size, share)
        own = max(1, min(size, self.count) // share.count)
        rows = self._stream(seed, share, first * own)
        return (list(itertools.islice(rows, own)) for _ in itertools.count())

    def _stream(self, seed: int, share: Share, passed: int) -> Iterator[Example]:
        """A process's rows, epoch after epoch, but for the first `passed` of them."""
        for epoch in itertools.count():
            shards = list(self._shards)
            random.Random(f"shards {seed} {epoch}").shuffle(shards)
            own = shards[share.rank :: share.count]
            known = 0 if self._scan is None else sum(self._scan.rows[shard] for shard in own)
            if 0 < known <= passed:  # a resumed run needn't read what it knows the end of
                passed -= known
                continue
            for row in self._pass(own, random.Random(f"rows {seed} {epoch} {share.rank}")):
                if passed:
                    passed -= 1
                else:
                    yield row

    def _pass(self, shards: Iterable[str], rng: random.Random) -> Iterator[Example]:
        """The rows of some shards, shuffled as they go by; there is one at least."""
        met = False
        rows = (row for shard in shards for row in _rows(shard, self._report))
        for row in shuffled(rows, SHUFFLED, rng):
            met = True
            yield row
        self._require(met)

    def _report(self, place: str, problem: str) -> None:
        self._problems.setdefault(place, f"{place}: {problem}")

    def _require(self, met: object) -> None:
        """Refuse to go on without rows."""
        if not met:
            first = f"; the first problem: {self.problems[0]}" if self._problems else ""
            raise UsageError(
                f"{self.name}: no usable sample: neighbours in a .tar such as 0001.jpg and 0001.txt or 0001.json{first}"
            )

    def _check_share(self, size: int, share: Share) -> None:
        if len(self._shards) < share.count:
            raise UsageError(
                f"{self.name}: {len(self._shards)} shards can't be dealt out to {share.count} processes; "
                "divide the samples among more shards, or start fewer processes"
            )
        if size % share.count:
            raise UsageError(f"batch_size: {size} isn't a multiple of the {share.count} processes that share a batch")


def shuffled(rows: Iterator[Example], held: int, rng: random.Random) -> Iterator[Example]:
    """Shuffle a stream: give one of the last `held` rows at a time, and take up to two for it.

    Source: webdataset.filters.shuffle, whose order this is.
    """
    buffer: list[Example] = []
    for row in rows:
        buffer.append(row)
        if len(buffer) < held:
            buffer += itertools.islice(rows, 1)
        if len(buffer) >= held:
            yield _drawn(buffer, rng)
    while buffer:
        yield _drawn(buffer, rng)


def _drawn(buffer: list[Example], rng: random.Random) -> Example:
    place = rng.randint(0, len(buffer) - 1)
    row, buffer[place] = buffer[place], buffer[-1]
    buffer.pop()
    return row


# ---- what is in the shards, but for the pictures


@dataclass(frozen=True, slots=True)
class Scan:
    """What reading shards once tells.

    Attributes:
        rows: how many there are in each shard.
        words: of all captions.
        digest: see `Corpus`.
    """

    rows: dict[str, int]
    words: frozenset[str]
    digest: str


def _scanned(shards: Sequence[str], report: ProblemReport) -> Scan:
    """Go through shards without reading the pictures; nothing is kept of a row but its words."""
    counts: dict[str, int] = {}
    words: set[str] = set()
    digest = hashlib.sha256()
    folder = os.path.commonpath([Path(shard).absolute().parent for shard in shards])
    for shard in shards:
        digest.update(_encoded(os.path.relpath(shard, folder), _size(shard)))
        counts[shard] = 0
        for row in _rows(shard, report, pictures=False):
            counts[shard] += 1
            words.update(word for caption in row.captions for word in caption_words(caption))
            digest.update(_encoded(row.image.path.removeprefix(shard), *row.captions))
    return Scan(counts, frozenset(words), digest.hexdigest())


def _encoded(*values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _size(shard: str) -> int:
    try:
        return Path(shard).stat().st_size
    except OSError:  # it is reported when it is opened
        return 0


# ---- from a shard to its rows


def _rows(shard: str, report: ProblemReport, pictures: bool = True) -> Iterator[Example]:
    """The usable samples of a shard, in their order.

    Args:
        report: is told of the others, and of damage, behind which nothing is read.
        pictures: whether they are read, too; without, only a local tar can be gone through.
    """
    if is_parquet(shard) and not is_stream(shard):
        return read_captioned_rows(shard, report, pictures)
    return read_samples(shard, _opened, "r|*" if is_stream(shard) or in_store(shard) else "r:", report, pictures)


def _opened(shard: str) -> AbstractContextManager[Any]:
    return _output(shard) if is_stream(shard) else open_named(shard)


@contextlib.contextmanager
def _output(shard: str) -> Iterator[Any]:
    """The output of a command, or of curl for a URL; it fails at the end where the command did."""
    from webdataset.gopen import gopen

    command = gopen(shard, "rb")
    output = command.stream  # command.read would withhold output as soon as the command has failed
    try:
        yield output
        while output.read(2**16):  # a command that can't write all of its output would fail
            pass
        _end(command)
    except tarfile.ReadError:
        if not output.read(1):  # broken because it ends: the command may say why
            _end(command)
        raise
    finally:
        with contextlib.suppress(OSError):
            command.close()


def _end(command: Any) -> None:
    try:
        command.close()
    except OSError as exc:
        raise OSError(f"the command ended with status {command.status}") from exc


# ---- which shards there are


def _named(name: str) -> list[str]:
    """The shards that a name stands for, sorted, so that the same ones have the same order however they are named."""
    if os.path.isdir(name):  # noqa: PTH112
        return _shards_in(name)
    names = [name] if os.path.lexists(name) else expand_braces(name)
    # one that isn't there is kept, to be reported
    return sorted({path for name in names for path in _matching(name) or [name]})


def _matching(name: str) -> list[str]:
    if not in_store(name):
        return glob.glob(name, recursive=True)  # noqa: PTH207
    if not has_magic(name):
        return []
    try:
        return [image.path for image in matches(name)]
    except ImageError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def _shards_in(folder: str) -> list[str]:
    found = itertools.chain.from_iterable(Path(folder).glob(f"*{ending}") for ending in _ENDINGS)
    return sorted(os.fspath(path) for path in found if not path.name.startswith("."))


def _require_webdataset() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError as exc:
        raise UsageError(f"shards need the package webdataset ({exc}): pip install 'clipcls[webdataset]'") from exc
