"""From the files, folders, patterns and lists that a user names to one `ImageRef` a picture, in a fixed order.

Nothing is read ahead but the names in the folder at hand, so a list may be endless and a tree, a shard or a table of
any size.
"""

import itertools
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.folders import has_magic, is_pattern, matches, reason, walk
from clipcls.inputs.shards import expand_braces, is_shard, read_pictures
from clipcls.inputs.stores import beside, in_store, is_address, local_path, look, open_named, require_readable
from clipcls.inputs.tables import Cell, check_column, is_parquet, is_table, read_column
from clipcls.records import Address, Container, ImageRef, Stored

#: What is taken for a picture inside a folder; a file that is named itself is tried whatever its extension.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .heic .heif .hif "  # noqa: SIM905
    ".jp2 .j2k .j2c .jpc .jpf .jpx .ico .icns .cur .ppm .pgm .pbm .pnm .pfm .psd .qoi .dds .pcx "
    ".sgi .rgb .rgba .bw .ras .xbm .xpm .fit .fits .tga .icb .vda .vst".split()
)

_CHUNK = 1 << 16
_LONGEST = 1 << 20  # bytes in one path of a list; a list with longer ones is no list, or has another separator
_NO_COLUMN = "a table; --column says which of its columns holds the pictures"


@dataclass(frozen=True, slots=True)
class _Taken:
    """How inputs are taken.

    Attributes:
        column: of the pictures, in tables; None where tables aren't read.
        allow_urls: whether addresses of the web may be fetched.
        allow_private_urls: whether lists and tables may name any server.
        unread: whether shards and Parquet tables stay as they are.
        in_list: whether it is a list or a table's cell that names the input.
        in_table: whether it is a table's cell.
    """

    column: str | None
    allow_urls: bool
    allow_private_urls: bool = False
    unread: bool = False
    in_list: bool = False
    in_table: bool = False


def discover(
    inputs: str | Sequence[str | os.PathLike[str]],
    files_from: str | None = None,
    null_separated: bool = False,
    stdin: BinaryIO | None = None,
    *,
    column: str | None = None,
    allow_urls: bool = False,
    allow_private_urls: bool = False,
    unread: bool = False,
) -> Iterator[ImageRef]:
    """List the pictures that the inputs name, in their order, lazily.

    - A file is taken whatever its extension.
    - A folder gives the pictures in it and below it, chosen by extension, sorted by name, no hidden files
      or folders. Links to folders are followed; one that leads back to a folder it lies in is left out.
    - A tar shard (`.tar`, `.tar.gz`, `.tgz`, `.tar.bz2`, `.tar.xz`, `.tar.zst`) gives the pictures in it as
      `shard.tar/name`, chosen by extension, in its order. Folders aren't searched for shards.
    - A table (`.parquet`, `.csv`, `.tsv`, `.jsonl`) gives what is in one of its columns. Relative paths are taken from
      the table's folder, as in the tables that `clipcls train` reads. Pictures that a Parquet file holds itself are
      called `table.parquet/ROW`, counted from 0. Folders aren't searched for tables.
    - A pattern (`*`, `?`, `[…]`, `**` for any number of folders) that isn't itself a file's name gives what a
      shell would: all that matches, sorted, hidden names only if the pattern's part begins with a dot. Folders
      in it are gone through, unless the pattern holds a `**`, which has gone through them already.
    - In a shard's name, braces stand for several names: `{000..009}.tar`, `{train,test}.tar`.
    - `http://…` and `https://…` are addresses of single pictures.
    - Other addresses (`s3://bucket/…`, see `inputs.stores`) name all of this in a store. What ends in `/` is a folder,
      what has a picture's extension a picture; the pictures in a shard come with their content. `file:///…` is a path.
    - `-`, and `files_from`, are lists of paths and addresses, which are taken as they are: no patterns, no braces, no
      `-`.

    A path that leads nowhere, a broken shard or table is an `ImageRef` with an error, not an exception.

    Args:
        files_from: a file with a list of further paths, or `-`; read after `inputs`.
        null_separated: paths in lists end with NUL instead of a newline.
        stdin: what `-` reads; the process's own standard input by default.
        column: of the pictures, in tables.
        allow_urls: whether addresses of the web may be fetched; each is an error else.
        allow_private_urls: whether lists and tables may name stores on any server, such as `ftp://…`.
        unread: shards and Parquet tables aren't opened, but each is one `ImageRef` with a `Container`, for `expand`.

    Returns:
        An iterator; nothing but `files_from` and the tables among `inputs` is opened before its first element is
        asked for.

    Raises:
        UsageError: `files_from` can't be opened, or a table among `inputs` has no such column, can't be read for want
            of pyarrow, or comes without `column` (at once); or a list breaks off (while iterating).
    """
    # text would be taken letter by letter, and a `/` among them for the whole disk
    names = [inputs] if isinstance(inputs, str) else [os.fspath(path) for path in inputs]
    for name in names:
        _check_table(name, column)
    listing = _open_listing(files_from, stdin) if files_from is not None else None
    taken = _Taken(column, allow_urls, allow_private_urls, unread)
    return _discover(names, taken, _Lists(listing, null_separated, stdin))


def expand(
    image: ImageRef,
    column: str | None,
    allow_urls: bool,
    part: tuple[int, int] | None = None,
    *,
    allow_private_urls: bool = False,
) -> Iterator[ImageRef]:
    """List what is in a container that `discover` left unread: what it would have listed itself.

    Args:
        image: what isn't a container gives itself.
        column: of the pictures, in tables.
        allow_urls, allow_private_urls: as for `discover`.
        part: the first picture of a shard, or row of a table, and the one behind the last, from 0; all by default.
            What is wrong with a shard counts as a picture, in its place. Of a table that can't be opened, each part
            says so; damage of a table takes away only what is behind it in the same part.
    """
    if not isinstance(image.content, Container):
        yield image
    elif image.content.kind == "shard":
        yield from itertools.islice(read_pictures(image.path, EXTENSIONS), *(part or (None,)))
    else:
        yield from _from_table(image.path, _Taken(column, allow_urls, allow_private_urls), part and range(*part))


def hint(inputs: str | Sequence[str | os.PathLike[str]]) -> str | None:
    """What to try where inputs gave no picture at all: shards that lie in folders, where they aren't looked for."""
    for name in [inputs] if isinstance(inputs, str) else [os.fspath(path) for path in inputs]:
        if in_store(name):  # to look through them would cost requests
            continue
        for place in matches(name) if is_pattern(name) else [ImageRef(name)]:
            shard = _first_shard(place.path) if os.path.isdir(place.path) else None  # noqa: PTH112
            if shard is not None:
                return f"{place.path} holds shards such as {shard}; name them to have them read"
    return None


def are_countable(inputs: Sequence[str]) -> bool:
    """Whether counting the pictures costs little beside classifying them.

    It does not of lists, tables, compressed shards, and what is in stores.
    """
    return not any(map(_costs_twice, inputs))


def _costs_twice(name: str) -> bool:
    return name == "-" or is_table(name) or in_store(name) or (is_shard(name) and not name.lower().endswith(".tar"))


def _first_shard(folder: str) -> str | None:
    return next((ref.path for ref, is_folder in walk(folder) if not is_folder and is_shard(ref.path)), None)


def _check_table(name: str, column: str | None) -> None:
    """Refuse a table that is named and can't be used, before anything is done."""
    path = local_path(name)
    if not is_table(path) or not (os.path.isfile(path) or in_store(path)):  # noqa: PTH113
        return
    if column is None:
        raise UsageError(f"{name}: {_NO_COLUMN}")
    if not has_magic(name) or not in_store(path):
        check_column(path, column)


@dataclass(frozen=True, slots=True)
class _Lists:
    """Where lists of paths are read from, and what ends a path in them."""

    listing: BinaryIO | None
    null_separated: bool
    stdin: BinaryIO | None


def _discover(inputs: Sequence[str], taken: _Taken, lists: _Lists) -> Iterator[ImageRef]:
    listing = lists.listing
    try:
        for entry in inputs:
            if entry == "-":
                yield from _from_list(_standard_input(lists.stdin), lists.null_separated, taken)
            else:
                yield from _from_argument(entry, taken)
        if listing is not None:
            yield from _from_list(listing, lists.null_separated, taken)
    finally:
        if listing is not None and listing is not lists.stdin and listing is not getattr(sys.stdin, "buffer", None):
            listing.close()


def _from_argument(entry: str, taken: _Taken) -> Iterator[ImageRef]:
    path = local_path(entry)
    names = [path]
    if "{" in path and is_shard(path) and not os.path.lexists(path) and not is_web(path):
        try:
            names = expand_braces(path)
        except UsageError as exc:
            yield ImageRef(entry, str(exc).removeprefix(f"{path}: "))
            return
    for name in names:
        try:
            if not is_web(name) and is_pattern(name):
                yield from _from_pattern(name, taken)
            else:
                yield from _from_path(name, taken)
        except ImageError as exc:  # a store that can't be asked
            yield ImageRef(name, str(exc))


def _from_path(path: str, taken: _Taken) -> Iterator[ImageRef]:
    path = local_path(path)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116, the name stays as given
    except (OSError, ValueError) as exc:
        if is_web(path):
            yield image_on_web(path, taken.allow_urls)
        elif in_store(path):
            yield from _from_store(path, taken)
        else:
            yield ImageRef(path, reason(path, exc))
        return
    if stat.S_ISDIR(mode):
        yield from _from_folder(path)
    elif stat.S_ISREG(mode) and (is_shard(path) or is_table(path)):
        yield from _from_container(path, taken)
    else:
        yield ImageRef(path)


def _from_container(path: str, taken: _Taken) -> Iterator[ImageRef]:
    if is_table(path):
        yield from _from_table(path, taken)
    elif taken.unread:
        yield _unread(path)
    else:
        yield from read_pictures(path, EXTENSIONS)


def _unread(path: str) -> ImageRef:
    return ImageRef(path, content=Container("shard" if is_shard(path) else "table"))


# ---------------------------------------------------------------------------------------------------------
# Addresses


def is_web(text: str) -> bool:
    """Whether a text is an address of the web."""
    return text[:8].lower().startswith(("http://", "https://"))


def image_on_web(url: str, allow_urls: bool) -> ImageRef:
    """A picture at an address, which is an error unless addresses may be fetched."""
    place = re.split("[?#]", url, maxsplit=1)[0]
    if is_shard(place) or is_table(place):
        return ImageRef(
            url, f"a {'shard' if is_shard(place) else 'table'} on the web, which has to be downloaded first"
        )
    if not allow_urls:
        return ImageRef(url, "an address; --allow-urls has it fetched")
    return ImageRef(url, content=Address(url))


def _from_store(address: str, taken: _Taken) -> Iterator[ImageRef]:
    try:
        require_readable(address, trusted=not taken.in_list or taken.allow_private_urls)
        yield from _from_stored(ImageRef(address), taken)
    except ImageError as exc:
        yield ImageRef(address, str(exc))


def _from_stored(image: ImageRef, taken: _Taken) -> Iterator[ImageRef]:
    if image.path.endswith("/"):
        yield from _from_folder(image.path)
    elif is_shard(image.path) or is_table(image.path):
        yield from _from_container(image.path, taken)
    elif image.content is not None:
        yield image
    elif _extension(image.path) in EXTENSIONS:  # it is asked for when it is read, so that a long list goes on
        yield ImageRef(image.path, content=Stored())
    else:
        yield from _from_stored(look(image.path), taken)


# ---------------------------------------------------------------------------------------------------------
# Tables


def _from_table(table: str, taken: _Taken, rows: range | None = None) -> Iterator[ImageRef]:
    if taken.in_table or taken.column is None:
        yield ImageRef(table, "a table in a table" if taken.in_table else _NO_COLUMN)
        return
    if taken.unread and is_parquet(table):
        yield _unread(table)
        return
    try:
        for cell in read_column(table, taken.column, rows):
            yield from _from_cell(table, cell, replace(taken, in_list=True, in_table=True))
    except UsageError as exc:
        yield ImageRef(table, str(exc).removeprefix(f"{table}: "))
    except ImageError as exc:
        yield ImageRef(table, f"the table can't be read, or not to its end: {exc}")


def _from_cell(table: str, cell: Cell, taken: _Taken) -> Iterator[ImageRef]:
    name = f"{table}/{cell.row}"
    if cell.value is None:
        yield ImageRef(name, cell.error)
    elif isinstance(cell.value, bytes):
        yield ImageRef(name, content=cell.value)
    elif is_web(cell.value):
        yield image_on_web(cell.value, taken.allow_urls)
    else:
        yield from _from_name(table, local_path(cell.value), taken)


def _from_name(table: str, name: str, taken: _Taken) -> Iterator[ImageRef]:
    if is_address(name):
        yield from _from_path(name, taken)
    elif in_store(table) and not os.path.isabs(name):  # noqa: PTH117
        # on the server that the table is on, which was good enough for that
        yield from _from_store(beside(table, name), replace(taken, in_list=False))
    else:
        yield from _from_path(os.path.join(os.path.dirname(table), name), taken)  # noqa: PTH118, PTH120


# ---------------------------------------------------------------------------------------------------------
# Folders


def _from_folder(folder: str) -> Iterator[ImageRef]:
    for image, is_folder in walk(folder):
        if image.error is not None or (not is_folder and _extension(image.path) in EXTENSIONS):
            yield image


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122, pathlib would normalise a name


# ---------------------------------------------------------------------------------------------------------
# Patterns


def _from_pattern(pattern: str, taken: _Taken) -> Iterator[ImageRef]:
    gone_through = "**" in pattern.split("/")
    found = False
    for image in matches(pattern):
        if gone_through and image.error is None and _is_folder(image.path):
            continue
        found = True
        may_hold = not gone_through or is_shard(image.path) or is_table(image.path)
        if image.error is not None or not may_hold:
            yield image
        elif is_address(image.path):
            yield from _from_stored(image, taken)
        else:
            yield from _from_path(image.path, taken)
    if not found:
        yield ImageRef(pattern, "no file matches this pattern")


def _is_folder(path: str) -> bool:
    return path.endswith("/") if in_store(path) else os.path.isdir(path)  # noqa: PTH112


# ---------------------------------------------------------------------------------------------------------
# Lists


def _standard_input(stdin: BinaryIO | None) -> BinaryIO:
    if stdin is not None:
        return stdin
    if sys.stdin is None:
        raise UsageError("standard input is closed, so no list of paths can be read from it")
    # not sys.stdin.buffer: a thread that waits for it at the end of a run would make the interpreter abort
    return open(sys.stdin.fileno(), "rb", closefd=False)


def _open_listing(files_from: str, stdin: BinaryIO | None) -> BinaryIO:
    if files_from == "-":
        return _standard_input(stdin)
    try:
        return open_named(local_path(files_from))  # closed when the list ends
    except (OSError, ValueError, ImageError) as exc:
        why = (exc.strerror or str(exc)).lower() if isinstance(exc, OSError) else str(exc)
        raise UsageError(f"--files-from {files_from}: can't be read: {why}") from exc


def _from_list(listing: BinaryIO, null_separated: bool, taken: _Taken) -> Iterator[ImageRef]:
    listed = replace(taken, in_list=True)
    records = _null_separated(listing) if null_separated else _lines(listing)
    while True:
        try:
            record = next(records, None)
        except (OSError, ValueError, ImageError) as exc:
            raise UsageError(f"the list of paths breaks off: {exc}") from exc
        if record is None:
            return
        if record:
            yield from _from_path(os.fsdecode(record), listed)


def _lines(listing: BinaryIO) -> Iterator[bytes]:
    """Lines without their ends; those of a list made on Windows may end in CR LF and begin with a mark."""
    mark = b"\xef\xbb\xbf"
    while line := listing.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise UsageError("a path in the list is longer than 1 MiB; is the list NUL-separated (-0)?")
        line = line.removesuffix(b"\n")
        # A name may really end in CR: then such a file exists.
        if (line.endswith(b"\r") or line.startswith(mark)) and (b"\0" in line or not os.path.lexists(line)):
            line = line.removesuffix(b"\r").removeprefix(mark)
        yield line


def _null_separated(listing: BinaryIO) -> Iterator[bytes]:
    read: Callable[[int], bytes] = getattr(listing, "read1", listing.read)  # read1: what is there, at once
    rest = b""
    while chunk := read(_CHUNK):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
        if len(rest) > _LONGEST:
            raise UsageError("a path in the list is longer than 1 MiB; does -0 belong here?")
    yield rest
