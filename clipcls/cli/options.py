"""Options that several commands share, in groups that turn into settings; and the set-up of logging."""

import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from clipcls.errors import NOTICE
from clipcls.models.catalog import CATALOG, DEFAULT_MODEL
from clipcls.outputs.formats import OUTPUT_FORMATS
from clipcls.predict.scores import SCORE_KINDS
from clipcls.records import Decode, ModelSpec, OnError

if TYPE_CHECKING:
    from clipcls.embed.execution import Execution
    from clipcls.inputs.labelled.examples import Truth
    from clipcls.inputs.listing import Sources
    from clipcls.inputs.video import Sampling
    from clipcls.inputs.web import Web
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.predict.taught import Taught
    from clipcls.records import Label, PromptSet


def complete_model(incomplete: str) -> list[str]:
    """Return the aliases that begin so; files are the shell's to offer."""
    return [entry.alias for entry in CATALOG if entry.alias.startswith(incomplete)]


def complete_prompts(incomplete: str) -> list[str]:
    """Return the prompt sets that begin so; files are the shell's to offer."""
    from clipcls.labels.prompts import builtin_names

    return [name for name in builtin_names() if name.startswith(incomplete)]


def complete_labels(incomplete: str) -> list[str]:
    """Return the label sets that begin so; files are the shell's to offer."""
    from clipcls.labels.label_sets import builtin_names

    return [name for name in builtin_names() if name.startswith(incomplete)]


# the choices of --score
if TYPE_CHECKING:
    ScoreName = str
else:
    ScoreName = Literal[tuple(SCORE_KINDS)]

# the choices of --format
if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[tuple(OUTPUT_FORMATS)]

# labels and prompts
LabelsOption = Annotated[
    list[str] | None, typer.Option("--labels", metavar="LABELS", help="Labels, separated by commas; repeatable.")
]
DataLabelsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--labels", metavar="LABELS", help="Labels, separated by commas; repeatable. [default: the data's classes]"
    ),
]
LabelOption = Annotated[
    list[str] | None, typer.Option("--label", metavar="LABEL", help="One label, never split; repeatable.")
]
LabelsFileOption = Annotated[
    str | None,
    typer.Option(
        "--labels-file",
        help="Labels: a .txt, .csv, .tsv, .json, .jsonl or .yaml file, or a name from `clipcls labels list`.",
        autocompletion=complete_labels,
    ),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        help="Prompt set: a name from `clipcls prompts list`, or a file. [default: the model's own, else default]",
        autocompletion=complete_prompts,
    ),
]
TextPromptsOption = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        help="Prompt set to fill texts into, by name or file. [default: texts are taken as they are]",
        autocompletion=complete_prompts,
    ),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="TEMPLATE", help='Template such as "a photo of a {}"; repeatable.'),
]
StrictPromptsOption = Annotated[
    bool, typer.Option("--strict-prompts", help="A prompt over the context length is an error.")
]
# model
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        envvar="CLIPCLS_MODEL",
        help="Alias, NAME:TAG, hf-hub:ORG/REPO, a model folder, or a weights file.",
        autocompletion=complete_model,
    ),
]
ArchOption = Annotated[
    str | None, typer.Option("--arch", help="open_clip architecture, or FILE.json; for a bare weights file only.")
]
PreprocessOption = Annotated[
    str | None,
    typer.Option("--preprocess", help="openai, imagenet, siglip or FILE.json; for weights that don't state their own."),
]
DeviceOption = Annotated[str, typer.Option("--device", envvar="CLIPCLS_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")]
PrecisionOption = Annotated[
    str, typer.Option("--precision", envvar="CLIPCLS_PRECISION", help="auto, fp32, bf16, fp16 or int8.")
]
RuntimeOption = Annotated[
    str, typer.Option("--runtime", envvar="CLIPCLS_RUNTIME", help="What computes on a CPU: auto, torch or openvino.")
]
# inputs
InputsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="INPUT",
        help="Files, directories, globs, addresses, or - for paths on standard input.",
        show_default=False,
    ),
]
FilesFromOption = Annotated[
    str | None, typer.Option("--files-from", help="Read paths from a file, one per line; - is standard input.")
]
NullOption = Annotated[bool, typer.Option("-0", "--null", help="Listed paths end with NUL, not newline.")]
ColumnOption = Annotated[
    str | None,
    typer.Option("--column", help="Column of paths or images in inputs that are .parquet, .csv, .tsv or .jsonl."),
]
AllowUrlsOption = Annotated[bool, typer.Option("--allow-urls", help="Fetch inputs that are http(s) addresses.")]
AllowPrivateUrlsOption = Annotated[
    bool, typer.Option("--allow-private-urls", help="Also from private and link-local addresses.")
]
UrlTimeoutOption = Annotated[
    float, typer.Option("--url-timeout", metavar="SECONDS", min=0.1, help="Time to fetch an image in.")
]
UrlRetriesOption = Annotated[
    int, typer.Option("--url-retries", min=0, help="How often a fetch that failed is tried again.")
]
FpsOption = Annotated[
    float | None,
    typer.Option("--fps", metavar="F", help="Frames to take every second of videos. [default: 1; in folders none]"),
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", metavar="N", help="Frames to take of each video, evenly in time.")
]
KeyframesOption = Annotated[
    bool, typer.Option("--keyframes", help="Take the frames of videos that are coded without others.")
]
OnErrorOption = Annotated[OnError, typer.Option("--on-error", help="What a bad image does to the run.")]
MaxErrorsOption = Annotated[
    str | None, typer.Option("--max-errors", metavar="N|P%", help="More bad images than that stop the run.")
]
PartOption = Annotated[
    str | None,
    typer.Option("--part", metavar="I/N", help="Only the I-th of N parts of the inputs, as 3/16; `merge` joins them."),
]
# outputs
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on with the output where an earlier run ended.")]
RetryErrorsOption = Annotated[
    bool, typer.Option("--retry-errors", help="With --resume: run the images again that failed.")
]
# scores
ScoreOption = Annotated[
    ScoreName | None,
    typer.Option("--score", help="What the score is. [default: softmax; multi-label: sigmoid]"),
]
DataMultiLabelOption = Annotated[
    bool, typer.Option("--multi-label", help="Score each label by itself; data with labels always are.")
]
BackgroundOption = Annotated[
    str | None,
    typer.Option("--background", help="What sigmoid scores of a model without a bias compare with. [default: a photo]"),
]
TaughtOption = Annotated[
    Path | None,
    typer.Option("--taught", metavar="FILE", help="What `clipcls teach` wrote: labels, and what examples taught."),
]
QuestionOption = Annotated[
    str | None,
    typer.Option("--question", metavar="NAME", help="The question whose answers are taken, of those that ask wrote."),
]
# execution, cache and messages
MaxPixelsOption = Annotated[
    int | None, typer.Option("--max-pixels", min=1, help="Larger images are errors. [default: 178956970]")
]
MaxBytesOption = Annotated[
    int | None, typer.Option("--max-bytes", min=1, help="Larger files are errors. [default: 1073741824]")
]
DecodeOption = Annotated[Decode, typer.Option("--decode", help="fast, or exact: open_clip's own pixels.")]
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


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take dataclasses of options, each field of which becomes an option of the command."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in hints.items() if is_dataclass(kind)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            parameters += _parameters(groups[name])
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def called(**values: Any) -> None:
        made = {name: kind(**{f.name: values.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**made, **values)

    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return called


def _parameters(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


@dataclass(frozen=True, slots=True)
class LabelOptions:
    """The options for labels."""

    labels: LabelsOption = None
    label: LabelOption = None
    labels_file: LabelsFileOption = None

    @property
    def are_given(self) -> bool:
        """Whether any labels are given."""
        return self.labels is not None or bool(self.label) or self.labels_file is not None

    def read(self) -> "tuple[Label, ...]":
        """Return the labels that the options give.

        Raises:
            UsageError: there are none, or they can't be used.
        """
        from clipcls.labels.label_files import parse_labels

        return parse_labels(self.labels or (), self.label or (), self.labels_file)


@dataclass(frozen=True, slots=True)
class DataLabelOptions(LabelOptions):
    """The options for labels in commands whose data name classes."""

    labels: DataLabelsOption = None

    def read_if_given(self) -> "tuple[Label, ...] | None":
        """Return the given labels, of which some may be equal; None for the data's classes."""
        from clipcls.labels.label_files import parse_labels

        return parse_labels(self.labels or (), self.label or (), self.labels_file, True) if self.are_given else None

    def among(self, truth: "Truth", given: "Sequence[Label] | None") -> "tuple[Label, ...]":
        """Return the labels of a run: the given ones, or the data's classes.

        Raises:
            UsageError: two of the given ones are equal, and aren't classes of the data that are.
        """
        from clipcls.labels.label_files import refuse_duplicates

        if given is None:
            return truth.labels
        if truth.same and [label.name for label in given] == [truth.same.get(n, n) for n in truth.classnames]:
            return tuple(replace(label, name=name) for label, name in zip(given, truth.classnames, strict=True))
        refuse_duplicates(given)
        return tuple(given)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The options for the model, its device, its precision and what computes it."""

    model: ModelOption = DEFAULT_MODEL
    arch: ArchOption = None
    preprocess: PreprocessOption = None
    device: DeviceOption = "auto"
    precision: PrecisionOption = "auto"
    runtime: RuntimeOption = "auto"

    def spec(self) -> ModelSpec:
        """Return the model that the options name."""
        return ModelSpec(self.model, self.arch, self.preprocess, self.device, self.precision, self.runtime)

    def spec_for(self, context: typer.Context, made_by: str | None) -> ModelSpec:
        """Return the model that the options name, or that made a file, where --model isn't given.

        Args:
            made_by: the model's name; None where no file says it.
        """
        source = context.get_parameter_source("model")
        is_given = source is not None and source.name == "COMMANDLINE"
        return self.spec() if made_by is None or is_given else replace(self.spec(), name=made_by)


@dataclass(frozen=True, slots=True)
class InputOptions:
    """The options for where pictures are, besides the arguments that name them."""

    files_from: FilesFromOption = None
    null: NullOption = False
    column: ColumnOption = None
    allow_urls: AllowUrlsOption = False
    allow_private_urls: AllowPrivateUrlsOption = False

    def sources(self, inputs: Sequence[str] | None, sampling: "Sampling | None" = None) -> "Sources":
        """Return where the pictures are.

        Args:
            sampling: which frames of videos are taken.

        Raises:
            UsageError: nothing says so.
        """
        from clipcls.errors import UsageError
        from clipcls.inputs.listing import Sources

        if not inputs and self.files_from is None:
            raise UsageError("No images. Give files, directories, globs, or - for paths on standard input.")
        return Sources(
            inputs or (),
            self.files_from,
            self.null,
            self.column,
            self.allow_urls,
            self.allow_private_urls,
            sampling=sampling,
        )


@dataclass(frozen=True, slots=True)
class VideoOptions:
    """The options for which frames of videos are taken."""

    fps: FpsOption = None
    frames: FramesOption = None
    keyframes: KeyframesOption = False

    def sampling(self) -> "Sampling | None":
        """Return which frames are taken; None where no option says so.

        Raises:
            UsageError: several options do, or a number is out of range.
        """
        from clipcls.errors import UsageError
        from clipcls.inputs.video import Sampling

        if (self.fps is not None) + (self.frames is not None) + self.keyframes > 1:
            raise UsageError("Give --fps, --frames or --keyframes, not several of them.")
        if self.keyframes:
            return Sampling("keyframes")
        if self.frames is not None:
            return Sampling("frames", self.frames)
        return None if self.fps is None else Sampling("fps", self.fps)


@dataclass(frozen=True, slots=True)
class DividedInputOptions(InputOptions):
    """The options for where pictures are in commands that can run over a part of them."""

    part: PartOption = None

    def sources(self, inputs: Sequence[str] | None, sampling: "Sampling | None" = None) -> "Sources":
        """Return where the pictures are, and the part that is read.

        Args:
            sampling: which frames of videos are taken.

        Raises:
            UsageError: nothing says where, or there is no such part.
        """
        from clipcls.errors import UsageError
        from clipcls.records import InputPart

        try:
            part = None if self.part is None else InputPart.parse(self.part)
        except ValueError:
            raise UsageError(f"--part {self.part}: give its number and how many there are, such as 3/16.") from None
        return replace(InputOptions.sources(self, inputs, sampling), part=part)


@dataclass(frozen=True, slots=True)
class FetchOptions:
    """The options for how pictures are fetched from addresses."""

    url_timeout: UrlTimeoutOption = 30.0
    url_retries: UrlRetriesOption = 2

    def web(self, inputs: InputOptions) -> "Web | None":
        """Return what fetches pictures; None where it isn't allowed.

        Raises:
            UsageError: options for it are given, and it isn't allowed.
        """
        from clipcls.errors import UsageError
        from clipcls.inputs.web import Web

        if inputs.allow_urls:
            return Web(self.url_timeout, self.url_retries, inputs.allow_private_urls)
        if inputs.allow_private_urls or self != FetchOptions():
            raise UsageError("Options for addresses need --allow-urls.")
        return None


@dataclass(frozen=True, slots=True)
class ErrorOptions:
    """The options for what bad pictures do to a run."""

    on_error: OnErrorOption = "skip"
    max_errors: MaxErrorsOption = None

    def limit(self) -> "ErrorLimit":
        """Return how many pictures may fail.

        Raises:
            UsageError: it isn't a number.
        """
        from clipcls.predict.error_limit import ErrorLimit

        return ErrorLimit.parse(self.max_errors, self.on_error)


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """The options for the largest pictures."""

    max_pixels: MaxPixelsOption = None
    max_bytes: MaxBytesOption = None


@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options for how a run is carried out."""

    decode: DecodeOption = "fast"
    batch_size: BatchSizeOption = None
    workers: WorkersOption = None
    cache_dir: CacheDirOption = None
    cache_size: CacheSizeOption = None
    no_cache: NoCacheOption = False

    def execution(self, limits: LimitOptions, strict_prompts: bool, web: "Web | None" = None) -> "Execution":
        """Return the settings of how a run is carried out."""
        from clipcls.embed.cache.store import DEFAULT_LIMIT, MEGABYTE
        from clipcls.embed.execution import Execution
        from clipcls.images.limits import MAX_PIXELS
        from clipcls.inputs.open_file import MAX_BYTES

        return Execution(
            decode=self.decode,
            batch_size=self.batch_size,
            workers=self.workers,
            max_pixels=limits.max_pixels or MAX_PIXELS,
            max_bytes=limits.max_bytes or MAX_BYTES,
            web=web,
            cache_dir=cache_folder(self.cache_dir, self.no_cache),
            cache_size=DEFAULT_LIMIT if self.cache_size is None else self.cache_size * MEGABYTE,
            strict_prompts=strict_prompts,
        )


@dataclass(frozen=True, slots=True)
class VerbosityOptions:
    """The options for how much is printed on stderr."""

    verbose: VerboseOption = False
    quiet: QuietOption = False

    def set_up_logging(self) -> None:
        """Set up logging by these options; see the function of this name."""
        set_up_logging(self.verbose, self.quiet)


def cache_folder(cache_dir: Path | None, no_cache: bool) -> Path | None:
    """Return the folder of the cache; None for no cache."""
    from clipcls.embed.cache.database import default_folder

    return None if no_cache else cache_dir or default_folder()


def prompt_set(prompts: str | None, templates: Sequence[str] | None) -> "PromptSet | None":
    """Return the prompt set that --prompts or --template give; None for the model's own.

    Raises:
        UsageError: both are given, or the set can't be used.
    """
    from clipcls.errors import UsageError
    from clipcls.labels.prompts import load_prompt_set, templates_set

    if not templates:
        return None if prompts is None else load_prompt_set(prompts)
    if prompts is not None:
        raise UsageError("Give --prompts or --template, not both; a file of prompts can hold all templates.")
    return templates_set(templates)


def read_taught(path: Path, *others: object) -> "Taught":
    """Read what --taught names, which has labels and prompts of its own.

    Args:
        others: options for labels and prompts, none of which may be given.

    Raises:
        UsageError: one is given, or the file can't be used.
    """
    from clipcls.errors import UsageError
    from clipcls.predict import taught

    if any(others):
        raise UsageError("--taught has labels and prompts of its own: leave others out.")
    return taught.read_taught(path)


def labelled_pictures(
    data: Sequence[str],
    labels: "Sequence[Label] | None",
    multi_label: bool,
    allow_urls: bool,
    group_columns: Sequence[str] = (),
) -> "Truth":
    """Read labelled pictures.

    Args:
        labels: the labels that numbers in shards refer to; None for the classes that the data name.
        multi_label: score each label by itself, even if each picture has only one.
        allow_urls: whether addresses may be fetched.
        group_columns: columns of a table, whose cells are the pictures' groups.

    Raises:
        UsageError: they can't be read.
    """
    from clipcls.inputs.labelled.read import read_truth

    names = None if labels is None else [label.name for label in labels]
    truth = read_truth(data, names, allow_urls, group_columns)
    return replace(truth, multi_label=True) if multi_label else truth


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Send clipcls's messages to stderr as `clipcls: …`, and other libraries' warnings only with -v."""
    handler = _Handler()
    logger = logging.getLogger("clipcls")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(logging.ERROR if quiet else logging.INFO if verbose else NOTICE)
    handler.setLevel(logger.level)  # some libraries' loggers have levels of their own
    logging.captureWarnings(True)
    others = logging.getLogger()
    others.handlers = [handler]
    others.setLevel(logging.WARNING if verbose else logging.CRITICAL)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        # sys.stderr is looked up each time, since a progress bar replaces it
        print(f"clipcls: {level}{' '.join(record.getMessage().splitlines())}", file=sys.stderr)
