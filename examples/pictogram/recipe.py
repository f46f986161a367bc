"""Train `pictogram`: `clipcls train`, and what lets a small tower learn within minutes.

    python recipe.py --config config.yaml [--set NAME=VALUE ...]
    python recipe.py --resume run

What the recipe adds to a training run is in the class `Pictogram`; README.md says what each part is good for.
"""

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from clipcls.errors import ClipclsError, UsageError
from clipcls.inputs.labelled.examples import Example
from clipcls.train.checkpoint import resumed_settings
from clipcls.train.data.pictures import PictureDecoder
from clipcls.train.data.table import Table
from clipcls.train.hooks import Hooks
from clipcls.train.loop import TrainWatch, train
from clipcls.train.settings import load_settings, parse_assignments
from clipcls.train.trainer import StepFigures, Trainer

SAMPLE = 1024  # rows that the towers' last layers are set from
TOKEN_GAIN = 4.0  # so that the words outweigh the positions at first
RIDGE = 0.1  # of the mean variance; keeps directions without variance from being blown up


@dataclass(frozen=True, slots=True)
class Pictogram(Hooks):
    """The recipe's part in a training run.

    Attributes:
        curriculum: share of the steps over which the augmentation rises from nothing to its full strength; 0 for full
            strength from the start.
        proxy_weight: weight of the helper loss against one learnable vector per concept.
        spread: set the towers' last layers from a sample of the data before the first step.
    """

    curriculum: float = 0.5
    proxy_weight: float = 1.0
    spread: bool = True

    def augmentation_strength(self, step: int, steps: int) -> float:
        """Return a strength that rises with the steps."""
        return min(1.0, step / (self.curriculum * steps)) if self.curriculum else 1.0

    def extra_loss(self, trainer: Trainer) -> "ProxyLoss":
        """Return the helper loss; its concepts are named by the first caption of each row."""
        token_embedding(trainer.model)
        if self.spread:
            image_projection(trainer.model)
            text_projection(trainer.model)
        concepts = dict.fromkeys(row.captions[0] for row in table_of(trainer).rows)
        return ProxyLoss(list(concepts), trainer.encoder.config.model["embed_dim"], self.proxy_weight)

    def initialise(self, trainer: Trainer) -> None:
        """Set the towers' last layers from a sample of the data, and the helper loss's vectors from their captions."""
        if not self.spread:
            return
        images, tokens = sample(trainer, SAMPLE)
        spread_images(trainer.model, images.to(trainer.device))
        spread_texts(trainer.model, tokens.to(trainer.device))
        with torch.no_grad():
            concepts = trainer.encoder.tokenizer(list(trainer.extra_loss.concepts)).to(trainer.device)
            features = [trainer.model.encode_text(part).float() for part in concepts.split(256)]
        trainer.extra_loss.start_from(torch.cat(features))

    def before_save(self, trainer: Trainer, model: nn.Module) -> None:
        """Zero the embeddings of tokens that no caption uses; they were never trained, and zeros compress."""
        embedding = token_embedding(model)
        texts = list(trainer.feed.phrasing.every(table_of(trainer).captions))
        used: set[int] = set()
        for start in range(0, len(texts), 4096):
            used.update(trainer.encoder.tokenizer(texts[start : start + 4096]).unique().tolist())
        with torch.no_grad():
            embedding.weight[[token for token in range(embedding.num_embeddings) if token not in used]] = 0


def table_of(trainer: Trainer) -> Table:
    """Return the rows of the run, which the recipe has to know beforehand."""
    if not isinstance(trainer.corpus, Table):
        raise UsageError("the recipe needs a table or class folders, whose captions are known beforehand")
    return trainer.corpus


def sample(trainer: Trainer, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs of about `count` rows, as the first step would see them.

    Returns:
        `(n, 3, side, side) float32` and `(count, context_length) int64`.
    """
    feed, rng = trainer.feed, random.Random(f"sample {trainer.settings.seed}")
    rows = table_of(trainer).rows
    rows = rng.sample(rows, min(count, len(rows)))
    groups = [rows[start : start + 256] for start in range(0, len(rows), 256)]
    batches = PictureDecoder(feed.pictures.canvas, cache_mb=0).batches(groups, trainer.settings.threads)
    images = torch.cat([feed.images(pictures, 0) for _, pictures in batches])
    texts = [feed.phrasing.draw(row, rng)[1] for row in rng.choices(rows, k=count)]
    return images, trainer.encoder.tokenizer(texts)


# ---- the helper loss


class ProxyLoss(nn.Module):
    """Cross-entropy of pictures and captions against one learnable vector per concept.

    A batch shows a picture to some hundred concepts at a time; this shows it to all of them, which lets a small tower
    start to learn within minutes. The vectors are dropped after training.

    Source: Movshovitz-Attias et al. 2017, No Fuss Distance Metric Learning using Proxies.

    Args:
        concepts: the names, in the order of the vectors.
        embed_dim: length of the vectors.
        weight: of the loss.
    """

    def __init__(self, concepts: Sequence[str], embed_dim: int, weight: float = 1.0) -> None:
        super().__init__()
        self.concepts, self.weight = tuple(concepts), weight
        self._index = {concept: number for number, concept in enumerate(concepts)}
        self.proxies = nn.Parameter(torch.randn(len(concepts), embed_dim) * embed_dim**-0.5)

    @torch.no_grad()
    def start_from(self, text_features: torch.Tensor) -> None:
        """Set the vectors to the concepts' own text features, `(n_concepts, embed_dim)`, less their mean."""
        self.proxies.copy_(functional.normalize(text_features - text_features.mean(0), dim=-1))

    def forward(
        self, image_features: torch.Tensor, text_features: torch.Tensor, scale: torch.Tensor, rows: Sequence[Example]
    ) -> torch.Tensor:
        """Return the sum over pictures and captions, halved; features are `(n, embed_dim)`, L2-normalised."""
        target = torch.tensor([self._index[row.captions[0]] for row in rows], device=image_features.device)
        proxies = functional.normalize(self.proxies, dim=-1)
        image_loss = functional.cross_entropy(scale * image_features @ proxies.T, target, reduction="sum")
        text_loss = functional.cross_entropy(scale * text_features @ proxies.T, target, reduction="sum")
        return self.weight * ((image_loss + text_loss) / 2)


# ---- a start with features that differ from the first step on
#
# New towers map everything to nearly one direction (mean cosine of two captions 0.8 to 0.9), and a contrastive loss
# first pulls that together further; a small model can stay there for the whole run. Here the last layer of either
# tower is set from a sample of the data, so that its features have no common mean and no preferred direction.
#
# Source: Krähenbühl et al. 2016, Data-dependent Initializations of Convolutional Neural Networks.


def image_projection(model: Any) -> nn.Linear:
    """Return the layer that the image tower ends in."""
    projection = getattr(getattr(model.visual, "head", None), "proj", None)
    if not isinstance(projection, nn.Linear) or projection.bias is None:
        raise UsageError("the recipe needs an image tower with timm_proj linear and timm_proj_bias true")
    require_width("image", projection.in_features, projection.out_features)
    return projection


def text_projection(model: Any) -> nn.Parameter:
    """Return the matrix that the text tower ends in."""
    projection = getattr(model, "text_projection", None)
    if not isinstance(projection, nn.Parameter):
        raise UsageError("the recipe needs open_clip's own text tower, with a text projection without bias")
    require_width("text", *projection.shape)
    return projection


def require_width(tower: str, width: int, embed_dim: int) -> None:
    """Refuse a tower that has fewer features than directions are chosen among them."""
    if width < embed_dim:
        raise UsageError(
            f"the recipe needs a wider tower: the {tower} tower's {width} features are fewer than embed_dim, "
            f"{embed_dim}; lower embed_dim, or widen the tower"
        )


def token_embedding(model: nn.Module) -> nn.Embedding:
    """Return the text tower's table of token embeddings, in either of open_clip's model classes."""
    for owner in (model, getattr(model, "text", None)):
        found = getattr(owner, "token_embedding", None)
        if isinstance(found, nn.Embedding):
            return found
    raise UsageError("the recipe needs open_clip's own text tower")


@torch.no_grad()
def spread_images(model: Any, images: torch.Tensor) -> None:
    """Set the image tower's projection from a sample of inputs, `(n, 3, side, side)`."""
    projection = image_projection(model)
    if len(images) < 2:
        raise UsageError("the recipe needs two pictures at least that can be decoded")
    features = torch.cat([model.visual.trunk(part).float() for part in images.split(256)])
    weight = whitening(features, projection.out_features)
    projection.weight.copy_(weight.T)
    projection.bias.copy_(-features.mean(0) @ weight)


@torch.no_grad()
def spread_texts(model: Any, tokens: torch.Tensor) -> None:
    """Set the text tower's last gain and projection from a sample of captions, `(n, context_length)`."""
    projection = text_projection(model)
    model.token_embedding.weight.mul_(TOKEN_GAIN)
    outputs: list[torch.Tensor] = []
    hook = model.ln_final.register_forward_hook(lambda module, args, output: outputs.append(output))
    for part in tokens.split(256):
        model.encode_text(part)
    hook.remove()
    states = torch.cat(outputs).float()  # (n, context_length, width)
    features = states[torch.arange(len(tokens)), tokens.argmax(-1)]  # at the end of each text
    model.ln_final.bias.sub_(features.mean(0))
    projection.copy_(whitening(features, projection.shape[1]))


def whitening(features: torch.Tensor, width: int) -> torch.Tensor:
    """Return what projects to the directions of largest variance, scaled to unit norm of the result.

    Args:
        features: `(n, n_features) float32`.
        width: of the result, `(n_features, width) float32`.
    """
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    values, vectors = values[-width:], vectors[:, -width:]
    scaled = vectors / (values.clamp_min(0) + RIDGE * values.mean()).sqrt()
    turn = torch.linalg.qr(torch.randn(width, width, device=features.device))[0]
    return scaled @ turn * width**-0.5


# ---- the command


def report(figures: StepFigures) -> None:
    """Print a line now and then."""
    if figures.step % 100 in (0, 1) or figures.step == figures.steps:
        print(f"step {figures.step}/{figures.steps}  loss {figures.loss:.3f}  {figures.seconds_left / 60:.0f} min left")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, help="YAML file with settings of `clipcls train`")
    parser.add_argument("--resume", type=Path, help="go on with the run in this folder")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="any of these settings")
    options = parser.parse_args()
    try:
        given = parse_assignments(options.set)
        read = (
            load_settings(options.config, given)
            if options.resume is None
            else resumed_settings(options.resume, options.config, given)
        )
        print(train(read, TrainWatch(report), resume=options.resume is not None, hooks=Pictogram()).model)
    except ClipclsError as exc:
        parser.exit(exc.exit_code, f"recipe.py: error: {exc}\n")


if __name__ == "__main__":
    main()
