"""`clipcls ask`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.cli.outputs import refuse_output
from clipcls.cli.progress import Progress
from clipcls.cli.running import ClusterOptions, OutputOptions, Run, carry_out
from clipcls.cli.signals import StopSignals
from clipcls.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from clipcls.embed.session import Session
    from clipcls.inputs.listing import Sources
    from clipcls.labels.questions import Question


@options.grouped
def ask_command(
    *,
    inputs: options.InputsArgument = None,
    # what to ask
    questions: Annotated[
        Path | None,
        typer.Option("--questions", metavar="FILE.yaml", help="Questions by their names, each with its choices."),
    ] = None,
    question: Annotated[
        str | None, typer.Option("--question", help="One question, such as 'What colour is the car?'")
    ] = None,
    choices: Annotated[
        list[str] | None,
        typer.Option("--choices", metavar="CHOICES", help="Its answers, separated by commas; repeatable."),
    ] = None,
    strict_prompts: options.StrictPromptsOption = False,
    # with which model
    asked: options.ModelOptions,
    # how to score
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="Choices to list for each question. [default: 1]")
    ] = None,
    without_priors: Annotated[
        bool,
        typer.Option(
            "--without-priors",
            help="Take off what each choice has in common with the mean of all pictures; both answers are written.",
        ),
    ] = False,
    # in and out
    further: options.DividedInputOptions,
    videos: options.VideoOptions,
    written: OutputOptions,
    # what may go wrong
    errors: options.ErrorOptions,
    limits: options.LimitOptions,
    fetching: options.FetchOptions,
    # how to run
    cluster: ClusterOptions,
    how: options.RunOptions,
    verbosity: options.VerbosityOptions,
) -> None:
    """Ask several questions about each picture, which is looked at once.

    Example: clipcls ask photos/ --questions questions.yaml --output answers.jsonl
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import list_again, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.predict.ask import Questionnaire

    sources = further.sources(inputs, videos.sampling())
    destination = written.destination(sources)
    if without_priors and sources.part is not None:
        raise UsageError("--without-priors looks at all pictures, and --part at some; leave one out.")
    refuse_output(destination, [*(inputs or ()), further.files_from, questions, asked.model])
    limit, web = errors.limit(), fetching.web(further)
    spread, spec = cluster.spread(how.workers, verbosity.verbose), asked.spec()
    if spread is not None:
        from clipcls.distributed.run import check_spread

        check_spread(destination, spec, spread)
    wanted = _questions(questions, question, choices or ())
    with Session(spec, how.execution(limits, strict_prompts, web)) as session:
        quantise_ahead(session, lambda: list_again(sources))
        plain = Questionnaire(session, wanted, top_k=top_k)
        if without_priors:
            plain.embed_labels()
            plain = plain.without_priors(_mean(sources, session, verbosity.quiet))
        carry_out(plain, Run(sources, destination, limit, spread, None), verbosity.quiet)


def _questions(file: Path | None, text: str | None, choices: "list[str] | tuple[()]") -> "tuple[Question, ...]":
    from clipcls.labels.label_files import split_labels
    from clipcls.labels.questions import make_question, read_questions

    if file is not None:
        if text is not None or choices:
            raise UsageError("Give --questions FILE, or --question with --choices.")
        return read_questions(file)
    if not text or not text.strip():
        raise UsageError("No question. Give --questions FILE.yaml, or --question with --choices red,blue,green.")
    return (make_question(text, split_labels(choices, "--choices")),)


def _mean(sources: "Sources", session: "Session", quiet: bool) -> "NDArray[np.float64]":
    from clipcls.inputs.discover import discover
    from clipcls.predict.ask import mean_features

    if sources.read_standard_input:
        raise UsageError("--without-priors looks at all pictures first, and standard input can be read once only.")
    with Progress(not quiet, "") as progress, StopSignals("stopping without a result") as signals:
        watch = progress.watch()
        found = mean_features(discover(sources), session, signals.received, watch)
    if signals.exit_code:
        raise typer.Exit(signals.exit_code)
    return found
