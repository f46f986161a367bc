"""The folder that clip-retrieval's tools, and autofaiss, read and write."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clipcls.errors import UsageError, first_line
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.formats.parquet import require_pyarrow
from clipcls.outputs.vectors.numpy_files import line, mapped, read_lines, read_origin
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.parquet import path_columns, paths_in
from clipcls.outputs.vectors.vector_format import DType, FolderFormat, StoredVectors, VectorRows, Vectors

_ORIGIN_FILE = "clipcls.json"
# of the files of a part, by the names of their folders
_EXTENSIONS = {"img_emb": "npy", "metadata": "parquet", "failed": "jsonl"}


class ClipRetrievalFolder(FolderFormat):
    """`img_emb/img_emb_0.npy` and `metadata/metadata_0.parquet`, whose column `image_path` names the rows.

    Its tools know no rows without features: such pictures are left out of both, and listed in `failed/failed_0.jsonl`.
    They also skip arrays without rows, but not the tables that belong to these: a part without any features has
    neither. What made the features is in `clipcls.json`.

    Source: https://github.com/rom1504/clip-retrieval, clip_inference/writer.py
    """

    name = "npy"

    def write_part(self, folder: Path, number: int, rows: VectorRows, origin: FeatureOrigin, dtype: DType) -> None:
        arrow, parquet = require_pyarrow()
        good = [key for key, error in zip(rows.keys, rows.errors, strict=True) if error is None]
        columns = path_columns(good)
        table = arrow.table({name: arrow.array(values, arrow.string()) for name, values in columns.items()})
        failed = [(key, error) for key, error in zip(rows.keys, rows.errors, strict=True) if error is not None]
        features, failures = (_part_file(folder, kind, number) for kind in ("img_emb", "failed"))
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
                lines = b"".join(line("path", key, error) for key, error in failed)
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

    def rows_of(self, part: Path) -> Iterator[tuple[str, str | None, int | None]]:
        if part.parent.name == "metadata":
            for key in _paths(part):
                yield key, None, None
        failures = _part_file(part.parent.parent, "failed", _number(part))
        if failures.exists():
            yield from ((key, error, None) for key, error in read_lines(failures))

    def read(self, folder: Path) -> StoredVectors:
        keys: list[str] = []
        blocks: list[Vectors] = []
        for part in self.parts_in(folder).values():
            if part.parent.name != "metadata":
                continue
            features = _part_file(folder, "img_emb", _number(part))
            array, names = mapped(features), _paths(part)
            if len(names) != len(array):
                raise UsageError(f"{part}: {len(names):,} rows, and {len(array):,} in {features.name}.")
            keys += names
            blocks.append(array)
        failed = sum(1 for path in (folder / "failed").glob("failed_*.jsonl") for _ in read_lines(path))
        return StoredVectors(keys, tuple(blocks), read_origin(folder / _ORIGIN_FILE), failed)


def _part_file(folder: Path, kind: str, number: int | str) -> Path:
    """Return one of the files of a part; clip-retrieval may pad numbers with zeros."""
    return folder / kind / f"{kind}_{number}.{_EXTENSIONS[kind]}"


def _number(part_file: Path) -> str:
    return part_file.stem.rpartition("_")[2]


def _paths(part: Path) -> list[str]:
    arrow, parquet = require_pyarrow()
    try:
        names = set(parquet.read_schema(part).names) & {"image_path", "path_b64"}
        return paths_in(parquet.read_table(part, columns=sorted(names)), "image_path")
    except (OSError, arrow.ArrowException, KeyError) as exc:
        raise UsageError(f"{part}: no Parquet file with a column image_path: {first_line(exc)}.") from exc
