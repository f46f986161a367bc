"""`clipcls check`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.catalog import DEFAULT_MODEL
from clipcls.cli import options
from clipcls.cli.progress import Progress

if TYPE_CHECKING:
    from clipcls.findings import Finding

ReportFormat = Literal["table", "tsv", "json"]


def check(
    labels: Annotated[str | None, typer.Option("--labels", help="Labels, separated by commas.")] = None,
    label: Annotated[
        list[str] | None, typer.Option("--label", metavar="LABEL", help="One label, never split; repeatable.")
    ] = None,
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="Labels in a .txt, .csv, .json or .yaml file.")
    ] = None,
    prompts: Annotated[
        str, typer.Option("--prompts", help="Prompt set: a name from `clipcls prompts list`, or a file.")
    ] = "default",
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="TEMPLATE", help='Template such as "a photo of a {}"; repeatable.'),
    ] = None,
    strict_prompts: Annotated[
        bool, typer.Option("--strict-prompts", help="A prompt over the context length is an error.")
    ] = False,
    model: options.ModelOption = DEFAULT_MODEL,
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    device: options.DeviceOption = "auto",
    precision: options.PrecisionOption = "auto",
    format: Annotated[
        ReportFormat | None, typer.Option("--format", help="[default: table on a terminal, else tsv]")
    ] = None,
    cache_dir: options.CacheDirOption = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither read nor write the cache.")] = False,
    verbose: options.VerboseOption = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Only warnings and errors.")] = False,
) -> None:
    """Look for what is wrong with a model, labels and prompts, before there are pictures.

    Says all that it finds: ok, note, warning or error, what it is about, and what to do. Exits with 0 where there is
    nothing worse than notes, with 1 for warnings, with 2 for errors in labels, prompts and options, and with 3 for
    errors of the model.

    Example: clipcls check --model my-model/ --labels cat,dog,truck
    """
    options.set_up_logging(verbose, quiet)
    from clipcls.cache import default_folder
    from clipcls.embed import Execution
    from clipcls.findings import exit_code
    from clipcls.preflight import preflight
    from clipcls.records import ModelSpec
    from clipcls.wording import Wording

    execution = Execution(cache_dir=None if no_cache else cache_dir or default_folder(), strict_prompts=strict_prompts)
    wording = Wording(labels, tuple(label or ()), labels_file, prompts, tuple(template or ()))
    with Progress(not quiet, "-") as progress:
        spec = ModelSpec(model, arch, preprocess, device, precision)
        code = exit_code(_shown(preflight(spec, wording, execution, progress.update_labels), format, quiet))
    if code:
        raise typer.Exit(code)


def _shown(findings: "Iterator[Finding]", kind: ReportFormat | None, quiet: bool) -> "list[Finding]":
    """Print findings as they come; with `quiet` only what is wrong."""
    import shutil

    from clipcls.findings import as_json, table_lines, tsv_line

    kind = kind or ("table" if sys.stdout is not None and sys.stdout.isatty() else "tsv")
    width = shutil.get_terminal_size().columns
    shown = []
    for finding in findings:
        if quiet and finding.level in ("ok", "note"):
            continue
        shown.append(finding)
        if kind != "json":
            _write(table_lines(finding, width) if kind == "table" else tsv_line(finding))
    if kind == "json":
        _write(as_json(shown))
    return shown


def _write(text: str) -> None:
    # a path may hold bytes that aren't UTF-8
    typer.echo(text.encode("utf-8", "backslashreplace"), nl=False)
