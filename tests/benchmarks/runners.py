"""What `peers.py` compares: clipcls, its peers, and the roofs, each as a function that takes pictures.

All of them are used as their own documentation shows, with the model loaded and, where the peer allows it, the labels
embedded beforehand. What is `tuned` is what somebody gets who knows PyTorch well and spends an afternoon.
"""

import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from machine import installed
from numpy.typing import NDArray
from PIL import Image
from records import (
    BY_TORCH,
    CLIPCLS,
    CLIPCLS_FP32,
    CLIPCLS_INT8,
    DECODE,
    FORWARD,
    FORWARD_FP32,
    OPEN_CLIP,
    PYBIOCLIP,
    TRANSFORMERS,
    TUNED,
    Key,
    Setup,
)
from safetensors.torch import save_file

from clipcls import Classifier, Execution, ModelSpec
from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.images.fit import load_pixels
from clipcls.inputs.discover import discover
from clipcls.models.device import choose_device, choose_precision
from clipcls.models.runtime.engine import is_installed
from clipcls.predict.ranking import Scoring

LABELS = ["cat", "dog", "truck"]
TEMPLATE = "a photo of a {}"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Similarities = NDArray[np.float32]
#: Takes pictures; gives (n_images, n_labels) cosine similarities, or None where the runner doesn't tell them.
Run = Callable[[Sequence[Path]], Similarities | None]


@dataclass(frozen=True, slots=True)
class Variant:
    """A way to run a runner, and what loads all that it needs."""

    key: Key
    prepare: Callable[[], Run]


@dataclass(frozen=True, slots=True)
class Loop:
    """Settings of the open_clip loop."""

    precision: str = "fp32"
    batch_size: int = 32
    workers: int = 0
    tuned: bool = False


def make_setup(folder: Path, arch: str, device: str) -> Setup:
    """Write the weights unless they are there, and find out what the device can do."""
    weights = folder / f"weights-{arch}"
    if not (weights / "open_clip_config.json").exists():
        save_weights(weights, arch)
    chosen = choose_device(device)
    cores = os.cpu_count() or 1
    on_gpu = chosen.type == "cuda"
    return Setup(
        weights=weights,
        device=chosen.type,
        gpu=torch.cuda.get_device_name(chosen) if on_gpu else None,
        precision=choose_precision("auto", chosen),
        runtimes=("torch",) if on_gpu or not is_installed() else ("openvino", "torch"),
        workers=tuple(sorted({0, 1, 2} | {n for n in (4, 8, 16, cores) if 2 < n <= cores})),
        batches=(32, 128, 256) if on_gpu else (32,),
        forward_batches=(64, 128, 256) if on_gpu else (32, 64),
    )


def save_weights(folder: Path, arch: str) -> None:
    """Random weights, whose values don't change the speed, with open_clip's description beside them."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = open_clip.create_model(arch)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config(arch),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")


def variants(setup: Setup) -> list[Variant]:
    """All ways of all runners that can run here; nothing is loaded yet."""
    listed = [
        Variant(
            Key(name + suffix, precision if name == CLIPCLS else ""), partial(clipcls_runner, setup, precision, runtime)
        )
        for name, precision in _by_precision(setup, CLIPCLS, CLIPCLS_FP32)
        for runtime, suffix in (("openvino", ""), ("torch", BY_TORCH))
        if runtime in setup.runtimes or not suffix
    ]
    if "openvino" in setup.runtimes and installed("nncf"):
        listed.append(Variant(Key(CLIPCLS_INT8), partial(clipcls_runner, setup, "int8", "openvino")))
    loops = [(OPEN_CLIP, Loop(workers=workers)) for workers in setup.workers]
    for size in setup.batches:
        loops += [(TUNED, Loop(setup.precision, size, workers, tuned=True)) for workers in setup.workers]
    for name, loop in loops:
        key = Key(name, f"{loop.precision}, batch {loop.batch_size}, workers {loop.workers}", loop.workers)
        listed.append(Variant(key, partial(open_clip_runner, setup, loop)))
    if not transformers_missing(setup):
        for size in (1, 16, 32):
            key = Key(TRANSFORMERS, f"fp32, batch {size}")
            listed.append(Variant(key, partial(transformers_runner, setup, size)))
    if installed("pybioclip"):
        listed.append(Variant(Key(PYBIOCLIP, "fp32, batch 10"), partial(pybioclip_runner, setup)))
    return listed + roofs(setup)


def roofs(setup: Setup) -> list[Variant]:
    """The parts of the work alone, as fast as they go."""
    listed = [Variant(Key(DECODE, f"{os.cpu_count()} threads"), partial(decode_runner, setup))]
    for name, precision in _by_precision(setup, FORWARD, FORWARD_FP32):
        for size in setup.forward_batches:
            runs = {
                f"clipcls by {runtime}": partial(forward_runner, setup, precision, runtime, size)
                for runtime in setup.runtimes
            } | {"open_clip": partial(open_clip_forward_runner, setup, precision, size)}
            for owner, run in runs.items():
                detail = f"batch {size}, {owner}"
                listed.append(Variant(Key(name, f"{precision}, {detail}" if name == FORWARD else detail), run))
    return listed


@cache
def prepared(setup: Setup, key: Key) -> Run:
    """A way to run a runner, loaded."""
    return next(variant for variant in variants(setup) if variant.key == key).prepare()


def _by_precision(setup: Setup, auto: str, fp32: str) -> list[tuple[str, str]]:
    """Names with their precisions; one only where `auto` is fp32."""
    return [(auto, setup.precision)] if setup.precision == "fp32" else [(auto, setup.precision), (fp32, "fp32")]


def missing(setup: Setup) -> list[str]:
    """A line for each peer that is left out."""
    reason = transformers_missing(setup)
    lines = [f"Left out: transformers ({reason})."] if reason else []
    if not installed("pybioclip"):
        lines.append("Left out: pybioclip (not installed: pip install pybioclip).")
    return lines


# ---------------------------------------------------------------------------------------------------------
# clipcls


def clipcls_runner(setup: Setup, precision: str, runtime: str, execution: Execution | None = None) -> Run:
    """clipcls with its defaults, but without a cache: nothing may be answered from an earlier round."""
    classifier = Classifier(
        Session(load_clipcls_encoder(setup, precision, runtime), execution or Execution(cache_dir=None)),
        LABELS,
        [TEMPLATE],
        Scoring(top_k=len(LABELS)),
    )
    _ = classifier.label_features

    def run(paths: Sequence[Path]) -> Similarities:
        rows = []
        for prediction in classifier.predict(paths):
            assert prediction.error is None, f"{prediction.path}: {prediction.error}"
            similarity = {scored.label: scored.similarity for scored in prediction.top}
            rows.append([similarity[label] for label in LABELS])
        return np.array(rows, np.float32)

    return run


# ---------------------------------------------------------------------------------------------------------
# open_clip


class Pictures(torch.utils.data.Dataset[torch.Tensor]):
    """Files as open_clip's transform gives them."""

    def __init__(self, paths: Sequence[Path], transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.open(self.paths[index]))


@cache
def load_open_clip(weights: Path, device: str, precision: str) -> tuple[Any, Any, torch.Tensor]:
    """A model, shared by all variants of its precision, with its transform and the labels' features."""
    name = f"local-dir:{weights}"
    model, _, transform = open_clip.create_model_and_transforms(name, device=device)
    model.eval().to(DTYPES[precision])
    tokens = open_clip.get_tokenizer(name)([TEMPLATE.format(label) for label in LABELS])
    with torch.no_grad():
        return model, transform, model.encode_text(tokens.to(device), normalize=True)


def open_clip_runner(setup: Setup, loop: Loop) -> Run:
    """A loop over a DataLoader."""
    model, transform, text = load_open_clip(setup.weights, setup.device, loop.precision)
    without_gradients = torch.inference_mode if loop.tuned else torch.no_grad
    pinned = loop.tuned and setup.device == "cuda"
    settings: dict[str, Any] = {"batch_size": loop.batch_size, "num_workers": loop.workers, "pin_memory": pinned}

    def run(paths: Sequence[Path]) -> Similarities:
        found = []
        with without_gradients():
            for batch in torch.utils.data.DataLoader(Pictures(paths, transform), **settings):
                pixels = batch.to(setup.device, non_blocking=pinned).to(DTYPES[loop.precision])
                similarities = model.encode_image(pixels, normalize=True) @ text.T
                probabilities = (model.logit_scale.exp() * similarities).softmax(dim=-1)
                found.append((similarities, probabilities))
            return torch.cat([similarities for similarities, _ in found]).float().cpu().numpy()

    return run


# ---------------------------------------------------------------------------------------------------------
# transformers


def transformers_missing(setup: Setup) -> str | None:
    """Why transformers can't run here; None where it can."""
    if not installed("transformers"):
        return "not installed: pip install transformers"
    config = _model_config(setup)
    plain = isinstance(config["vision_cfg"].get("layers"), int) and not {"hf_model_name", "custom_text"} & (
        config["text_cfg"].keys() | config.keys()
    )
    return None if plain else "its CLIP is of another kind than this architecture"


def _model_config(setup: Setup) -> dict[str, Any]:
    text = (setup.weights / "open_clip_config.json").read_text(encoding="utf-8")
    config: dict[str, Any] = json.loads(text)["model_cfg"]
    return config


def transformers_runner(setup: Setup, batch_size: int) -> Run:
    """The zero-shot pipeline, which embeds the labels with each call."""
    classify = load_pipeline(setup)

    def run(paths: Sequence[Path]) -> None:
        files = [str(path) for path in paths]
        answers = classify(files, candidate_labels=LABELS, hypothesis_template=TEMPLATE, batch_size=batch_size)
        assert [len(answer) for answer in answers] == [len(LABELS)] * len(paths)

    return run


@cache
def load_pipeline(setup: Setup) -> Any:
    """A model of the same sizes; its weights are random too."""
    from transformers import CLIPImageProcessor, CLIPModel, ZeroShotImageClassificationPipeline

    side = _model_config(setup)["vision_cfg"]["image_size"]
    return ZeroShotImageClassificationPipeline(
        model=CLIPModel(_transformers_config(_model_config(setup))).eval(),
        tokenizer=_transformers_tokenizer(setup.weights / "transformers"),
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        device=torch.device(setup.device),
    )


def _transformers_config(config: dict[str, Any]) -> Any:
    """open_clip's description of an architecture in transformers' words."""
    from transformers import CLIPConfig

    vision, text = config["vision_cfg"], config["text_cfg"]
    activation = {"hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu"}
    return CLIPConfig(
        projection_dim=config["embed_dim"],
        vision_config=activation
        | {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": int(vision["width"] * vision.get("mlp_ratio", 4)),
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
        },
        text_config=activation
        | {
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
        },
    )


def _transformers_tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer, made from the vocabulary that open_clip brings."""
    from transformers import CLIPTokenizerFast

    folder.mkdir(exist_ok=True)
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    files = (folder / "vocab.json", folder / "merges.txt")
    files[0].write_text(json.dumps(tokenizer.encoder), encoding="utf-8")
    files[1].write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges), encoding="utf-8")
    end = "<end_of_text>"
    special = {"unk_token": end, "bos_token": "<start_of_text>", "eos_token": end, "pad_token": end}
    return CLIPTokenizerFast(*map(str, files), **special)


# ---------------------------------------------------------------------------------------------------------
# pybioclip


def pybioclip_runner(setup: Setup) -> Run:
    """Custom labels; pybioclip 2.1.6 hands the model's name on to open_clip, which takes `local-dir:` and a folder."""
    from bioclip import CustomLabelsClassifier

    classifier = CustomLabelsClassifier(LABELS, model_str=f"local-dir:{setup.weights}", device=setup.device)

    def run(paths: Sequence[Path]) -> None:
        # a callback in place of its progress bar
        answers = classifier.predict([str(path) for path in paths], callback=lambda done, total: None)
        assert len(answers) == len(paths) * len(LABELS)

    return run


# ---------------------------------------------------------------------------------------------------------
# Roofs


def forward_runner(setup: Setup, precision: str, runtime: str, batch_size: int) -> Run:
    """The image tower alone as clipcls runs it, on pixels in memory, with as many batches at once."""
    encoder = load_clipcls_encoder(setup, precision, runtime)
    encoder.build_image_tower()
    shape = (batch_size, *encoder.facts(None).preprocess.size, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pool = ThreadPoolExecutor(encoder.streams, initializer=encoder.enter_stream)

    def run(paths: Sequence[Path]) -> None:
        list(pool.map(lambda size: encoder.encode_image(pixels[:size]), even_batches(len(paths), batch_size)))

    return run


@cache
def load_clipcls_encoder(setup: Setup, precision: str, runtime: str) -> Any:
    """One encoder for all batch sizes; converted models are kept beside the weights."""
    runtime = runtime if runtime in setup.runtimes else "torch"
    spec = ModelSpec(str(setup.weights), device=setup.device, precision=precision, runtime=runtime)
    session = Session(spec, Execution(cache_dir=setup.weights.parent / "cache"))
    quantise_ahead(session, lambda: discover([str(setup.weights.parent)]))
    return session.encoder


def open_clip_forward_runner(setup: Setup, precision: str, batch_size: int) -> Run:
    """The image tower alone as open_clip runs it, on a batch that is ready on the device."""
    model, _, _ = load_open_clip(setup.weights, setup.device, precision)
    shape = (batch_size, 3, *load_clipcls_encoder(setup, precision, "torch").preprocess.size)
    pixels = torch.randn(shape, device=setup.device, dtype=DTYPES[precision])

    def run(paths: Sequence[Path]) -> None:
        with torch.inference_mode():
            for size in even_batches(len(paths), batch_size):
                features = model.encode_image(pixels[:size], normalize=True)
            features.cpu()  # waits for the device

    return run


def even_batches(count: int, batch_size: int) -> list[int]:
    """Sizes of as few batches as possible that are as equal as possible: a small last one would lower a roof."""
    batches = ceil(count / batch_size)
    return [count // batches + (i < count % batches) for i in range(batches)]


def decode_runner(setup: Setup) -> Run:
    """clipcls' way from a file to pixels on all cores, without a model that takes part of them."""
    preprocess = load_clipcls_encoder(setup, "fp32", "torch").preprocess

    def decode(path: Path) -> None:
        # nothing is returned, so that the pixels of all pictures are never in memory at once
        load_pixels(path, preprocess)

    def run(paths: Sequence[Path]) -> None:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, paths):
                pass

    return run
