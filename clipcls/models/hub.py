"""Fetches files of the Hugging Face Hub from its local cache, or downloads them, and says why where that fails.

The hub's own client downloads, within limits of time: alone it would try for minutes what isn't going to work. A hub
that doesn't answer as it should is given up within 30 seconds in all; a slow download that goes on is not.
"""

import contextlib
import functools
import hashlib
import http.client
import logging
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub import utils as hub_utils

from clipcls.errors import HubUnreachableError, ModelError, first_line, reason

logger = logging.getLogger(__name__)

PROBE_SECONDS = 3.0
# how long a hub in trouble is asked for the facts of a file
RETRY_SECONDS = 5.0
# limits of the Xet transport, which has its own client: alone it tries for two minutes
_XET_LIMITS = {
    "HF_XET_CLIENT_READ_TIMEOUT": "5s",
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_RETRY_BASE_DELAY": "1s",
}
# what the client says of a request that failed before it tries again
_FURTHER_ATTEMPT = re.compile("thrown while requesting|Retrying in|Error while downloading")
_REMEDIES = {
    401: "The token in HF_TOKEN isn't accepted: set one that is valid, or none.",
    403: "Set HF_TOKEN to a token that may read it; if it is a proxy that refuses, ask who runs it to let it through.",
    404: "The repository has no branch `main`.",
    407: "The proxy wants to know who you are: HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT.",
    429: "It is asked too often; try again later, or set HF_TOKEN, which is allowed more.",
}


class NoSuchFileError(ModelError):
    """A repository has none of the files that were asked for."""


def fetch(repo: str, candidates: Sequence[str], *, refresh: bool = False) -> Path:
    """Return the path of the first of `candidates` that a repository has.

    A cached file is used as it is, without a request; `refresh` asks the hub whether there is a newer one, and
    replaces a cached one that is damaged.

    Args:
        repo: `ORG/REPO`.
        candidates: file names, the preferred one first.

    Raises:
        NoSuchFileError: the repository has none of them.
        ModelError: none is cached, and the hub can't be reached or doesn't give it.
    """
    path = cached(repo, candidates)
    if path is not None and (not refresh or is_offline()):
        return path
    if constants.HF_HUB_CACHE.startswith("~"):
        raise ModelError("no home directory is known, so the hub's files have no place: set HOME or HF_HOME.")
    if not reachable():
        raise HubUnreachableError(_unreachable(repo) if path is None else _not_refreshed(repo))
    for name in candidates:
        try:
            return _download(repo, name)
        except NoSuchFileError:
            continue
    raise NoSuchFileError(f"The repository {repo!r} has none of: {', '.join(candidates)}.")


def cached(repo: str, candidates: Sequence[str]) -> Path | None:
    """Return the path of the first of `candidates` that is in the hub's cache, without a request; None for none."""
    for name in candidates:
        found = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    return None


def require_within_reach(repo: str, candidates: Sequence[str]) -> None:
    """Refuse a repository that can't be had, before anything that takes long; nothing is downloaded.

    Raises:
        HubUnreachableError: none of `candidates` is cached, and the hub can't be reached.
    """
    if cached(repo, candidates) is None and not reachable():
        raise HubUnreachableError(_unreachable(repo))


def is_download(path: Path) -> bool:
    """Return whether a file is in the hub's cache."""
    return path.is_relative_to(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Return whether the user forbids requests to the hub."""
    return constants.HF_HUB_OFFLINE


@functools.cache
def reachable() -> bool:
    """Return whether the hub answers within PROBE_SECONDS; asked once a process, and not if HF_HUB_OFFLINE is set."""
    if is_offline():
        return False
    answered: list[bool] = []
    # a thread, because looking up a name can take longer than any time-out given to the connection
    probe = threading.Thread(target=lambda: answered.append(_probe()), daemon=True)
    probe.start()
    probe.join(PROBE_SECONDS)
    return bool(answered and answered[0])


def _probe() -> bool:
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=PROBE_SECONDS).close()
    except (urllib.error.HTTPError, http.client.HTTPException):
        return True
    except urllib.error.URLError as exc:
        # a server or a proxy answered; the download finds out what it means by it
        return isinstance(exc.reason, ssl.SSLError) or "Tunnel connection failed" in str(exc.reason)
    except (OSError, ValueError):
        return False
    return True


def _not_refreshed(repo: str) -> str:
    return (
        f"{constants.ENDPOINT} can't be reached, so there is no telling whether {repo!r} is still the newest. "
        "HF_HUB_OFFLINE=1 takes the copy that is there."
    )


def _unreachable(repo: str) -> str:
    why = "HF_HUB_OFFLINE is set" if is_offline() else f"{constants.ENDPOINT} can't be reached"
    return (
        f"The weights of {repo!r} are not in {constants.HF_HUB_CACHE}, and {why}. Three ways out:\n"
        "  1. On a machine with a connection run `clipcls models pull NAME`, copy its ~/.cache/huggingface here, "
        "and set HF_HOME to the copy.\n"
        "  2. Give --model a local folder with open_clip_config.json and weights.\n"
        "  3. Use a small model that is embedded: --model everyday for photographs of everyday things, "
        "--model pictogram for icons, stickers and emoji."
    )


# ---------------------------------------------------------------------------------------------------------
# A download


def _download(repo: str, name: str) -> Path:
    """Download a file unless the newest is cached, and compare it with the hub's checksum.

    Raises:
        NoSuchFileError: the repository doesn't have it.
        ModelError: the hub can't be asked for it, or sends something else.
    """
    logging.getLogger("huggingface_hub").handlers.clear()  # else its warnings are said twice, here and by the root
    for variable, limit in _XET_LIMITS.items():
        os.environ.setdefault(variable, limit)
    try:
        checksum = _checksum_on_hub(repo, name)
        for again in (False, True):
            with _limits():
                found = huggingface_hub.hf_hub_download(
                    repo, name, library_name="clipcls", force_download=again, tqdm_class=_Bar
                )
            path = Path(found)
            if _has_checksum(path, checksum):
                if again:
                    logger.warning("%s: its bytes weren't the hub's, and it was downloaded anew", path)
                return path
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    except ModelError:
        raise
    except Exception as exc:
        # whatever three transports and a library in another language raise
        raise _translated(exc, repo, name) from exc
    raise ModelError(f"{constants.ENDPOINT} sends other bytes than it has for {name} of {repo!r}. Try again later.")


def _checksum_on_hub(repo: str, name: str) -> str:
    """Ask for a file's ETag, again for a while if the hub is in trouble.

    Raises:
        ModelError: what answers isn't the hub.
    """
    until = time.monotonic() + RETRY_SECONDS
    while True:
        try:
            with _limits():
                stated = huggingface_hub.get_hf_file_metadata(
                    huggingface_hub.hf_hub_url(repo, name),
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                    library_name="clipcls",
                )
            break
        except errors.HTTPError as exc:  # type: ignore[attr-defined]  # the root of its transport's errors
            if (_status(exc) or 500) < 500 or time.monotonic() > until:
                raise
        time.sleep(1)
    if stated.commit_hash is None or stated.etag is None:
        raise ModelError(
            f"{constants.ENDPOINT} answers, but not as the Hugging Face Hub does. Open it in a browser: it may be this "
            "network's login page, or a proxy's; and HF_ENDPOINT, if it is set, must name a hub."
        )
    return stated.etag


def _has_checksum(path: Path, etag: str) -> bool:
    """Return whether a file's content is that of an ETag; True for ETags that aren't known as checksums."""
    content = f"blob {path.stat().st_size}\0".encode()
    algorithms = {64: [hashlib.sha256()], 40: [hashlib.sha1(content), hashlib.sha1()]}
    digests = algorithms.get(len(etag), []) if set(etag) <= set("0123456789abcdef") else []
    with path.open("rb") as file:
        while digests and (chunk := file.read(2**20)):
            for digest in digests:
                digest.update(chunk)
    return not digests or etag in [digest.hexdigest() for digest in digests]


class _Bar(hub_utils.tqdm):  # type: ignore[name-defined, misc]
    """The client's progress bar, on one line of a narrow terminal."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        shown = logger.isEnabledFor(logging.WARNING) and os.environ.get("TERM") != "dumb"
        own = {
            "desc": "downloading",
            "bar_format": "{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}B {rate_fmt}, {remaining} left",
            "disable": None if shown else True,
            "leave": False,
            "position": None,
        }
        super().__init__(*args, **settings | own)

    def update_transfer(self, _count: int) -> None:
        """Stand in for a second bar, of bytes that Xet receives but hasn't written."""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Have the client give up where it would go on for minutes, and speak of further attempts only with -v."""
    talk = [logging.getLogger(f"huggingface_hub.{module}") for module in ("file_download", "utils._http")]
    for own in talk:
        own.addFilter(_is_worth_saying)
    hooks = huggingface_hub.get_session().event_hooks
    limits = _Limits()
    hooks["request"].append(limits.before)
    hooks["response"].append(limits.after)
    try:
        yield
    finally:
        for own in talk:
            own.removeFilter(_is_worth_saying)
        hooks["request"].remove(limits.before)
        hooks["response"].remove(limits.after)


def _is_worth_saying(record: logging.LogRecord) -> bool:
    return logger.isEnabledFor(logging.INFO) or not _FURTHER_ATTEMPT.search(record.getMessage())


class _Limits:
    """Looks at the client's requests: none may wait for ever, or be repeated for long."""

    def __init__(self) -> None:
        self._asked: tuple[str, ...] = ()
        self._again: float | None = None  # when the same bytes were asked for a second time

    def before(self, request: Any) -> None:
        """Limit a request's time: HF_HUB_DOWNLOAD_TIMEOUT between two answers, half of it where one failed before.

        Raises:
            TimeoutError: the same bytes have been asked for long enough.
        """
        longest: float = constants.HF_HUB_DOWNLOAD_TIMEOUT
        asked = (request.method, str(request.url), request.headers.get("Range", ""))
        if asked[:2] == self._asked[:2]:
            longest /= 2
        if asked != self._asked:
            self._asked, self._again = asked, None
        elif self._again is None:
            self._again = time.monotonic()
        elif time.monotonic() - self._again > longest:
            raise TimeoutError(f"{request.url.host} sends nothing more")
        timeouts = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {kind: min(limit or longest, longest) for kind, limit in timeouts.items()}

    def after(self, response: Any) -> None:
        """Raise for an answer that asks to wait, which the client would, however long.

        Raises:
            HTTPStatusError: it does; the client's own library has it.
        """
        if response.status_code == 429:
            response.raise_for_status()


# ---------------------------------------------------------------------------------------------------------
# What went wrong


def _status(exc: BaseException) -> int | None:
    return getattr(getattr(exc, "response", None), "status_code", None)


def _translated(exc: Exception, repo: str, name: str) -> ModelError:
    """Return what the client's error means, and what to do."""
    if isinstance(exc, errors.LocalEntryNotFoundError | ValueError) and isinstance(exc.__cause__, Exception):
        exc = exc.__cause__  # the client says only that the file isn't cached
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(exc, errors.GatedRepoError):
        return ModelError(
            f"Access to {repo!r} must be asked for: log in at {page} and ask there, then set HF_TOKEN to a token of "
            "your account (or run `hf auth login`)."
        )
    if isinstance(exc, errors.RepositoryNotFoundError):
        return ModelError(f"{constants.ENDPOINT} has no repository {repo!r}, or it is private (HF_TOKEN).")
    status = _status(exc)
    # mirrors don't all say what it is that they lack
    if status == 404 and not isinstance(exc, errors.RevisionNotFoundError):
        return NoSuchFileError(f"The repository {repo!r} has no {name}.")
    return ModelError(f"Downloading {name} of {repo!r} failed: {_why(exc, status)}")


def _why(exc: Any, status: int | None) -> str:
    if status is not None:
        answer = f"{exc.response.url.host} answered {status} {http.client.responses.get(status, '')}".rstrip()
        wait = exc.response.headers.get("Retry-After", "") if status == 429 else ""
        remedy = _REMEDIES.get(status, "Try again later.")
        return f"{answer}{wait and f', wait {wait} seconds'}. {remedy}"
    if type(exc).__name__ == "ProxyError":
        return f"the proxy answered {first_line(exc)}. {_REMEDIES[407] if '407' in str(exc) else 'See HTTPS_PROXY.'}"
    if isinstance(exc, RuntimeError):  # hf_xet's
        last = first_line(exc).rpartition("rror: ")[2]  # of a chain of causes
        return f"Xet, the hub's store of large files: {last}. Try again, or with HF_HUB_DISABLE_XET=1, which avoids it."
    return f"{reason(exc).removesuffix('.')}. Try again later."
