"""What is known of labelled pictures."""

from dataclasses import dataclass

from clipcls.records import ImageRef


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what is right for it.

    Attributes:
        labels: as the data calls them; exactly one, unless the data give several an image, or none; none for a shard
            that can't be read.
    """

    image: ImageRef
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """Labelled pictures.

    Attributes:
        classnames: of all classes that the data name, those without pictures among them.
        multi_label: whether a picture may have several labels, or none.
        problems: a message for each thing in the data that is left out, or looks like a mistake.
        classnames_file: that holds the names, one a line; None where nothing does.
        templates_file: prompts that come with the data.
    """

    examples: tuple[Example, ...]
    classnames: tuple[str, ...]
    multi_label: bool = False
    problems: tuple[str, ...] = ()
    classnames_file: str | None = None
    templates_file: str | None = None
