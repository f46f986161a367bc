"""The figures of a run as TensorBoard reads them."""

from collections.abc import Mapping
from pathlib import Path

from clipcls.errors import UsageError


class Board:
    """Writes figures into a folder of TensorBoard's event files; several runs, or parts of one, may share it.

    Args:
        folder: created when needed.
        done: steps that are behind a run that was resumed; what a killed run wrote of later ones is hidden.

    Raises:
        UsageError: the package `tensorboard` isn't installed.
        OSError: the folder can't be written.
    """

    def __init__(self, folder: Path, done: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as exc:
            raise UsageError("tensorboard isn't installed: pip install 'clipcls[tensorboard]'") from exc
        self._writer = SummaryWriter(folder, purge_step=done + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Add one value to each of some curves.

        Args:
            step: counted from 1.
            figures: by tag; what stands before a tag's slash groups the curves, as in `train/loss`.
        """
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write what is still in memory; it is written every two minutes anyway."""
        self._writer.close()
