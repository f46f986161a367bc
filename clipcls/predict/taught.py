"""What `clipcls teach` learned from examples, and its file."""

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipcls.embed.session import Session
from clipcls.errors import UsageError, reason
from clipcls.predict.ranking import Array, LinearHead
from clipcls.records import Label, PromptSet

TAUGHT_VERSION = 1
_KEY = "clipcls_taught"
_ARRAYS = ("weights", "bias", "prototypes", "about")
# what zipfile raises for damaged bytes
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_AGAIN = "Make it anew with `clipcls teach`."


@dataclass(frozen=True, slots=True)
class TaughtOrigin:
    """Where a taught file comes from.

    Attributes:
        model: its name, as the user asked for it.
        fingerprint: of the model, in hexadecimal digits.
        precision: of the model's numbers; another one changes scores only a little.
        decode: how pictures are decoded; another way changes scores only a little.
        logit_scale: of the model, in log space.
        paths: of the examples, absolute where they are files.
        date: such as 2026-01-31.
        version: of clipcls.
    """

    model: str
    fingerprint: str
    precision: str
    decode: str
    logit_scale: float
    paths: tuple[str, ...]
    date: str
    version: str


@dataclass(frozen=True, slots=True)
class Taught:
    """A function of a picture's features that replaces its cosines with the labels.

    Attributes:
        labels: all that can be answered, those without examples included.
        prompts: what the labels' texts were filled into.
        head: the function, in units of the cosine.
        prototypes: (n_labels, embed_dim) float32, L2-normalised: what pictures are compared with beside other words.
        examples: the number of examples of each label.
        name: what messages call it.
    """

    labels: tuple[Label, ...]
    prompts: PromptSet
    head: LinearHead
    prototypes: Array
    examples: tuple[int, ...]
    origin: TaughtOrigin
    name: str = field(default="What was taught", compare=False)

    @property
    def shown(self) -> tuple[str, ...]:
        """The names of the labels that have examples."""
        return tuple(label.name for label, count in zip(self.labels, self.examples, strict=True) if count)

    @property
    def digest(self) -> str:
        """SHA-256 of all that changes scores, in hexadecimal digits."""
        found = hashlib.sha256(json.dumps([asdict(label) for label in self.labels]).encode())
        found.update(self.head.weights.tobytes() + self.head.bias.tobytes() + self.prototypes.tobytes())
        return found.hexdigest()

    def require(self, session: Session) -> list[str]:
        """Check that a session's model was taught.

        Returns:
            Messages about differences that matter little.

        Raises:
            UsageError: another model was taught.
        """
        then, now = self.origin, session.fingerprint.hex()
        if then.fingerprint != now:
            raise UsageError(
                f"{self.name} was taught with model {then.model} ({then.fingerprint[:12]}), and this is {session.name} "
                f"({now[:12]}). Use --model {then.model}, or teach this one."
            )
        pairs = {
            "precision": (then.precision, session.facts.precision),
            "decode": (then.decode, session.execution.decode),
        }
        return [f"--{option} {was} then, {is_} now" for option, (was, is_) in pairs.items() if was != is_]


def absolute_path(path: str) -> str:
    """Return the absolute path of a file, and any other name as it is."""
    return os.path.abspath(path) if os.path.exists(path) else path  # noqa: PTH100, PTH110, names may be odd


# ---------------------------------------------------------------------------------------------------------
# The file: NumPy's .npz with four arrays, the last of which is JSON text in UTF-8


def taught_bytes(taught: Taught) -> bytes:
    """Return the content of a file."""
    about = {
        _KEY: TAUGHT_VERSION,
        "labels": [asdict(label) for label in taught.labels],
        "prompts": asdict(taught.prompts),
        "examples": list(taught.examples),
        "origin": asdict(taught.origin),
    }
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    head = taught.head
    np.savez_compressed(buffer, weights=head.weights, bias=head.bias, prototypes=taught.prototypes, about=text)
    return buffer.getvalue()


def read_taught(path: Path) -> Taught:
    """Read a file that `clipcls teach` wrote.

    Raises:
        UsageError: it can't be read, or is something else, or is damaged.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            *found, about = (arrays[name] for name in _ARRAYS)
        return _taught(found, json.loads(about.tobytes()), str(path))
    except OSError as exc:
        raise UsageError(f"{path}: can't be read: {reason(exc)}.") from exc
    except (*_DAMAGE, ValueError, TypeError, KeyError, AttributeError) as exc:
        raise UsageError(f"{path}: not a file that `clipcls teach` wrote, or damaged. {_AGAIN}") from exc


def _taught(arrays: Sequence[Array], about: dict[str, Any], name: str) -> Taught:
    weights, bias, prototypes = arrays
    if about[_KEY] != TAUGHT_VERSION:
        raise UsageError(f"{name}: of version {about[_KEY]!r}, and this clipcls reads {TAUGHT_VERSION}. {_AGAIN}")
    labels = tuple(Label(_text(e["name"]), _texts(e["texts"]), _texts(e["prompts"])) for e in about["labels"])
    prompts = about["prompts"]
    origin = TaughtOrigin(**about["origin"] | {"paths": _texts(about["origin"]["paths"])})
    texts = (origin.model, origin.fingerprint, origin.precision, origin.decode, origin.date, origin.version)
    for text in texts:
        _text(text)
    shapes = weights.ndim == 2 and weights.shape == prototypes.shape and bias.shape == (len(labels),)
    shapes &= all(array.dtype == np.float32 for array in arrays)
    counts = tuple(map(int, about["examples"]))
    if not (shapes and len(weights) == len(labels) == len(counts) > 1):
        raise ValueError("arrays and labels differ in number")
    if not (all(np.isfinite(array).all() for array in arrays) and math.isfinite(origin.logit_scale)):
        raise ValueError("not all are numbers")
    prompt_set = PromptSet(_text(prompts["name"]), _texts(prompts["templates"]), by_script=bool(prompts["by_script"]))
    return Taught(labels, prompt_set, LinearHead(weights, bias), prototypes, counts, origin, name)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text was expected")
    return value


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return tuple(_text(value) for value in values)
