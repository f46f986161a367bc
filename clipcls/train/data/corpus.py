"""What a run trains on: rows of a picture and its captions, however they are stored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from clipcls.inputs.labelled.examples import Example


@dataclass(frozen=True, slots=True)
class Share:
    """The part of each batch that is one process's.

    Attributes:
        rank: of the process, from 0.
        count: of the processes.
    """

    rank: int = 0
    count: int = 1


class Corpus(Protocol):
    """The rows of a run."""

    @property
    def count(self) -> int:
        """Rows that are gone through in an epoch."""

    @property
    def problems(self) -> Sequence[str]:
        """A message for each row that can't be used, of those that were read so far."""

    @property
    def words(self) -> frozenset[str] | None:
        """The words of all captions; None where there is no telling before all of them are read."""

    def batches(self, size: int, seed: int, share: Share, first: int = 0) -> Iterator[Sequence[Example]]:
        """A process's part of one batch after the other, in an order that the seed decides; there is no end.

        Args:
            size: rows of a whole batch; one process has `size / share.count` of them.
            seed: of the order.
            share: which part.
            first: how many batches are passed over.
        """

    def digest(self) -> str:
        """What tells whether the rows are still the same when a run goes on."""
