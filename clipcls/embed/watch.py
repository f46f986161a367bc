"""Functions by which a run reports its progress to whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass

from clipcls.records import Prediction


@dataclass(frozen=True, slots=True)
class Watch:
    """Functions that a run calls to report its progress; each does nothing by default.

    Attributes:
        labels: called with the numbers of labels embedded and to be embedded.
        begin: called before the first image, with a function that counts all images and may take long (None where
            counting them would cost as much as the run), and the number that earlier runs have done.
        images: called with the numbers of images done and of those that failed, earlier runs' included.
        failed: called with path and error of an image that can't be read.
        predicted: called with each prediction of a run in this process, once it is written.
    """

    labels: Callable[[int, int], None] = lambda done, total: None
    begin: Callable[[Callable[[], int] | None, int], None] = lambda count, already: None
    images: Callable[[int, int], None] = lambda done, failed: None
    failed: Callable[[str, str], None] = lambda path, error: None
    predicted: Callable[[Prediction], None] = lambda prediction: None
