"""NumPy's files: `.npy` with paths and origin beside it, `.npz` with everything in one, and clip-retrieval's folder."""

import contextlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from clipcls.errors import UsageError, first_line, reason
from clipcls.outputs.atomic import Draft, can_write, write_atomically
from clipcls.outputs.formats.parquet import require_pyarrow
from clipcls.outputs.vectors.origin import Origin
from clipcls.outputs.vectors.parquet import path_columns, paths_in
from clipcls.outputs.vectors.vector_format import DType, StoredVectors, VectorFormat, VectorRows, Vectors, VectorSink

_ORIGIN_FILE = "clipcls.json"
# of the files of a part, by the names of their folders
_EXTENSIONS = {"img_emb": "npy", "metadata": "parquet", "failed": "jsonl"}


class NpyVectors(VectorFormat):
    """An array of all rows, `NAME.npy`, those without features filled with NaN.

    Beside it lie `NAME.paths.jsonl`, with an object with `path` (of texts `text`) and `error` for each row, and
    `NAME.json`, the origin.

    In a folder it is what clip-retrieval's tools read: `img_emb/img_emb_0.npy` and `metadata/metadata_0.parquet`, whose
    column `image_path` names the rows. These tools know no rows without features: such pictures are left out of both,
    and listed in `failed/failed_0.jsonl`. They also skip arrays without rows, but not the tables that belong to these:
    a part without any features has neither.
    """

    name = "npy"
    extension = ".npy"
    fits_folder = True

    def require(self, in_folder: bool) -> None:
        if in_folder:
            require_pyarrow()

    @contextlib.contextmanager
    def open_sink(self, path: Path, origin: Origin, dtype: DType) -> Iterator[VectorSink]:
        with contextlib.ExitStack() as stack, can_write(str(path)):
            draft = stack.enter_context(Draft(path))
            beside = stack.enter_context(Draft(_paths_file(path)))
            sink = _NpySink(draft.file, beside.file, origin, dtype)
            try:
                yield sink
            finally:
                sink.finish()
                # whoever reads finds either all three of one run, or no array
                path.unlink(missing_ok=True)
                write_atomically(_origin_file(path), lambda file: file.write(origin.to_json().encode()))
                beside.publish()
                draft.publish()

    def read(self, path: Path) -> StoredVectors:
        array = _mapped(path)
        rows = list(_read_lines(_paths_file(path)))
        if len(rows) != len(array):
            raise UsageError(
                f"{path}: {len(array):,} rows, and {len(rows):,} in {_paths_file(path).name}: not of one run. Write "
                "them again."
            )
        origin = _read_origin(_origin_file(path))
        keys = [key for key, error in rows if error is None]
        if len(keys) < len(rows):
            array = array[[error is None for _, error in rows]]
        return StoredVectors(keys, (array,), origin, len(rows) - len(keys))

    def write_part(self, folder: Path, number: int, rows: VectorRows, origin: Origin, dtype: DType) -> None:
        arrow, parquet = require_pyarrow()
        good = [key for key, error in zip(rows.keys, rows.errors, strict=True) if error is None]
        columns = path_columns(good)
        table = arrow.table({name: arrow.array(values, arrow.string()) for name, values in columns.items()})
        failed = [(key, error) for key, error in zip(rows.keys, rows.errors, strict=True) if error is not None]
        features = _part_file(folder, "img_emb", number)
        failures = _part_file(folder, "failed", number)
        with can_write(str(folder)):
            for place in ("img_emb", "metadata", *(["failed"] if failed else [])):
                (folder / place).mkdir(exist_ok=True)
            if not (folder / _ORIGIN_FILE).exists():
                write_atomically(folder / _ORIGIN_FILE, lambda file: file.write(origin.to_json().encode()))
            for unfinished in failures, features:  # those of a part that a killed run didn't finish
                unfinished.unlink(missing_ok=True)
            if good:
                array = np.ascontiguousarray(rows.features, dtype=dtype)
                write_atomically(features, lambda file: np.save(file, array))
            if failed:
                lines = b"".join(_line("path", key, error) for key, error in failed)
                write_atomically(failures, lambda file: file.write(lines))
            if good:
                # the last of a part's files, by which it is known to be whole
                write_atomically(_part_file(folder, "metadata", number), lambda file: parquet.write_table(table, file))

    def parts_in(self, folder: Path) -> dict[int, Path]:
        found = {}
        for kind, has_features in (("failed", False), ("metadata", True)):
            for path in (folder / kind).glob(f"{kind}_*.{_EXTENSIONS[kind]}"):
                number = _number(path)
                if number.isdecimal() and _part_file(folder, "img_emb", number).exists() == has_features:
                    found[int(number)] = path
        return dict(sorted(found.items()))

    def rows_of(self, part: Path) -> Iterator[tuple[str, str | None]]:
        if part.parent.name == "metadata":
            for key in _paths(part):
                yield key, None
        failures = _part_file(part.parent.parent, "failed", _number(part))
        if failures.exists():
            yield from _read_lines(failures)

    def read_folder(self, folder: Path) -> StoredVectors:
        """Read clip-retrieval's folder, which its own tools may have written.

        Raises:
            UsageError: it isn't one, or isn't whole.
        """
        keys: list[str] = []
        blocks: list[Vectors] = []
        for part in self.parts_in(folder).values():
            if part.parent.name != "metadata":
                continue
            features = _part_file(folder, "img_emb", _number(part))
            array, names = _mapped(features), _paths(part)
            if len(names) != len(array):
                raise UsageError(f"{part}: {len(names):,} rows, and {len(array):,} in {features.name}.")
            keys += names
            blocks.append(array)
        origin = folder / _ORIGIN_FILE
        failed = sum(1 for path in (folder / "failed").glob("failed_*.jsonl") for _ in _read_lines(path))
        return StoredVectors(keys, tuple(blocks), _read_origin(origin) if origin.exists() else None, failed)


class NpzVectors(VectorFormat):
    """One file with the arrays `embeddings` (rows without features filled with NaN), `paths` (of texts `texts`),
    `errors` (empty where there is none) and `origin`.
    """

    name = "npz"
    extension = ".npz"

    @contextlib.contextmanager
    def open_sink(self, path: Path, origin: Origin, dtype: DType) -> Iterator[VectorSink]:
        with contextlib.ExitStack() as stack, can_write(str(path)):
            draft = stack.enter_context(Draft(path))
            # an archive's member has to know its shape beforehand
            spool = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile(dir=path.absolute().parent)))
            names = cast("BinaryIO", stack.enter_context(tempfile.TemporaryFile(dir=path.absolute().parent)))
            sink = _NpySink(spool, names, origin, dtype)
            try:
                yield sink
            finally:
                sink.finish()
                _write_archive(draft.file, spool, names, origin)
                draft.publish()

    def read(self, path: Path) -> StoredVectors:
        try:
            with np.load(path, allow_pickle=False) as archive:
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
        origin = None if stated is None else Origin.from_json(stated, str(path))
        return StoredVectors(keys, (array,), origin, good.count(False))


class _NpySink:
    """Writes an array whose length shows at its end, and a line for each of its rows."""

    def __init__(self, array: BinaryIO, lines: BinaryIO, origin: Origin, dtype: DType) -> None:
        self._array, self._lines = array, lines
        self._key = "path" if origin.of == "images" else "text"
        self._dtype: DType = dtype
        self._width = origin.embed_dim
        self._rows = 0
        array.write(self._header(0))

    def write(self, rows: VectorRows) -> None:
        self._array.write(rows.spread(np.nan, self._dtype).tobytes())
        self._lines.writelines(_line(self._key, key, error) for key, error in zip(rows.keys, rows.errors, strict=True))
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


def _write_archive(file: BinaryIO, array: BinaryIO, lines: BinaryIO, origin: Origin) -> None:
    lines.seek(0)
    rows = [json.loads(line) for line in lines]
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


def _mapped(path: Path) -> Vectors:
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


def _part_file(folder: Path, kind: str, number: int | str) -> Path:
    """Return one of the files of a part; clip-retrieval may pad numbers with zeros."""
    return folder / kind / f"{kind}_{number}.{_EXTENSIONS[kind]}"


def _number(part_file: Path) -> str:
    return part_file.stem.rpartition("_")[2]


def _paths_file(path: Path) -> Path:
    return path.with_suffix(".paths.jsonl")


def _origin_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_origin(path: Path) -> Origin | None:
    try:
        return Origin.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc


def _line(name: str, key: str, error: str | None) -> bytes:
    # lone surrogates, which stand for bytes that aren't UTF-8, are escaped as JSON allows
    return json.dumps({name: key, "error": error}).encode() + b"\n"


def _read_lines(path: Path) -> Iterable[tuple[str, str | None]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                    yield row["path"] if "path" in row else row["text"], row["error"]
                except (ValueError, KeyError, TypeError) as exc:
                    raise UsageError(f"{path}, line {number}: not what `clipcls embed` writes.") from exc
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc


def _paths(part: Path) -> list[str]:
    arrow, parquet = require_pyarrow()
    try:
        names = set(parquet.read_schema(part).names) & {"image_path", "path_b64"}
        return paths_in(parquet.read_table(part, columns=sorted(names)), "image_path")
    except (OSError, arrow.ArrowException, KeyError) as exc:
        raise UsageError(f"{part}: no Parquet file with a column image_path: {first_line(exc)}.") from exc
