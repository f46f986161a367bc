"""List the pictures in the files, folders, patterns and lists that a user names, in a fixed order.

Only the names in the current folder are read ahead, so a list may be endless and a tree, shard or table of any size.
"""

import contextlib
import io
import itertools
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import BinaryIO

from clipcls.errors import ImageError, UsageError
from clipcls.inputs.animations import is_animation
from clipcls.inputs.folders import has_magic, is_pattern, matches, walk, why_unopened
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources, read_list
from clipcls.inputs.open_file import MAX_BYTES
from clipcls.inputs.parts import Listed, numbered_share
from clipcls.inputs.shards import expand_braces, is_shard, read_pictures
from clipcls.inputs.signatures import HEAD_BYTES, kind_of, looks_like_picture
from clipcls.inputs.stores import beside, in_store, is_address, local_path, look, require_readable
from clipcls.inputs.tables import (
    PICTURE_COLUMNS,
    Cell,
    check_column,
    find_picture_column,
    is_parquet,
    is_part,
    is_table,
    read_column,
    table_columns,
)
from clipcls.inputs.video import frame_at, is_video, list_frames, split_path
from clipcls.records import Address, Container, ImageRef, InputPart, Stored

#: Extensions of pictures in folders and shards; a file that is named itself is tried whatever its extension.
EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .avif .avifs .heic .heif .hif "  # noqa: SIM905
    ".jp2 .j2k .j2c .jpc .jpf .jpx .ico .icns .cur .ppm .pgm .pbm .pnm .pfm .psd .qoi .dds .pcx "
    ".sgi .rgb .rgba .bw .ras .xbm .xpm .fit .fits .tga .icb .vda .vst".split()
)

_NO_COLUMN = f"a table without a column {', '.join(PICTURE_COLUMNS)}; --column says which one holds the pictures"


@dataclass(frozen=True, slots=True)
class _Place:
    """How an input is read, and where its name was found.

    Attributes:
        unread: whether shards, Parquet tables and videos are left unopened.
        elsewhere: whether other processes open the pictures, which don't see those on standard input or in text.
        in_list: whether the name was in a list or a table.
        in_table: whether the name was in a table.
        left_out: receives what is left out of folders.
    """

    sources: Sources
    left_out: LeftOut | None = None
    unread: bool = False
    elsewhere: bool = False
    in_list: bool = False
    in_table: bool = False


def discover(
    sources: Sources | str | Sequence[str | os.PathLike[str]],
    *,
    unread: bool = False,
    left_out: LeftOut | None = None,
    listed: Listed | None = None,
) -> Iterator[ImageRef]:
    """List the pictures that the inputs name, lazily and in order.

    - A file is taken whatever its extension.
    - A folder gives the pictures in it and below it, sorted by name: chosen by extension, those without one, or with
      a number for one, by their first bytes. Hidden files and folders are left out, and folders that programs keep
      there, such as `@eaDir`. Links to folders are followed; one that leads back to a folder above it is left out.
    - A tar shard (`.tar`, `.tar.gz`, `.tgz`, `.tar.bz2`, `.tar.xz`, `.tar.zst`) gives the pictures in it as
      `shard.tar/name`, chosen by extension, in the shard's order. Folders aren't searched for shards.
    - A table (`.parquet`, `.csv`, `.tsv`, `.jsonl`) gives the pictures in one of its columns. Relative paths start at
      the table's folder, as in the tables that `clipcls train` reads. Pictures embedded in a table, in base64 where it
      is text, are called `table.parquet/ROW`, counted from 0. Of a folder, Parquet files are read if its name ends in
      `.parquet` or `column` is given.
    - A pattern (`*`, `?`, `[…]`, `**` for any number of folders) that isn't itself a file's name gives what it gives in
      a shell: all matches, sorted, hidden ones only for a part that begins with a dot. Folders among them are walked,
      unless the pattern holds a `**`, which matches what is in them already.
    - A video (`.mp4`, `.m4v`, `.mov`, `.mkv`, `.webm`, `.avi`) gives frames, called `clip.mp4#t=12.5` by their time in
      seconds; where no file has such a name, it means that frame itself, and `clip.mp4#t=3,8.5` the frames in between.
      In folders, videos are left out unless `sampling` is given. With it, animated GIF and WebP files give frames, too.
    - Braces in a shard's name stand for several names: `{000..009}.tar`, `{train,test}.tar`.
    - `http://…` and `https://…` are addresses of single pictures.
    - Other addresses (`s3://bucket/…`, see `inputs.stores`) name any of these in a store. One that ends in `/` is a
      folder, one with a picture's extension a picture; pictures in a shard come with content. `file:///…` is a path.
    - `-` and `files_from` are lists of paths and addresses, in which patterns, braces and `-` mean themselves; or `-`
      is one picture.

    A path that leads nowhere, a broken shard, table or video is an `ImageRef` with an error, not an exception.

    With `sources.part`, only the pictures of that part are listed, each with its index; see `inputs.parts`.

    Args:
        sources: the inputs, or a `Sources` with more options.
        unread: yield each shard, Parquet table and video unopened, as an `ImageRef` with a `Container` for `expand`;
            not with `sources.part`.
        left_out: receives what is left out of folders.
        listed: receives what all parts list, if `sources.part` is given.

    Returns:
        An iterator; before its first element, only `files_from` and the tables among `inputs` are opened.

    Raises:
        UsageError: `files_from` can't be opened, or a table among `inputs` has no such column, can't be read for want
            of pyarrow, or comes without `column` (at once); or a list breaks off (while iterating).
    """
    sources = sources if isinstance(sources, Sources) else Sources(sources)
    for name in sources.names:
        _check_table(name, sources.column)
    if sources.part is None:
        return _discover(_Place(sources, left_out, unread, elsewhere=unread), sources.open_list())
    images = _discover(_Place(sources, left_out, unread=True), sources.open_list())
    return _of_part(images, sources, sources.part, listed or Listed())


def _of_part(images: Iterator[ImageRef], sources: Sources, part: InputPart, listed: Listed) -> Iterator[ImageRef]:
    for image, is_own in numbered_share(images, part):
        listed.add(image, exists)
        if is_own:
            for held in expand(image, sources):
                yield replace(held, index=image.index)


def expand(image: ImageRef, sources: Sources, part: tuple[int, int] | None = None) -> Iterator[ImageRef]:
    """List the pictures in a container that `discover` left unread, as `discover` would have.

    Args:
        image: a container; anything else is yielded as it is.
        sources: give the column, and what may be read.
        part: start and end of the pictures of a shard, or rows of a table, counted from 0, without the end; all by
            default. The error of a shard counts as a picture. A table that can't be opened is an error in each part;
            damage in a table costs only the rows behind it in the same part.
    """
    if not isinstance(image.content, Container):
        yield image
    elif image.content.kind == "shard":
        yield from itertools.islice(read_pictures(image.path, EXTENSIONS), *(part or (None,)))
    elif image.content.kind == "video":
        yield from list_frames(image.path, sources.sampling)
    else:
        yield from _from_table(image.path, _Place(sources), part and range(*part))


def is_frame(path: str) -> bool:
    """Tell whether a path names one frame of a video that is there, and no file."""
    named = split_path(path)
    return named is not None and named[2] is None and os.path.isfile(named[0]) and not os.path.lexists(path)  # noqa: PTH113


def exists(image: ImageRef) -> bool:
    """Return whether a picture is there, as far as its name tells: what is elsewhere isn't asked for."""
    return image.content is not None or os.path.lexists(image.path)


def hint(sources: Sources) -> str | None:
    """Suggest what to do if no picture was found: name the shards in folders, which aren't searched for them."""
    for name in sources.names:
        if in_store(name):  # searching it would cost requests
            continue
        for place in matches(name) if is_pattern(name) else [ImageRef(name)]:
            shard = _first_shard(place.path) if os.path.isdir(place.path) else None  # noqa: PTH112
            if shard is not None:
                return f"{place.path} holds shards such as {shard}; name them to have them read"
    return None


def are_countable(sources: Sources) -> bool:
    """Tell whether pictures can be counted first, at little cost beside classifying them.

    Not so with lists, which may be readable only once, and with tables, compressed shards, stores and keyframes.
    """
    if sources.sampling is not None and sources.sampling.kind == "keyframes":
        return False
    return sources.files_from is None and not any(map(_costs_twice, sources.names))


def _costs_twice(name: str) -> bool:
    return name == "-" or is_table(name) or in_store(name) or (is_shard(name) and not name.lower().endswith(".tar"))


def _first_shard(folder: str) -> str | None:
    return next((ref.path for ref, is_folder in walk(folder) if not is_folder and is_shard(ref.path)), None)


def _check_table(name: str, column: str | None) -> None:
    """Refuse an unusable table among the inputs before anything is done."""
    path = local_path(name)
    if is_parquet(path) and os.path.isdir(path):  # noqa: PTH112
        path = next((ref.path for ref, is_folder in walk(path) if not is_folder and is_part(ref.path)), path)
    if not is_table(path) or not (os.path.isfile(path) or in_store(path)):  # noqa: PTH113
        return
    if not has_magic(name) or not in_store(path):
        with contextlib.suppress(ImageError):  # shows when it is read
            check_column(path, _column(path, column))


def _column(table: str, column: str | None) -> str:
    """Return the column of a table's pictures: the one that is asked for, or one whose name says it.

    Raises:
        UsageError: no name does.
    """
    found = column or find_picture_column(table, table_columns(table, tried=True))
    if found is None:
        raise UsageError(f"{table}: {_NO_COLUMN}")
    return found


def _discover(place: _Place, listing: BinaryIO | None) -> Iterator[ImageRef]:
    sources = place.sources
    try:
        for entry in sources.names:
            if entry == "-":
                yield from _from_standard_input(sources.standard_input(), place)
            else:
                yield from _from_argument(entry, place)
        if listing is not None and sources.files_from == "-":
            yield from _from_standard_input(listing, place)
        elif listing is not None:
            yield from _from_list(listing, place)
    finally:
        own = listing is not sources.stdin and listing is not getattr(sys.stdin, "buffer", None)
        if listing is not None and own:
            listing.close()


def _from_standard_input(listing: BinaryIO, place: _Place) -> Iterator[ImageRef]:
    """Yield the picture on standard input, or those of the list there."""
    if _begins_a_picture(listing):
        if place.elsewhere:
            yield ImageRef("-", "a picture on standard input, which workers elsewhere don't see")
        else:
            yield ImageRef("-", content=listing.read(MAX_BYTES + 1))
    else:
        yield from _from_list(listing, place)


def _begins_a_picture(file: BinaryIO) -> bool:
    """Look at a file's first bytes without taking them."""
    try:
        if isinstance(file, io.BufferedReader):
            return kind_of(file.peek(HEAD_BYTES)) is not None
        if not file.seekable():
            return False
        place = file.tell()
        head = file.read(HEAD_BYTES)
        file.seek(place)
        return kind_of(head) is not None
    except (OSError, ValueError):
        return False  # the list's reader says what is wrong


def _from_list(listing: BinaryIO, place: _Place) -> Iterator[ImageRef]:
    listed = replace(place, in_list=True)
    for name in read_list(listing, place.sources.null):
        yield from _from_path(name, listed)


def _from_argument(entry: str, place: _Place) -> Iterator[ImageRef]:
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
                yield from _from_pattern(name, place)
            else:
                yield from _from_path(name, place)
        except ImageError as exc:  # a store that can't be asked
            yield ImageRef(name, str(exc))


def _from_path(path: str, place: _Place) -> Iterator[ImageRef]:
    path = local_path(path)
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116, the name stays as given
    except (OSError, ValueError) as exc:
        if is_web(path):
            yield image_on_web(path, place.sources.allow_urls)
        elif in_store(path):
            yield from _from_store(path, place)
        elif (named := split_path(path)) is not None and os.path.isfile(named[0]):  # noqa: PTH113
            yield from _from_part_of_video(*named, place)
        else:
            yield ImageRef(path, why_unopened(path, exc))
        return
    if stat.S_ISDIR(mode):
        yield from _from_folder(path, place)
    elif stat.S_ISREG(mode) and (is_shard(path) or is_table(path)):
        yield from _from_container(path, place)
    elif stat.S_ISREG(mode) and _has_frames(path, place):
        yield from _from_video(path, place)
    else:
        yield ImageRef(path)


def _has_frames(path: str, place: _Place) -> bool:
    if is_animation(path):
        return place.sources.sampling is not None
    return is_video(path) and not looks_like_picture(path)


def _from_video(path: str, place: _Place) -> Iterator[ImageRef]:
    if place.unread:
        yield ImageRef(path, content=Container("video"))
    else:
        yield from list_frames(path, place.sources.sampling)


def _from_part_of_video(video: str, start: int, end: int | None, place: _Place) -> Iterator[ImageRef]:
    if place.elsewhere:
        yield ImageRef(video, "a part of a video, where workers elsewhere read whole ones")
    elif end is None:
        yield frame_at(video, start)
    else:
        yield from list_frames(video, place.sources.sampling, start, end)


def _from_container(path: str, place: _Place) -> Iterator[ImageRef]:
    if is_table(path):
        yield from _from_table(path, place)
    elif place.unread:
        yield _unread(path)
    else:
        yield from read_pictures(path, EXTENSIONS)


def _unread(path: str) -> ImageRef:
    return ImageRef(path, content=Container("shard" if is_shard(path) else "table"))


# ---------------------------------------------------------------------------------------------------------
# Addresses


def is_web(text: str) -> bool:
    """Tell whether a text is a web address."""
    return text[:8].lower().startswith(("http://", "https://"))


def image_on_web(url: str, allow_urls: bool) -> ImageRef:
    """Return the picture at a web address, with an error unless addresses may be fetched."""
    bare = re.split("[?#]", url, maxsplit=1)[0]
    if is_shard(bare) or is_table(bare) or is_video(bare):
        kind = "shard" if is_shard(bare) else "table" if is_table(bare) else "video"
        return ImageRef(url, f"a {kind} on the web, which has to be downloaded first")
    if not allow_urls:
        return ImageRef(url, "an address; --allow-urls has it fetched")
    return ImageRef(url, content=Address(url))


def _from_store(address: str, place: _Place) -> Iterator[ImageRef]:
    try:
        require_readable(address, trusted=not place.in_list or place.sources.allow_private_urls)
        yield from _from_stored(ImageRef(address), place)
    except ImageError as exc:
        yield ImageRef(address, str(exc))


def _from_stored(image: ImageRef, place: _Place) -> Iterator[ImageRef]:
    if image.path.endswith("/"):
        yield from _from_folder(image.path, place)
    elif is_shard(image.path) or is_table(image.path):
        yield from _from_container(image.path, place)
    elif is_video(image.path):
        yield ImageRef(image.path, "a video in a store, which has to be downloaded first")
    elif image.content is not None:
        yield image
    elif _extension(image.path) in EXTENSIONS:  # the store isn't asked yet, which would hold up a long list
        yield ImageRef(image.path, content=Stored())
    else:
        yield from _from_stored(look(image.path), place)


# ---------------------------------------------------------------------------------------------------------
# Tables


def _from_table(table: str, place: _Place, rows: range | None = None) -> Iterator[ImageRef]:
    if place.in_table:
        yield ImageRef(table, "a table in a table")
        return
    if place.unread and is_parquet(table):
        yield _unread(table)
        return
    try:
        for cell in read_column(table, _column(table, place.sources.column), rows):
            yield from _from_cell(table, cell, replace(place, in_list=True, in_table=True))
    except UsageError as exc:
        yield ImageRef(table, str(exc).removeprefix(f"{table}: "))
    except ImageError as exc:
        yield ImageRef(table, f"the table can't be read, or not to its end: {exc}")


def _from_cell(table: str, cell: Cell, place: _Place) -> Iterator[ImageRef]:
    name = f"{table}/{cell.row}"
    if cell.value is None:
        yield ImageRef(name, cell.error)
    elif isinstance(cell.value, bytes) and place.elsewhere:
        yield ImageRef(name, "a picture in base64, which workers elsewhere read from Parquet only")
    elif isinstance(cell.value, bytes):
        yield ImageRef(name, content=cell.value)
    elif is_web(cell.value):
        yield image_on_web(cell.value, place.sources.allow_urls)
    else:
        yield from _from_name(table, local_path(cell.value), place)


def _from_name(table: str, name: str, place: _Place) -> Iterator[ImageRef]:
    if is_address(name):
        yield from _from_path(name, place)
    elif in_store(table) and not os.path.isabs(name):  # noqa: PTH117
        # trusted as the table itself, which is on the same server
        yield from _from_store(beside(table, name), replace(place, in_list=False))
    else:
        yield from _from_path(os.path.join(os.path.dirname(table), name), place)  # noqa: PTH118, PTH120


# ---------------------------------------------------------------------------------------------------------
# Folders


def _from_folder(folder: str, place: _Place) -> Iterator[ImageRef]:
    has_tables = place.sources.column is not None or is_parquet(folder.rstrip("/"))
    for image, is_folder in walk(folder, place.left_out):
        extension = _extension(image.path)
        has_frames = place.sources.sampling is not None and (is_video(image.path) or is_animation(image.path))
        if image.error is None and not is_folder and has_frames:
            yield from _from_stored(image, place) if in_store(image.path) else _from_path(image.path, place)
        elif image.error is not None or (not is_folder and extension in EXTENSIONS):
            yield image
        elif is_folder:
            continue
        elif has_tables and is_part(image.path):
            yield from _from_container(image.path, place)
        elif not extension.strip(".0123456789") and not in_store(image.path) and looks_like_picture(image.path):
            yield image
        elif place.left_out is not None:
            place.left_out.add_file(image.path)


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122, pathlib would normalise a name


# ---------------------------------------------------------------------------------------------------------
# Patterns


def _from_pattern(pattern: str, place: _Place) -> Iterator[ImageRef]:
    gone_through = "**" in pattern.split("/")
    found = False
    for image in matches(pattern):
        if gone_through and image.error is None and _is_folder(image.path):
            continue
        found = True
        may_hold = not gone_through or is_shard(image.path) or is_table(image.path) or is_video(image.path)
        may_hold |= is_animation(image.path)
        if image.error is not None or not may_hold:
            yield image
        elif is_address(image.path):
            yield from _from_stored(image, place)
        else:
            yield from _from_path(image.path, place)
    if not found:
        yield ImageRef(pattern, "no file matches this pattern")


def _is_folder(path: str) -> bool:
    return path.endswith("/") if in_store(path) else os.path.isdir(path)  # noqa: PTH112
