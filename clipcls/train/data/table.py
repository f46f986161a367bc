"""Tables of pictures and captions: every row is known, so that they are shuffled as a whole."""

import hashlib
import json
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from clipcls.inputs.labelled.examples import Example
from clipcls.labels.vocabulary import all_words
from clipcls.train.data.corpus import Share


@dataclass(frozen=True)
class Table:
    """The usable rows of a file or a folder, and a message for each that isn't; a `Corpus`.

    Attributes:
        root: the folder that the pictures lie in, mostly; with them it may move.
    """

    rows: tuple[Example, ...]
    problems: tuple[str, ...]
    root: Path = Path()

    @property
    def count(self) -> int:
        """Rows that are gone through in an epoch."""
        return len(self.rows)

    @cached_property
    def captions(self) -> tuple[str, ...]:
        """All captions, each once."""
        return tuple(dict.fromkeys(caption for row in self.rows for caption in row.captions))

    @cached_property
    def words(self) -> frozenset[str]:
        """The words of all captions."""
        return all_words(self.captions)

    def batches(self, size: int, seed: int, share: Share, first: int = 0) -> Iterator[Sequence[Example]]:
        """See `Corpus`: shuffled anew each epoch, the incomplete last batch left out; a small table is one batch."""
        rng = random.Random(f"order {seed}")
        indices = list(range(len(self.rows)))
        size = min(size, len(indices))
        while True:
            rng.shuffle(indices)
            for start in range(0, len(indices) - size + 1, size):
                if first:
                    first -= 1
                    continue
                own = indices[start : start + size][share.rank :: share.count]
                yield [self.rows[index] for index in own]

    def digest(self) -> str:
        """SHA-256 of the rows; pictures below the root count by their path in it, so that it may move."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        root = f"{self.root}{os.sep}"
        result = hashlib.sha256()
        for row in self.rows:
            image = row.image.path.removeprefix(root)
            # a name from JSON may hold what no file name can be encoded from
            result.update(image.encode("utf-8", "surrogatepass") + b"\0" + json.dumps(row.captions).encode() + b"\0")
        return result.hexdigest()
