"""Moving and keeping: sessions copied from one database to another, backups, and what becomes of them.

``copy`` goes from any database to any other, ``backup`` into a new SQLite file, ``restore`` from such a file into an
empty database. What is moved is all that the database knows of a session; the bytes of attachments live in a store of
their own, and ``copy_attachments`` takes them to another one.
"""

from fastness.transfer.attachments import AttachmentTransferReport, copy_attachments
from fastness.transfer.backup import backup, restore
from fastness.transfer.copying import Progress, TransferReport, copy

__all__ = [
    "AttachmentTransferReport",
    "Progress",
    "TransferReport",
    "backup",
    "copy",
    "copy_attachments",
    "restore",
]
