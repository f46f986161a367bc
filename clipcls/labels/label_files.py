"""Read labels from options and from text, CSV, JSON and YAML files."""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipcls.errors import UsageError
from clipcls.records import Label
from clipcls.text_files import read_text

_LONGEST_CELL = 2**17  # Python's own limit


def parse_labels(
    comma_separated: str | None = None,
    single: Sequence[str] = (),
    file: Path | None = None,
    allow_equal: bool = False,
) -> tuple[Label, ...]:
    """Collect the labels of all sources, in the order: comma-separated, single ones, file.

    Args:
        comma_separated: `cat,dog,truck`.
        single: labels that are never split, such as `crane, bird`.
        file: .txt (one per line), .csv, .json, .yaml or .yml.
        allow_equal: take labels that mean the same.

    Returns:
        At least one label.

    Raises:
        UsageError: no label, an empty one, two that mean the same, an unreadable file.
    """
    names = [part.strip() for part in comma_separated.split(",")] if comma_separated is not None else []
    labels = [make_label(name) for name in [*names, *single]]
    if file is not None:
        labels += read_labels(file)
    if not labels:
        raise UsageError("No labels. Give --labels cat,dog,truck or --labels-file FILE.")
    if not allow_equal:
        refuse_duplicates(labels)
    return tuple(labels)


def make_label(name: str, synonyms: Sequence[str] = (), prompts: Sequence[str] = ()) -> Label:
    """Make a label whose prompted text is its name in plain words: `hot dog` for `hot_dog`.

    Raises:
        UsageError: the name, a synonym or a prompt is empty or isn't valid Unicode.
    """
    for text in (name, *synonyms, *prompts):
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise UsageError(f"Label {text!r} isn't valid UTF-8.")
    texts = tuple(dict.fromkeys(_plain(text) for text in (name, *synonyms)))
    if not all(texts) or not all(prompt.strip() for prompt in prompts):
        raise UsageError(f"Empty label or prompt near {name!r}. Look for a doubled or trailing comma.")
    return Label(name=name.strip(), texts=texts, prompts=tuple(prompts))


def label_key(text: str) -> str:
    """Return what the names of one label have in common: case, form (NFKC), underscores and spacing don't count."""
    return _plain(unicodedata.normalize("NFKC", text)).casefold()


def spelling_key(text: str) -> str:
    """Return what names have in common that may be one label's: punctuation and spaces don't count, either."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold()


def refuse_duplicates(labels: Iterable[Label]) -> None:
    """Refuse equal labels, which would share the probability that one of them should have.

    Raises:
        UsageError: two labels have the same name or synonym after normalisation.
    """
    seen: dict[str, str] = {}
    for label in labels:
        for text in label.texts:
            key = label_key(text)
            if key in seen:
                raise UsageError(
                    f"Labels {seen[key]!r} and {label.name!r} are the same after normalisation and would "
                    "split the score between them. Remove one; where numbers count the lines of this list, as those of "
                    "a data set's classnames.txt, in a copy."
                )
        for text in label.texts:
            seen[label_key(text)] = label.name


def read_labels(file: Path) -> list[Label]:
    """Read a label file in the format that its extension names.

    Raises:
        UsageError: the file can't be read, or isn't what its extension says.
    """
    text = read_text(file)
    try:
        match file.suffix.lower():
            case ".csv":
                labels = _from_csv(text)
            case ".json":
                labels = _from_data(json.loads(text, object_pairs_hook=_unique, parse_int=str, parse_float=str))
            case ".yaml" | ".yml":
                labels = _from_data(yaml.load(text, Loader=_Loader))
            case _:
                labels = [make_label(line) for line in text.splitlines() if line.strip()]
    except (json.JSONDecodeError, yaml.YAMLError, csv.Error, RecursionError) as exc:
        raise UsageError(f"{file}: not valid {file.suffix[1:].upper()}: {exc}") from exc
    except UsageError as exc:
        raise UsageError(f"{file}: {exc}") from exc
    if not labels:
        raise UsageError(f"{file}: holds no labels.")
    return labels


class _Loader(yaml.SafeLoader):
    """Loads numbers and dates as text (012, 1:30), and refuses duplicate keys."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in ("bool", "null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return _unique(
        [(loader.construct_object(k, deep=True), loader.construct_object(v, deep=True)) for k, v in node.value]
    )


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, value in pairs:
        key = str(name) if isinstance(name, list | dict) else name
        if key in found:
            raise UsageError(f"{name!r} is there twice; put its synonyms into one list.")
        found[key] = value
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s_]+", " ", text).strip()


def _from_csv(text: str) -> list[Label]:
    """Read the column `label` (`synonyms` and `prompts` are split at `|`), or the only column if there is no header."""
    csv.field_size_limit(_LONGEST_CELL)  # the process's, which readers of other files may have raised
    rows = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    header = [cell.strip().casefold() for cell in rows[0]] if rows else []
    if "label" not in header and any(len(row) > 1 for row in rows):
        raise UsageError("several columns and none is named `label`. Name one so in the first line.")
    if "label" not in header:
        return [make_label(row[0]) for row in rows]

    def cells(row: list[str], column: str) -> list[str]:
        if column not in header or header.index(column) >= len(row):
            return []
        return [part for part in row[header.index(column)].split("|") if part.strip()]

    where = header.index("label")
    return [
        make_label(row[where] if where < len(row) else "", cells(row, "synonyms"), cells(row, "prompts"))
        for row in rows[1:]
    ]


def _from_data(data: Any) -> list[Label]:
    """Read a list of names or of `{label, synonyms, prompts}`, or a mapping from label to its synonyms or details."""
    match data:
        case {"labels": list() | dict() as inner} if len(data) == 1:
            return _from_data(inner)
        case dict():
            return [_from_entry(name, details) for name, details in data.items()]
        case list():
            return [_from_item(item) for item in data]
        case _:
            raise UsageError("expected a list of labels, or a mapping from label to synonyms.")


def _from_item(item: Any) -> Label:
    if isinstance(item, dict):
        return _from_entry(item.get("label"), {k: v for k, v in item.items() if k != "label"})
    return _from_entry(item, None)


def _from_entry(name: Any, details: Any) -> Label:
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        # YAML reads an unquoted yes, no, on, off as a truth value
        raise UsageError(f"{name!r} is not a label. Put it in quotes if it is meant as text.")
    match details:
        case None:
            return make_label(str(name))
        case str():
            return make_label(str(name), [details])
        case list():
            return make_label(str(name), _texts(name, details))
        case dict() if details.keys() <= {"synonyms", "prompts"}:
            synonyms = _texts(name, details.get("synonyms") or [])
            return make_label(str(name), synonyms, _texts(name, details.get("prompts") or []))
        case _:
            raise UsageError(f"label {name!r}: expected synonyms, or a mapping with `synonyms` and `prompts`.")


def _texts(name: Any, values: Any) -> list[str]:
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise UsageError(f"label {name!r}: synonyms and prompts must be text.")
    return values
