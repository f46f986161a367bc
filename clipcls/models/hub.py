"""Fetches files of the Hugging Face Hub from its local cache, or downloads them after one short probe."""

import functools
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError

from clipcls.errors import ModelError, first_line

PROBE_SECONDS = 3.0


def fetch(repo: str, candidates: Sequence[str], *, refresh: bool = False) -> Path:
    """Return the path of the first of `candidates` that a repository has.

    A cached file is used as it is, without a request; `refresh` asks the hub whether there is a newer one.

    Args:
        repo: `ORG/REPO`.
        candidates: file names, the preferred one first.

    Raises:
        ModelError: none is cached and the hub can't be reached, or the repository has none of them.
    """
    if not refresh and (cached := _cached(repo, candidates)):
        return cached
    if not reachable():
        raise ModelError(_unreachable(repo))
    for name in candidates:
        try:
            path = huggingface_hub.hf_hub_download(repo, name, library_name="clipcls")
        except EntryNotFoundError:
            continue
        except RepositoryNotFoundError as exc:
            raise ModelError(f"{constants.ENDPOINT} has no repository {repo!r}, or it is private (HF_TOKEN).") from exc
        except (HfHubHTTPError, OSError, ValueError) as exc:
            raise ModelError(f"Downloading {name} of {repo!r} failed: {first_line(exc)}") from exc
        return Path(path)
    raise ModelError(f"The repository {repo!r} has none of: {', '.join(candidates)}.")


@functools.cache
def reachable() -> bool:
    """Return whether the hub answers within PROBE_SECONDS; asked once a process, and not if HF_HUB_OFFLINE is set."""
    if constants.HF_HUB_OFFLINE:
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
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as exc:
        # a server answered; the download decides whether to trust it
        return isinstance(exc.reason, ssl.SSLError)
    except (OSError, ValueError):
        return False
    return True


def _cached(repo: str, candidates: Sequence[str]) -> Path | None:
    for name in candidates:
        found = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    return None


def _unreachable(repo: str) -> str:
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} can't be reached"
    return (
        f"The weights of {repo!r} are not in {constants.HF_HUB_CACHE}, and {why}. Three ways out:\n"
        "  1. On a machine with a connection run `clipcls models pull NAME`, copy its ~/.cache/huggingface here, "
        "and set HF_HOME to the copy.\n"
        "  2. Give --model a local folder with open_clip_config.json and weights.\n"
        "  3. Use --model pictogram, which is embedded: for pictograms (icons, stickers, emoji), not photographs."
    )
