"""Whatever a run trains on, read by what it is."""

import os
from pathlib import Path

from clipcls.errors import UsageError
from clipcls.inputs.labelled.read import read_captioned
from clipcls.inputs.stores import in_store
from clipcls.inputs.tables import is_parquet, is_table
from clipcls.records import Embedded
from clipcls.train.data.corpus import Corpus
from clipcls.train.data.shards import are_shards, open_shards
from clipcls.train.data.table import Table


def read_data(name: str | Path, samples: int = 0) -> Corpus:
    """Read shards, a table, or a folder of class folders.

    Args:
        name: a path, or what else stands for shards; see `are_shards`.
        samples: rows in an epoch of shards; 0 for as many as there are.

    Raises:
        UsageError: see `open_shards` and `read_pairs`; or `samples` is given for what isn't shards.
    """
    name = os.fspath(name)
    if are_shards(name):
        return open_shards(name, samples)
    table = read_pairs(name)
    if any(isinstance(row.image.content, Embedded) for row in table.rows):
        if is_table(name) and not is_parquet(name):
            raise UsageError(f"{name}: pictures in base64; to train on, they have to be files, or in a Parquet file")
        return open_shards(name, samples)  # such pictures are best read in their order
    if samples:
        raise UsageError(f"samples: only for shards; {name} has as many rows as it holds")
    return table


def read_pairs(name: str) -> Table:
    """Read a table, or a folder of class folders, of which two have pictures.

    Raises:
        UsageError: see `read_captioned`; or there is but one class.
    """
    truth = read_captioned(name)
    is_folder = os.path.isdir(name) or (in_store(name) and not is_table(name))  # noqa: PTH112
    if not truth.examples:
        raise UsageError(f"{name}: no picture can be used; the first problem: {truth.problems[0]}")
    concepts = {row.concept for row in truth.examples}
    if is_folder and len(concepts) == 1:
        raise UsageError(
            f"{name}: only one class has pictures, {concepts.pop()!r}, so there is nothing to tell it from. "
            "Add a folder for another."
        )
    return Table(truth.examples, truth.problems, Path(name) if is_folder else Path(name).parent)
