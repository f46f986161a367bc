"""Peak memory of `clipcls train` on a small and a large table, with and without the cache of decoded pictures.

    python tests/benchmarks/memory.py --rows 2000 20000

Every run is one pass over a table of different pictures with a small model, in a process of its own. Without a cache,
what the larger table takes more is what its rows cost.
"""

import argparse
import json
import sys
from pathlib import Path

from training import prepare, run_process, scratch_folder, write_table


def write_architecture(path: Path, side: int) -> None:
    """A model that is small beside the pictures."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": side, "layers": 1, "width": 64, "patch_size": side // 4},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path.write_text(json.dumps(config), encoding="utf-8")


def peak_memory(folder: Path, table: Path, cache_mb: int | None, batch_size: int) -> float:
    """The peak in MiB of one pass over a table."""
    run = folder / f"{table.stem}-{cache_mb}"
    run.mkdir()
    settings: dict[str, str | int] = {
        "data": str(table),
        "arch": str(folder / "architecture.json"),
        "output": str(run / "output"),
        "epochs": 1,
        "batch_size": batch_size,
        "device": "cpu",
        "augment": "light",
        "save_minutes": 0,
    }
    if cache_mb is not None:
        settings["cache_mb"] = cache_mb
    (run / "settings.yaml").write_text(json.dumps(settings), encoding="utf-8")
    return run_process([sys.executable, "-m", "clipcls", "train", "--config", str(run / "settings.yaml")], run).peak


def main() -> None:
    """Parse the command line, make the data, print the peaks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs=2, default=[2000, 20000])
    parser.add_argument("--side", type=int, default=224, help="of the model's input, in pixels")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--cache-mb", type=int, nargs="*", default=[0], help="beside clipcls' default")
    options = parser.parse_args()
    with scratch_folder() as folder:
        pictures, _ = prepare(folder, max(options.rows), (96, 72))
        write_architecture(folder / "architecture.json", options.side)
        for cache_mb in (None, *options.cache_mb):
            peaks = []
            for rows in options.rows:
                table = folder / f"{rows}.csv"
                write_table(table, pictures, rows)
                peaks.append(peak_memory(folder, table, cache_mb, options.batch_size))
                kept = "default cache" if cache_mb is None else f"cache_mb {cache_mb}"
                print(f"{kept:14} {rows:7} rows: peak {peaks[-1]:6.0f} MiB", flush=True)
            few, many = options.rows
            more = (peaks[1] - peaks[0]) * 2**20 / (many - few)
            print(f"{kept:14} {peaks[1] / peaks[0]:.2f} times the memory, {more:.0f} bytes for each further row")


if __name__ == "__main__":
    main()
