"""Whether the runners of `peers.py` compute the same: one that computes something else mustn't win.

clipcls in fp32 with open_clip's own pixels has to give what the plain open_clip loop gives, and the same labels; the
fast ones have to come near it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from records import CLIPCLS, CLIPCLS_INT8, OPEN_CLIP, TUNED, Key, Setup
from runners import Loop, Variant, clipcls_runner, open_clip_runner, variants

from clipcls import Execution

EXACT, LOOSE = 1e-4, 0.03


def check_agreement(setup: Setup, name: str, paths: list[Path]) -> str:
    """Compare what the runners compute on the first pictures of a corpus.

    Returns:
        How near they are, for people.

    Raises:
        SystemExit: clipcls and open_clip disagree.
    """
    paths = _opaque(paths)[:4]
    reference = open_clip_runner(setup, Loop())(paths)
    exact = clipcls_runner(setup, "fp32", "openvino", Execution(decode="exact", cache_dir=None))(paths)
    others = {key: variant.prepare()(paths) for key, variant in _comparable(setup).items()}
    assert reference is not None and exact is not None
    _require_close(f"{name}: clipcls fp32, exact", exact, reference, EXACT)
    if (exact.argmax(axis=1) != reference.argmax(axis=1)).any():
        sys.exit(f"{name}: clipcls and open_clip give different labels, so nothing was timed.")
    for key, found in others.items():
        assert found is not None
        _require_close(f"{name}: {key}", found, reference, LOOSE)
    return f"{name}: clipcls fp32 and open_clip agree within {np.abs(exact - reference).max():.1e}"


def _comparable(setup: Setup) -> dict[Key, Variant]:
    """A variant of each fast runner that tells similarities."""
    found: dict[str, Variant] = {}
    for variant in variants(setup):
        if variant.key.runner in (CLIPCLS, CLIPCLS_INT8, TUNED, OPEN_CLIP):
            found.setdefault(variant.key.runner, variant)
    return {variant.key: variant for variant in found.values()}


def _require_close(name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    furthest = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
    if not furthest <= tolerance:
        sys.exit(f"{name}: similarities are {furthest:.2g} off open_clip's, so nothing was timed.")


def _opaque(paths: Sequence[Path]) -> list[Path]:
    """Without transparent pictures, which clipcls lays on white and open_clip doesn't."""
    found = []
    for path in paths[:16]:
        with Image.open(path) as image:
            if not image.has_transparency_data:
                found.append(path)
    return found
