"""Names and finds the part files in a folder of results."""

import re
from collections.abc import Iterator
from pathlib import Path

from clipcls.outputs.formats import OUTPUT_FORMATS
from clipcls.outputs.formats.output_format import OutputFormat


def part_name(number: int, format: OutputFormat) -> str:
    """Return the name of a part file."""
    return f"part-{number:06d}.{format.extensions[0]}"


def parts_in(folder: Path) -> dict[int, Path]:
    """Return the part files in a folder by number, in order."""
    return {number: path for path, number, is_draft in _found_in(folder) if not is_draft}


def remove_draft_parts(folder: Path) -> None:
    """Remove the part files that a killed run left unfinished."""
    for path, _, is_draft in _found_in(folder):
        if is_draft:
            path.unlink()


def _found_in(folder: Path) -> Iterator[tuple[Path, int, bool]]:
    """Yield each part file or draft with its number, and whether it is a draft."""
    extensions = "|".join(one.extensions[0] for one in OUTPUT_FORMATS.values() if one.fits_parts)
    for path in sorted(folder.iterdir()):
        is_draft = path.name.startswith(".")
        name = path.name[1:].removesuffix(".part") if is_draft else path.name
        if match := re.fullmatch(rf"part-(\d{{6,}})\.(?:{extensions})", name):
            yield path, int(match[1]), is_draft
