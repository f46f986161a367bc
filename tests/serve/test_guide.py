"""The guide's commands, before a server in a process of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pages import ROOT, agrees, blocks

GUIDE = ROOT / "examples/serving/README.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_guide_can_be_followed(tmp_path: Path) -> None:
    """In one shell, since its commands stop what they started."""
    followed = [block for block in blocks(GUIDE.read_text()) if block.reason_not_to_run == "a server"]
    script = "set -e -o pipefail\ntrap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n"
    for number, block in enumerate(followed):
        text = f"python - <<'PYTHON'\n{block.text}PYTHON\n" if block.language == "python" else block.text
        script += f"exec > {tmp_path}/{number} 2>&1\n{text}"
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "CLIPCLS_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=120)
    printed = [(tmp_path / str(n)).read_text() for n in range(len(followed)) if (tmp_path / str(n)).exists()]
    assert done.returncode == 0, "\n".join(printed)
    for block, text in zip(followed, printed, strict=True):
        assert block.shown is None or agrees(block.shown.splitlines(), text.splitlines()), text
