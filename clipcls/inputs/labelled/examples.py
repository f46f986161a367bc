"""Labelled pictures as the readers of this package return them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from clipcls.labels.label_files import make_label
from clipcls.records import ImageRef, Label

#: Called with the place of something unusable, and what is wrong with it.
ProblemReport = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Example:
    """A picture with its labels or captions.

    Attributes:
        labels: as written in the data; exactly one, or any number in multi-label data; none for an unreadable shard.
        captions: its captions, if asked for; one that is listed twice is drawn twice as often.
        groups: its cells in `Truth.group_columns`.
    """

    image: ImageRef
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()

    @property
    def concept(self) -> str:
        """The caption by which the helper loss of a training run counts the example."""
        return self.captions[0]


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled pictures, with their classes and the data's problems.

    Attributes:
        classnames: the names of all classes, also of those without pictures.
        multi_label: whether a picture may have several labels, or none.
        problems: a message for each thing in the data that is left out or looks like a mistake.
        classnames_file: the file that holds the names, one a line, if any.
        templates_file: the file of prompts that comes with the data, if any.
        same: the texts of classes whose name has a number behind it, since the text is another class's, too.
        group_columns: the columns of a table by which figures are told apart.
    """

    examples: tuple[Example, ...]
    classnames: tuple[str, ...] = ()
    multi_label: bool = False
    problems: tuple[str, ...] = ()
    classnames_file: str | None = None
    templates_file: str | None = None
    same: Mapping[str, str] = field(default_factory=dict)
    group_columns: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        """A label for each class."""
        return tuple(replace(make_label(self.same.get(name, name)), name=name) for name in self.classnames)
