"""What made the features in a file: recorded with them, and checked by whoever reads them."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from clipcls.errors import UsageError


@dataclass(frozen=True, slots=True)
class FeatureOrigin:
    """What made the features in a file.

    Attributes:
        of: what they are features of.
        model: its name, or the absolute path of its folder or weights.
        fingerprint: SHA-256 of all of the model that features depend on, in hexadecimal digits.
        weights: SHA-256 of the weights file, in hexadecimal digits.
        logit_scale: in log space.
        logit_bias: None for a model that wasn't trained with the sigmoid loss.
        preprocess: how pictures became the model's input, in open_clip's terms; empty for texts.
        decode: `fast` or `exact`; empty for texts.
        templates: what texts were filled into; empty for pictures.
        normalised: whether features have unit length.
    """

    of: Literal["images", "texts"]
    model: str
    fingerprint: str
    weights: str
    embed_dim: int
    precision: str
    runtime: str
    logit_scale: float
    logit_bias: float | None
    preprocess: dict[str, Any] = field(default_factory=dict)
    decode: str = ""
    templates: tuple[str, ...] = ()
    normalised: bool = True

    def to_json(self) -> str:
        """Return the text that files hold."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes, name: str) -> "FeatureOrigin":
        """Return what a file's text says.

        Args:
            name: the file's name, for messages.

        Raises:
            UsageError: it isn't what `to_json` gives; a later version's may hold more.
        """
        try:
            found = json.loads(text)
            known = {key: found[key] for key in cls.__slots__ if key in found}
            return cls(**known | {"templates": tuple(known["templates"])})
        except (ValueError, TypeError, KeyError) as exc:
            raise UsageError(f"{name}: what made these features can't be read; write them again.") from exc
