"""Labelled data that tests write."""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pictures import jpeg, scene

PICTURE = jpeg(scene())
NAMES = ["cat", "hot dog", "truck"]


def write_tar(path: Path, members: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """A tar by hand: names with contents, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, Mapping) else members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


def write_shards(folder: Path, pictures: Sequence[bytes] = (PICTURE,) * 12, extension: str = "jpg") -> Path:
    """Two shards of pictures in CLIP_benchmark's layout, whose classes go round."""
    count = len(pictures)
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(shard * count // 2, (shard + 1) * count // 2):
            members[f"s{number:07d}.cls"] = str(number % 3).encode()
            members[f"s{number:07d}.{extension}"] = pictures[number]
        write_tar(folder / "test" / f"{shard}.tar", members)
    (folder / "classnames.txt").write_text("\n".join(NAMES) + "\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}.\n")
    (folder / "test" / "nshards.txt").write_text("2\n")
    return folder
