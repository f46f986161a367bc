"""What rclip reads: its model as ONNX files, and its database, filled with the same features as clipcls' cache."""

import shutil
import sqlite3
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray

#: The architecture of rclip's model.
ARCH = "ViT-B-32-256"
# where rclip 3.3 looks for its model; elsewhere it would download it
_MODEL_FOLDER = f"{ARCH}-datacomp_s34b_b86k"
_INSERT = "INSERT INTO images (filepath, modified_at, size, vector, hash) VALUES (?, ?, ?, ?, ?)"


class _Text(torch.nn.Module):
    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text(tokens)


def save_onnx(folder: Path, weights: Path) -> None:
    """Write the towers as rclip's own converter does (scripts/convert_model.py), unless they are there; needs onnx.

    Args:
        folder: rclip's data folder.
        weights: a folder as open_clip and clipcls read it.
    """
    place = folder / _MODEL_FOLDER
    if (place / "textual.onnx").exists():
        return
    place.mkdir(parents=True, exist_ok=True)
    model = open_clip.create_model(f"local-dir:{weights}").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, tower, example in (
            ("visual", model.visual, torch.zeros(1, 3, 256, 256)),
            ("textual", _Text(model).eval(), torch.zeros(1, 77, dtype=torch.long)),
        ):
            torch.onnx.export(
                tower,
                (example,),
                str(place / f"{name}.onnx"),
                input_names=["input"],
                output_names=["output"],
                dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}},
                opset_version=18,
                dynamo=False,
            )
    (folder / "tokenizer").mkdir(exist_ok=True)
    shutil.copy2(Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz", folder / "tokenizer")


def fill_database(command: Sequence[str], folder: Path, paths: Sequence[Path], features: NDArray[np.float32]) -> None:
    """Write features as if rclip had computed them.

    Args:
        command: runs rclip with a data folder.
        folder: that folder.
        features: (n_pictures, embed_dim).
    """
    database = folder / "db.sqlite3"
    database.unlink(missing_ok=True)
    # makes the tables
    subprocess.run([*command, "--no-indexing", "anything"], check=True, capture_output=True)
    with closing(sqlite3.connect(database)) as connection, connection:
        for number, (path, row) in enumerate(zip(paths, features, strict=True)):
            found = path.stat()
            connection.execute(_INSERT, (str(path), found.st_mtime, found.st_size, row.tobytes(), f"{number:064x}"))
