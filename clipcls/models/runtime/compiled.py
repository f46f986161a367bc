"""The encoder of the compiled runtime. Imports torch only for what isn't converted yet, or can't be."""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import ClipclsError, ModelError, OutOfMemoryError, first_line
from clipcls.models.clip_tokenizer import ClipTokenizer
from clipcls.models.runtime.conversions import TOWERS, Conversion, Conversions, Tower, warn_once
from clipcls.models.runtime.engine import MOST_STREAMS, CompiledTower, translated_errors
from clipcls.models.runtime.pixels import normalised_pixels
from clipcls.models.text_length import cut_length
from clipcls.records import ModelFacts, Precision

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder
    from clipcls.models.locate import ModelFiles

logger = logging.getLogger(__name__)


class CompiledEncoder:
    """A dual encoder on a CPU, computed by OpenVINO; it has `Encoder`'s methods.

    Each tower is found among the conversions, or converted, when it is first used. One that can't be converted is
    computed by torch.

    Args:
        load: opens the torch encoder.
        threads: threads that compute.
    """

    def __init__(
        self, facts: ModelFacts, conversions: Conversions, load: "Callable[[], Encoder]", threads: int
    ) -> None:
        self._facts = facts
        self._conversions = conversions
        self._load = load
        self._threads = threads
        self._found: dict[Tower, Conversion] = {}
        self.streams = 1
        self._building = threading.Lock()

    @cached_property
    def torch(self) -> "Encoder":
        """The torch encoder, opened at its first use.

        Raises:
            ModelError: it can't be loaded, or no longer matches the facts.
        """
        return self._load()

    @property
    def files(self) -> "ModelFiles":
        """The files that the model is read from."""
        return self.torch.files

    def encode_image(self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of preprocessed pictures; see `Encoder.encode_image`."""
        if self._visual is None:
            return self.torch.encode_image(pixels)
        with translated_errors("the pictures can't be prepared"):
            batch = normalised_pixels(pixels, self._facts.preprocess)
        return self._visual(batch)

    def facts(self, sha256: Callable[[Path], bytes] | None) -> ModelFacts:
        """Return the facts about the model; see `Encoder.facts`."""
        return replace(self._facts, fingerprint=b"") if sha256 is None else self._facts

    def weights_sha256(self, sha256: Callable[[Path], bytes]) -> str:
        """Return the SHA-256 of the weights file, in hexadecimal digits."""
        return self._facts.weights

    def fingerprint(self, sha256: Callable[[Path], bytes]) -> bytes:
        """Return the SHA-256 of all that features depend on; see `Encoder.fingerprint`."""
        return self._facts.fingerprint or self.torch.fingerprint(sha256)

    def build_image_tower(self, at_once: bool = False) -> None:
        """Build the image tower before several threads use it; see `Encoder.build_image_tower`."""
        with self._building:
            most = 1 if at_once else min(self._threads, MOST_STREAMS)
            if self.streams < most:
                self.__dict__.pop("_visual", None)  # compiled anew, for as many
                self.streams = most
            if self._visual is None:
                self.torch.build_image_tower(at_once)
                self.streams = self.torch.streams

    def enter_stream(self) -> None:
        """Give the calling thread its share of the device."""
        if self._visual is None:
            self.torch.enter_stream()

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of prompts, cut at the context length; see `Encoder.encode_text`."""
        if self._text is None:
            return self.torch.encode_text(texts)
        tokens = self._tokenize(texts)
        notes = self._of("text").notes
        if notes["cuts_padding"]:
            tokens = np.ascontiguousarray(tokens[:, : cut_length(tokens, notes["end_token"])])
        return self._text(tokens)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Return for each prompt whether it has more tokens than the model can see."""
        return [count > self._facts.context_length for count in self.token_counts(texts)]

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, its start and end included, however many the model sees."""
        tokenizer = self._tokenizer
        return self.torch.token_counts(texts) if tokenizer is None else tokenizer.token_counts(texts)

    @property
    def quantised(self) -> Conversion | None:
        """The image tower in int8; None where it hasn't been quantised."""
        return self._conversions.find("visual", "int8")

    def quantise(self, pixels: NDArray[np.uint8]) -> None:
        """Quantise the image tower to int8 on pictures of (n, height, width, 3); this encoder stays in fp32.

        Raises:
            UsageError: there are too few pictures.
            ModelError: the tower can't be quantised.
        """
        from clipcls.models.runtime.quantise import quantise

        full = self._of("visual")
        if full.path is None:
            raise ModelError(
                f"{self._facts.name}: its image tower isn't converted ({full.failure}), so it has no int8."
            )
        try:
            quantise(self._facts.name, pixels, self._facts.preprocess, self._conversions, full.path)
        except OSError as exc:
            raise ModelError(f"{self._unkept(exc)}.") from exc

    def describe(self) -> dict[str, str]:
        """Return what computes each tower, by the tower's name; this converts those that aren't converted yet."""
        return {name: _description(self._of(tower)) for tower, name in TOWERS.items()}

    def _tokenize(self, texts: Sequence[str]) -> NDArray[np.int64]:
        tokenizer = self._tokenizer
        if tokenizer is not None:
            return tokenizer.tokenize(texts)
        tokens: NDArray[np.int64] = self.torch.tokenize(texts).numpy()
        return tokens

    @cached_property
    def _tokenizer(self) -> ClipTokenizer | None:
        """CLIP's own tokenizer; None for a model that has another one."""
        has_clips = self._of("text").notes["has_clip_tokenizer"]
        return ClipTokenizer(self._facts.context_length) if has_clips else None

    @cached_property
    def _visual(self) -> CompiledTower | None:
        return self._compiled("visual")

    @cached_property
    def _text(self) -> CompiledTower | None:
        conversion = self._conversions.find("visual", self._precision("visual"))
        if conversion is not None and conversion.path is not None:
            # pictures mostly follow: compiled meanwhile, their tower saves a fifth of a second
            threading.Thread(target=self._build_ahead).start()
        return self._compiled("text")

    def _build_ahead(self) -> None:
        with contextlib.suppress(ClipclsError):  # raised again where the tower is used
            self.build_image_tower()

    def _compiled(self, tower: Tower) -> CompiledTower | None:
        conversion = self._of(tower)
        if conversion.path is None:
            logger.info("the %s is computed by torch: %s", TOWERS[tower], conversion.failure)
            return None
        logger.info("the %s is computed by OpenVINO: %s", TOWERS[tower], conversion.path)
        streams = self.streams if tower == "visual" else 1
        return CompiledTower(conversion.path, conversion.notes["computed_in"], self._threads, streams)

    def _unkept(self, exc: BaseException) -> str:
        why = getattr(exc, "strerror", None) or first_line(exc)
        return f"a converted model can't be kept in {self._conversions.folder}: {why}"

    def _precision(self, tower: Tower) -> Precision:
        # only image towers are quantised: labels are embedded once, and errors in them would be in each answer
        return "fp32" if tower == "text" and self._facts.precision == "int8" else self._facts.precision

    def _of(self, tower: Tower) -> Conversion:
        if tower not in self._found:
            self._found[tower] = self._find(tower)
        return self._found[tower]

    def _find(self, tower: Tower) -> Conversion:
        precision = self._precision(tower)
        found = self._conversions.find(tower, precision)
        if precision == "int8" and (found is None or found.notes["calibration"] != self._facts.calibration):
            raise ModelError(f"{self._facts.name}: it has been quantised anew meanwhile. Run it again.")
        if found is not None:
            return found
        from clipcls.models.runtime.convert import convert  # imports torch

        try:
            return convert(self.torch, tower, precision, self._conversions)
        except (OSError, MemoryError, OutOfMemoryError) as exc:
            warn_once(f"{self._unkept(exc)}; torch computes")
            return Conversion(None, "it can't be kept", {"has_clip_tokenizer": False})


def _description(conversion: Conversion) -> str:
    if conversion.path is None:
        return f"torch, since {conversion.failure}"
    return f"OpenVINO, {conversion.notes['computed_in']}, {conversion.size / 2**20:.1f} MB"
