"""How a reason, a list of names and an odd text are said."""

import pytest

from clipcls.errors import listed, printable, quoted, reason


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (OSError(28, "No space left on device"), "no space left on device"),
        (ValueError("embedded null byte\nin a name"), "embedded null byte"),
        (OSError(), "OSError"),
    ],
)
def test_reason_is_one_line(exc: BaseException, expected: str) -> None:
    assert reason(exc) == expected


def test_listed_shows_few_names() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(map(str, range(1005)), separator="; ") == "0; 1; 2; 3; 4 and 1,000 more"
    assert quoted(["a", "b"]) == "'a', 'b'"
    assert quoted(map(str, range(1004))) == "'0', '1', '2' and 1,001 more"


def test_printable_shows_no_sign_that_moves_the_cursor() -> None:
    assert printable("a\x1b[2Jb\u200b\udce9\ud800 \u732b") == "a\ufffd[2Jb\ufffd\ufffd\ufffd \u732b"
