"""The project's own engines and attachment stores, as the conformance kit sees them.

Each joins by one entry. What it needs before its first opening, and what is to be removed after its last, goes into the
entry's ``around``, where it may also skip what has no server to run on.
"""

from __future__ import annotations

import atexit
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import obstore

from fastness.conformance import ALL_POWERS, AttachmentLab, AttachmentSubject, Lab, Power, Subject
from fastness.conformance.lab import Bench
from fastness.persistence import (
    FileAttachmentStore,
    InMemoryAttachmentStore,
    InMemorySessionStoreFactory,
    ObjectAttachmentStore,
    PostgresSessionStoreFactory,
    SqliteSessionStoreFactory,
)
from tests.servers.postgres import shared_server
from tests.servers.s3 import S3Server


def _memory(lab: Lab) -> Any:
    return InMemorySessionStoreFactory(clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


def _sqlite(lab: Lab) -> Any:
    path = lab.directory / "lab.db"
    return SqliteSessionStoreFactory(path, clock=lab.clock, is_dead=lab.is_dead, batch_hook=lab.batch_hook)


def _postgres(lab: Lab) -> Any:
    return PostgresSessionStoreFactory(
        shared_server().url(),
        schema=schema_of(lab),
        clock=lab.clock,
        is_dead=lab.is_dead,
        batch_hook=lab.batch_hook,
        pool_size=4,
    )


def schema_of(lab: Bench) -> str:
    """A name of a test's own, for a schema or a prefix; its directory is, too."""
    return f"t{abs(hash(lab.directory)):x}"


@asynccontextmanager
async def _own_schema(lab: Lab) -> AsyncIterator[None]:
    try:
        yield
    finally:
        with shared_server().admin() as connection:
            connection.execute(f'drop schema if exists "{schema_of(lab)}" cascade')


ENGINES: dict[str, Subject] = {
    "memory": Subject(_memory, ALL_POWERS - {Power.REOPENING, Power.SHARED}),
    "postgres": Subject(_postgres, ALL_POWERS, _own_schema),
    "sqlite": Subject(_sqlite, ALL_POWERS),
}
"""The engines that every law is proved on."""


@cache
def _service() -> tuple[str, dict[str, Any]]:
    """A bucket that all tests of this process share, and what a client must be told; the service ends with us."""
    server = S3Server()
    server.start()
    atexit.register(server.close)
    return server.bucket(), server.options()


def _s3(lab: AttachmentLab) -> ObjectAttachmentStore:
    bucket, options = _service()
    return ObjectAttachmentStore.from_url(f"s3://{bucket}/{schema_of(lab)}", **options)


async def _damage_memory(lab: AttachmentLab, attachment_id: str, data: bytes) -> None:
    lab.opened._contents[attachment_id] = data


async def _damage_file(lab: AttachmentLab, attachment_id: str, data: bytes) -> None:
    (found,) = Path(lab.directory).rglob(attachment_id)
    found.write_bytes(data)


async def _damage_object(lab: AttachmentLab, attachment_id: str, data: bytes) -> None:
    store: ObjectAttachmentStore = lab.opened
    await obstore.put_async(store._store, store._key(attachment_id), data)


DURABLE = frozenset({Power.REOPENING, Power.SHARED})

ATTACHMENT_STORES: dict[str, AttachmentSubject] = {
    "files": AttachmentSubject(
        lambda lab: nullcontext(FileAttachmentStore(lab.directory)), DURABLE, damage=_damage_file
    ),
    "memory": AttachmentSubject(lambda _: nullcontext(InMemoryAttachmentStore()), damage=_damage_memory),
    "objects in files": AttachmentSubject(
        lambda lab: nullcontext(ObjectAttachmentStore.from_url(lab.directory.as_uri())), DURABLE, damage=_damage_object
    ),
    "objects in memory": AttachmentSubject(
        lambda _: nullcontext(ObjectAttachmentStore.from_url("memory:///")), damage=_damage_object
    ),
    "s3": AttachmentSubject(lambda lab: nullcontext(_s3(lab)), DURABLE, damage=_damage_object),
}
"""The stores of attachments that every law of bytes is proved on."""

PAIRS = [
    *(("memory", store) for store in ATTACHMENT_STORES),
    *(("postgres", store) for store in ("files", "s3")),
    *(("sqlite", store) for store in ("files", "s3")),
]
"""Which engine meets which store in the laws of both: one engine all stores, and every engine a near and a far one."""
