"""The classes of data among the labels of a run."""

import os
from collections.abc import Iterable, Sequence

from clipcls.inputs.labelled.examples import Example
from clipcls.labels.label_files import label_key, make_label
from clipcls.records import Label


def label_indices(names: Iterable[str], labels: Sequence[Label]) -> dict[str, int]:
    """Which label each name of the data means: the one of that name, else the one that is prompted so.

    Case, underscores and spacing make no difference where no label is called exactly so; synonyms count.

    Returns:
        By name, those that mean a label.

    Raises:
        UsageError: a name isn't valid Unicode.
    """
    exact = {label.name: index for index, label in enumerate(labels)}
    alike = {label_key(text): index for index, label in enumerate(labels) for text in label.texts}
    found: dict[str, int] = {}
    for name in names:
        index = exact.get(name, alike.get(label_key(make_label(name).texts[0])))
        if index is not None:
            found[name] = index
    return found


def repeated_paths(examples: Sequence[Example]) -> list[str]:
    """A message for each path that the data hold more than once."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    for example in examples:
        seen.setdefault(os.path.abspath(example.image.path), []).append(example.labels)  # noqa: PTH100
    messages = []
    for path, labels in seen.items():
        if len(labels) > 1:
            differing = "" if len(set(labels)) == 1 else ", with different labels"
            messages.append(f"{path}: {len(labels)} times{differing}")
    return messages
