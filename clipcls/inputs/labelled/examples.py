"""What is known of labelled pictures."""

from collections.abc import Callable
from dataclasses import dataclass

from clipcls.records import ImageRef

#: Told where something is that can't be used, and what is wrong with it.
ProblemReport = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Example:
    """A picture and what is right for it.

    Attributes:
        labels: as the data calls them; exactly one, unless the data give several an image, or none; none for a shard
            that can't be read.
        captions: what may be said of it, where that was asked for; one that is listed twice is drawn twice as often.
    """

    image: ImageRef
    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()

    @property
    def concept(self) -> str:
        """What the example is counted as by the helper loss of a training run."""
        return self.captions[0]


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
    classnames: tuple[str, ...] = ()
    multi_label: bool = False
    problems: tuple[str, ...] = ()
    classnames_file: str | None = None
    templates_file: str | None = None
