"""Features in files: what made them, formats, a run's output, and reading them back.

A new format is a class in a module of its own here, and an entry in `VECTOR_FORMATS`.
"""

from pathlib import Path

from clipcls.errors import UsageError
from clipcls.outputs.vectors.numpy_files import NpyVectors, NpzVectors
from clipcls.outputs.vectors.parquet import ParquetVectors
from clipcls.outputs.vectors.vector_format import StoredVectors, VectorFormat

_NPY = NpyVectors()
#: The default format of a folder.
FOLDER_FORMAT = ParquetVectors()
#: All formats by their names, in the order in which messages list them.
VECTOR_FORMATS: dict[str, VectorFormat] = {made.name: made for made in (FOLDER_FORMAT, _NPY, NpzVectors())}


def vector_format_for(path: Path) -> VectorFormat:
    """Return the format that a file's extension implies.

    Raises:
        UsageError: it implies none.
    """
    for found in VECTOR_FORMATS.values():
        if path.suffix.lower() == found.extension:
            return found
    extensions = ", ".join(found.extension for found in VECTOR_FORMATS.values())
    raise UsageError(f"{path}: its extension tells no format of features; use one of {extensions}.")


def read_vectors(path: Path) -> StoredVectors:
    """Read features from a file, or from a folder with part files or in clip-retrieval's layout.

    Raises:
        UsageError: it holds something else, isn't whole, or isn't there.
    """
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder.")
    return vector_format_for(path).read(path)


def _read_folder(folder: Path) -> StoredVectors:
    if _NPY.parts_in(folder):
        return _NPY.read_folder(folder)
    parts = [FOLDER_FORMAT.read(part) for part in FOLDER_FORMAT.parts_in(folder).values()]
    if not parts:
        raise UsageError(f"{folder}: no features in it, neither part files nor img_emb/ and metadata/.")
    if any(part.origin != parts[0].origin for part in parts):
        raise UsageError(f"{folder}: its files were made by different models, or with different settings.")
    keys = [key for part in parts for key in part.keys]
    blocks = tuple(block for part in parts for block in part.blocks)
    return StoredVectors(keys, blocks, parts[0].origin, sum(part.failed for part in parts))
