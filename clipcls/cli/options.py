"""Options that several commands share, and what stderr is set up for."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from clipcls.records import Decode, ScoreKind

# what to look for
LabelsOption = Annotated[str | None, typer.Option("--labels", help="Labels, separated by commas.")]
DataLabelsOption = Annotated[
    str | None, typer.Option("--labels", help="Labels, separated by commas. [default: the data's classes]")
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", metavar="LABEL", help="One label, never split; repeatable.")
]
LabelsFileOption = Annotated[
    Path | None, typer.Option("--labels-file", help="Labels in a .txt, .csv, .json or .yaml file.")
]
PromptsOption = Annotated[
    str, typer.Option("--prompts", help="Prompt set: a name from `clipcls prompts list`, or a file.")
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="TEMPLATE", help='Template such as "a photo of a {}"; repeatable.'),
]
StrictPromptsOption = Annotated[
    bool, typer.Option("--strict-prompts", help="A prompt over the context length is an error.")
]
# with which model
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
# in
AllowUrlsOption = Annotated[bool, typer.Option("--allow-urls", help="Fetch inputs that are http(s) addresses.")]
# how to score
ScoreOption = Annotated[
    ScoreKind | None,
    typer.Option("--score", help="What the score is. [default: softmax; multi-label: sigmoid]"),
]
DataMultiLabelOption = Annotated[
    bool, typer.Option("--multi-label", help="Score each label by itself; data with labels always are.")
]
BackgroundOption = Annotated[
    str | None,
    typer.Option("--background", help="What sigmoid scores of a model without a bias compare with. [default: a photo]"),
]
# how to run
MaxPixelsOption = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Larger images are errors. [default: 178956970]")
]
MaxBytesOption = Annotated[
    int | None, typer.Option("--max-bytes", min=1, help="Larger files are errors. [default: 1073741824]")
]
DecodeOption = Annotated[Decode, typer.Option("--decode", help="fast, or exact: open_clip's own pixels, bit for bit.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        envvar="CLIPCLS_BATCH_SIZE",
        min=1,
        help="Halved where memory runs out. [default: 16 on a CPU, 256 on a GPU]",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", envvar="CLIPCLS_WORKERS", min=1, help="Decoding threads. [default: one a core]"),
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
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")]
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
