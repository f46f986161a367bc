"""This node's name and its folder, which its workers share and no other node sees."""

import os
import platform
import tempfile
from pathlib import Path

from clipcls.errors import StoppedError

#: This machine's name in messages.
NAME = platform.node() or "this node"


def own_folder() -> Path:
    """Make the folder, for this user alone, and return it.

    Raises:
        StoppedError: it can't be made, or belongs to somebody else.
    """
    user = os.getuid() if hasattr(os, "getuid") else None
    folder = Path(tempfile.gettempdir()) / ("clipcls" if user is None else f"clipcls-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        owner = folder.stat().st_uid
    except OSError as exc:
        raise StoppedError(f"{folder}: can't be made: {exc.strerror}.") from exc
    if user is not None and owner != user:
        raise StoppedError(f"{folder} belongs to somebody else, who could put anything there. Remove it.")
    return folder
