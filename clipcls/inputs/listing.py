"""What the pictures of a run are listed in."""

from collections.abc import Iterator
from dataclasses import dataclass

from clipcls.inputs.discover import are_countable, discover, hint
from clipcls.records import ImageRef


@dataclass(frozen=True, slots=True)
class Sources:
    """What the pictures are listed in; see `clipcls.inputs.discover.discover`."""

    inputs: list[str]
    files_from: str | None
    null: bool
    column: str | None
    allow_urls: bool
    allow_private_urls: bool

    def images(self, *, unread: bool = False) -> "Iterator[ImageRef]":
        """One reference a picture; with `unread` one for a shard or a Parquet table, too."""

        return discover(
            self.inputs,
            self.files_from,
            self.null,
            column=self.column,
            allow_urls=self.allow_urls,
            allow_private_urls=self.allow_private_urls,
            unread=unread,
        )

    def count(self) -> int:
        """How many there are, by listing them."""
        return sum(1 for _ in self.images())

    @property
    def are_countable(self) -> bool:
        """Whether counting them takes nothing away, and little time."""

        return self.files_from is None and are_countable(self.inputs)

    def hint(self) -> str:
        """What to try where there are none."""

        found = hint(self.inputs)
        return "" if found is None else f" {found}."
