"""Tables of paths and labels."""

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipcls.errors import UsageError
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.records import ImageRef

TABLES = (".csv", ".tsv", ".jsonl")

# what UTF-16 begins with, as it is read here; spreadsheets and PowerShell write it
_UTF16 = ("\udcff\udcfe", "\udcfe\udcff")
_LONGEST_FIELD = 2**24  # of a CSV file, in characters; csv's own limit is 131,072


def read_table(table: Path) -> Truth:
    """Read a table with the columns `path`, and `label` or `labels`.

    `labels` holds any number: in JSON lines a list, in CSV and TSV JSON text or names separated by `;`. Relative paths
    are taken from the table's folder.

    Args:
        table: a .csv, .tsv or .jsonl file.

    Raises:
        UsageError: it can't be read, lacks a column, or holds no row that can be used.
    """
    try:
        rows = list(_rows(table))
    except OSError as exc:
        raise UsageError(f"{table}: can't be read: {(exc.strerror or str(exc)).lower()}") from exc
    except (ValueError, csv.Error) as exc:
        raise UsageError(f"{table}: can't be read: {exc}") from exc
    multi_label = any("labels" in row for _, row in rows if isinstance(row, dict))
    examples, problems = [], []
    folder = os.path.dirname(table)  # noqa: PTH120, without a dot for the folder at hand
    for line, row in rows:
        example = _example(row, folder, multi_label) if isinstance(row, dict) else row
        if isinstance(example, Example):
            examples.append(example)
        else:
            problems.append(f"{table}, line {line}: {example}")
    if not examples:
        first = f" The first problem: {problems[0]}." if problems else ""
        raise UsageError(f"{table}: no row with a path and a label.{first}")
    classnames = sorted({label for example in examples for label in example.labels})
    return Truth(tuple(examples), tuple(classnames), multi_label, tuple(problems))


def _rows(table: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """(line number, row or what is wrong with it) of each."""
    with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as opened:
        first = opened.readline()
        if first.startswith(_UTF16):
            raise UsageError(f"{table}: it is in UTF-16; save it in UTF-8.")
        file = itertools.chain([first], opened)
        if table.suffix.lower() == ".jsonl":
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _parsed(line)
            return
        csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_FIELD))
        reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        columns = [name for name in reader.fieldnames or () if name]
        _require_columns(table, columns)
        for row in reader:
            yield reader.line_num, {name: row[name] for name in columns if row[name] is not None}


def _parsed(line: str) -> dict[str, Any] | str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        return f"not JSON: {exc}"
    return record if isinstance(record, dict) else "not a JSON object"


def _require_columns(table: Path, columns: Sequence[str]) -> None:
    if "path" not in columns or not {"label", "labels"} & set(columns):
        is_split = len(columns) > 1 or not any(sign in name for name in columns for sign in ",;\t")
        hint = "" if is_split else " Columns end in a comma in .csv, in a tab in .tsv."
        raise UsageError(
            f"{table}: needed are the columns path and label (or labels, for several); "
            f"there are: {', '.join(columns) or 'none'}.{hint}"
        )


def _example(row: Mapping[str, Any], folder: str, multi_label: bool) -> Example | str:
    """An example, or what is wrong with the row."""
    path = row.get("path")
    if not isinstance(path, str) or not path.strip():
        return "no path"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:  # JSON can hold what no name is made of
        return "no possible file name"
    labels = _labels(row.get("labels")) if multi_label else _label(row.get("label"))
    if isinstance(labels, str):
        return labels
    if path.lower().startswith(("http://", "https://")):
        return Example(ImageRef(path, "an address; pictures to evaluate on have to be files"), labels)
    return Example(ImageRef(os.path.join(folder, path.strip())), labels)  # noqa: PTH118, the name stays as given


def _label(value: object) -> tuple[str, ...] | str:
    """One label, or what is wrong with it."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        return "no label"
    return (value.strip(),)


def _labels(value: object) -> tuple[str, ...] | str:
    """Any number of labels, or what is wrong with them."""
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("["):
            return tuple(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return "labels begin with [ but aren't JSON"
    if not isinstance(value, list):
        return "labels aren't a list"
    found = [_label(entry) for entry in value]
    if any(isinstance(entry, str) for entry in found):
        return "labels hold something that isn't text"
    return tuple(dict.fromkeys(label for entry in found for label in entry))
