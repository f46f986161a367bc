"""Draw the heat maps of some pictures, all by one scale, and write them."""

import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipcls.embed.watch import Watch
from clipcls.errors import ImageError, UsageError, printable
from clipcls.images.heat_panels import Sheet, draw_sheet
from clipcls.inputs.discover import are_countable, discover
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.outputs.atomic import can_write, write_atomically
from clipcls.outputs.sort.names import FileNames, folder_name
from clipcls.predict.classifier import Classifier
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.heatmap import HeatMapper, HeatSettings
from clipcls.predict.ranking import Array
from clipcls.predict.run import RunReport, Tally, count, look_for_one, none_exists
from clipcls.records import ScoredLabel

_MEANINGS = {
    "gradient": "how much the label's logit would grow by more attention to a part (after LeGrad: the gradient by the "
    "attention, without what is negative, mean of heads and layers)",
    "occlusion": "how far the label's logit falls where a part is hidden",
}


@dataclass(frozen=True, slots=True)
class HeatDestination:
    """Where heat maps are written.

    Attributes:
        path: a file that ends in .png, for one picture, or a folder.
        npy: also write the values of each map, to `STEM.LABEL.npy` beside the drawing `STEM.png`.
        smooth: draw values between the maps' own.
    """

    path: Path
    npy: bool = False
    smooth: bool = False

    @property
    def is_file(self) -> bool:
        """Whether the path is one drawing's."""
        return self.path.suffix.lower() == ".png"


@dataclass(frozen=True, slots=True)
class _Kept:
    """The maps of a picture, whose pixels are kept elsewhere; see `HeatMap`."""

    path: str
    labels: tuple[ScoredLabel, ...]
    values: Array


def write_heat_maps(
    classifier: Classifier,
    sources: Sources,
    destination: HeatDestination,
    settings: HeatSettings | None = None,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> RunReport:
    """Draw where the scores of some pictures come from, once the maps of all are there, so that they have one scale.

    Args:
        limit: how many pictures may fail; any number by default.
        stop: called after every picture; once it returns True, the maps so far are drawn.
        watch: told how far it is.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: the drawings can't be written, or too many pictures failed.
        UsageError: there are no pictures, or more than the destination takes; or the labels or the model don't fit the
            settings.
    """
    watch = watch or Watch()
    mapper = HeatMapper(classifier, settings or HeatSettings())
    left_out = LeftOut()
    images, exist = look_for_one(discover(sources, left_out=left_out), sources, left_out)
    if not exist:
        raise none_exists(next(images))
    first = list(islice(images, 2))
    if destination.is_file and len(first) > 1:
        raise UsageError(f"{destination.path} is for one picture, and there are more: give a folder.")
    classifier.embed_labels(watch.labels)
    watch.begin((lambda: count(sources)) if are_countable(sources) else None, 0)
    tally = Tally(limit or ErrorLimit(), watch, (0, 0), can_resume=False)
    kept: list[_Kept] = []
    with tempfile.TemporaryFile() as file:
        for image in chain(first, images):
            try:
                if image.error is not None:
                    raise ImageError(image.error)
                found = mapper.map_picture(image)
            except ImageError as exc:
                tally.add(1, [(image.path, str(exc))])
            else:
                found.pixels.tofile(file)
                kept.append(_Kept(found.path, found.labels, found.values))
                tally.add(1)
            if tally.exceeded or stop():
                break
        file.flush()
        if kept:
            height, width = classifier.session.facts.preprocess.size
            pixels = np.memmap(file, dtype=np.uint8, mode="r", shape=(len(kept), height, width, 3))
            _write_all(kept, pixels, destination, _notes(mapper, settings or HeatSettings(), kept, classifier))
    left_out.report(sources.names)
    return tally.report(sources, stop())


def _write_all(
    kept: Sequence[_Kept], pixels: NDArray[np.uint8], destination: HeatDestination, notes: Sequence[str]
) -> None:
    top = max(float(each.values.max()) for each in kept)
    with can_write(str(destination.path)):
        if not destination.is_file:
            destination.path.mkdir(parents=True, exist_ok=True)
        for drawing, each, picture in zip(_drawings(kept, destination), kept, pixels, strict=True):
            captions = [f"{label.label}  {label.score:.4f}" for label in each.labels]
            sheet = Sheet(
                printable(each.path),
                np.asarray(picture),
                [printable(caption) for caption in captions],
                each.values,
                top,
                notes,
                destination.smooth,
            )
            content = io.BytesIO()
            draw_sheet(sheet).save(content, "PNG", optimize=True)
            _write(drawing, content)
            if destination.npy:
                _write_values(each, drawing)


def _drawings(kept: Sequence[_Kept], destination: HeatDestination) -> Iterator[Path]:
    """Yield the path of each drawing: a picture's path with its folders in the name, and .png instead of its ending."""
    if destination.is_file:
        yield destination.path
        return
    names = FileNames(())
    for each in kept:
        path = re.sub(r"^(\.{0,2}[/\\])+", "", each.path)
        yield destination.path / names.take(f"{folder_name(os.path.splitext(path)[0])}.png")  # noqa: PTH122


def _write_values(each: _Kept, drawing: Path) -> None:
    names = FileNames(())
    for label, values in zip(each.labels, each.values, strict=True):
        target = drawing.with_name(names.take(f"{drawing.stem}.{folder_name(label.label)[:60]}.npy"))
        content = io.BytesIO()
        np.save(content, values)
        _write(target, content)


def _write(path: Path, content: io.BytesIO) -> None:
    write_atomically(path, lambda out: out.write(content.getvalue()))


def _notes(mapper: HeatMapper, settings: HeatSettings, kept: Sequence[_Kept], classifier: Classifier) -> list[str]:
    """Return the lines below each drawing: what the colours mean, and what they can be compared with."""
    meaning = _MEANINGS[mapper.method]
    if settings.against_others:
        meaning += ", minus the mean of the other labels'"
    if settings.weighted:
        meaning += ", times the label's score"
    pictures = "this picture" if len(kept) == 1 else f"all {len(kept):,} pictures of the run"
    rows, columns = kept[0].values.shape[1:]
    return [
        f"{meaning[0].upper()}{meaning[1:]}. One scale for all labels and {pictures}.",
        f"{mapper.method}, {rows} × {columns} parts; model {printable(classifier.session.name)}",
    ]
