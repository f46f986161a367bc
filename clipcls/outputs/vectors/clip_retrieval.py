"""The folder that clip-retrieval's tools, and autofaiss, read and write."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipcls.errors import UsageError, first_line
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.formats.parquet import require_pyarrow
from clipcls.outputs.vectors.numpy_files import line, mapped, read_lines, read_origin
from clipcls.outputs.vectors.origin import Origin
from clipcls.outputs.vectors.parquet import path_columns, paths_in
from clipcls.outputs.vectors.vector_format import DType, FolderFormat, StoredVectors, VectorRows, Vectors

_ORIGIN_FILE = "clipcls.json"


class ClipRetrievalFolder(FolderFormat):
    """`img_emb/img_emb_0.npy` and `metadata/metadata_0.parquet`, whose column `image_path` names the rows.

    Its tools know no rows without features: such pictures are left out of both, and listed in `failed/failed_0.jsonl`.
    What made the features is in `clipcls.json`.

    Source: https://github.com/rom1504/clip-retrieval, clip_inference/writer.py
    """

    name = "npy"

    def write_part(self, folder: Path, number: int, rows: VectorRows, origin: Origin, dtype: DType) -> None:
        arrow, parquet = require_pyarrow()
        good = [key for key, error in zip(rows.keys, rows.errors, strict=True) if error is None]
        columns = path_columns(good)
        table = arrow.table({name: arrow.array(values, arrow.string()) for name, values in columns.items()})
        failed = [(key, error) for key, error in zip(rows.keys, rows.errors, strict=True) if error is not None]
        failures = folder / "failed" / f"failed_{number}.jsonl"
        with can_write(str(folder)):
            for place in ("img_emb", "metadata", *(["failed"] if failed else [])):
                (folder / place).mkdir(exist_ok=True)
            if not (folder / _ORIGIN_FILE).exists():
                write_atomically(folder / _ORIGIN_FILE, lambda file: file.write(origin.to_json().encode()))
            failures.unlink(missing_ok=True)  # those of a part that a killed run didn't finish
            if failed:
                lines = b"".join(line("path", key, error) for key, error in failed)
                write_atomically(failures, lambda file: file.write(lines))
            array = np.ascontiguousarray(rows.features, dtype=dtype)
            write_atomically(folder / "img_emb" / f"img_emb_{number}.npy", lambda file: np.save(file, array))
            # the last of a part's files, by which it is known to be whole
            write_atomically(
                folder / "metadata" / f"metadata_{number}.parquet", lambda file: parquet.write_table(table, file)
            )

    def parts_in(self, folder: Path) -> dict[int, Path]:
        found = {}
        for path in (folder / "metadata").glob("metadata_*.parquet"):
            number = path.stem.removeprefix("metadata_")
            if number.isdecimal() and (folder / "img_emb" / f"img_emb_{number}.npy").exists():
                found[int(number)] = path
        return dict(sorted(found.items()))

    def rows_of(self, part: Path) -> Iterator[tuple[str, str | None]]:
        for key in _paths(part):
            yield key, None
        number = part.stem.removeprefix("metadata_")
        failed = part.parent.parent / "failed" / f"failed_{number}.jsonl"
        if failed.exists():
            yield from read_lines(failed)

    def read(self, folder: Path) -> StoredVectors:
        parts = self.parts_in(folder)
        keys: list[str] = []
        blocks: list[Vectors] = []
        for number, part in parts.items():
            array = mapped(folder / "img_emb" / f"img_emb_{number}.npy")
            names = _paths(part)
            if len(names) != len(array):
                raise UsageError(f"{part}: {len(names):,} rows, and {len(array):,} in img_emb_{number}.npy.")
            keys += names
            blocks.append(array)
        failed = sum(1 for path in (folder / "failed").glob("failed_*.jsonl") for _ in read_lines(path))
        return StoredVectors(keys, tuple(blocks), read_origin(folder / _ORIGIN_FILE), failed)


def _paths(part: Path) -> list[str]:
    arrow, parquet = require_pyarrow()
    try:
        names = set(parquet.read_schema(part).names) & {"image_path", "path_b64"}
        return paths_in(parquet.read_table(part, columns=sorted(names)), "image_path")
    except (OSError, arrow.ArrowException, KeyError) as exc:
        raise UsageError(f"{part}: no Parquet file with a column image_path: {first_line(exc)}.") from exc
