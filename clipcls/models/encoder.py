"""The dual encoder that the rest of clipcls uses: pixels or texts in, L2-normalised float32 features out."""

import hashlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call

from clipcls.errors import ModelError, OutOfMemoryError
from clipcls.models.attention import keep_batch_first
from clipcls.models.changes import have_changed, look_at
from clipcls.models.checkpoint import Checkpoint, Tower, build_tower
from clipcls.models.device import choose_device, choose_precision
from clipcls.models.first_token import compute_first_token_only
from clipcls.models.locate import ModelFiles, locate
from clipcls.models.padding import cut_to_length, without_padding
from clipcls.models.runtime.engine import MOST_STREAMS
from clipcls.models.tokenizer import context_length_of, load_tokenizer, token_counts, truncated
from clipcls.records import ModelFacts, ModelSpec, Precision, Preprocessing

logger = logging.getLogger(__name__)

_DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


#: Returns the SHA-256 of a file's content; a cached one (`Cache.file_sha256`) saves half a second a start.
Sha256 = Callable[[Path], bytes]


class Encoder:
    """A dual encoder on one device; each tower is built when it is first used.

    Attributes:
        files: the files that the model is read from.
        seen: the stamps of those files before they were read; see `look_at`.
        preprocess: how a picture becomes the pixels that `encode_image` takes.
        logit_scale: the scale in log space, as the weights store it.
        logit_bias: None for a model that wasn't trained with the sigmoid loss.
        context_length: most tokens a prompt may have, its start and end included.
        embed_dim: dimensions of the features.
        streams: the number of batches of pictures to encode at once, each on a thread that calls `enter_stream`.
        words: the words of the model's training captions, if the model states them.
    """

    def __init__(self, files: ModelFiles, device: torch.device, precision: Precision) -> None:
        self.files = files
        self.seen = look_at(files.all())
        self._checkpoint = Checkpoint(files.weights)
        self.device = device
        self.precision = precision
        self.streams = 1
        # texts: `functional_call` swaps what the module holds, and tokenizers of transformers their settings
        self._texts = threading.RLock()
        self.name = files.name
        self.words = files.words
        self.preprocess: Preprocessing = files.preprocess
        self.context_length = context_length_of(files)
        self.embed_dim: int = files.config["embed_dim"]
        scale = self._checkpoint.scalar("logit_scale")
        if scale is None:
            raise ModelError(f"{files.weights}: no logit_scale, so scores would rest on a made-up temperature.")
        self.logit_scale = scale
        if device.type == "cuda" and precision == "fp32":
            # else convolutions run in TF32, which has bf16's few digits
            torch.backends.cudnn.allow_tf32 = False
        self.logit_bias = self._checkpoint.scalar("logit_bias")
        if self.logit_bias is None and files.config.get("init_logit_bias") is not None:
            raise ModelError(f"{files.weights}: its configuration has a logit_bias, the weights have none.")

    def encode_image(self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the features of preprocessed pictures.

        Args:
            pixels: (n_images, height, width, 3) uint8, or a sequence of pictures from
                `clipcls.images.fit.load_pixels`.

        Returns:
            (n_images, embed_dim) float32, L2-normalised.

        Raises:
            OutOfMemoryError: the device doesn't hold so many at once.
        """
        with torch.inference_mode(), _out_of_memory(self.device):
            on_cpu = self.device.type == "cpu"
            batch = self._prepared_one_by_one(pixels) if on_cpu else self._prepared_at_once(pixels)
            return self._normalised(self._visual(batch.permute(0, 3, 1, 2)))  # NHWC -> NCHW, in name only

    def build_image_tower(self, at_once: bool = False) -> None:
        """Build the image tower before several threads use it, and set `streams`.

        On a CPU, threads with a share of the cores each don't wait for one another after every product; 2 cores were
        up to 14 % faster. On CUDA (not measured) one batch is copied while the other is computed.

        Args:
            at_once: a single batch is all there is, which all the cores compute together.
        """
        if self.device.type == "cpu":
            self.streams = 1 if at_once else min(self._cores, MOST_STREAMS)
        elif self._is_cuda:
            self.streams = 2
        _ = self._visual, self._mean_std
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

    def enter_stream(self) -> None:
        """Give the calling thread its share of the device."""
        if self._is_cuda:
            torch.cuda.set_stream(torch.cuda.Stream(self.device))  # type: ignore[no-untyped-call]
        elif self.streams > 1:
            torch.get_num_threads()  # a thread's first call sets its number to the last one that was set
            torch.set_num_threads(self._cores // self.streams)
            # that holds for this thread and for threads new to torch, which get the old number back here
            others = threading.Thread(target=torch.set_num_threads, args=(self._cores,))
            others.start()
            others.join()

    def encode_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the features of prompts, cut at the context length; see `truncated`.

        Returns:
            (n_texts, embed_dim) float32, L2-normalised.

        Raises:
            OutOfMemoryError: the device doesn't hold so many at once.
        """
        with self._texts, torch.inference_mode(), _out_of_memory(self.device):
            tokens = without_padding(self._text, self.tokenize(texts)).to(self.device)
            return self._normalised(functional_call(self._text, cut_to_length(self._text, tokens), (tokens,)))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of prompts: (n_texts, context_length) int64, padded, on the CPU."""
        with self._texts:
            tokens: Tensor = self._tokenizer(list(texts))
        return tokens

    @property
    def has_clip_tokenizer(self) -> bool:
        """Whether the tokenizer is CLIP's own, with its usual settings."""
        return self.files.tokenizer is None and not self.files.config["text_cfg"].get("tokenizer_kwargs")

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Return for each prompt whether it has more tokens than the model can see."""
        with self._texts:
            return truncated(self._tokenizer, texts)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, its start and end included, however many the model sees."""
        with self._texts:
            return token_counts(self._tokenizer, texts)

    def facts(self, sha256: Sha256 | None) -> ModelFacts:
        """Return the facts about the model that pipelines and the cache need.

        Args:
            sha256: hashes a file; None where nothing can be cached, which leaves the fingerprint empty.
        """
        fingerprint = b"" if sha256 is None else self.fingerprint(sha256)
        if fingerprint and have_changed(self.files.all(), self.seen):
            logger.warning("model %s changes while it is read; nothing is cached in this run", self.name)
            fingerprint = b""
        return ModelFacts(
            name=self.name,
            fingerprint=fingerprint,
            device=str(self.device),
            precision=self.precision,
            preprocess=self.preprocess,
            logit_scale=self.logit_scale,
            logit_bias=self.logit_bias,
            context_length=self.context_length,
            embed_dim=self.embed_dim,
            words=None if self.words is None else str(self.files.weights.parent.absolute()),
            weights="" if sha256 is None else self.weights_sha256(sha256),
        )

    def weights_sha256(self, sha256: Sha256) -> str:
        """Return the SHA-256 of the weights file, in hexadecimal digits."""
        return sha256(self.files.weights).hex()

    def fingerprint(self, sha256: Sha256) -> bytes:
        """Return the SHA-256 of all that features depend on: weights, configuration, tokenizer files.

        Args:
            sha256: hashes a file.
        """
        config = self.files.config
        # left out: a folder of the hub's cache, which may be moved
        text_config = {key: value for key, value in config["text_cfg"].items() if key != "hf_model_name"}
        described = [config | {"text_cfg": text_config}, asdict(self.preprocess), _versions(config)]
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        digest.update(sha256(self.files.weights))
        for path in (*self.files.settings, *self.files.tokenizer_files()):
            digest.update(path.name.encode() + sha256(path))
        return digest.digest()

    @cached_property
    def _cores(self) -> int:
        return torch.get_num_threads()

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.files)

    @cached_property
    def _visual(self) -> nn.Module:
        return self.build("visual", self.precision)

    @cached_property
    def _text(self) -> nn.Module:
        return self.build("text", self.precision)

    def build(self, tower: Tower, precision: Precision) -> nn.Module:
        """Build a tower anew, on the encoder's device and in a precision of its own.

        Raises:
            ModelError: the weights can't be loaded.
        """
        module = build_tower(self.files, self._checkpoint, tower)
        module = _converted(module, self.device, _DTYPES[precision])
        compute_first_token_only(module)
        return keep_batch_first(module)

    def _prepared_one_by_one(self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
        """Return (n, height, width, 3) in the towers' precision, one by one so that each stays in the CPU's cache."""
        height, width = self.preprocess.size
        mean, std = self._mean_std.repeat(1, width)  # for a whole row, since short tensors are slow to broadcast
        batch = torch.empty((len(pixels), height, width * 3), dtype=_DTYPES[self.precision])
        scratch = torch.empty((height, width * 3))
        for picture, target in zip(pixels, batch, strict=True):
            scratch.copy_(torch.from_numpy(picture).flatten(1))
            # open_clip's own order of operations, so that fp32 inputs are equal bit for bit
            target.copy_(scratch.div_(255).sub_(mean).div_(std))
        return batch.view(len(pixels), height, width, 3)

    def _prepared_at_once(self, pixels: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Tensor:
        """Return the same on a GPU, copied from pinned memory so that the copy doesn't wait."""
        pinned = torch.empty((len(pixels), *self.preprocess.size, 3), dtype=torch.uint8, pin_memory=self._is_cuda)
        np.stack(list(pixels), out=pinned.numpy())
        batch = pinned.to(self.device, non_blocking=True).to(torch.float32)
        mean, std = self._mean_std
        return batch.div_(255).sub_(mean).div_(std).to(_DTYPES[self.precision])

    @property
    def _is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @cached_property
    def _mean_std(self) -> Tensor:
        return torch.tensor([self.preprocess.mean, self.preprocess.std], device=self.device)

    @staticmethod
    def _normalised(features: Tensor | tuple[Tensor, ...]) -> NDArray[np.float32]:
        # CoCa's towers return their tokens as well
        pooled = features[0] if isinstance(features, tuple) else features
        array: NDArray[np.float32] = nn.functional.normalize(pooled.float(), dim=-1).cpu().numpy()
        if not np.isfinite(array).all():
            raise ModelError("The model gave features that aren't numbers. Try --precision fp32, or other weights.")
        return array


def _converted(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move a tower to its device and precision.

    On a CPU the table of tokens, 40 % of a text tower, stays memory-mapped, since few of its rows are needed:
    open_clip's text tower converts those that it looks up.
    """
    table = module.token_embedding if isinstance(module, TextTransformer) else None
    if table is None or device.type != "cpu":
        return module.to(device, dtype)
    weight = table.weight
    table.weight = nn.Parameter(weight[:0], requires_grad=False)
    module.to(device, dtype)
    table.weight = weight
    return module


def _versions(config: dict[str, Any]) -> list[str]:
    """Return the versions of the packages whose code computes the features."""
    packages = ["open_clip_torch"]
    if "timm_model_name" in config["vision_cfg"]:
        packages.append("timm")
    if config["text_cfg"].get("hf_tokenizer_name") or config["text_cfg"].get("hf_model_name"):
        packages.append("transformers")
    return [f"{name} {_version(name)}" for name in packages]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # reported where the package is used
        return ""


@contextmanager
def _out_of_memory(device: torch.device) -> Iterator[None]:
    """Raise an `OutOfMemoryError` where torch runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as exc:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise OutOfMemoryError(f"{device} is out of memory. Try --batch-size 1, or another --device.") from exc
    except RuntimeError as exc:
        if "allocate memory" not in str(exc):  # the message of torch's CPU allocator
            raise
        raise OutOfMemoryError(f"{device} is out of memory. Try --batch-size 1.") from exc


def load_encoder(spec: ModelSpec | str) -> Encoder:
    """Find a model and open it on the device and in the precision of `spec`.

    Args:
        spec: the model, or just its name as `--model` takes it.

    Raises:
        ModelError: see `clipcls.models.locate.locate`.
        UsageError: the device isn't there.
    """
    spec = ModelSpec(spec) if isinstance(spec, str) else spec
    choose_precision(spec.precision, choose_device(spec.device))  # refused before a model is downloaded
    return open_encoder(locate(spec), spec.device, spec.precision)


def open_encoder(files: ModelFiles, device: str, precision: str) -> Encoder:
    """Open a model whose files are known; see `load_encoder`.

    Raises:
        ModelError: it can't be loaded.
        UsageError: the device isn't there.
    """
    place = choose_device(device)
    chosen = choose_precision(precision, place)
    logger.info("model %s: %s, %s, %s", files.name, files.weights, place, chosen)
    return Encoder(files, place, chosen)
