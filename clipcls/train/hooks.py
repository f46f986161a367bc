"""Where a recipe takes part in a training run; examples/pictogram/recipe.py is one that does."""

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from clipcls.train.trainer import Trainer


class Hooks:
    """What `train` and `Trainer` call in the course of a run; nothing happens unless a subclass overrides it."""

    def augmentation_strength(self, step: int, steps: int) -> float:
        """Return how strongly the pictures of a step are augmented, from 0 to 1.

        Args:
            step: counted from 0.
            steps: of the whole run.
        """
        return 1.0

    def extra_loss(self, trainer: "Trainer") -> nn.Module | None:
        """Return a loss that is added to the contrastive one, or None; its weights are trained and kept in checkpoints.

        It is asked for once, before the optimizer is built. Its forward takes the image and the text features of a
        process's own pictures, `(n, embed_dim) float32`, L2-normalised, what the cosines are multiplied with, and the
        pictures' rows; it returns the sum over these pictures.

        Raises:
            UsageError: the model or the data can't be trained by this recipe.
        """
        return None

    def initialise(self, trainer: "Trainer") -> None:
        """Set weights before the first step; all processes then have those of the first."""

    def before_save(self, trainer: "Trainer", model: nn.Module) -> None:
        """Change a model, the one in training or its moving average, before it is written."""
