"""NumPy's files: `.npy` with paths and origin beside it, and `.npz` with everything in one."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from clipcls.errors import UsageError, first_line, reason
from clipcls.outputs.atomic import Draft, can_write, write_atomically
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import DType, FileFormat, StoredVectors, VectorRows, Vectors, VectorSink


class NpyFile(FileFormat):
    """An array of all rows, `NAME.npy`, those without features filled with NaN.

    Beside it lie `NAME.paths.jsonl`, with an object with `path` (of texts `text`) and `error` for each row, and
    `NAME.json`, the origin.
    """

    name = "npy"
    extension = ".npy"

    @contextlib.contextmanager
    def open_sink(self, path: Path, origin: FeatureOrigin, dtype: DType) -> Iterator[VectorSink]:
        with contextlib.ExitStack() as stack:
            with can_write(str(path)):
                draft = stack.enter_context(Draft(path))
                beside = stack.enter_context(Draft(_paths_file(path)))
                sink = _NpySink(draft.file, beside.file, str(path), origin, dtype)
            try:
                yield sink
            finally:
                with can_write(str(path)):
                    sink.finish()
                    # whoever reads finds either all three of one run, or no array
                    path.unlink(missing_ok=True)
                    write_atomically(_origin_file(path), lambda file: file.write(origin.to_json().encode()))
                    beside.publish()
                    draft.publish()

    def read(self, path: Path) -> StoredVectors:
        array = mapped(path)
        rows = list(read_lines(_paths_file(path)))
        if len(rows) != len(array):
            raise UsageError(
                f"{path}: {len(array):,} rows, and {len(rows):,} in {_paths_file(path).name}: not of one run. Write "
                "them again."
            )
        origin = read_origin(_origin_file(path))
        keys = [key for key, error in rows if error is None]
        if len(keys) < len(rows):
            array = array[[error is None for _, error in rows]]
        return StoredVectors(keys, (array,), origin, len(rows) - len(keys))


class NpzFile(FileFormat):
    """One file with the arrays `embeddings` (rows without features filled with NaN), `paths` (of texts `texts`),
    `errors` (empty where there is none) and `origin`.
    """

    name = "npz"
    extension = ".npz"

    @contextlib.contextmanager
    def open_sink(self, path: Path, origin: FeatureOrigin, dtype: DType) -> Iterator[VectorSink]:
        with contextlib.ExitStack() as stack:
            with can_write(str(path)):
                draft = stack.enter_context(Draft(path))
                # an archive's member has to know its shape beforehand
                array, lines = (_temporary(stack, path.absolute().parent) for _ in range(2))
                sink = _NpySink(array, lines, str(path), origin, dtype)
            try:
                yield sink
            finally:
                with can_write(str(path)):
                    sink.finish()
                    _write_archive(draft.file, array, lines, origin)
                    draft.publish()

    def read(self, path: Path) -> StoredVectors:
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                stated = str(archive["origin"]) if "origin" in archive else None
                keys = archive["paths" if "paths" in archive else "texts"].tolist()
                errors = archive["errors"].tolist()
            array = _mapped_member(path, "embeddings.npy")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as exc:
            raise UsageError(
                f"{path}: not a file of features that `clipcls embed` writes, or not a whole one: {first_line(exc)}."
            ) from exc
        if not len(keys) == len(errors) == len(array):
            raise UsageError(f"{path}: {len(keys):,} names, and {len(array):,} rows of features.")
        good = [not error for error in errors]
        if not all(good):
            array = array[good]
        keys = [key for key, is_good in zip(keys, good, strict=True) if is_good]
        origin = None if stated is None else FeatureOrigin.from_json(stated, str(path))
        return StoredVectors(keys, (array,), origin, good.count(False))


class _NpySink:
    """Writes an array whose length shows at its end, and a line for each of its rows."""

    def __init__(self, array: BinaryIO, lines: BinaryIO, name: str, origin: FeatureOrigin, dtype: DType) -> None:
        self._array, self._lines, self._name = array, lines, name
        self._key = "path" if origin.of == "images" else "text"
        self._dtype: DType = dtype
        self._width = origin.embed_dim
        self._rows = 0
        array.write(self._header(0))

    def write(self, rows: VectorRows) -> None:
        named = zip(rows.keys, rows.errors, strict=True)
        with can_write(self._name):
            self._array.write(rows.spread(np.nan, self._dtype).tobytes())
            self._lines.writelines(line(self._key, key, error) for key, error in named)
        self._rows += len(rows.keys)

    def finish(self) -> None:
        """Write the header again, now that the number of rows is known; NumPy leaves room in it for any."""
        self._array.seek(0)
        self._array.write(self._header(self._rows))
        self._array.seek(0, os.SEEK_END)
        self._lines.flush()

    def _header(self, rows: int) -> bytes:
        made = io.BytesIO()
        described = {"descr": np.dtype(self._dtype).str, "fortran_order": False, "shape": (rows, self._width)}
        npy.write_array_header_1_0(made, described)
        return made.getvalue()


def _temporary(stack: contextlib.ExitStack, folder: Path) -> BinaryIO:
    return cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile(dir=folder)))


def _write_archive(file: BinaryIO, array: BinaryIO, lines: BinaryIO, origin: FeatureOrigin) -> None:
    lines.seek(0)
    rows = [json.loads(text) for text in lines]
    keys = [row.get("path", row.get("text")) for row in rows]
    key = "paths" if origin.of == "images" else "texts"
    small = {
        key: np.array(keys, dtype=np.str_),
        "errors": np.array([row["error"] or "" for row in rows], dtype=np.str_),
        "origin": np.array(origin.to_json()),
    }
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        # stored as it is, so that it can be mapped
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            array.seek(0)
            shutil.copyfileobj(array, member, 2**20)
        for name, values in small.items():
            made = io.BytesIO()
            np.save(made, values, allow_pickle=False)
            # arrays of text are as wide as the longest of them
            archive.writestr(f"{name}.npy", made.getvalue(), zipfile.ZIP_DEFLATED)


def mapped(path: Path) -> Vectors:
    """Map a `.npy` file of features.

    Raises:
        UsageError: it is none, or not a whole one.
    """
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as exc:
        what = reason(exc) if isinstance(exc, OSError) else "not an array of features, or not a whole one"
        raise UsageError(f"{path}: {what}.") from exc
    return _as_vectors(array, path)


def _mapped_member(path: Path, name: str) -> Vectors:
    """Map an array that an archive holds uncompressed."""
    with zipfile.ZipFile(path) as archive, archive.open(name) as member:
        version = npy.read_magic(cast("BinaryIO", member))
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(cast("BinaryIO", member))
        offset = member.tell()
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != offset + int(np.prod(shape)) * dtype.itemsize:
            raise ValueError(f"{name} isn't as `clipcls embed` writes it")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        sizes = file.read(4)
        start = info.header_offset + 30 + int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")
    if 0 in shape:
        return np.empty(shape, dtype=dtype)
    return _as_vectors(np.memmap(path, dtype=dtype, mode="r", offset=start + offset, shape=shape), path)


def _as_vectors(array: Any, path: Path) -> Vectors:
    if array.ndim != 2 or array.dtype not in (np.float32, np.float16):
        shape = "×".join(map(str, array.shape))
        raise UsageError(f"{path}: an array of {shape} {array.dtype}; features are rows of float32 or float16.")
    return cast("Vectors", array)


def _paths_file(path: Path) -> Path:
    return path.with_suffix(".paths.jsonl")


def _origin_file(path: Path) -> Path:
    return path.with_suffix(".json")


def read_origin(path: Path) -> FeatureOrigin | None:
    """Read what made some features; None where nothing says so.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        return FeatureOrigin.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc


def line(name: str, key: str, error: str | None) -> bytes:
    """Return the line for a row whose features lie elsewhere."""
    # lone surrogates, which stand for bytes that aren't UTF-8, are escaped as JSON allows
    return json.dumps({name: key, "error": error}).encode() + b"\n"


def read_lines(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield the key and the error of each row in a file of lines.

    Raises:
        UsageError: a line is none.
    """
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                try:
                    row = json.loads(text)
                    yield row["path"] if "path" in row else row["text"], row["error"]
                except (ValueError, KeyError, TypeError) as exc:
                    raise UsageError(f"{path}, line {number}: not what `clipcls embed` writes.") from exc
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc
