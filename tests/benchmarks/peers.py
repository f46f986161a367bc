"""Images per second of clipcls beside its peers, on the same random weights and pictures, interleaved in one run.

    python tests/benchmarks/peers.py
    python tests/benchmarks/peers.py --corpus small,large --memory --json timings.json
    python tests/benchmarks/peers.py --device cuda --images 4000 --folder pictures

Prints a Markdown table for each corpus: clipcls, the transformers zero-shot pipeline, an open_clip loop with a
DataLoader as it comes and tuned by hand, pybioclip's custom labels, and the roofs (the forward pass alone, decoding
alone). Of each, the best of several batch sizes, numbers of workers and so on counts; ways that are far behind after
the first round don't run again. Every figure is the median of the rounds, with the model loaded and one batch done.
Before anything is timed, clipcls and open_clip have to agree on some of the pictures. Progress goes to standard error.

Weights are random: speed doesn't depend on their values. Labels are embedded beforehand, but by transformers, whose
pipeline does so with each call. clipcls runs without a cache, so that nothing is answered from an earlier round.

With --memory each runner runs once more in a process of its own. Workers of a DataLoader are processes; what they
share with the first one counts in each, so that the sum is more than what is needed. On a GPU it is torch's peak, too.

--runners leaves out what isn't needed to see whether a change of clipcls pays, such as --runners roof,tuned.

The packages transformers and pybioclip are left out where they aren't installed.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpora import TITLES, corpus
from machine import describe, load
from measuring import Race, in_new_process, measure_peak
from records import CLIPCLS, ROOFS, Key, Peak, Results, Setup, Timing
from report import as_json, as_text, best_of_each

Corpora = dict[str, list[Path]]


def prepare(folder: Path, arch: str, device: str) -> tuple[Setup, list[Key], list[str]]:
    """The weights, all ways to run the runners, and lines about peers that are left out."""
    from runners import make_setup, missing, variants

    setup = make_setup(folder, arch, device)
    return setup, [variant.key for variant in variants(setup)], missing(setup)


def agreement(setup: Setup, corpora: Corpora) -> list[str]:
    """Lines that say how near the runners' results are.

    Raises:
        SystemExit: too far.
    """
    from agreement import check_agreement

    return [check_agreement(setup, name, paths) for name, paths in corpora.items()]


def speeds(race: Race, corpora: Corpora, rounds: int) -> dict[str, list[Timing]]:
    """Timings of all runners for each corpus."""
    timings = {}
    for name, paths in corpora.items():
        print(f"{name}:", file=sys.stderr)
        # the models are warm already; this is for decoders and allocators
        race.warm_up(paths[:4])
        timings[name] = race.run(paths, rounds)
    return timings


def peaks(setup: Setup, timings: list[Timing], paths: list[Path]) -> dict[Key, Peak]:
    """The memory of each runner's best variant."""
    keys = [timing.key for timing in best_of_each(timings).values() if timing.key.runner not in ROOFS]
    return {key: measure_peak(setup, key, paths) for key in keys}


@contextmanager
def folder_for(given: Path | None) -> Iterator[Path]:
    """The given folder, or one that is removed in the end."""
    if given is None:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder).resolve()
    else:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()


def corpus_names(text: str) -> list[str]:
    """The value of --corpus."""
    names = text.split(",")
    if unknown := set(names) - TITLES.keys():
        raise argparse.ArgumentTypeError(f"no corpus {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    return names


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--corpus", type=corpus_names, default=list(TITLES), help=f"of {','.join(TITLES)}; all")
    parser.add_argument("--runners", default="", help="only clipcls and those whose names hold one of these words, a,b")
    parser.add_argument("--images", type=int, default=200, help="pictures in each corpus but large")
    parser.add_argument("--large-images", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--memory", action="store_true", help="measure peak memory, too")
    parser.add_argument("--folder", type=Path, help="keep pictures and weights here, and use those that are there")
    parser.add_argument("--json", type=Path, help="write all single timings to this file")
    return parser.parse_args()


def _is_wanted(key: Key, words: list[str]) -> bool:
    return key.runner == CLIPCLS or any(word in key.runner for word in words)


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Make the data, compare, time, and weigh."""
    load_before = load()
    setup, keys, notes = in_new_process(prepare, folder, options.arch, options.device)
    keys = [key for key in keys if _is_wanted(key, options.runners.split(","))]
    counts = {name: options.large_images if name == "large" else options.images for name in options.corpus}
    corpora = {name: in_new_process(corpus, folder, name, count) for name, count in counts.items()}
    one_batch = in_new_process(corpus, folder, "small", max(setup.batches))
    notes += in_new_process(agreement, setup, corpora)
    with Race(setup, keys) as race:
        race.warm_up(one_batch)
        timings = speeds(race, corpora, options.rounds)
    memory = {name: peaks(setup, timings[name], corpora[name]) if options.memory else {} for name in corpora}
    machine = [*describe(setup.gpu), f"{options.arch}, random weights, models loaded; {load_before}", *notes]
    return Results(machine, timings, memory)


def main() -> None:
    """Parse the command line, measure, print the tables."""
    options = parse_arguments()
    with folder_for(options.folder) as folder:
        results = measure(options, folder)
    print("\n".join(as_text(results)))
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
