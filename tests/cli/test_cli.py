"""The command line through its real entry point, as a process."""

import csv
import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import EXAMPLES, save_pictures
from shell import TERMINAL, Started, run_on_terminal

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]
Start = Callable[..., Started]

COLOURED = {"TERM": "xterm", "COLUMNS": "100"}


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    return save_pictures(tmp_path / "pictures", 5)


def rows(stdout: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stdout.splitlines()]


def test_predict_labels_the_examples_with_the_embedded_model(clipcls: Run) -> None:
    done = clipcls("predict", EXAMPLES, "--model", "pictogram", "--labels", "cat,dog,truck", "--format", "jsonl")
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    truth = {name: [row for row in found if name in Path(row["path"]).name] for name in ("cat", "dog", "truck")}
    answers = [row["label"] == name for name, of_name in truth.items() for row in of_name]
    assert len(answers) >= 6
    assert sum(answers) / len(answers) >= 0.8


def test_predict_pipes_tsv_in_input_order(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    done = clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model)
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert done.returncode == 0
    assert [line[0] for line in lines] == [f"pictures/{path.name}" for path in pictures]
    assert all(line[1] in ("cat", "dog") and 0 <= float(line[2]) <= 1 and len(line[2]) == 8 for line in lines)


def test_predict_is_quiet_when_all_is_well(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    assert clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model).stderr == b""


def test_predict_second_run_builds_no_text_tower(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    arguments = ("predict", "pictures", "--labels", "a1,a2,a3,a4,a5,a6,a7,a8,a9", "--model", tiny_model, "-v")
    first = clipcls(*arguments)
    second = clipcls(*arguments)
    assert b"built the text tower" in first.stderr
    assert b"built the text tower" not in second.stderr
    assert b"9 of 9 from the cache" in second.stderr
    assert first.stdout == second.stdout
    more = clipcls("predict", "pictures", "--labels", "a1,a2,a3,a4,a5,a6,a7,a8,a9,new", "--model", tiny_model, "-v")
    assert b"9 of 10 from the cache" in more.stderr
    uncached = clipcls(*arguments, "--no-cache")
    assert uncached.stdout == first.stdout
    assert b"built the text tower" in uncached.stderr


def test_predict_reads_paths_from_standard_input(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    common = ("--labels", "cat,dog", "--model", tiny_model)
    by_newline = clipcls("predict", "-", *common, input="\n".join(map(str, pictures)).encode())
    by_nul = clipcls("predict", "--files-from", "-", "-0", *common, input=b"\0".join(map(os.fsencode, pictures)))
    assert by_newline.returncode == by_nul.returncode == 0
    assert by_newline.stdout == by_nul.stdout
    assert len(by_nul.stdout.splitlines()) == 5


def test_predict_answers_before_a_slow_input_ends(start: Start, tiny_model: Path, pictures: list[Path]) -> None:
    process = start("predict", "-", "--labels", "cat,dog", "--model", tiny_model, stdin=subprocess.PIPE)
    process.stdin.write(os.fsencode(pictures[0]) + b"\n")
    process.stdin.flush()
    # blocks for ever, and fails by the runner's limit, if rows waited for the end of the input
    assert process.stdout.readline().startswith(os.fsencode(pictures[0]))
    process.stdin.write(os.fsencode(pictures[1]) + b"\n")
    output, _ = process.communicate()
    assert output.startswith(os.fsencode(pictures[1]))
    assert process.wait() == 0


@pytest.mark.parametrize("option", ["--files-from", "-"])
def test_predict_keeps_names_that_are_not_utf8(
    clipcls: Run, tiny_model: Path, pictures: list[Path], tmp_path: Path, option: str
) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9\n\ttab.png"
    pictures[0].rename(os.fsdecode(name))
    given = ("--files-from", "-", "-0") if option == "--files-from" else ("-", "-0")
    common = ("predict", *given, "--labels", "cat,dog", "--model", tiny_model)
    as_jsonl = clipcls(*common, "--format", "jsonl", input=name + b"\0")
    as_tsv = clipcls(*common, input=name + b"\0")
    assert as_jsonl.returncode == as_tsv.returncode == 0, as_jsonl.stderr
    import base64

    assert base64.b64decode(rows(as_jsonl.stdout)[0]["path_b64"]) == name
    assert as_tsv.stdout.startswith(os.fsencode(tmp_path) + b"/caf\xe9\\n\\ttab.png\t")


def test_predict_makes_a_record_of_a_bad_image(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    pictures[1].write_bytes(pictures[1].read_bytes()[:60])
    pictures[2].write_bytes(b"")
    pictures[3].write_text("not a picture")
    done = clipcls(
        "predict", "pictures", "nosuch.jpg", "--labels", "cat,dog", "--model", tiny_model, "--format", "jsonl"
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    assert b"4 of 6 images could not be read" in done.stderr
    assert [row["error"] is None for row in rows(done.stdout)] == [True, False, False, False, True, False]
    assert all(set(row) == {"path", "label", "score", "similarity", "top", "error"} for row in rows(done.stdout))


def test_predict_stops_at_a_bad_image_when_told(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    pictures[1].write_bytes(b"")
    done = clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model, "--on-error", "stop")
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--labels", "cat,cat"], 2, b"are the same"),
        (["--labels", "cat,,dog"], 2, b"an empty label"),
        ([], 2, b"No labels"),
        (["--labels", "cat,dog", "--template", "a photo"], 2, b"no placeholder"),
        (["--labels", "cat,dog", "--template", "a {animal}"], 2, b"unknown placeholder"),
        (["--labels", "cat,dog", "--prompts", "nosuch"], 2, b"No prompt set"),
        (["--labels", "cat,dog", "--prompts", "simple", "--template", "{}"], 2, b"not both"),
        (["--labels-file", "nosuch.txt"], 2, b"nosuch.txt"),
        (["--labels", "cat,dog", "--top-k", "0"], 2, b"top-k"),
        (["--labels", "cat,dog", "--threshold", "2"], 2, b"--threshold"),
        (["--labels", "cat,dog", "--multi-label", "--score", "softmax"], 2, b"--multi-label"),
        (["--labels", "cat,dog", "--format", "xml"], 2, b"xml"),
        (["--labels", "cat,dog", "--device", "cuda:77"], 2, b"cuda:77"),
        (["--labels", "cat,dog", "--precision", "fp8"], 2, b"fp8"),
        (["--labels", "cat,dog", "--nosuch"], 2, b"--nosuch"),
        (["--labels", "cat,dog", "--output", "out.xml"], 2, b"--format"),
        (["--labels", "cat,dog", "--output", ""], 2, b"--output"),
        (["--labels", "cat,dog", "--background", "a wall"], 2, b"background"),
        (["--labels", "cat,dog", "--output", "no/such/folder/out.csv"], 4, b"no/such/folder"),
        (["--labels", " ".join(["cat"] * 40) + ",dog", "--strict-prompts"], 2, b"--strict-prompts"),
    ],
)
def test_predict_explains_wrong_use(
    clipcls: Run, tiny_model: Path, pictures: list[Path], arguments: list[str], code: int, message: bytes
) -> None:
    done = clipcls("predict", "pictures", "--model", tiny_model, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_predict_without_images_is_wrong_use(clipcls: Run, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for given in ([], ["empty"]):
        done = clipcls("predict", *given, "--labels", "cat,dog", "--model", tiny_model)
        assert (done.returncode, b"No images" in done.stderr) == (2, True)


def test_predict_without_the_hub_exits_with_3(clipcls: Run, pictures: list[Path]) -> None:
    done = clipcls("predict", "pictures", "--labels", "cat,dog", env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 3
    assert done.stderr.endswith(b"To go on now: clipcls predict pictures --labels cat,dog --model everyday\n")
    # another model and names after `--` stay out of the way
    arguments = ("predict", "--labels", "cat,a dog", "--model", "fast", "--model=photo", "--", "pictures")
    for given in (arguments[:5] + arguments[6:], arguments[:3] + arguments[5:]):
        done = clipcls(*given, env={"HF_HUB_OFFLINE": "1"})
        assert done.stderr.endswith(b"clipcls predict --labels 'cat,a dog' --model everyday -- pictures\n")
    done = clipcls("models", "pull", "photo", env={"HF_HUB_OFFLINE": "1"})
    assert b"To go on now" not in done.stderr


def test_predict_warns_of_a_prompt_that_is_cut(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    arguments = ("predict", "pictures", "--label", " ".join(["cat"] * 40), "--label", "dog", "--model", tiny_model)
    # from the model, then from the cache
    for _ in range(2):
        done = clipcls(*arguments)
        assert done.returncode == 0
        assert b"first 16 tokens" in done.stderr


def test_predict_warns_by_name_of_a_label_the_model_has_no_word_of(clipcls: Run) -> None:
    done = clipcls("predict", EXAMPLES, "--model", "pictogram", "--labels", "cat,dog,xylotomous")
    assert done.returncode == 0
    assert b"'xylotomous'" in done.stderr
    assert b"'cat'" not in done.stderr


def test_predict_writes_each_format_to_a_file(
    clipcls: Run, tiny_model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    for extension in ("tsv", "csv", "jsonl"):
        done = clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model, "-o", f"out.{extension}")
        assert (done.returncode, done.stdout) == (0, b"")
    jsonl = rows((tmp_path / "out.jsonl").read_bytes())
    from_csv = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    tsv = [line.split("\t") for line in (tmp_path / "out.tsv").read_text().splitlines()]
    assert [row["path"] for row in jsonl] == [row["path"] for row in from_csv] == [row[0] for row in tsv]
    assert [row["label"] for row in jsonl] == [row["label"] for row in from_csv] == [row[1] for row in tsv]
    assert [json.loads(row["top"]) for row in from_csv] == [row["top"] for row in jsonl]


def test_predict_lists_the_best_labels(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    done = clipcls("predict", pictures[0], "--labels", "cat,dog,hot_dog", "--model", tiny_model, "--top-k", "3")
    lines = [line.split("\t") for line in done.stdout.decode().splitlines()]
    assert sorted(line[1] for line in lines) == ["cat", "dog", "hot_dog"]
    assert sum(float(line[2]) for line in lines) == pytest.approx(1, abs=1e-5)
    assert [line[2] for line in lines] == sorted((line[2] for line in lines), reverse=True)


def test_predict_shows_unknown_as_an_empty_label(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    common = ("predict", pictures[0], "--labels", "cat,dog", "--model", tiny_model, "--threshold", "1")
    assert clipcls(*common).stdout.split(b"\t")[1] == b""
    (row,) = rows(clipcls(*common, "--format", "jsonl").stdout)
    assert row["label"] is None and row["score"] is not None and row["error"] is None


def test_predict_with_many_labels_scores_each_by_itself(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    common = ("predict", pictures[0], "--labels", "cat,dog", "--model", tiny_model, "--multi-label", "--threshold", "0")
    (row,) = rows(clipcls(*common, "--format", "jsonl").stdout)
    assert {entry["label"] for entry in row["top"]} == {"cat", "dog"}
    other = clipcls(*common, "--background", "something else", "--format", "jsonl")
    assert rows(other.stdout)[0]["top"] != row["top"]


def test_options_are_read_from_the_environment(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    environment = {"CLIPCLS_MODEL": str(tiny_model), "CLIPCLS_PRECISION": "fp32", "CLIPCLS_CACHE_DIR": "own-cache"}
    done = clipcls("predict", "pictures", "--labels", "cat,dog", "-v", env=environment)
    assert done.returncode == 0
    assert b"fp32" in done.stderr
    assert b"label embeddings\t2" in clipcls("cache", "info", env=environment).stdout


def test_predict_into_a_pipe_that_closes_ends_quietly(start: Start, tiny_model: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path / "many", 200)
    process = start("predict", "many", "--labels", "cat,dog", "--model", tiny_model, "--batch-size", "4")
    process.stdout.readline()
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), stderr) == (0, b"")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_predict_interrupted_keeps_whole_rows(
    start: Start, tiny_model: Path, pictures: list[Path], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    process = start(
        "predict", "-", "--labels", "cat,dog", "--model", tiny_model, "-o", tmp_path / "out.jsonl",
        stdin=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(os.fsencode(pictures[0]) + b"\n")
    process.stdin.flush()
    limit = time.monotonic() + 60
    while not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes():
        assert time.monotonic() < limit, "no row was written"
        time.sleep(0.01)
    process.send_signal(number)
    stderr = process.stderr.read()
    assert process.wait() == code
    assert b"Traceback" not in stderr
    assert len(rows((tmp_path / "out.jsonl").read_bytes())) == 1
    process.communicate()


def test_predict_with_a_full_disk_exits_with_4(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    done = clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model, "-o", "/dev/full")
    assert done.returncode == 4
    assert b"/dev/full: can't be written" in done.stderr
    assert b"Traceback" not in done.stderr


def test_predict_on_a_terminal_shows_a_table(start: Start, tiny_model: Path, pictures: list[Path]) -> None:
    arguments = ("predict", *pictures[:2], "--labels", "cat,dog", "--model", tiny_model)
    code, output, _ = run_on_terminal(start, *arguments, environment={"COLUMNS": "60"}, stdout=TERMINAL)
    assert code == 0
    lines = output.decode().splitlines()
    assert len(lines) == 2
    assert "\t" not in lines[0]
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) <= 60


def test_models_lists_aliases(clipcls: Run) -> None:
    listed = clipcls("models").stdout.decode()
    for alias in ("photo", "fast", "accurate", "multilingual", "everyday", "pictogram"):
        assert f"\n{alias}" in f"\n{listed}"
    assert "pictograms, not photographs" in listed
    assert listed.count("GB, not downloaded;") == 4


def test_models_on_a_terminal_breaks_no_word(start: Start) -> None:
    _, shown, _ = run_on_terminal(start, "models", environment={"COLUMNS": "40"}, stdout=TERMINAL)
    lines = shown.decode().splitlines()
    assert max(map(len, lines)) <= 40
    assert "ViT-B-32-256:datacomp_s34b_b86k;" in " ".join(lines).split()


def test_models_all_lists_open_clips(clipcls: Run) -> None:
    assert b"ViT-B-32-256:datacomp_s34b_b86k\n" in clipcls("models", "--all").stdout


def test_models_pull_without_a_connection_exits_with_3(clipcls: Run) -> None:
    assert clipcls("models", "pull", "photo", env={"HF_HUB_OFFLINE": "1"}).returncode == 3


def test_prompts_lists_and_shows_sets(clipcls: Run) -> None:
    assert b"openai-imagenet-80\t80 templates" in clipcls("prompts", "list").stdout
    assert clipcls("prompts", "show", "simple").stdout == b"a photo of a {}\n"


def test_cache_clear_frees_the_cache(clipcls: Run, tiny_model: Path, pictures: list[Path]) -> None:
    clipcls("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model)
    assert b"label embeddings\t2" in clipcls("cache", "info").stdout
    assert clipcls("cache", "clear").returncode == 0
    assert b"empty" in clipcls("cache", "info").stdout


def test_version_is_the_packages(clipcls: Run) -> None:
    from importlib.metadata import version

    assert clipcls("--version").stdout.decode().split() == ["clipcls", version("clipcls")]


@pytest.mark.parametrize("model", ["nosuch", "hf-hub:someone/nothing"])
def test_predict_that_fails_leaves_an_older_output_alone(
    clipcls: Run, pictures: list[Path], tmp_path: Path, model: str
) -> None:
    (tmp_path / "old.csv").write_text("precious")
    done = clipcls(
        "predict", "pictures", "--labels", "cat,dog", "--model", model, "-o", "old.csv", env={"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode in (2, 3)
    assert (tmp_path / "old.csv").read_text() == "precious"


def test_predict_never_writes_over_its_inputs(
    clipcls: Run, tiny_model: Path, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    (tmp_path / "list.txt").write_text(f"{pictures[0]}\n")
    before = {path: path.read_bytes() for path in (tmp_path / "labels.txt", tmp_path / "list.txt", pictures[0])}
    common = ("--labels-file", "labels.txt", "--model", tiny_model, "--format", "tsv")
    for output in before:
        done = clipcls("predict", pictures[0], "--files-from", "list.txt", *common, "-o", output)
        assert done.returncode == 2, output
        assert output.read_bytes() == before[output]


@pytest.mark.parametrize(("closed", "code", "lines"), [("stdout", 4, 0), ("stderr", 0, 5), ("stdin", 0, 5)])
def test_predict_with_a_closed_stream(
    start: Start, tiny_model: Path, pictures: list[Path], closed: str, code: int, lines: int
) -> None:
    process = start("predict", "pictures", "--labels", "cat,dog", "--model", tiny_model, **{closed: None})
    output, errors = process.communicate()
    assert (process.wait(), len(output.splitlines())) == (code, lines), errors
    assert b"Traceback" not in errors


def test_listing_onto_a_full_disk_is_an_error_without_traceback(start: Start) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start("models", stdout=full.fileno())
    _, errors = process.communicate()
    assert process.wait() == 4
    assert b"No space left" in errors
    assert b"Traceback" not in errors


def test_predict_shows_a_bar_on_a_terminal_when_rows_go_elsewhere(
    start: Start, tiny_model: Path, pictures: list[Path]
) -> None:
    arguments = ("predict", *pictures, "--labels", "cat,dog", "--model", tiny_model)
    code, drawn, output = run_on_terminal(start, *arguments, environment=COLOURED, stderr=TERMINAL)
    assert (code, len(output.splitlines())) == (0, 5)
    assert b"5/5" in drawn and b"images/s" in drawn


def test_predict_on_a_terminal_ends_with_what_was_written_where(
    start: Start, tiny_model: Path, pictures: list[Path]
) -> None:
    (pictures[0].parent / "bad.png").write_bytes(b"")
    output = pictures[0].with_name("labels.tsv")
    arguments = ("predict", pictures[0].parent, "--labels", "cat,dog", "--model", tiny_model, "-o", output)
    code, shown, _ = run_on_terminal(start, *arguments, environment=COLOURED, stderr=TERMINAL)
    assert code == 1
    failed, done = shown.splitlines()[-2:]
    assert failed.endswith(b"clipcls: 1 of 6 images could not be read")
    assert done == b"clipcls: 6 images in %s" % os.fsencode(output)
