"""`clipcls check`."""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.errors import UsageError

if TYPE_CHECKING:
    from clipcls.check.findings import Finding

ReportFormat = Literal["table", "tsv", "json"]


@options.grouped
def check(
    *,
    wanted: options.LabelOptions,
    prompts: options.PromptsOption = None,
    template: options.TemplateOption = None,
    strict_prompts: options.StrictPromptsOption = False,
    asked: options.ModelOptions,
    audit: Annotated[
        list[str] | None,
        typer.Option(
            "--audit",
            metavar="INPUT",
            help="Pictures of people, your own: count to how many the model puts words that hurt nearer than neutral "
            "ones and labels. Repeatable; -v names words.",
        ),
    ] = None,
    format: Annotated[
        ReportFormat | None, typer.Option("--format", help="[default: table on a terminal, else tsv]")
    ] = None,
    cache_dir: options.CacheDirOption = None,
    no_cache: options.NoCacheOption = False,
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
    from clipcls.check.audit import Audit
    from clipcls.check.findings import exit_code
    from clipcls.check.labels import Wording
    from clipcls.check.preflight import preflight
    from clipcls.embed.execution import Execution

    execution = Execution(cache_dir=options.cache_folder(cache_dir, no_cache), strict_prompts=strict_prompts)
    labels = ",".join(wanted.labels) if wanted.labels else None
    wording = Wording(labels, tuple(wanted.label or ()), wanted.labels_file, prompts, tuple(template or ()))
    if audit and not wording.has_labels:
        raise UsageError("--audit puts words beside labels: give --labels as to predict.")
    audited = Audit(tuple(audit), verbose) if audit else None
    with Progress(not quiet, "-") as progress:
        findings = preflight(asked.spec(), wording, execution, progress.update_labels, audited)
        code = exit_code(_shown(findings, format, quiet))
    if code:
        raise typer.Exit(code)


def _shown(findings: "Iterator[Finding]", kind: ReportFormat | None, quiet: bool) -> "list[Finding]":
    """Print findings as they come; with `quiet` only what is wrong."""
    import shutil

    from clipcls.check.findings import as_json, table_lines, tsv_line

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
