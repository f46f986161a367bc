"""Quantises a converted image tower to 8-bit integers, calibrated on pictures. Needs NNCF, but no torch.

Source: post-training quantisation with smoothing of outliers, Xiao et al. 2023, https://arxiv.org/abs/2211.10438
"""

import contextlib
import hashlib
import io
import logging
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import NOTICE, ModelError, UsageError
from clipcls.models.runtime.conversions import MODEL_NAME, Conversion, Conversions
from clipcls.models.runtime.engine import CompiledTower, cause, openvino, save
from clipcls.models.runtime.pixels import normalised_pixels
from clipcls.records import Preprocessing

logger = logging.getLogger(__name__)

#: How many pictures to quantise on, held-out ones included; more change little.
MOST_PICTURES = 320
LEAST_PICTURES = 16
#: The features of the held-out pictures, (2, n, embed_dim) float32, L2-normalised: in fp32, and in int8.
FEATURES_NAME = "features.npy"
# each of so many pictures is held out, to measure on
_HOLD_OUT = 4


def require_nncf() -> None:
    """Refuse to quantise without NNCF.

    Raises:
        UsageError: it isn't installed.
    """
    if find_spec("nncf") is None:
        raise UsageError("--precision int8 needs NNCF once, to quantise the model: pip install 'clipcls[int8]'")


def quantise(
    name: str, pixels: NDArray[np.uint8], preprocess: Preprocessing, conversions: Conversions, full: Path
) -> Conversion:
    """Quantise an image tower, measure it on pictures that it wasn't calibrated on, and keep it.

    It isn't done again for the pictures that it was quantised on last.

    Args:
        pixels: (n, height, width, 3), of pictures like those of the job.
        full: of the tower's IR in fp32.

    Raises:
        UsageError: there are too few pictures.
        ModelError: the tower can't be quantised.
        OSError: it can't be kept.
    """
    if len(pixels) < LEAST_PICTURES:
        raise UsageError(
            f"--precision int8 is calibrated on pictures: at least {LEAST_PICTURES} that can be read, and there are "
            f"{len(pixels)}. Prepare the model on a folder of others: clipcls models prepare {name} --precision int8 "
            "--images FOLDER"
        )
    batch = normalised_pixels(pixels, preprocess)
    held_out = np.arange(len(batch)) % _HOLD_OUT == _HOLD_OUT - 1
    calibration = hashlib.sha256(pixels[~held_out].tobytes()).hexdigest()[:16]
    with conversions.making() as draft:
        last = conversions.find("visual", "int8")
        if last is not None and last.notes["calibration"] == calibration:
            return last
        logger.log(NOTICE, "model %s: quantising its image tower to int8, once (a minute or so) …", name)
        try:
            model = openvino().Core().read_model(str(full))
            save(_quantised(model, batch[~held_out]), draft / MODEL_NAME)
            features = np.stack([_features(full, batch[held_out]), _features(draft / MODEL_NAME, batch[held_out])])
        except OSError:
            raise
        except Exception as exc:  # whatever NNCF raises, of a tower that it doesn't know
            raise ModelError(f"{name}: its image tower can't be quantised: {cause(exc)}") from exc
        np.save(draft / FEATURES_NAME, features)
        cosines = (features[0] * features[1]).sum(axis=1)
        notes = {
            "computed_in": "int8",
            "calibration": calibration,
            "calibrated_on": int((~held_out).sum()),
            "measured_on": int(held_out.sum()),
            "cosine": float(cosines.mean()),
            "least_cosine": float(cosines.min()),
        }
        logger.log(NOTICE, "model %s: %s", name, described(notes))
        return conversions.keep(draft, "visual", "int8", notes)


def described(notes: dict[str, Any]) -> str:
    """Say what a quantised tower was calibrated on, and how near it is to fp32."""
    return (
        f"int8, calibrated on {notes['calibrated_on']} pictures; the features of {notes['measured_on']} others have a "
        f"cosine of {notes['cosine']:.4f} to those in fp32, the least {notes['least_cosine']:.4f}"
    )


def _quantised(model: Any, batch: NDArray[np.float32]) -> Any:
    with _silence():
        import nncf

        has_attention = any(operation.get_type_name() == "Softmax" for operation in model.get_ops())
        # Ranges by histograms, and activations with a zero of their own: with everyday they keep clothes, which are
        # nearly alike, 71 % right of 300, where NNCF's defaults have 68, and fp32 73.
        ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.HISTOGRAM
        return nncf.quantize(
            model,
            nncf.Dataset([picture[None] for picture in batch]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(batch),
            model_type=nncf.ModelType.TRANSFORMER if has_attention else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(activations_range_estimator_params=ranges),
        )


def _features(path: Path, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    tower = CompiledTower(path, "fp32", threads=os.cpu_count() or 1, streams=1)
    return np.concatenate([tower(batch[start : start + 16]) for start in range(0, len(batch), 16)])


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drop what NNCF prints: its bars, on standard output, would get among the results."""
    for name in ("nncf", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield
