"""Convert and quantise models ahead of the pictures that they are for."""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.image_reader import read_pixels
from clipcls.embed.lazy_encoder import NotQuantisedError
from clipcls.embed.session import Session
from clipcls.errors import ImageError, UsageError
from clipcls.inputs.discover import discover
from clipcls.inputs.listing import Sources
from clipcls.models.runtime.choice import choose_runtime
from clipcls.models.runtime.compiled import CompiledEncoder
from clipcls.models.runtime.quantise import FEATURES_NAME, MOST_PICTURES, described, require_nncf
from clipcls.records import ImageRef, ModelSpec

logger = logging.getLogger(__name__)

# the pictures to quantise on are chosen evenly among so many of the first
_LISTED = 20_000


def convert_ahead(session: Session) -> dict[str, str]:
    """Convert both towers of a session's model, unless they are.

    Returns:
        What computes each tower, by the tower's name.

    Raises:
        UsageError: the model isn't computed by the compiled runtime.
        ModelError: it can't be loaded.
    """
    if session.facts.runtime != "openvino":
        # the reason is said where the runtime is asked for by name
        spec = replace(session.spec or ModelSpec(session.name), runtime="openvino")
        choose_runtime(spec, session.facts.device.partition(":")[0], session.cache.is_on)
        raise UsageError("--runtime torch converts nothing: leave it out.")
    return _compiled(session).describe()


def quantise_ahead(session: Session, images: Callable[[], Iterable[ImageRef]], anew: bool = False) -> None:
    """Quantise the model of a session in int8 on some of the pictures; do nothing in other precisions.

    Args:
        images: lists pictures like those of the job.
        anew: also if it has been quantised on other pictures.

    Raises:
        UsageError: something that is needed isn't installed, or there are too few pictures.
        ModelError: the model can't be loaded or quantised.
    """
    spec = session.spec
    if spec is None or spec.precision != "int8":
        return
    full = session.beside(replace(spec, precision="fp32"))
    choose_runtime(spec, full.facts.device.partition(":")[0], full.cache.is_on)
    encoder = _compiled(full)
    if anew or encoder.quantised is None:
        require_nncf()
        encoder.quantise(_pixels(images(), full))


@dataclass(frozen=True, slots=True)
class Quantised:
    """A model's image tower in int8, on the pictures that it wasn't calibrated on.

    Attributes:
        described: what it was calibrated on, and how near to fp32 it is.
        features: (2, n, embed_dim) float32, L2-normalised: in fp32, and in int8.
    """

    described: str
    features: NDArray[np.float32]


def read_quantised(session: Session) -> Quantised:
    """Return what is known of a model in int8.

    Args:
        session: of the model in fp32.

    Raises:
        UsageError: it isn't quantised, or the compiled runtime can't be used.
    """
    found = _compiled(session).quantised
    if found is None or found.path is None:
        raise NotQuantisedError(session.facts.name)
    return Quantised(described(found.notes), np.load(found.path.with_name(FEATURES_NAME)))


def list_again(sources: Sources) -> Iterator[ImageRef]:
    """Return the pictures of a run, which are listed once more when it begins; those of its other parts included.

    Raises:
        UsageError: standard input names them, which can't be read twice.
    """
    if sources.read_standard_input:
        raise UsageError(
            "--precision int8 is calibrated on some of the pictures, and standard input can't be read twice: quantise "
            "the model first, by clipcls models prepare NAME --precision int8 --images FOLDER."
        )
    return discover(replace(sources, part=None))  # so that all parts are computed alike


def _compiled(session: Session) -> CompiledEncoder:
    encoder = session.encoder
    assert isinstance(encoder, CompiledEncoder)  # since its facts say that OpenVINO computes it
    return encoder


def _pixels(images: Iterable[ImageRef], session: Session) -> NDArray[np.uint8]:
    """Return (n, height, width, 3), the pixels of some of the pictures; those that can't be read are left out."""
    listed = [image for image in islice(images, _LISTED) if image.error is None]
    chosen = [listed[place] for place in np.linspace(0, len(listed) - 1, min(MOST_PICTURES, len(listed))).astype(int)]

    def pixels(image: ImageRef) -> NDArray[np.uint8] | None:
        try:
            return read_pixels(image, session.facts, session.execution)
        except ImageError as exc:
            logger.info("not quantised on %s: %s", image.path, exc)
            return None

    with ThreadPoolExecutor(session.execution.threads()) as pool:
        good = [found for found in pool.map(pixels, chosen) if found is not None]
    return np.stack(good) if good else np.empty((0, *session.facts.preprocess.size, 3), dtype=np.uint8)
