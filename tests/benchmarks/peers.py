"""Images per second of clipcls beside its peers, on the same random weights and pictures, interleaved in one run.

    python tests/benchmarks/peers.py --images 200 --rounds 3

Peers: the transformers zero-shot pipeline (its best of several batch sizes), and an open_clip loop with a DataLoader
as its README shows it. Needs the package transformers. Weights are random: speed doesn't depend on their values.
Every figure is the median over the rounds, with the model already loaded and one batch done.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from clipcls import Classifier, Execution, ModelSpec

LABELS = ["cat", "dog", "truck"]
ARCHITECTURE = "ViT-B-32"


def make_pictures(folder: Path, count: int, size: tuple[int, int]) -> list[Path]:
    """JPEGs with the entropy of photographs: smooth shapes with a little noise."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = pixels + random.normal(0, 6, pixels.shape)
        paths.append(folder / f"{i:05d}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return paths


def save_weights(folder: Path) -> None:
    """Random weights as a model folder that open_clip and clipcls both read."""
    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    config = {
        "model_cfg": open_clip.get_model_config(ARCHITECTURE),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(model),
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def clipcls_runner(folder: Path, precision: str) -> Callable[[list[Path]], None]:
    spec = ModelSpec(str(folder), precision=precision)
    classifier = Classifier(LABELS, model=spec, execution=Execution())

    def run(paths: list[Path]) -> None:
        assert all(prediction.error is None for prediction in classifier.predict(paths))

    return run


def open_clip_runner(folder: Path, workers: int) -> Callable[[list[Path]], None]:
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        text = model.encode_text(tokenizer([f"a photo of a {label}" for label in LABELS]), normalize=True)

    class Pictures(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self, paths: list[Path]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> torch.Tensor:
            return transform(Image.open(self.paths[index]))

    def run(paths: list[Path]) -> None:
        loader = torch.utils.data.DataLoader(Pictures(paths), batch_size=32, num_workers=workers)
        with torch.no_grad():
            for batch in loader:
                features = model.encode_image(batch, normalize=True)
                (model.logit_scale.exp() * features @ text.T).softmax(dim=-1).numpy()

    return run


def transformers_runner(batch_size: int) -> Callable[[list[Path]], None]:
    """The pipeline with a model of the same size; its weights are random like the others'."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPTokenizerFast,
        ZeroShotImageClassificationPipeline,
    )

    bpe = Path(tempfile.mkdtemp())
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    (bpe / "vocab.json").write_text(json.dumps(tokenizer.encoder))
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    (bpe / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges))
    files = (str(bpe / "vocab.json"), str(bpe / "merges.txt"))
    special = {
        "unk_token": "<end_of_text>",
        "bos_token": "<start_of_text>",
        "eos_token": "<end_of_text>",
        "pad_token": "<end_of_text>",
    }
    classify = ZeroShotImageClassificationPipeline(
        model=CLIPModel(CLIPConfig()).eval(),
        tokenizer=CLIPTokenizerFast(*files, **special),
        image_processor=CLIPImageProcessor(),
    )

    def run(paths: list[Path]) -> None:
        list(classify([str(path) for path in paths], candidate_labels=LABELS, batch_size=batch_size))

    return run


def forward_runner(folder: Path, precision: str) -> Callable[[list[Path]], None]:
    """The roof: the image tower alone, on pixels in memory."""
    encoder = Classifier(LABELS, model=ModelSpec(str(folder), precision=precision), execution=Execution()).encoder
    pixels = np.zeros((32, *encoder.preprocess.size, 3), dtype=np.uint8)

    def run(paths: list[Path]) -> None:
        for start in range(0, len(paths), 32):
            encoder.encode_image(pixels[: len(paths) - start])

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--height", type=int, default=375)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    paths = make_pictures(folder, options.images, (options.width, options.height))
    save_weights(folder)
    runners = {
        "clipcls, precision auto": clipcls_runner(folder, "auto"),
        "clipcls, fp32": clipcls_runner(folder, "fp32"),
        "open_clip loop, 2 workers": open_clip_runner(folder, 2),
        "transformers pipeline, batch 1": transformers_runner(1),
        "transformers pipeline, batch 16": transformers_runner(16),
        "forward alone, auto": forward_runner(folder, "auto"),
        "forward alone, fp32": forward_runner(folder, "fp32"),
    }
    speeds: dict[str, list[float]] = {name: [] for name in runners}
    for run in runners.values():
        run(paths[:32])
    for _ in range(options.rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            run(paths)
            speeds[name].append(len(paths) / (time.perf_counter() - start))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{options.images} JPEGs of {options.width}×{options.height}, {ARCHITECTURE}, median of {options.rounds}")
    base = statistics.median(speeds["clipcls, precision auto"])
    for name, values in speeds.items():
        speed = statistics.median(values)
        print(f"{name:34} {speed:7.1f} images/s   clipcls is {base / speed:5.2f} times as fast")


if __name__ == "__main__":
    main()
