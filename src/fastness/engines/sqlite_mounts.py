"""On what kind of file system a path lies, from the text of Linux's mount table.

Write-ahead logging shares memory between the processes that use a file, so it is not safe where they may run on
different machines, or on a host and its guest. Pure: the caller reads the table.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MOUNT_TABLE = "/proc/self/mountinfo"

# Three kinds of the same trouble, memory and locks that are not the same for everybody who has the file open: file
# systems over a network, folders that a host lends to its guests, and stores of objects that look like a directory.
_NETWORK = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "davfs2", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs"}
    | {"nfs", "nfs4", "ocfs2", "orangefs", "pvfs2", "smb", "smb2", "smb3", "smbfs", "wekafs"}
    | {"drvfs", "prl_fs", "vboxsf", "virtiofs", "vmhgfs"}
)
_NETWORK_FUSE = re.compile(
    r"fuse\.(?:alluxio|blobfuse|ceph|davfs|gcsfuse|gluster|goofys|grpcfuse|hdfs|juicefs|mfs|moose|mountpoint-s3|rclone"
    r"|s3fs|seaweed|sshfs|vmhgfs|weed)"
)


def file_system_of(mount_table: str, path: str) -> str | None:
    """Give the type of the file system that holds an absolute path, or None where the table does not say."""
    target = PurePosixPath(path)
    kind, depth = None, -1
    for line in mount_table.splitlines():
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if not dash or len(fields) < 5:
            continue
        mount = PurePosixPath(_unescape(fields[4]))
        # A later mount on the same point hides the earlier one.
        if len(mount.parts) >= depth and target.is_relative_to(mount):
            kind, depth = after.split(" ", 1)[0], len(mount.parts)
    return kind


def is_network(kind: str | None) -> bool:
    """Whether a file system of this type may be in use from several machines, virtual ones included."""
    return kind is not None and (kind in _NETWORK or _NETWORK_FUSE.match(kind) is not None)


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
