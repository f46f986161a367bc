"""Attacks pictures by noise that is made for the model, too weak to be seen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.session import Session
from clipcls.evaluate.attacks.pictures import Variant
from clipcls.models.runtime.compiled import CompiledEncoder
from clipcls.predict.ranking import Flags, Indices, LabelFeatures

#: The most by which a value from 0 to 255 is changed.
STRENGTHS = (2, 4)
VARIANTS = tuple(Variant("noise", number, f"{strength}/255") for number, strength in enumerate(STRENGTHS, 1))


class Adversary:
    """Attacks pictures through the image tower, which torch computes in fp32.

    Raises:
        ModelError: the model can't be loaded.
    """

    def __init__(self, session: Session, labels: LabelFeatures, seed: int) -> None:
        from clipcls.models.adversarial import AttackedTower  # imports torch

        encoder = session.encoder
        if isinstance(encoder, CompiledEncoder):
            encoder = encoder.torch
        self._tower = AttackedTower.of(encoder, labels.features, seed)
        self._count = len(labels.names)

    def attack(self, pixels: Sequence[NDArray[np.uint8]], truth: Indices) -> tuple[Flags, Flags]:
        """Return whether pictures are answered right as they are, (n,) bool, and under attack, (n_strengths, n).

        Args:
            pixels: (height, width, 3) each.
            truth: (n,) int64; an index from the number of labels on is no label.
        """
        plain = np.zeros(len(pixels), dtype=bool)
        attacked = np.zeros((len(STRENGTHS), len(pixels)), dtype=bool)
        known = np.flatnonzero(truth < self._count)
        if len(known):
            strengths = [strength / 255 for strength in STRENGTHS]
            standing = self._tower.attack([pixels[row] for row in known.tolist()], truth[known], strengths)
            plain[known], attacked[:, known] = standing.plain, standing.attacked
        return plain, attacked
