"""Which file system a folder lies on."""

import re
from pathlib import Path

_REMOTE = {
    "9p", "acfs", "afs", "beegfs", "ceph", "cifs", "coda", "cvmfs", "fuse", "glusterfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs", "vboxsf", "wekafs",
}  # fmt: skip
_MOUNTS = Path("/proc/self/mountinfo")


def is_remote(folder: Path, mounts: Path = _MOUNTS) -> bool:
    """Whether other machines may write to a folder, or the system can't tell; False where only Linux would know.

    Args:
        mounts: the kernel's list of mounts, see `man 5 proc_pid_mountinfo`.
    """
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return False
    kind = _kind_at(folder.resolve(), lines)
    # fuseblk, of local disks, isn't among them
    return kind in _REMOTE or kind.startswith("fuse.")


def _kind_at(folder: Path, lines: list[str]) -> str:
    """The type of the innermost mount that holds `folder`, "" if there is none."""
    depth, kind = -1, ""
    for line in lines:
        place, separator, source = line.partition(" - ")
        fields = place.split(" ")
        if not separator or len(fields) < 5:
            continue
        mount = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4]))
        # what is mounted later lies over what is mounted at the same place
        if len(mount.parts) >= depth and folder.is_relative_to(mount):
            depth, kind = len(mount.parts), source.split(" ")[0]
    return kind
