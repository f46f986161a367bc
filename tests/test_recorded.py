"""The tool that records what commands print, write and exit with."""

import sys
from pathlib import Path

import pytest

import recorded

CASES = r"""
# quick ones
[prompts]
clipcls prompts show prompts.yaml | sed 's/a {}/nothing/' > shown.txt
rm shown.txt
clipcls prompts show bad-prompts.txt

[labels]
clipcls predict images --labels cat,Cat
"""


@pytest.fixture(autouse=True)
def quick_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recorded.txt").write_text(CASES)
    monkeypatch.setattr(recorded, "COMMANDS", tmp_path / "recorded.txt")
    monkeypatch.setattr(recorded, "SETTLE_SECONDS", 0)


def test_two_recordings_are_the_same_until_a_byte_is_altered(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        assert recorded.record(folder, Path(sys.executable), None, 2) == 0
    capfd.readouterr()
    assert recorded.compare(before, after) == 0
    assert capfd.readouterr() == ("", "0 of 2 differ\n")

    text = (after / "prompts.txt").read_text()
    assert "exit code 2\n--- standard error\nclipcls: error: bad-prompts.txt: Template" in text
    assert "--- new file 'shown.txt', mode 644\nan icon of nothing\na drawing of nothing\n" in text
    (after / "prompts.txt").write_text(text.replace("bad-prompts.txt: T", "bad-prompts.txt: t"))
    assert recorded.compare(before, after) == 1
    output = capfd.readouterr().out
    assert "-clipcls: error: bad-prompts.txt: Template" in output
    assert "+clipcls: error: bad-prompts.txt: template" in output

    (after / "prompts.txt").write_text(text)
    (after / "labels.txt").unlink()
    assert recorded.compare(before, after) == 1
    assert "-$ clipcls predict images --labels cat,Cat" in capfd.readouterr().out


@pytest.mark.parametrize(("pattern", "chosen"), [(None, 2), ("prompts", 1), ("!prompts", 1), ("[pl]*", 2), ("x", 0)])
def test_a_pattern_chooses_cases(pattern: str | None, chosen: int) -> None:
    assert len(recorded.choose(recorded.read_cases(CASES), pattern)) == chosen


def test_what_is_in_the_list_of_commands_can_be_read() -> None:
    text = Path(recorded.__file__).with_suffix(".txt").read_text(encoding="utf-8")
    assert all(any("clipcls" in step for step in case.steps) for case in recorded.read_cases(text))


def test_a_command_that_does_not_end_is_killed_and_that_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "STEP_SECONDS", 0.2)
    done = recorded._run("echo begun; sleep 60; echo ended", tmp_path, {"PATH": "/usr/bin:/bin"})
    assert (done.returncode, done.stdout, done.stderr) == (-9, b"begun\n", b"no end within 0.2 seconds\n")


def test_scores_and_sizes_stay_and_what_differs_each_time_goes(tmp_path: Path) -> None:
    package, prefix = tmp_path / "code" / "clipcls", tmp_path / "python"
    replacements = tuple(recorded._replacements(tmp_path / "scratch", package, prefix))
    workplace = recorded.Workplace(tmp_path / "scratch", replacements)
    line = f'{package}/models/pictogram/config.json {{"mark": [12, {recorded.MTIME_NS}, 3, 4, 5]}} 0.1234567'
    expected = f'<pictogram>/config.json {{"mark": [12, {recorded.MTIME_NS}, <stamp>]}} 0.1234567'
    assert workplace.normalise(line) == expected
    assert workplace.normalise(f"{tmp_path}/scratch/sort/work/images/cat.png") == "<case>/work/images/cat.png"
