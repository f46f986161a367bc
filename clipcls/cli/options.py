"""Options that several commands share, and what stderr is set up for."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="CLIPCLS_MODEL",
        help="Alias, NAME:TAG, hf-hub:ORG/REPO, a model folder, or a weights file.",
    ),
]
ArchOption = Annotated[str | None, typer.Option("--arch", help="open_clip architecture; for a bare weights file only.")]
PreprocessOption = Annotated[
    str | None,
    typer.Option("--preprocess", help="openai, imagenet, siglip or FILE.json; for weights that don't state their own."),
]
DeviceOption = Annotated[str, typer.Option("--device", envvar="CLIPCLS_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", envvar="CLIPCLS_PRECISION", help="auto, fp32, bf16 or fp16.")
]
CacheDirOption = Annotated[
    Path | None,
    typer.Option("--cache-dir", envvar="CLIPCLS_CACHE_DIR", help="Where the cache lies. [default: the platform's]"),
]
CacheSizeOption = Annotated[
    int | None,
    typer.Option(
        "--cache-size",
        metavar="MB",
        min=1,
        envvar="CLIPCLS_CACHE_SIZE",
        help="Largest size of the cache, in MB. [default: 2048]",
    ),
]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say what is done, and other libraries' warnings.")
]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="No warnings, no lines for bad images, no progress.")]


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """clipcls's own messages go to stderr as `clipcls: …`; other libraries' warnings only with -v."""
    handler = _Handler()
    logger = logging.getLogger("clipcls")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    logging.captureWarnings(True)
    others = logging.getLogger()
    others.handlers = [handler]
    others.setLevel(logging.WARNING if verbose else logging.CRITICAL)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        # looked up each time: a progress bar puts itself in front of it
        print(f"clipcls: {level}{record.getMessage()}", file=sys.stderr)
