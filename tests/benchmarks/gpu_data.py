"""Makes the models and pictures of `gpu.py`, each in a process of its own, at the same time."""

import io
import os
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import open_clip
import torch
from corpora import LARGE as CAMERA
from corpora import corpus, make_pictures
from gpu_plan import LARGE, SHARDS, SMALL, Pictures, Plan, Result

sys.path[:0] = [str(Path(__file__).parents[1])]

from conftest import TINY_CONFIG, save_model  # noqa: E402
from tiny_models import (  # noqa: E402
    RESNET_CONFIG,
    SIGLIP_CONFIG,
    SIGLIP_PREPROCESS,
    change,
    save_tokenizer,
    train,
)

CONVNEXT_CONFIG: dict[str, Any] = TINY_CONFIG | {
    "vision_cfg": {
        "timm_model_name": "test_convnext",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 64,
    }
}
TINY = {
    "tiny ViT": TINY_CONFIG,
    "tiny ResNet": RESNET_CONFIG,
    "tiny ConvNeXt": CONVNEXT_CONFIG,
    "tiny SigLIP": SIGLIP_CONFIG,
}


def prepare(plan: Plan, until: float) -> Iterator[Result]:
    """Make all that isn't there yet."""
    tasks: dict[str, Callable[[], object]] = {
        f"model {name}": partial(make_model, plan, name) for name in plan.families if not plan.model(name).exists()
    }
    for kind, pictures in ((SMALL, plan.small), (LARGE, plan.large)):
        if not plan.pictures(kind).exists():
            tasks[f"{kind} pictures"] = partial(link_pictures, plan.folder, kind, pictures)
    start = time.perf_counter()
    # one after the other where the processes would only share a core or two
    run = _at_once if not plan.is_tiny else _in_turn
    run(tasks)
    yield Result("models and pictures", {"seconds": time.perf_counter() - start, "made": len(tasks)})
    start = time.perf_counter()
    if not plan.pictures(SHARDS).exists():
        make_shards(plan)
    yield Result("shards", {"seconds": time.perf_counter() - start})


def _at_once(tasks: dict[str, Callable[[], object]]) -> None:
    """Run tasks in processes; torch has to be imported, but not used yet."""
    processes = {name: get_context("fork").Process(target=task) for name, task in tasks.items()}
    for process in processes.values():
        process.start()
    for process in processes.values():
        process.join()
    if failed := [f"{name} (exit code {p.exitcode})" for name, p in processes.items() if p.exitcode]:
        raise RuntimeError(f"not made: {', '.join(failed)}")


def _in_turn(tasks: dict[str, Callable[[], object]]) -> None:
    for task in tasks.values():
        task()


def make_model(plan: Plan, name: str) -> None:
    """Random weights that look trained enough for every layer to count, in open_clip's format."""
    torch.set_num_threads(2)
    config = TINY.get(name) or open_clip.get_model_config(name)
    folder = plan.model(name)
    making = folder.with_name(f"unfinished-{folder.name}")
    save_model(making, config, SIGLIP_PREPROCESS if config.get("init_logit_bias") else None)
    if "hf_tokenizer_name" in config["text_cfg"]:
        save_tokenizer(making)
    # else gains of 0 and nearly 0 leave out most of a ResNet and a ConvNeXt
    change(making, train)
    making.rename(folder)


def link_pictures(folder: Path, kind: str, pictures: Pictures) -> None:
    """Make a few pictures, and give each many names: contents aren't cached in what is measured."""
    originals = folder / "originals"
    originals.mkdir(exist_ok=True)
    if pictures.size == CAMERA:
        paths = corpus(originals, "large", pictures.distinct)
    else:
        making = originals / kind
        making.mkdir(exist_ok=True)
        paths = make_pictures(making, pictures.distinct, pictures.size)
    unfinished = folder / f"unfinished-{kind}"
    unfinished.mkdir()
    for number in range(pictures.all):
        os.link(paths[number % len(paths)], unfinished / f"{number:05d}.jpg")
    unfinished.rename(folder / kind)


def make_shards(plan: Plan) -> None:
    """One archive of small pictures, with as many names as it takes for all of them."""
    folder = plan.pictures(SHARDS)
    folder.mkdir()
    first = folder / "000.tar"
    with tarfile.open(first, "w") as archive:
        for path in plan.first(SMALL, plan.shard):
            content = path.read_bytes()
            header = tarfile.TarInfo(path.name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    for number in range(1, plan.small.all // plan.shard):
        os.link(first, folder / f"{number:03d}.tar")
