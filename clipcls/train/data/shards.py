"""WebDataset shards, which are read from their beginning to their end: tar files in which a picture's captions follow.

The files of a sample are neighbours and have a name in common up to its first dot: `0001.jpg` with `0001.txt` (one
caption) or `0001.json` (`caption`, `caption2`, …, `captions`), or both.
"""

import contextlib
import glob
import hashlib
import itertools
import json
import logging
import os
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipcls.errors import UsageError, first_line
from clipcls.inputs.discover import EXTENSIONS, discover
from clipcls.inputs.shards import DAMAGE, RESERVED, expand_braces, members
from clipcls.labels.vocabulary import caption_words
from clipcls.train.data.corpus import Row, Share
from clipcls.train.data.table import listed_captions

logger = logging.getLogger(__name__)

# Rows that each process shuffles among; they are in memory, their pictures as the shards hold them.
SHUFFLED = 1000
REMOTE = ("pipe:", "http://", "https://")

# of a sample or a shard, what is wrong with it
Report = Callable[[str, str], None]


def is_remote(name: str) -> bool:
    """Whether a name is a URL, or a command whose output is a shard, so that it is no path."""
    return name.startswith(REMOTE)


def are_shards(name: str) -> bool:
    """Whether a name stands for shards: a .tar, a pattern of some, a folder of some, or what `is_remote`."""
    if os.path.isdir(name):  # noqa: PTH112, a command may be longer than a path can be
        return bool(_shards_in(Path(name))) and not _has_classes(Path(name))
    return is_remote(name) or name.endswith(".tar")


def read_shards(name: str, samples: int = 0) -> "Shards":
    """Read what local shards hold, but for the pictures; remote ones aren't opened yet.

    Args:
        name: see `are_shards`. In a pattern, `{000..009}` and `{a,b}` count as in a shell, for remote ones, too.
        samples: rows in an epoch; 0 for as many as there are.

    Raises:
        UsageError: there is no usable sample, or remote shards come without `samples`, or webdataset isn't installed.
    """
    _require_webdataset()
    if not is_remote(name):
        return Shards(name, _local(name), samples)
    if not samples:
        raise UsageError(
            f"{name}: these shards can't be counted beforehand; say how many rows an epoch has, as in samples: 100000"
        )
    return Shards(name, expand_braces(name), samples)


class Shards:
    """The samples of shards, read anew in each epoch; a `Corpus`.

    Args:
        name: of all, for messages.
        shards: paths, or what `is_remote`.
        samples: rows in an epoch; 0 for as many as there are.

    Raises:
        UsageError: local shards have no usable sample.
    """

    def __init__(self, name: str, shards: Sequence[str], samples: int = 0) -> None:
        self.name = name
        self._problems: dict[str, str] = {}  # by shard or sample, since each epoch meets them again
        self._scan: Scan | None = None
        if is_remote(name):
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
        """The words of all captions; None for remote shards."""
        return None if self._scan is None else self._scan.words

    def digest(self) -> str:
        """SHA-256 of the captions and the names and sizes of shards, below a folder that may move; or of the URLs."""
        if self._scan is None:
            return hashlib.sha256("\0".join(self._shards).encode()).hexdigest()
        return self._scan.digest

    def batches(self, size: int, seed: int, share: Share, first: int = 0) -> Iterator[Sequence[Row]]:
        """See `Corpus`: each epoch deals the shards out anew; a process's batches follow on without regard to epochs.

        Raises:
            UsageError: there are fewer shards than processes, or they can't have equal parts of a batch.
        """
        self._check_share(size, share)
        own = max(1, min(size, self.count) // share.count)
        rows = self._stream(seed, share, first * own)
        return (list(itertools.islice(rows, own)) for _ in itertools.count())

    def sample(self, count: int, rng: random.Random) -> Sequence[Row]:
        """Up to `count` different rows, the first ones of a shuffled pass."""
        return list(itertools.islice(self._pass(rng.sample(self._shards, len(self._shards)), rng), count))

    def _stream(self, seed: int, share: Share, passed: int) -> Iterator[Row]:
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

    def _pass(self, shards: Iterable[str], rng: random.Random) -> Iterator[Row]:
        """The rows of some shards, shuffled as they go by; there is one at least."""
        from webdataset import shuffle

        met = False
        rows = (row for shard in shards for row in _rows(shard, self._report))
        for row in shuffle(SHUFFLED, initial=SHUFFLED, rng=rng)(rows):
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


# ---- what is in the shards, but for the pictures


@dataclass(frozen=True, slots=True)
class Scan:
    """What reading local shards once tells.

    Attributes:
        rows: how many there are in each shard.
        words: of all captions.
        digest: see `Corpus`.
    """

    rows: dict[str, int]
    words: frozenset[str]
    digest: str


def _scanned(shards: Sequence[str], report: Report) -> Scan:
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
            digest.update(_encoded(row.image.removeprefix(shard), *row.captions))
    return Scan(counts, frozenset(words), digest.hexdigest())


def _encoded(*values: object) -> bytes:
    return json.dumps(values).encode() + b"\n"


def _size(shard: str) -> int:
    try:
        return Path(shard).stat().st_size
    except OSError:  # it is reported when it is opened
        return 0


# ---- from a shard to its rows


def _rows(shard: str, report: Report, pictures: bool = True) -> Iterator[Row]:
    """The usable samples of a shard, in their order.

    Args:
        report: is told of the others, and of damage, behind which nothing is read.
        pictures: whether they are read, too; without, only a local shard can be gone through.
    """
    from webdataset.tariterators import group_by_keys

    def report_double(exc: Exception) -> bool:
        report(f"{shard}/{str(exc.args[0]).partition(': duplicate')[0]}", "comes twice; the first is used")
        return True

    met: set[str] = set()
    members = _until_damage(shard, report, pictures)
    for sample in group_by_keys(members, handler=report_double):
        key = sample["__key__"]
        row = _row(shard, sample) if key not in met else "other files of this sample lie further up in the shard"
        met.add(key)
        if isinstance(row, Row):
            yield row
        else:
            report(f"{shard}/{key}", row)


def _row(shard: str, sample: dict[str, Any]) -> Row | str:
    """A row, or what is wrong with the sample."""
    extension = next((name for name in sample if f".{name}" in EXTENSIONS), None)
    if extension is None:
        return "no picture"
    captions = _captions(sample)
    if isinstance(captions, str):
        return captions
    return Row(f"{shard}/{sample['__key__']}.{extension}", captions, sample[extension])


def _captions(sample: dict[str, Any]) -> tuple[str, ...] | str:
    """A sample's captions, each once, since both of its files often hold the same; or what is wrong with them."""
    try:
        text = sample.get("txt", b"").decode("utf-8-sig").strip()
        record = json.loads(sample.get("json", b"{}"))
    except (ValueError, RecursionError) as exc:
        return f"the caption can't be read: {first_line(exc)}"
    listed = listed_captions(record) if isinstance(record, dict) else ()
    if isinstance(listed, str):
        return listed
    return tuple(dict.fromkeys([text, *listed] if text else listed)) or "no caption"


def _until_damage(shard: str, report: Report, pictures: bool) -> Iterator[dict[str, Any]]:
    """The files of a shard as webdataset's functions take them, up to where it is broken."""
    try:
        with _opened(shard) as stream:
            yield from _files(shard, stream, pictures)
    except DAMAGE as exc:
        report(shard, f"can't be read to its end: {first_line(exc)}")


def _files(shard: str, stream: Any, pictures: bool) -> Iterator[dict[str, Any]]:
    """The files of a shard; webdataset's own iterator can't pass over pictures, and doesn't tell some damage."""
    for member in members(stream, "r|*" if is_remote(shard) else "r:"):
        name = member.header.name
        if member.header.isreg() and not RESERVED.match(name):
            is_read = pictures or name.lower().endswith((".txt", ".json"))
            yield {"fname": name, "data": member.read() if is_read else None, "__url__": shard}


def _opened(shard: str) -> AbstractContextManager[Any]:
    return _remote(shard) if is_remote(shard) else Path(shard).open("rb")


@contextlib.contextmanager
def _remote(shard: str) -> Iterator[Any]:
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


def _local(name: str) -> list[str]:
    """The paths that a name stands for, sorted, so that the same shards have the same order however they are named."""
    if os.path.isdir(name):  # noqa: PTH112
        return _shards_in(Path(name))
    names = [name] if os.path.lexists(name) else expand_braces(name)
    # one that isn't there is kept, to be reported
    return sorted({path for name in names for path in glob.glob(name, recursive=True) or [name]})  # noqa: PTH207


def _shards_in(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.glob("*.tar") if not path.name.startswith("."))


def _has_classes(folder: Path) -> bool:
    """Whether a folder in this one holds a picture."""
    below = [os.fspath(path) for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return any(image.error is None for image in discover(below))


def _require_webdataset() -> None:
    try:
        import webdataset  # noqa: F401
    except ImportError as exc:
        raise UsageError(f"shards need the package webdataset ({exc}): pip install 'clipcls[webdataset]'") from exc
