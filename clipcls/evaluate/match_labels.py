"""Find the classes of data among the labels of a run."""

import os
from collections.abc import Iterable, Sequence

from clipcls.inputs.labelled.examples import Example
from clipcls.labels.label_files import label_key, make_label
from clipcls.records import Label


def label_indices(names: Iterable[str], labels: Sequence[Label]) -> dict[str, int]:
    """Find the label that each class name of the data means.

    It is the label of exactly that name, else one whose name or synonym differs only in case, underscores or spacing.

    Returns:
        The index of the label by class name; names that mean no label are left out.

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
    """Return a message for each path that the data hold more than once."""
    seen: dict[str, list[tuple[str, ...]]] = {}
    for example in examples:
        seen.setdefault(os.path.abspath(example.image.path), []).append(example.labels)  # noqa: PTH100
    messages = []
    for path, labels in seen.items():
        if len(labels) > 1:
            differing = "" if len(set(labels)) == 1 else ", with different labels"
            messages.append(f"{path}: {len(labels)} times{differing}")
    return messages
