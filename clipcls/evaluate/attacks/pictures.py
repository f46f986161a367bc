"""What the attacks that change pictures have in common."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from clipcls.errors import UsageError
from clipcls.images.geometry import Picture


@dataclass(frozen=True, slots=True)
class Variant:
    """One way in which every picture is changed.

    Attributes:
        name: what is done to it.
        severity: how much, from 0 for nothing.
        strength: the same in words.
    """

    name: str
    severity: int
    strength: str


class PictureAttack(Protocol):
    """Changes pictures after they are decoded, and before they are fitted to a model's input.

    Attributes:
        variants: the ways in which each picture is changed.
    """

    variants: tuple[Variant, ...]

    def change(self, picture: Picture, place: int) -> Iterator[Picture]:
        """Yield a picture for each variant; of severity 0, the picture itself. Threads may share the attack.

        Args:
            place: the picture's index in the data, by which chance is seeded.
        """


def checked_severities(asked: tuple[int, ...] | None, most: int, attack: str) -> tuple[int, ...]:
    """Return the severities to measure: those that are asked for, or all from 1.

    Raises:
        UsageError: there is no such severity.
    """
    if asked is None:
        return tuple(range(1, most + 1))
    if not all(0 <= severity <= most for severity in asked):
        raise UsageError(f"--severity: --attack {attack} has those from 0, which changes nothing, to {most}.")
    return tuple(sorted(set(asked)))
