"""Read pictures again by their paths in results, and make them small for a report."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from clipcls.embed.execution import Execution
from clipcls.embed.watch import Watch
from clipcls.errors import ImageError
from clipcls.images.frames import read_frame
from clipcls.images.preview import make_preview
from clipcls.inputs.contents import located, open_content
from clipcls.inputs.result_paths import pictures_at
from clipcls.outputs.atomic import can_write
from clipcls.records import Frame, ImageRef

# pictures that are found and read before the next ones are looked for
_CHUNK = 64


def previews_of(
    paths: Sequence[str], execution: Execution, column: str | None = None, watch: Watch | None = None
) -> Iterator[tuple[int, bytes | ImageError]]:
    """Make pictures small, on threads.

    Args:
        column: see `pictures_at`.
        watch: told how many are made, and how many of those can't be read.

    Yields:
        Each path's place among `paths`, and its preview, a WebP, or why there is none; not in order.
    """
    watch = watch or Watch()
    done = failed = 0
    pictures = pictures_at(paths, column, execution.web is not None)
    with ThreadPoolExecutor(execution.threads(), thread_name_prefix="preview") as pool:
        while chunk := list(islice(pictures, _CHUNK)):
            made = pool.map(lambda found: _preview(found[1], execution), chunk)
            for (place, _), preview in zip(chunk, made, strict=True):
                failed += isinstance(preview, ImageError)
                yield place, preview
            done += len(chunk)
            watch.images(done, failed)


def write_preview(preview: bytes, path: str, folder: Path) -> str:
    """Write the preview of the picture at a path into a folder of previews, and return its name there."""
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()
    name = f"{digest[:2]}/{digest[2:20]}.webp"
    target = folder / name
    with can_write(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(preview)
    return name


def _preview(image: ImageRef, execution: Execution) -> bytes | ImageError:
    if image.error is not None:
        return ImageError(image.error)
    try:
        if isinstance(image.content, Frame):
            return make_preview(read_frame(image.content, execution.max_pixels))
        with open_content(located(image), execution.max_bytes, execution.web) as opened:
            return make_preview(opened.file, execution.max_pixels)
    except ImageError as exc:
        return exc
