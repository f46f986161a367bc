"""What `gpu.py` measures: in full on a GPU, in a tiny form on a CPU; imports nothing heavy."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Figure = float | int | str | None

#: The kinds of pictures that whole runs are over: folders of small and of large JPEGs, and shards of small ones.
SMALL, LARGE, SHARDS = "small", "large", "shards"
LABELS = "cat,dog,truck"
#: Where the best two similarities are nearer than this, low precisions may give either label.
MARGIN = 0.01


def require_time(until: float, what: str) -> None:
    """Raise a `TimeoutError`, which says what is left out, once a part may begin nothing more."""
    if time.monotonic() > until:
        raise TimeoutError(f"no time was left for {what} and what comes after it")


@dataclass(frozen=True, slots=True)
class Result:
    """Something that was measured or checked.

    Attributes:
        figures: by their names.
        ok: whether it is as it should be; None for what is only measured.
    """

    name: str
    figures: Mapping[str, Figure] = field(default_factory=dict)
    ok: bool | None = None


@dataclass(frozen=True, slots=True)
class Pictures:
    """How many pictures there are of a kind.

    Attributes:
        distinct: with a content of their own.
        all: names in the folder, several for each content.
        size: width and height.
    """

    distinct: int
    all: int
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how much of it.

    Attributes:
        folder: holds models, pictures, and what runs write.
        device: `cuda`, or `cpu` in its place.
        limits: how far features may be from the CPU's in fp32, for each precision of the device, fp32 first.
        families: models whose features are compared.
        predicting: those of them whose predictions are compared through the command line.
        training: those of them that make steps of training.
        models: those of them whose speed is measured.
        batches: sizes of the forward pass alone.
        usual_batch: the size where only one is measured, which is the default of clipcls.
        compiled: sizes to compile each model for, with the model.
        compiler: what `torch.compile` compiles with.
        compared: pictures whose features are compared.
        small, large: the pictures.
        shard: pictures in a shard.
        loop_seconds: how long a loop is timed.
        rounds: of a whole run, at most.
        too_large: a batch size that doesn't fit into `spare` bytes of the device's memory.
        steps: of a training run that is killed.
    """

    folder: Path
    device: str
    limits: dict[str, float]
    families: tuple[str, ...]
    predicting: tuple[str, ...]
    training: tuple[str, ...]
    models: tuple[str, ...]
    batches: tuple[int, ...]
    usual_batch: int
    compiled: tuple[tuple[str, int], ...]
    compiler: str
    compared: int
    small: Pictures
    large: Pictures
    shard: int
    loop_seconds: float
    rounds: int
    too_large: int
    spare: int
    steps: int

    @property
    def precisions(self) -> tuple[str, ...]:
        """Those that the device computes in, fp32 first."""
        return tuple(self.limits)

    @property
    def is_tiny(self) -> bool:
        """Whether this only shows that the script works."""
        return self.device == "cpu"

    def model(self, name: str) -> Path:
        """The folder of a model."""
        return self.folder / "models" / name.replace(" ", "-")

    def pictures(self, kind: str) -> Path:
        """The folder of a kind of pictures, or of shards."""
        return self.folder / kind

    def first(self, kind: str, count: int) -> list[Path]:
        """The first pictures of a folder."""
        return [self.pictures(kind) / f"{number:05d}.jpg" for number in range(count)]

    def count(self, kind: str) -> int:
        """How many pictures a whole run over a kind has."""
        return self.large.all if kind == LARGE else self.small.all


def full_plan(folder: Path, precisions: tuple[str, ...]) -> Plan:
    """What is measured on a GPU."""
    return Plan(
        folder=folder,
        device="cuda",
        limits={precision: 1e-4 if precision == "fp32" else 5e-3 for precision in precisions},
        families=("ViT-B-32", "ViT-L-14", "RN50", "convnext_base", "ViT-B-16-SigLIP"),
        predicting=("ViT-B-32", "ViT-B-16-SigLIP"),
        training=("ViT-B-32", "RN50"),
        models=("ViT-B-32", "ViT-L-14"),
        batches=(64, 128, 256, 512, 1024),
        usual_batch=256,
        compiled=(("ViT-B-32", 256), ("ViT-L-14", 256), ("ViT-B-32", 1024)),
        compiler="inductor",
        compared=8,
        small=Pictures(400, 20_000, (500, 375)),
        large=Pictures(24, 2_000, (4000, 3000)),
        shard=2_000,
        loop_seconds=0.3,
        rounds=3,
        too_large=4096,
        spare=3 * 2**30,
        steps=12,
    )


def tiny_plan(folder: Path) -> Plan:
    """What shows that the script works, where there is no GPU."""
    return Plan(
        folder=folder,
        device="cpu",
        # features of few dimensions have large values
        limits={"fp32": 1e-4, "bf16": 0.02},
        families=("tiny ViT", "tiny ResNet", "tiny ConvNeXt", "tiny SigLIP"),
        predicting=("tiny ViT",),
        training=("tiny ViT",),
        models=("tiny ViT",),
        batches=(2, 4),
        usual_batch=4,
        compiled=(("tiny ViT", 2),),
        compiler="eager",
        compared=4,
        small=Pictures(6, 48, (120, 90)),
        large=Pictures(2, 4, (800, 600)),
        shard=24,
        loop_seconds=0.0,
        rounds=1,
        too_large=32,
        spare=0,
        steps=3,
    )
