"""Whether a GPU computes what the CPU does: features, predictions through the command line, steps of training."""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from gpu_jobs import Job, compare_rows, finish_all, predict
from gpu_plan import LABELS, MARGIN, SMALL, Figure, Plan, Result, require_time
from numpy.typing import NDArray

from clipcls import ModelSpec
from clipcls.images.fit import load_pixels
from clipcls.models.encoder import Encoder, load_encoder
from clipcls.train.data.read import read_data
from clipcls.train.settings import load_settings
from clipcls.train.start_model import start_model
from clipcls.train.towers import batch_norms
from clipcls.train.trainer import Trainer

sys.path[:0] = [str(Path(__file__).parents[1])]

from conftest import TINY_CONFIG  # noqa: E402

PROMPTS = [f"a photo of a {label}" for label in LABELS.split(",")] + ["a street in the rain, seen from a window"]
#: How far a step's loss and its gradient may be, both by their size, from the CPU's in fp32.
STEP_LIMITS = {"fp32": (1e-4, 1e-3), "bf16": (0.02, 0.15), "fp16": (5e-3, 0.03)}
#: How far the gradient may be with BatchNorm, which magnifies the rounding of a small batch: of RN50 and 16 pictures
#: in fp32, a CPU's is 0.0035 off if it only adds up in the order of one thread instead of two.
BATCH_NORM_LIMITS = {"fp32": 0.02, "bf16": 0.4, "fp16": 0.1}
#: How far the losses of a resumed run may be, by their size: a GPU adds some sums up in an order of chance.
RESUMED = 1e-3
#: With patches that are dropped, so that the random state counts, which is the GPU's own.
DROPPING = TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"patch_dropout": 0.5}}

Features = NDArray[np.float32]


# ---------------------------------------------------------------------------------------------------------
# Features


@dataclass(frozen=True, slots=True)
class Computed:
    """What a model makes of some pictures and prompts.

    Attributes:
        images, texts: (n, embed_dim), normalised.
    """

    images: Features
    texts: Features

    @property
    def similarities(self) -> Features:
        """(n_images, n_texts)."""
        return self.images @ self.texts.T


def features(plan: Plan, until: float) -> Iterator[Result]:
    """Compare the features of all families; in fp32 those of single pictures as well."""
    for name in plan.families:
        reference = _opened(plan, name, "cpu", "fp32")
        pixels = [load_pixels(path, reference.preprocess) for path in plan.first(SMALL, plan.compared)]
        expected = _computed(reference, pixels)
        del reference
        for precision in plan.precisions:
            require_time(until, f"{name} {precision}")
            encoder = _opened(plan, name, plan.device, precision)
            found = _computed(encoder, pixels)
            figures = _differences(found, expected)
            if precision == "fp32":
                single = np.concatenate([encoder.encode_image([picture]) for picture in pixels])
                figures["one by one"] = _furthest(single, expected.images)
            ok = max(figures.values()) <= plan.limits[precision]
            cosine = float((found.images * expected.images).sum(axis=1).min())
            yield Result(f"{name} {precision}", {**figures, "least cosine": cosine}, ok)
            del encoder
            if not plan.is_tiny:
                torch.cuda.empty_cache()


def _opened(plan: Plan, name: str, device: str, precision: str) -> Encoder:
    return load_encoder(ModelSpec(str(plan.model(name)), device=device, precision=precision))


def _computed(encoder: Encoder, pixels: Sequence[NDArray[np.uint8]]) -> Computed:
    return Computed(encoder.encode_image(pixels), encoder.encode_text(PROMPTS))


def _differences(found: Computed, expected: Computed) -> dict[str, float]:
    return {
        "images": _furthest(found.images, expected.images),
        "texts": _furthest(found.texts, expected.texts),
        "similarities": _furthest(found.similarities, expected.similarities),
    }


def _furthest(found: Features, expected: Features) -> float:
    return float(np.abs(found - expected).max())


# ---------------------------------------------------------------------------------------------------------
# Predictions


def predictions(plan: Plan, until: float) -> Iterator[Result]:
    """Compare the rows of `clipcls predict`; the runs go on at the same time, since none is timed."""
    listed = plan.folder / "compared.txt"
    count = 8 * plan.compared
    listed.write_text("".join(f"{path}\n" for path in plan.first(SMALL, count)), encoding="utf-8")
    options = ["--files-from", str(listed), "--top-k", "3", "--format", "jsonl", "-q"]
    ways = [("cpu", "fp32"), *((plan.device, precision) for precision in plan.precisions)]
    jobs = {
        (model, *way): predict(
            plan, f"predictions-{model}-{'-'.join(way)}", model, [], *options, "--precision", way[1], device=way[0]
        )
        for model in plan.predicting
        # on a CPU, its own fp32 would only be computed twice
        for way in dict.fromkeys(ways)
    }
    ran = dict(zip(jobs, finish_all(list(jobs.values())), strict=True))
    for (model, device, precision), run in ran.items():
        run.require_success()
        if (device, precision) != ("cpu", "fp32"):
            margin = 0.0 if precision == "fp32" else MARGIN
            expected = ran[model, "cpu", "fp32"]
            yield compare_rows(plan, f"{model} {precision}", run, expected, plan.limits[precision], margin)


# ---------------------------------------------------------------------------------------------------------
# Training


def training(plan: Plan, until: float) -> Iterator[Result]:
    """Kill a run and resume it; then compare a step's loss and gradient, and train a little further."""
    table = plan.folder / "captions.jsonl"
    rows = [{"image": str(path), "caption": f"thing {path.stem}"} for path in plan.first(SMALL, 8 * plan.compared)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    yield _resumed(plan, table)
    for name in plan.training:
        expected = _Step(plan, name, "cpu", "fp32", table)
        # in the tiny form, fp32 would only be computed twice
        for precision in plan.precisions[plan.is_tiny :]:
            require_time(until, f"{name} {precision}")
            step = _Step(plan, name, plan.device, precision, table)
            yield _compared_step(f"{name} {precision}", step, expected, precision)


class _Step:
    """The first step of a training run from a model's weights, always with the same batch, and some after it.

    Attributes:
        loss: of the first step.
        gradients: of the first step, by weight, on the CPU.
        repeated: how often the step was made again because the scaled gradients were too large.
    """

    def __init__(self, plan: Plan, name: str, device: str, precision: str, table: Path) -> None:
        # the limits are those of fp32, and convolutions run in TF32 by themselves
        torch.backends.cudnn.allow_tf32 = False
        given = {"data": str(table), "model": str(plan.model(name)), "output": str(plan.folder / "never-written")}
        options = {"batch_size": 2 * plan.compared, "epochs": 4.0, "augment": "none", "grad_clip": 0.0, "workers": 2}
        settings = load_settings(None, given | options | {"device": device, "precision": precision})
        torch.manual_seed(0)
        self.trainer = Trainer(settings, start_model(settings), read_data(settings.data))
        self._batches = self.trainer.feed.batches()
        batch = next(self._batches)
        self.repeated = -1
        while True:
            loss = self.trainer.step(batch, 0.0)
            assert loss is not None
            self.loss, self.repeated = loss, self.repeated + 1
            self.gradients = {
                name: weight.grad.detach().double().cpu()
                for name, weight in self.trainer.model.named_parameters()
                if weight.grad is not None
            }
            if self.repeated == 16 or all(bool(gradient.isfinite().all()) for gradient in self.gradients.values()):
                break

    def go_on(self) -> list[float]:
        """Make the steps of the other batches, at a rate at which the loss falls; returns their losses."""
        found = [self.trainer.step(batch, 1e-4) for batch in self._batches]
        return [loss for loss in found if loss is not None]


def _compared_step(name: str, step: _Step, expected: _Step, precision: str) -> Result:
    assert step.gradients.keys() == expected.gradients.keys()
    off = sum(float((step.gradients[key] - value).square().sum()) for key, value in expected.gradients.items())
    size = sum(float(value.square().sum()) for value in expected.gradients.values())
    loss, gradient = abs(step.loss - expected.loss) / abs(expected.loss), (off / size) ** 0.5
    figures: dict[str, Figure] = {
        "loss": step.loss,
        "loss off by": loss,
        "gradient off by": gradient,
        "repeated": step.repeated,
    }
    losses = step.go_on()
    figures |= {"steps": len(losses), "last loss": losses[-1]}
    if step.trainer.scaler.is_enabled():
        figures["scale"] = step.trainer.scaler.get_scale()
    most_loss, most_gradient = STEP_LIMITS[precision]
    if batch_norms(step.trainer.model):
        most_gradient = BATCH_NORM_LIMITS[precision]
    ok = loss <= most_loss and gradient <= most_gradient and bool(np.isfinite(losses).all())
    return Result(name, figures, ok)


def _resumed(plan: Plan, table: Path) -> Result:
    """Train a small model unbroken, and killed with SIGKILL at about half and resumed: losses have to be the same."""
    for name in ("whole", "broken"):
        shutil.rmtree(plan.folder / f"train-{name}", ignore_errors=True)
    jobs = [_train(plan, table, name) for name in ("whole", "broken")]
    killer = threading.Thread(target=_kill_at, args=(jobs[1], _metrics(plan, "broken"), max(2, plan.steps // 2)))
    killer.start()
    whole, broken = finish_all(jobs)
    killer.join()
    whole.require_success()
    resumed = Job(plan, ["train", "--resume", str(plan.folder / "train-broken"), "-q"], "train-resumed")
    resumed.finish().require_success()
    losses = [_losses(_metrics(plan, name)) for name in ("whole", "broken")]
    off = max(abs(one - other) / abs(one) for one, other in zip(*losses, strict=True))
    was_killed = broken.code == -signal.SIGKILL
    figures = {"steps": len(losses[0]), "killed": str(was_killed), "losses off by": off}
    return Result("resumed after SIGKILL", figures, ok=off <= RESUMED and was_killed)


def _train(plan: Plan, table: Path, name: str) -> Job:
    arch = plan.folder / "arch.json"
    arch.write_text(json.dumps(DROPPING), encoding="utf-8")
    settings = {
        "data": str(table),
        "arch": str(arch),
        "output": str(plan.folder / f"train-{name}"),
        "epochs": plan.steps / 4,
        "batch_size": 2 * plan.compared,
        "device": plan.device,
        # at the end, or after each step
        "save_minutes": 0 if name == "whole" else 1e-9,
        "workers": 2,
    }
    config = plan.folder / f"train-{name}.yaml"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return Job(plan, ["train", "--config", str(config), "-q"], f"train-{name}")


def _metrics(plan: Plan, name: str) -> Path:
    return plan.folder / f"train-{name}" / "metrics.jsonl"


def _losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]


def _kill_at(job: Job, metrics: Path, step: int) -> None:
    """Kill a run once it has made some steps, of which the last one's checkpoint is being written."""
    while True:
        time.sleep(0.005)
        try:
            if metrics.read_bytes().count(b"\n") >= step:
                os.kill(job.pid, signal.SIGKILL)
                return
            os.kill(job.pid, 0)
        except FileNotFoundError:
            continue
        except ProcessLookupError:
            return
