"""The interface of what a run asks about pictures: one set of labels, or several questions."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, Self

from clipcls.embed.session import Session
from clipcls.outputs.rows import RowShape
from clipcls.records import ImageRef, Label, Per, Prediction


class Answerer(Protocol):
    """Answers for pictures; see `Classifier` and `Questionnaire`."""

    @property
    def session(self) -> Session:
        """The model and the cache."""

    @property
    def per(self) -> Per:
        """What videos have a row for."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """All that can be answered."""

    @property
    def row_shape(self) -> RowShape:
        """What rows hold besides the answer."""

    def on(self, session: Session) -> Self:
        """Return the same on another session of the same model; what is embedded is kept."""

    def embed_labels(self, report: Callable[[int, int], None] | None = None) -> object:
        """Embed the labels at the first call."""

    def settings(self) -> dict[str, Any]:
        """Return all that answers depend on besides the images, by the names of the options, in JSON's types."""

    def predict(self, paths: Iterable[ImageRef], stop: Callable[[], bool] = lambda: False) -> Iterator[Prediction]:
        """Answer for images, in input order."""
