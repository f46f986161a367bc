"""How well heat maps show where a label is, and how dark they are for labels that aren't there.

    python tests/benchmarks/heatmap.py FOLDER [--model everyday] [--method auto] [--count 20] [--random] [--legrad]

FOLDER holds a folder of pictures for each class; the classes are the labels. Printed are, with the chance level:

- pointing: of collages of four pictures of different classes, how often the greatest value of a label's map lies in the
  quarter where the label is (chance: 25 %); plain, and with --against others;
- absent labels: the mean of what is above 0 in the maps of labels that aren't in the picture, in percent of the same of
  its own label: as it is drawn, unweighted, and where each map is stretched to its own greatest value, as other tools
  draw it;
- deletion and insertion: the mean score of a picture's own label while the picture's parts are hidden, or shown on a
  hidden picture, in the order of the map (deletion should be low, insertion high), and in random order;
- seconds a picture.

`--random` replaces the image tower's weights by random ones: pointing has to fall to the chance level.
`--legrad` scores each layer by its own tokens, as LeGrad's paper and package do, in place of the model's own score.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from clipcls import Classifier, ModelSpec, Session
from clipcls.predict.heatmap import HeatMap, HeatMapper, HeatSettings
from clipcls.records import ImageRef

STEPS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--method", default="auto", choices=["auto", "gradient", "occlusion"])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--legrad", action="store_true")
    arguments = parser.parse_args()
    classes = sorted(folder.name for folder in arguments.folder.iterdir() if folder.is_dir())
    random = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder, Session(ModelSpec(arguments.model)) as found:
        session = Session(random_weights(arguments.model, Path(folder))) if arguments.random else found
        classifier = Classifier(session, classes)
        mapper = HeatMapper(classifier, HeatSettings(arguments.method, weighted=False, top_k=len(classes)))
        if arguments.legrad:
            score_each_layer(mapper)
        side = session.facts.preprocess.size
        pictures = list(collages(arguments.folder, classes, arguments.count, side, Path(folder), random))
        singles = [one(arguments.folder, classes, random) for _ in range(arguments.count)]
        warm = mapper.map_picture(ImageRef(str(singles[0][0])))
        rows, columns = warm.values.shape[1:]
        about = f"{mapper.method}, {rows} × {columns} parts{', LeGrad a layer' * arguments.legrad}"
        print(f"{arguments.folder.name} ({arguments.model}{', random weights' * arguments.random}): {about}")
        start = time.perf_counter()
        maps = [mapper.map_picture(ImageRef(str(path))) for path, _ in pictures]
        seconds = (time.perf_counter() - start) / len(maps)
        plain, against = [], []
        for found_map, (_, wanted) in zip(maps, pictures, strict=True):
            values = by_label(found_map, classes)
            others = values - (values.sum(axis=0) - values) / (len(values) - 1)
            plain += [is_in_quarter(values[label], place) for place, label in enumerate(wanted)]
            against += [is_in_quarter(others[label], place) for place, label in enumerate(wanted)]
        print(f"    pointing {np.mean(plain):.1%}, against others {np.mean(against):.1%} of {len(plain)}; chance 25 %")
        print_absent(mapper, singles, classes)
        print_areas(mapper, classifier, singles, classes, random)
        print(f"    {seconds:.2f} s a picture, {len(classes)} labels")


def collages(
    folder: Path, classes: Sequence[str], count: int, side: tuple[int, int], into: Path, random: Any
) -> Iterator[tuple[Path, list[int]]]:
    """Yield pictures of four quarters, and the classes in them: top left, top right, bottom left, bottom right."""
    height, width = side[0] // 2, side[1] // 2
    for number in range(count):
        wanted = [int(label) for label in random.choice(len(classes), 4, replace=False)]
        whole = Image.new("RGB", (2 * width, 2 * height))
        for place, label in enumerate(wanted):
            path = random.choice(sorted((folder / classes[label]).iterdir()))
            with Image.open(path) as picture:
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture.convert("RGBA"))
            small = ImageOps.fit(white.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
            whole.paste(small, (place % 2 * width, place // 2 * height))
        whole.save(into / f"{number}.png")
        yield into / f"{number}.png", wanted


def one(folder: Path, classes: Sequence[str], random: Any) -> tuple[Path, int]:
    """A picture, and its class."""
    label = int(random.integers(len(classes)))
    return Path(random.choice(sorted((folder / classes[label]).iterdir()))), label


def by_label(found: HeatMap, classes: Sequence[str]) -> np.ndarray:
    """The maps in the order of the classes."""
    places = {label.label: place for place, label in enumerate(found.labels)}
    return found.values[[places[name] for name in classes]]


def is_in_quarter(values: np.ndarray, quarter: int) -> bool:
    row, column = np.unravel_index(values.argmax(), values.shape)
    rows, columns = values.shape
    # a part in the middle of an odd number lies in no quarter
    found = (0 if row + 0.5 < rows / 2 else 1, 0 if column + 0.5 < columns / 2 else 1)
    in_middle = row + 0.5 == rows / 2 or column + 0.5 == columns / 2
    return not in_middle and found == (quarter // 2, quarter % 2)


def print_absent(mapper: HeatMapper, singles: Sequence[tuple[Path, int]], classes: Sequence[str]) -> None:
    kinds = ("as drawn", "unweighted", "stretched")
    present, absent = (dict.fromkeys(kinds, 0.0) for _ in range(2))
    for path, label in singles:
        found = mapper.map_picture(ImageRef(str(path)))
        values = by_label(found, classes)
        scores = {each.label: each.score for each in found.labels}
        weights = np.array([scores[name] for name in classes])
        positive = np.maximum(values, 0)
        energy = positive.mean(axis=(1, 2))
        low, high = values.min(axis=(1, 2)), values.max(axis=(1, 2))
        stretched = (values.mean(axis=(1, 2)) - low) / np.maximum(high - low, 1e-12)
        for kind, value in zip(kinds, (energy * weights, energy, stretched), strict=True):
            present[kind] += value[label]
            absent[kind] += np.delete(value, label).mean()
    shares = ", ".join(f"{kind} {absent[kind] / max(present[kind], 1e-12):.0%}" for kind in kinds)
    print(f"    absent labels, of the present one's: {shares}")


def print_areas(
    mapper: HeatMapper, classifier: Classifier, singles: Sequence[tuple[Path, int]], classes: Sequence[str], random: Any
) -> None:
    """Areas under the curves of scores, of at most 20 pictures."""
    areas: dict[str, list[float]] = {"deletion": [], "insertion": [], "random deletion": [], "random insertion": []}
    session = classifier.session
    hidden_colour = np.round(np.array(session.facts.preprocess.mean) * 255).astype(np.uint8)
    for path, label in singles[:20]:
        found = mapper.map_picture(ImageRef(str(path)))
        values = by_label(found, classes)[label]
        for name, order in (("", np.argsort(-values, axis=None)), ("random ", random.permutation(values.size))):
            removed = np.empty(values.size)
            removed[order] = np.arange(values.size) / values.size
            removed = removed.reshape(values.shape)
            rows, columns = (
                np.arange(pixels) * parts // pixels
                for pixels, parts in zip(found.pixels.shape[:2], values.shape, strict=True)
            )
            rank = removed[np.ix_(rows, columns)][..., None]
            for kind in ("deletion", "insertion"):
                steps = [
                    np.where((rank < step / STEPS) == (kind == "insertion"), found.pixels, hidden_colour)
                    for step in range(STEPS + 1)
                ]
                features = session.encoder.encode_image([step.astype(np.uint8) for step in steps])
                logits = np.exp(classifier.label_features.logit_scale) * (
                    features @ classifier.label_features.features.T
                )
                shares = np.exp(logits - logits.max(axis=1, keepdims=True))
                areas[name + kind].append(float((shares / shares.sum(axis=1, keepdims=True))[:, label].mean()))
    print("    area under the score: " + ", ".join(f"{name} {np.mean(area):.3f}" for name, area in areas.items()))


def random_weights(name: str, folder: Path) -> str:
    """A folder with a model whose image tower has random weights."""
    import json

    import torch
    from safetensors.torch import save_file

    from clipcls.models.encoder import load_encoder

    encoder = load_encoder(ModelSpec(name, precision="fp32"))
    state = {f"visual.{key}": value.clone() for key, value in encoder.build("visual", "fp32").state_dict().items()}
    torch.manual_seed(0)
    for key, value in state.items():
        if value.is_floating_point() and not key.endswith(("running_mean", "running_var")):
            noise = torch.randn(value.shape)
            state[key] = noise * value.std() if value.ndim > 1 else value  # norms and biases stay
    loaded = encoder._checkpoint
    state |= {key: value.contiguous() for key, value in loaded.tower("text").items()}
    state["logit_scale"] = torch.tensor(encoder.logit_scale)
    if encoder.logit_bias is not None:
        state["logit_bias"] = torch.tensor(encoder.logit_bias)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "open_clip_model.safetensors")
    preprocess = encoder.preprocess
    stated = {"mean": preprocess.mean, "std": preprocess.std, "interpolation": preprocess.interpolation}
    config = {"model_cfg": encoder.files.config, "preprocess_cfg": stated | {"resize_mode": preprocess.resize_mode}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return str(folder)


def score_each_layer(mapper: HeatMapper) -> None:
    """Make the maps of a ViT as LeGrad's package does: each layer's tokens, averaged, are scored by themselves.

    Source: https://github.com/WalBouss/LeGrad, `compute_legrad_clip`, without its stretching to the range 0 to 1.
    """
    import torch
    from torch.nn.functional import normalize

    from clipcls.models import heat

    tower = mapper._eye._tower._tower
    first = len(tower.transformer.resblocks) // 2

    class LayerLook(heat.AttentionLook):
        def maps(self, directions: np.ndarray) -> np.ndarray:
            rows, columns = self._grid
            result = []
            for direction in directions:
                total = 0
                for place in range(first, len(self._weights)):
                    pooled = tower.ln_post(tokens[place].mean(dim=1)) @ tower.proj
                    product = normalize(pooled, dim=-1)[0] @ torch.from_numpy(direction)
                    (gradient,) = torch.autograd.grad(product, [self._weights[place]], retain_graph=True)
                    total = total + heat._by_patch(gradient, rows * columns)
                result.append(total.view(rows, columns).numpy())
            return np.stack(result).astype(np.float32)

    tokens: list[Any] = []
    blocks = tower.transformer.resblocks
    # the tokens of the last block but the first are needed here
    from open_clip.transformer import ResidualAttentionBlock

    blocks[-1].__class__ = ResidualAttentionBlock
    for block in blocks:
        block.register_forward_hook(lambda module, given, output: tokens.append(output))

    look = mapper._eye._tower.look

    def looked(pixels: np.ndarray) -> heat.AttentionLook:
        tokens.clear()
        found = look(pixels)
        return LayerLook(found._features, found._weights, found._grid)

    mapper._eye._tower.look = looked


if __name__ == "__main__":
    main()
