"""The kinds of score: how similarities become scores, and what the scores can be used for.

To add a kind, write a class here and list it in `SCORE_KINDS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    # the command line takes the choices of --score from here, and has no time for NumPy
    from clipcls.predict.ranking import Array


class ScoreKind(ABC):
    """A kind of score; no score is above 1.

    Attributes:
        name: its name in `--score` and in files.
        plural: its name in messages.
        lowest: the lowest possible score.
        is_probability: scores say how often such an answer is right, so that they have a calibration error.
        adds_up: an image's scores add up to 1, so that they have a Brier score; no label is scored by itself.
        has_background: labels are compared with a background where the model has no bias.
        threshold: the default threshold where an image may have several labels; None if the user must give one.
        fits_scale: a calibration fits the logit_scale, to the softmax unless `fits_bias`.
        fits_bias: a calibration fits logit_scale and logit_bias to each label's sigmoid.
    """

    name: ClassVar[str]
    plural: ClassVar[str]
    lowest: ClassVar[float] = 0.0
    is_probability: ClassVar[bool] = True
    adds_up: ClassVar[bool] = False
    has_background: ClassVar[bool] = False
    threshold: ClassVar[float | None] = None
    fits_scale: ClassVar[bool] = False
    fits_bias: ClassVar[bool] = False

    @abstractmethod
    def scores(self, contrasts: "Array", logit_scale: float, logit_bias: float | None) -> "Array":
        """Return the scores of every image and label.

        Args:
            contrasts: (n_images, n_labels) float32, from `clipcls.predict.ranking.contrasts`.
            logit_scale: in log space.
            logit_bias: None for a model that has none.

        Returns:
            (n_images, n_labels) float32.
        """


class Softmax(ScoreKind):
    """A label's share among all labels: the softmax of exp(logit_scale)·cos + logit_bias.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020
    """

    name = "softmax"
    plural = "softmax scores"
    adds_up = True
    fits_scale = True

    def scores(self, contrasts: "Array", logit_scale: float, logit_bias: float | None) -> "Array":
        import numpy as np

        # the bias is the same for all labels, so it cancels out
        logits = np.float32(np.exp(logit_scale)) * (contrasts - contrasts.max(axis=1, keepdims=True))
        exponentials = np.exp(logits)
        shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
        return shares


class Sigmoid(ScoreKind):
    """The score of a label by itself: the sigmoid of exp(logit_scale)·cos + logit_bias or, for a model without a bias,
    of exp(logit_scale)·(cos(label) - cos(background)).

    Source: Zhai et al. 2023, https://arxiv.org/abs/2303.15343
    """

    name = "sigmoid"
    plural = "sigmoid scores"
    has_background = True
    threshold = 0.5
    fits_scale = fits_bias = True

    def scores(self, contrasts: "Array", logit_scale: float, logit_bias: float | None) -> "Array":
        import numpy as np

        logits = np.float32(np.exp(logit_scale)) * contrasts + np.float32(logit_bias or 0.0)
        # the two forms that neither overflow nor round small scores to zero
        small = np.exp(-np.abs(logits))
        numerator = np.where(logits >= 0, np.float32(1.0), small)
        probabilities: Array = (numerator / (np.float32(1.0) + small)).astype(np.float32, copy=False)
        return probabilities


class Cosine(ScoreKind):
    """The cosine similarity itself."""

    name = "cosine"
    plural = "cosines"
    lowest = -1.0
    is_probability = False

    def scores(self, contrasts: "Array", logit_scale: float, logit_bias: float | None) -> "Array":
        return contrasts


#: The default kinds: with one label an image, and with several.
DEFAULT_KIND, LABEL_KIND = Softmax(), Sigmoid()
#: All kinds by their names, in the order in which messages list them.
SCORE_KINDS: dict[str, ScoreKind] = {kind.name: kind for kind in (DEFAULT_KIND, LABEL_KIND, Cosine())}


def kind_names(condition: Callable[[ScoreKind], bool]) -> str:
    """Return the names of the kinds that meet a condition, such as `sigmoid or cosine`."""
    return " or ".join(name for name, kind in SCORE_KINDS.items() if condition(kind))
