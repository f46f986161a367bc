"""The way not taken: pictures that Ray's tasks decode, and an actor encodes; `cluster.py` runs it.

    python tests/benchmarks/decoding_tasks.py MODEL LIST LABELS THREADS OUTPUT

Decoding, encoding and ranking are clipcls's own. The actor has all the threads, and half a core less than all, so that
there is room for the tasks: decoding takes a small share of the time. A part of the job is as large as the engine's.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from clipcls import Classifier, ModelSpec
from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.models.encoder import load_encoder
from clipcls.outputs.destination import Destination
from clipcls.outputs.sinks import open_sink
from clipcls.predict.ranking import LabelFeatures, Scoring, rank, scores
from clipcls.predict.scores import SCORE_KINDS
from clipcls.records import Preprocessing

BATCH = 16
# pictures of a task; their pixels are an object of 19 MB
AT_ONCE = 8 * BATCH


class Decoder:
    """A task's work: paths to pixels; those that can't be read end the run."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        from clipcls.images.fit import load_pixels

        pixels = np.stack([load_pixels(path, self.preprocessing) for path in batch["path"]])
        return {"path": batch["path"], "pixels": pixels}


class Encoder:
    """The actor: pixels to cosines, on as many streams as clipcls would."""

    def __init__(self, model: str, labels: LabelFeatures, threads: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        import torch

        torch.set_num_threads(threads)
        self.labels = labels
        self.encoder = load_encoder(ModelSpec(model, device="cpu"))
        self.encoder.build_image_tower()
        self.threads = ThreadPoolExecutor(self.encoder.streams, initializer=self.encoder.enter_stream)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        pixels = batch["pixels"].copy()  # which Ray's memory doesn't let anybody write to, as torch warns
        batches = [pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH)]
        features = np.concatenate(list(self.threads.map(self.encoder.encode_image, batches)))
        cosines, found = scores(features, self.labels, SCORE_KINDS["softmax"])
        return {"path": batch["path"], "cosines": cosines, "scores": found}


def main() -> None:
    """Label the pictures of a list."""
    model, listed, names, threads, output = sys.argv[1:]
    paths = Path(listed).read_text(encoding="utf-8").splitlines()
    cores = int(threads)
    classifier = Classifier(Session(ModelSpec(model, device="cpu"), Execution(cache_dir=None)), names.split(","))
    labels = classifier.label_features
    preprocessing = classifier.session.encoder.preprocess
    ray.init(address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    blocks = max(1, len(paths) // AT_ONCE)
    data = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=blocks)
    data = data.map_batches(Decoder(preprocessing).__call__, batch_size=None, num_cpus=0.5)
    data = data.map_batches(
        Encoder,
        fn_constructor_args=(model, labels, cores),
        batch_size=None,
        num_cpus=cores - 0.5,
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=2),
    )
    folder = Path(output)
    folder.mkdir(parents=True)
    with open_sink(Destination(str(folder / "part-000000.parquet")), labels.names) as sink:
        for batch in data.iter_batches(batch_size=None):
            for path, cosines, found in zip(batch["path"], batch["cosines"], batch["scores"], strict=True):
                sink.write(rank(str(path), cosines, found, labels.names, Scoring()))


if __name__ == "__main__":
    main()
