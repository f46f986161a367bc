"""The hub's own client against a hub on this machine, in good health and in trouble."""

import io
import json
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import hub_server
from clipcls.errors import ModelError
from clipcls.models import hub
from clipcls.models import locate as sources
from clipcls.models.locate import locate
from clipcls.records import ModelSpec
from conftest import TINY_CONFIG
from hub_server import COMMIT, Fault, HubServer, Once, cut, hang, refuse, status
from tiny_models import save_tokenizer

WEIGHTS = "open_clip_model.safetensors"
REPO = "someone/tiny"


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A hub with one small model, and an empty cache; waits are shorter than a user's."""
    with hub_server.running() as server:
        server.add(REPO, tiny_model)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)
        monkeypatch.setattr(hub, "RETRY_SECONDS", 1.0)
        hub.reachable.cache_clear()
        yield server
        hub.reachable.cache_clear()
        huggingface_hub.close_session()


def fetch() -> Path:
    return hub.fetch(REPO, [WEIGHTS])


def blobs() -> list[Path]:
    """What a download has left in the cache, half a file included."""
    return [path for path in Path(constants.HF_HUB_CACHE).rglob("*") if path.is_file() and "blobs" in path.parts]


def test_a_model_is_downloaded_once(server: HubServer, tiny_model: Path) -> None:
    files = locate(ModelSpec(f"hf-hub:{REPO}"))
    assert files.weights.read_bytes() == (tiny_model / WEIGHTS).read_bytes()
    storage = [request for request in server.requests if "storage/" in request]
    assert len(storage) == 1
    server.requests.clear()
    assert locate(ModelSpec(f"hf-hub:{REPO}")) == files
    assert server.requests == []
    assert locate(ModelSpec(f"hf-hub:{REPO}"), refresh=True) == files
    assert not any("storage/" in request for request in server.requests)


@pytest.mark.parametrize(("level", "messages"), [("WARNING", 0), ("INFO", 1)])
def test_a_broken_download_goes_on(
    server: HubServer, caplog: pytest.LogCaptureFixture, level: str, messages: int
) -> None:
    server.fault = cut(50_000, then=lambda handler, path: False)
    with caplog.at_level(level, "clipcls"):
        assert fetch().read_bytes() == server.repos[REPO][WEIGHTS]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * messages


@pytest.mark.parametrize("fault", [status(503), status(500)], ids=["503", "500"])
def test_a_hub_in_trouble_is_asked_again(server: HubServer, fault: Fault) -> None:
    server.fault = Once(fault)
    assert fetch().is_file()


# fault; what the message says; seconds that it may take
TROUBLE: dict[str, tuple[Fault, str, float]] = {
    "401": (status(401), "127.0.0.1 answered 401 Unauthorized. The token in HF_TOKEN isn't accepted", 1),
    "403": (status(403), "127.0.0.1 answered 403 Forbidden. Set HF_TOKEN", 1),
    "403 of the storage": (status(403, of="storage"), "localhost answered 403 Forbidden", 1),
    "407": (status(407), "answered 407 Proxy Authentication Required. The proxy wants to know who you are", 1),
    "429": (status(429, {"Retry-After": "300"}), "answered 429 Too Many Requests, wait 300 seconds.", 1),
    "429 of the storage": (status(429, {"Retry-After": "300"}, of="storage"), "wait 300 seconds", 1),
    "500": (status(500), "answered 500 Internal Server Error. Try again later.", 4),
    "503": (status(503), "answered 503 Service Unavailable. Try again later.", 4),
    "503 of the storage": (status(503, of="storage"), "localhost answered 503 Service Unavailable", 1),
    "a login page": (status(200), "answers, but not as the Hugging Face Hub does. Open it in a browser", 1),
    "a login page elsewhere": (
        status(302, {"Location": "http://localhost:1/login"}),
        "answers, but not as the Hugging Face Hub does",
        1,
    ),
    "no ETag": (status(200, {"X-Repo-Commit": COMMIT}), "not as the Hugging Face Hub does", 1),
    "gated": (refuse(403, "GatedRepo"), "Access to 'someone/tiny' must be asked for: log in at http://127.0.0.1", 1),
    "no repository": (refuse(401, "RepoNotFound"), "has no repository 'someone/tiny', or it is private", 1),
    "no revision": (refuse(404, "RevisionNotFound"), "answered 404 Not Found. The repository has no branch", 1),
    "no file": (refuse(404, "EntryNotFound"), f"has none of: {WEIGHTS}", 1),
    "dies at once": (cut(0), "Downloading open_clip_model.safetensors of 'someone/tiny' failed", 8),
    "dies half-way": (cut(50_000), "Downloading open_clip_model.safetensors of 'someone/tiny' failed", 8),
    "dies half-way, then 503": (cut(50_000, then=status(503, of="storage")), "localhost answered 503", 3),
    "hangs half-way": (cut(50_000, then=hang), "localhost sends nothing more. Try again later.", 8),
    "hangs": (lambda handler, path: "resolve" in path and hang(handler, path), "timed out", 5),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_trouble_is_said_in_one_line_soon(server: HubServer, case: str) -> None:
    server.fault, message, seconds = TROUBLE[case]
    start = time.monotonic()
    with pytest.raises(ModelError) as caught:
        fetch()
    assert time.monotonic() - start < seconds + 2  # a busy machine's
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert blobs() == []


@pytest.mark.parametrize("store", ["closed", "in trouble"])
def test_trouble_of_the_xet_store_is_said_in_one_line_soon(server: HubServer, store: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server.use_xet(server.endpoint if store == "in trouble" else f"http://127.0.0.1:{closed.getsockname()[1]}")
        server.fault = status(503, of="reconstructions")
        start = time.monotonic()
        with pytest.raises(ModelError, match="HF_HUB_DISABLE_XET=1") as caught:
            fetch()
    assert time.monotonic() - start < 8
    assert "\n" not in str(caught.value)
    assert blobs() == []


def test_a_hub_that_hangs_before_it_gives_a_token_for_xet_is_given_up(
    server: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.use_xet(server.endpoint)
    server.fault = lambda handler, path: "xet-read-token" in path and hang(handler, path)
    with pytest.raises(ModelError, match="sends nothing more"):
        fetch()
    assert blobs() == [] and not caplog.records


def damaged(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_wrong_bytes_are_never_kept(server: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    server.sent = damaged
    with pytest.raises(ModelError, match="sends other bytes than it has"):
        fetch()
    assert blobs() == []
    assert hub.cached(REPO, [WEIGHTS]) is None and not caplog.records


@pytest.mark.parametrize("name", [WEIGHTS, "open_clip_config.json"])
def test_pull_mends_a_damaged_copy(server: HubServer, caplog: pytest.LogCaptureFixture, name: str) -> None:
    path = hub.fetch(REPO, [name])
    path.resolve().write_bytes(damaged(path.read_bytes()))
    assert hub.fetch(REPO, [name], refresh=True) == path
    assert path.read_bytes() == server.repos[REPO][name]
    assert f"{name}: its bytes weren't the hub's, and it was downloaded anew" in caplog.text


@pytest.mark.parametrize("config", [{"model_cfg": TINY_CONFIG}, {"model_cfg": [1]}, []])
def test_weights_are_downloaded_last(server: HubServer, config: Any) -> None:
    server.repos[REPO]["open_clip_config.json"] = json.dumps(config).encode()
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        locate(ModelSpec(f"hf-hub:{REPO}"))
    assert not any(WEIGHTS in request for request in server.requests)


def test_a_mirror_that_does_not_say_what_it_lacks_has_the_next_candidate(server: HubServer) -> None:
    server.fault = lambda handler, path: path.endswith("first.bin") and status(404)(handler, path)
    assert hub.fetch(REPO, ["first.bin", WEIGHTS]).name == WEIGHTS


def test_what_is_there_is_enough_without_a_connection(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    there = locate(ModelSpec(f"hf-hub:{REPO}"))
    server.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.reachable.cache_clear()
    assert locate(ModelSpec(f"hf-hub:{REPO}"), refresh=True) == there
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        locate(ModelSpec("hf-hub:someone/else"), refresh=True)
    assert server.requests == []


def test_a_newer_copy_needs_a_connection(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch()
    monkeypatch.setattr(hub, "_probe", lambda: False)
    hub.reachable.cache_clear()
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE=1 takes the copy that is there"):
        hub.fetch(REPO, [WEIGHTS], refresh=True)


@pytest.mark.parametrize("answer", ["proxy", "nonsense"])
def test_a_proxy_that_refuses_is_named(server: HubServer, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """To an address with https the client asks a proxy for a tunnel."""
    server.fault = status(407, of="example") if answer == "proxy" else hub_server.nonsense
    monkeypatch.setenv("https_proxy", server.endpoint)
    monkeypatch.setattr(urllib.request, "_opener", None)  # made with the environment of the first request
    monkeypatch.setattr(constants, "ENDPOINT", "https://example.invalid")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "https://example.invalid/{repo_id}/resolve/{revision}/{filename}"
    )
    huggingface_hub.close_session()
    with pytest.raises(ModelError) as caught:
        fetch()
    if answer == "proxy":
        assert "the proxy answered 407 Proxy Authentication Required. The proxy wants to know" in str(caught.value)
    assert "\n" not in str(caught.value).split(". Three ways out:")[0]


# ---------------------------------------------------------------------------------------------------------
# Tokenizers


@pytest.fixture
def words(server: HubServer, tmp_path: Path) -> dict[str, Any]:
    """A tokenizer on the hub; what the model's configuration says of it."""
    folder = tmp_path / "words"
    save_tokenizer(folder)
    server.add("someone/words", folder)
    return {"hf_tokenizer_name": "someone/words"}


def test_a_tokenizer_is_whole_or_an_error(server: HubServer, words: dict[str, Any]) -> None:
    server.fault = lambda handler, path: path.endswith("special_tokens_map.json") and status(403)(handler, path)
    for _ in range(2):  # what the first attempt left isn't taken for a whole one
        with pytest.raises(ModelError, match=r"Downloading special_tokens_map\.json of 'someone/words' failed"):
            sources.fetch_tokenizer(words, refresh=False)
    server.fault = None
    folder = sources.fetch_tokenizer(words, refresh=False)
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == set(server.repos["someone/words"])
    server.requests.clear()
    assert sources.fetch_tokenizer(words, refresh=False) == folder
    assert server.requests == []


def test_a_tokenizer_without_its_package_is_refused_before_a_download(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"clipcls\[siglip\]"):
        locate(ModelSpec("multilingual"))
    assert server.requests == []


# ---------------------------------------------------------------------------------------------------------
# The command line


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_fits_a_narrow_terminal() -> None:
    terminal = _Terminal()
    settings = {"total": 605_000_000, "unit": "B", "unit_scale": True, "ncols": 80, "mininterval": 0}
    with hub._Bar(desc="x" * 43, initial=302_500_000, file=terminal, **settings) as bar:
        bar.update(1_000_000)
    shown = [line for line in terminal.getvalue().split("\r") if line.strip()]
    assert shown and all(len(line) <= 80 for line in shown)
    assert "downloading  50%|" in shown[-1] and "/605MB" in shown[-1] and "left" in shown[-1]


@pytest.fixture
def pull(server: HubServer, clipcls: Callable[..., Any]) -> Callable[[], Any]:
    """The end of `clipcls models pull` of the model on the hub."""
    environment = {"HF_ENDPOINT": server.endpoint, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    return partial(clipcls, "models", "pull", f"hf-hub:{REPO}", env=environment)


def test_pull_takes_the_hub_that_the_environment_names(server: HubServer, pull: Callable[[], Any]) -> None:
    warning = hub_server.with_headers({"X-HF-Warning": "old; this model is going to be moved"})
    server.fault = warning
    done = pull()
    assert done.returncode == 0
    assert Path(done.stdout.decode().strip()).read_bytes() == server.repos[REPO][WEIGHTS]
    assert done.stderr == b"clipcls: warning: this model is going to be moved\n"


def test_pull_from_a_hub_that_dies_is_one_line(server: HubServer, pull: Callable[[], Any]) -> None:
    server.fault = cut(50_000, then=status(503, of="storage"))
    done = pull()
    assert (done.returncode, done.stdout) == (3, b"")
    assert done.stderr.decode() == (
        f"clipcls: error: Downloading {WEIGHTS} of '{REPO}' failed: localhost answered 503 Service Unavailable. "
        "Try again later.\n"
    )


def test_without_a_home_there_is_no_place_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~/.cache/huggingface/hub")
    with pytest.raises(ModelError, match=r"no home directory is known.*set HOME or HF_HOME"):
        hub.fetch("someone/tiny", ["open_clip_config.json"])
