"""The limit on how many pictures of a run may fail."""

import re
from dataclasses import dataclass

from clipcls.errors import UsageError
from clipcls.records import OnError

# with fewer images done, a share of failures says little
_FEWEST_FOR_SHARE = 100


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """How many images may fail.

    Attributes:
        count: the number that may fail; None for any number.
        share: the percentage of the images done that may fail, judged from the hundredth image on; None for any.
    """

    count: int | None = None
    share: float | None = None

    @classmethod
    def parse(cls, text: str | None, on_error: OnError) -> "ErrorLimit":
        """Return the limit that `--max-errors` gives as `N` or `P%`.

        Raises:
            UsageError: the text is neither, or is given together with `--on-error stop`.
        """
        if on_error == "stop":
            if text is not None:
                raise UsageError("--on-error stop ends the run at the first bad image; leave --max-errors out.")
            return cls(count=0)
        if text is None:
            return cls()
        if re.fullmatch(r"[0-9]{1,15}", text):
            return cls(count=int(text))
        if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", text) and float(text[:-1]) <= 100:
            return cls(share=float(text[:-1]))
        raise UsageError(f"--max-errors {text!r}: use a number of images such as 100, or a share such as 5%.")

    def is_exceeded(self, failed: int, done: int) -> bool:
        """Tell whether `failed` of the `done` images are too many."""
        too_many = self.count is not None and failed > self.count
        return too_many or (self.share is not None and done >= _FEWEST_FOR_SHARE and 100 * failed > self.share * done)

    def __str__(self) -> str:
        if self.count == 0:
            return "stopped at the first bad image"
        limit = f"{self.share:g} %" if self.count is None else f"{self.count:,}"
        return f"stopped: more than {limit} of the images could not be read"
