"""The command line: one file per command; each parses, calls one library function, and writes a sink.

Nothing heavy is imported here or at the top of a command's file, so that `--help` and completion stay quick.
"""

import contextlib
import gc
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from clipcls.cli import cache, check, duplicates, labels, models, predict, prompts, sort, train
from clipcls.cli.ask import ask_command
from clipcls.cli.calibrate import calibrate_command
from clipcls.cli.embed import embed_command
from clipcls.cli.eval import eval_command
from clipcls.cli.heatmap import heatmap_command
from clipcls.cli.merge import merge_command
from clipcls.cli.mistakes import OnceCommand, explain, offline_command
from clipcls.cli.report import report_command
from clipcls.cli.search import search_command
from clipcls.cli.serve import serve_command
from clipcls.cli.stderr import open_stderr
from clipcls.cli.tag import tag_command
from clipcls.cli.teach import teach_command
from clipcls.errors import ClipclsError

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

app = typer.Typer(
    name="clipcls",
    help="Zero-shot image classification with CLIP and SigLIP models.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=OnceCommand)(predict.predict)
app.command(cls=OnceCommand, short_help="Put pictures into one folder for each label.")(sort.sort)
app.command("tag", cls=OnceCommand, short_help="Write labels as keywords beside pictures or into them.")(tag_command)
app.command("merge", cls=OnceCommand, short_help="Put the outputs of a job's parts together.")(merge_command)
app.command("report", cls=OnceCommand, short_help="Look at predictions on one page, and correct them.")(report_command)
app.command(cls=OnceCommand, short_help="Find pictures that are there more than once.")(duplicates.duplicates)
app.command("train", cls=OnceCommand, short_help="Train a model on pictures with captions.")(train.train_command)
app.command(cls=OnceCommand, short_help="Look for what is wrong with a model, labels and prompts.")(check.check)
app.command("eval", cls=OnceCommand, short_help="Measure models and prompts on labelled pictures.")(eval_command)
app.command("calibrate", cls=OnceCommand, short_help="Correct scores, and find each label's threshold.")(
    calibrate_command
)
app.command("teach", cls=OnceCommand, short_help="Improve answers by a few labelled pictures.")(teach_command)
app.command("ask", cls=OnceCommand, short_help="Ask several questions about each picture.")(ask_command)
app.command("heatmap", cls=OnceCommand, short_help="Draw where in pictures the scores of labels come from.")(
    heatmap_command
)
app.command("embed", cls=OnceCommand, short_help="Write the features of pictures to files for other programs.")(
    embed_command
)
app.command("search", cls=OnceCommand, short_help="Find pictures by words or by a picture.")(search_command)
app.command("serve", cls=OnceCommand, short_help="Answer over HTTP, with a page to try it.")(serve_command)
app.add_typer(models.models_app, name="models")
app.add_typer(labels.labels_app, name="labels")
app.add_typer(prompts.prompts_app, name="prompts")
app.add_typer(cache.cache_app, name="cache")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"clipcls {version('clipcls')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the exit codes are those of `clipcls.errors`, and 128 + N for signal N."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.unraisablehook = _report_unraisable
    # what imports make stays; looking for garbage in it took a sixth of the time until torch and open_clip are there
    gc.set_threshold(100_000, 20, 50)
    open_stderr()
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        _quit_at_once(0)
    except ClipclsError as exc:
        if not exc.told:
            print(f"clipcls: error: {exc}{offline_command(exc, sys.argv[1:])}", file=sys.stderr)
        if "ray" in sys.modules:
            # which may still be trying to reach a cluster
            _quit_at_once(exc.exit_code)
        sys.exit(exc.exit_code)
    except typer.TyperException as exc:
        # what gets here is a ClickException, a class that typer keeps to itself
        explain(exc, sys.argv[1:])
        exc.show()  # type: ignore[attr-defined]
        sys.exit(2)
    except SystemExit as exc:
        # typer makes this of a closed pipe; whoever closed it has all that they wanted
        _quit_at_once(0 if isinstance(exc.__context__, BrokenPipeError) else 1)
    except OSError as exc:
        # sinks and readers translate their own; what is left is mostly a listing that can't be printed
        print(f"clipcls: error: {exc.filename or 'standard output'}: {exc.strerror}", file=sys.stderr)
        _quit_at_once(4)
    except _TerminatedError:
        code = 128 + signal.SIGTERM
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
        print("clipcls: interrupted", file=sys.stderr)
        _quit_at_once(code)
    if sys.modules.keys() & {"torch", "openvino"} and "clipcls.train" not in sys.modules:
        # taking apart what computes takes up to a second; training has processes to wait for
        _quit_at_once(code or 0)
    sys.exit(code)


class _TerminatedError(BaseException):
    """SIGTERM, raised so that files are closed on the way out.

    Attributes:
        was_raised: whether it ever was.
    """

    was_raised = False


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    _TerminatedError.was_raised = True
    raise _TerminatedError


def _run() -> int | None:
    try:
        code: int | None = app(prog_name="clipcls", standalone_mode=False)
    except Exception as exc:
        if _TerminatedError.was_raised:
            # what C++ code made of it on its way, as safetensors and torch do
            raise _TerminatedError from exc
        raise
    return code


def _report_unraisable(unraisable: "UnraisableHookArgs") -> None:
    # a signal that comes while an object is taken apart; `StopSignals` has kept it
    if not isinstance(unraisable.exc_value, KeyboardInterrupt | _TerminatedError):
        sys.__unraisablehook__(unraisable)


def _quit_at_once(code: int) -> NoReturn:
    """Exit without waiting for decoding threads, and without Python's complaint about a closed pipe."""
    with contextlib.suppress(OSError, AttributeError):
        sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
