"""Features in files: what made them, formats, a run's output, and reading them back.

A new format is a class in a module of its own here, and an entry in `FILE_FORMATS` or `FOLDER_FORMATS`.
"""

from pathlib import Path

from clipcls.errors import UsageError
from clipcls.outputs.vectors.clip_retrieval import ClipRetrievalFolder
from clipcls.outputs.vectors.numpy_files import NpyFile, NpzFile
from clipcls.outputs.vectors.parquet import ParquetFile, ParquetParts
from clipcls.outputs.vectors.vector_format import FileFormat, FolderFormat, StoredVectors

#: The formats of files and of folders by their names, in the order in which messages list them.
FILE_FORMATS: dict[str, FileFormat] = {made.name: made for made in (ParquetFile(), NpyFile(), NpzFile())}
FOLDER_FORMATS: dict[str, FolderFormat] = {made.name: made for made in (ParquetParts(), ClipRetrievalFolder())}


def file_format_for(path: Path) -> FileFormat:
    """Return the format that a file's extension implies.

    Raises:
        UsageError: it implies none.
    """
    for found in FILE_FORMATS.values():
        if path.suffix.lower() == found.extension:
            return found
    extensions = ", ".join(found.extension for found in FILE_FORMATS.values())
    raise UsageError(f"{path}: its extension tells no format of features; use one of {extensions}.")


def read_vectors(path: Path) -> StoredVectors:
    """Read features from a file, or from a folder with part files or in clip-retrieval's layout.

    Raises:
        UsageError: it holds something else, isn't whole, or isn't there.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder.")
    if not path.is_dir():
        return file_format_for(path).read(path)
    for format in FOLDER_FORMATS.values():
        if format.parts_in(path):
            return format.read(path)
    raise UsageError(f"{path}: no features in it, neither part files nor img_emb/ and metadata/.")
