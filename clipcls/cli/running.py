"""Carry out a run over pictures, in this process or on a cluster, and say what came of it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.progress import Progress
from clipcls.cli.report import RunPage
from clipcls.cli.signals import StopSignals
from clipcls.cli.stderr import silence_libraries
from clipcls.records import Engine

if TYPE_CHECKING:
    from clipcls.distributed.run import Spread
    from clipcls.inputs.listing import Sources
    from clipcls.outputs.destination import Destination
    from clipcls.predict.answerer import Answerer
    from clipcls.predict.error_limit import ErrorLimit

FormatOption = Annotated[
    options.FormatName | None,
    typer.Option("--format", help="[default: by the output's extension; table on a terminal, else tsv]"),
]
OutputOption = Annotated[str, typer.Option("--output", "-o", help="File to write; - is standard output.")]
OutputDirOption = Annotated[
    Path | None, typer.Option("--output-dir", help="Folder for part files, each there once it is whole.")
]
EngineOption = Annotated[Engine, typer.Option("--engine", help="This process, or a Ray cluster's workers.")]
RayAddressOption = Annotated[
    str | None,
    typer.Option(
        "--ray-address", metavar="HOST:PORT", help="Head node, or auto. [default: RAY_ADDRESS, else this machine alone]"
    ),
]
RayWorkersOption = Annotated[
    int | None, typer.Option("--ray-workers", min=1, help="Worker processes. [default: one a GPU, or 8 cores]")
]
GpusPerWorkerOption = Annotated[
    float | None,
    typer.Option("--gpus-per-worker", min=0, help="A fraction has workers share one. [default: 1 if there are]"),
]


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """The options for where results are written."""

    format: FormatOption = None
    output: OutputOption = "-"
    output_dir: OutputDirOption = None
    resume: options.ResumeOption = False
    retry_errors: options.RetryErrorsOption = False

    def destination(self, sources: "Sources") -> "Destination":
        """Return where the results of some sources are written."""
        from clipcls.outputs.destination import Destination
        from clipcls.outputs.rows import RowShape

        # opened by its name, what it was redirected to would be emptied
        output = "-" if self.output in ("/dev/stdout", "/dev/fd/1") else self.output
        shape = RowShape(has_index=sources.part is not None)
        return Destination(output, self.output_dir, self.format, self.resume, self.retry_errors, shape)


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """The options for how a run is spread over a cluster."""

    engine: EngineOption = "local"
    ray_address: RayAddressOption = None
    ray_workers: RayWorkersOption = None
    gpus_per_worker: GpusPerWorkerOption = None

    def spread(self, threads: int | None, verbose: bool) -> "Spread | None":
        """Return how the run is spread; None for this process.

        Args:
            threads: of each worker.
            verbose: whether Ray may log what it does.

        Raises:
            UsageError: there is no cluster for the options.
        """
        from clipcls.errors import UsageError

        given = (self.ray_address, self.ray_workers, self.gpus_per_worker)
        if self.engine == "ray":
            from clipcls.distributed.run import Spread

            return Spread(*given, threads, verbose)
        if any(option is not None for option in given):
            raise UsageError("--ray-address, --ray-workers and --gpus-per-worker belong to --engine ray.")
        return None


@dataclass(frozen=True, slots=True)
class Run:
    """What a run reads and writes, and how it is spread; None for `spread` in this process."""

    sources: "Sources"
    destination: "Destination"
    limit: "ErrorLimit"
    spread: "Spread | None"
    page: RunPage | None


def carry_out(classifier: "Answerer", asked: Run, quiet: bool) -> None:
    """Run here or on a cluster, and exit with what came of it.

    Raises:
        typer.Exit: some images failed, or a signal came.
    """
    from clipcls.predict.run import run

    sources, destination, spread, page = asked.sources, asked.destination, asked.spread, asked.page
    is_followed = page is not None and spread is None and not destination.resume
    shown = destination.output if destination.folder is None and spread is None else ""
    message = "finishing the batch at hand" if spread is None else "stopping the workers"
    with Progress(not quiet, shown) as progress, StopSignals(message) as signals:
        watch = progress.watch(destination.name)
        if page is not None and is_followed:
            watch = page.following(watch)
        if spread is None:
            report = run(classifier, sources, destination, asked.limit, signals.received, watch)
        else:
            from clipcls.distributed.run import run_on_cluster

            if not spread.verbose:
                silence_libraries()
            report = run_on_cluster(classifier, sources, destination, spread, asked.limit, signals.received, watch)
    if signals.exit_code:
        typer.echo(f"clipcls: {report.done:,} images done{report.go_on}", err=True)
        raise typer.Exit(signals.exit_code)
    if report.failed and not quiet:
        typer.echo(f"clipcls: {report.failed:,} of {report.done:,} images could not be read", err=True)
    if not quiet and not destination.is_standard_output and sys.stderr.isatty():
        typer.echo(f"clipcls: {report.done:,} images in {destination.name}", err=True)
    if page is not None:
        if not is_followed:
            page.read_back()
        page.write(report.failed < report.done, quiet)
    if report.failed:
        raise typer.Exit(1)
