"""Attachments in an object service (S3, Google Cloud Storage, Azure), or in a directory or memory behind the same face.

It promises that an object appears whole under the hash of its content, or not at all; that no more than a few blocks of
it are in memory; and that a service that is ill is asked a bounded number of times, within a bounded time, before there
is an error. It knows no session, and nothing of how the services are spoken to: that is the library obstore's business.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar
from urllib.parse import urlsplit

from fastness.attachments.content import (
    BLOCK_BYTES,
    DEFAULT_MAX_BYTES,
    Block,
    Digest,
    blocks,
    chained,
    check_max_bytes,
    check_part,
    require_id,
    verified,
)
from fastness.attachments.measured import measured
from fastness.attachments.object_faults import MISSING, Fault, bounded, fault_of
from fastness.decide.limits import check_attachment_id, check_int63, check_positive, check_text
from fastness.errors import AttachmentNotFoundError, AttachmentStoreError, InvalidInputError, StoreError
from fastness.model.attachments import AttachmentPersistence, AttachmentSource

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult, ObjectMeta
    from obstore.store import ObjectStore

DEFAULT_PATIENCE_MS = 60_000
"""How long one request may take, in milliseconds, with all its retries."""

PART_BYTES = 2 * BLOCK_BYTES
"""How much one request of a large upload carries. S3 takes no part below 5 MiB but the last."""

MAX_PARTS = 10_000
"""How many parts S3 takes: beyond ``PART_BYTES`` times this, parts are larger."""

PARTS_AT_ONCE = 1
"""How many parts are under way at a time. Meanwhile the next one is gathered, so that two are in memory."""

FARTHEST = 2**62
"""Beyond any object: a part that begins here is empty, and one that ends here is open."""

_LAST_MOMENT_S = 0.05
_SCHEMES = ("s3", "gs", "az", "file", "memory")
_ENVIRONMENT = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE"}

Ids: TypeAlias = "list[str]"
_T = TypeVar("_T")


def _library() -> Any:
    """Give the library, which is only there where it was asked for."""
    try:
        import obstore  # noqa: PLC0415 - optional, and slow to import

        _leave_in_peace()
    except ImportError:
        raise AttachmentStoreError(
            "missing",
            "object stores need a library that is not installed (obstore)",
            "run: pip install 'fastness[objects]'",
        ) from None
    return obstore


@cache
def _leave_in_peace() -> None:
    """Give the library's threads a moment at the end of the process.

    One that lets go of a failed request while the interpreter is taken down aborts the process.
    """
    atexit.register(time.sleep, _LAST_MOMENT_S)


class ObjectAttachmentStore:
    """An ``AttachmentStore`` over any store of the library obstore (laws A1, A5).

    ``persistence`` is ``inline`` for a ``MemoryStore`` and ``durable`` for all others. A ``LocalStore`` keeps files
    without flushing them to the disk: where a power cut matters, ``FileAttachmentStore`` is the better one.
    """

    persistence: AttachmentPersistence

    def __init__(
        self,
        store: ObjectStore,
        *,
        prefix: str = "",
        max_bytes: int = DEFAULT_MAX_BYTES,
        patience_ms: int = DEFAULT_PATIENCE_MS,
        spool_directory: Path | None = None,
    ) -> None:
        """Keep attachments in ``store``, below ``prefix``.

        ``max_bytes`` is the largest one that is taken. ``patience_ms`` bounds each request, and each pause between two
        blocks of a large content; an upload that is given up then has as long again to be called off. How often the
        library retries meanwhile is the store's own configuration, see ``from_url``. ``spool_directory`` is where large
        streams of unknown hash wait while they are hashed.
        """
        self._library = _library()
        kinds = self._library.store
        if not isinstance(store, kinds.ObjectStore):
            raise InvalidInputError("store", "must be a store of the library obstore; from_url opens one by its url")
        self._store = store
        self._prefix = _checked_prefix(prefix)
        self._max_bytes = check_max_bytes(max_bytes)
        self._patience_ms = check_positive("patience_ms", patience_ms)
        self._spool_directory = spool_directory
        self._part_bytes = max(PART_BYTES, -(-max_bytes // MAX_PARTS))
        self._conditional = True
        express = isinstance(store, kinds.S3Store) and bool(store.config.get("s3_express"))
        self._in_order = isinstance(store, kinds.S3Store | kinds.GCSStore | kinds.AzureStore) and not express
        self.persistence = "inline" if isinstance(store, kinds.MemoryStore) else "durable"

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        patience_ms: int = DEFAULT_PATIENCE_MS,
        spool_directory: Path | None = None,
        **config: Any,
    ) -> Self:
        """Open ``s3://bucket/prefix``, ``gs://…``, ``az://…``, ``file:///directory`` or ``memory:///``.

        ``config`` goes to the store of the library: ``region``, ``endpoint``, credentials, ``client_options`` and
        ``retry_config``, which are laid over the ones that follow from ``patience_ms``. What is not given comes from
        the service's usual environment variables. Nothing is asked of the service yet.
        """
        check_positive("patience_ms", patience_ms)
        scheme = urlsplit(url).scheme if isinstance(url, str) else ""
        if scheme not in _SCHEMES:
            raise InvalidInputError("url", f"must begin with one of {', '.join(s + '://' for s in _SCHEMES)}")
        if scheme in _ENVIRONMENT:
            config = bounded(config | {"client_options": _client_options(scheme, config)}, patience_ms)
        store = _opened(url, config)
        return cls(store, max_bytes=max_bytes, patience_ms=patience_ms, spool_directory=spool_directory)

    async def put(self, source: AttachmentSource, *, attachment_id: str | None = None) -> str:
        """Keep content, and give its id. Where content of that id and size is there already, it stays as it is.

        Up to 4 MiB go in one request. Larger content is read twice, to know its id first, unless ``attachment_id``
        says it and nothing is there under it; a stream is kept in a temporary file for that.
        """
        if attachment_id is not None:
            check_attachment_id("attachment_id", attachment_id)
        async with aclosing(blocks(source, self._max_bytes)) as content:
            first = bytes(await anext(content, b""))
            second = await anext(content, None)
            if second is None:
                return await self._put_small(first, attachment_id)
            return await self._put_large(source, chained((first, second), content), attachment_id)

    async def get(self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False) -> bytes:
        """Give the bytes of some content from ``start`` up to ``end``, the way a slice does.

        Raises ``AttachmentNotFoundError``, and with ``verify``, ``AttachmentDamagedError``.
        """
        content = self.stream(attachment_id, start=start, end=end, verify=verify)
        return b"".join([block async for block in content])

    async def stream(
        self, attachment_id: str, *, start: int = 0, end: int | None = None, verify: bool = False
    ) -> AsyncIterator[bytes]:
        """Give the same bytes as ``get``, in blocks of about 4 MiB. Damage shows at the end."""
        check_attachment_id("attachment_id", attachment_id)
        check_part(start, end, verify=verify)
        content = self._read(attachment_id, start, FARTHEST if end is None else min(end, FARTHEST))
        async for block in verified(attachment_id, content) if verify else content:
            yield block

    async def size(self, attachment_id: str) -> int:
        """Say how many bytes some content has. Raises ``AttachmentNotFoundError``."""
        size = await self._size(check_attachment_id("attachment_id", attachment_id))
        if size is None:
            raise await self._absent(attachment_id)
        return size

    async def delete(self, attachment_id: str) -> int:
        """Remove some content, and say how many bytes that freed: 0 if it was not there."""
        try:
            size = await self.size(attachment_id)
        except AttachmentNotFoundError:
            return 0
        gone = await self._tried(lambda: self._library.delete_async(self._store, self._key(attachment_id)))
        if not isinstance(gone, Fault):
            return size
        if gone.means != "absent":
            raise gone.error()
        return 0

    async def list(self, *, after: str = "", limit: int = 1000) -> Sequence[str]:
        """Give up to ``limit`` ids, in their order, from behind ``after``. What has another name is left out."""
        check_text("after", after)
        check_positive("limit", limit)
        if self._in_order:
            found = await self._listed(self._prefix, after, limit)
        else:
            found = []  # in no order, or in one of the service's own: shard by shard, so that little is held
            for shard in (f"{number:02x}" for number in range(256)):
                if shard >= after[:2]:
                    found += sorted(await self._listed(f"{self._prefix}{shard}", after, None))
                if len(found) >= limit:
                    break
        if not found and await self._without_directory():
            raise MISSING.error()
        return found[:limit]

    async def discard_unfinished(self, older_than_epoch_ms: int) -> int:
        """Give 0: the library cannot see what uploads left that never came to their end.

        An upload that fails is called off, and leaves nothing; one whose process or network died leaves parts that
        are not visible and cost space. Have the service remove them: S3 and Google Cloud Storage by a lifecycle rule
        of the bucket that aborts incomplete multipart uploads, Azure by itself after a week.
        """
        check_int63("older_than_epoch_ms", older_than_epoch_ms)
        return 0

    async def _put_small(self, content: bytes, expected: str | None) -> str:
        digest = Digest()
        await digest.add(content)
        attachment_id = digest.require(expected)
        put = partial(self._library.put_async, self._store, self._key(attachment_id), content, use_multipart=False)
        if not self._conditional:
            await self._ask(put)
            return attachment_id
        done = await self._tried(partial(put, mode="create"))
        if not isinstance(done, Fault):
            return attachment_id
        if done.means not in {"present", "unsupported"}:
            raise done.error()
        # A conflict may also stem from a deletion at the same moment, and what is there may be cut short.
        if done.means == "unsupported" or await self._size(attachment_id) != len(content):
            await self._ask(put)
            self._conditional = done.means == "present"
        return attachment_id

    async def _put_large(self, source: AttachmentSource, content: AsyncIterator[Block], expected: str | None) -> str:
        there = None if expected is None else await self._size(expected)
        if expected is not None and there is None:
            await self._upload(expected, content)
            return expected
        # A stream has been begun and cannot be read anew; all else can, and must not be kept a second time.
        rest = content if isinstance(source, AsyncIterable) else source
        async with measured(rest, self._max_bytes, self._spool_directory) as found:
            attachment_id = require_id(found.attachment_id, expected)
            if expected is None:
                there = await self._size(attachment_id)
            if there != found.size:
                async with aclosing(blocks(found.content, self._max_bytes)) as again:
                    await self._upload(attachment_id, again)
            return attachment_id

    async def _upload(self, attachment_id: str, content: AsyncIterator[Block]) -> None:
        """Send large content in parts. It becomes visible after its last block, if it is what its id says."""
        upload = _Upload(
            partial(
                self._library.put_async,
                self._store,
                self._key(attachment_id),
                use_multipart=True,
                chunk_size=self._part_bytes,
                max_concurrency=PARTS_AT_ONCE,
            )
        )
        try:
            digest = Digest()
            async for block in content:
                kept = bytes(block)  # what is hashed is what is sent, even if the application writes to its memory
                await digest.add(kept)
                await self._ask(partial(upload.add, kept))
            digest.require(attachment_id)
            await self._ask(upload.finish)
        except BaseException:
            await upload.abandon(self._patience_ms / 1000)
            raise

    async def _read(self, attachment_id: str, start: int, end: int) -> AsyncIterator[bytes]:
        found = await self._opened_at(attachment_id, start, end)
        if found is None:
            return
        wanted, got = min(end, found.meta["size"]) - start, 0
        content = aiter(found.stream(min_chunk_size=BLOCK_BYTES))
        while block := await self._ask(lambda: _next(content, b"")):
            got += len(block)
            yield bytes(block)
        if got != wanted:
            raise AttachmentStoreError(
                "io",
                f"the content of attachment {attachment_id!r} ended after {got} of {wanted} bytes",
                "retry the same call; if it happens again, put the same content again",
            )

    async def _opened_at(self, attachment_id: str, start: int, end: int) -> GetResult | None:
        """Begin to read a part; None where it is empty."""
        if start >= min(end, FARTHEST):
            await self.size(attachment_id)  # an unknown one is an error all the same
            return None
        options: GetOptions = {}
        if end < FARTHEST:
            options = {"range": (start, end)}
        elif start > 0:
            options = {"range": {"offset": start}}
        key = self._key(attachment_id)
        found: GetResult | Fault = await self._tried(lambda: self._library.get_async(self._store, key, options=options))
        if not isinstance(found, Fault):
            return found
        if found.means == "absent":
            raise await self._absent(attachment_id)
        if found.means == "beyond" and await self.size(attachment_id) <= start:
            return None
        raise found.error()

    async def _listed(self, under: str, after: str, limit: int | None) -> Ids:
        """Give the ids below a prefix and behind ``after``, as they come, until there are ``limit`` of them."""
        pages = aiter(
            self._library.list(
                self._store,
                under.rstrip("/") or None,
                offset=self._key(after) if after.isalnum() else None,
                chunk_size=1000,
            )
        )
        found: Ids = []
        page: Sequence[ObjectMeta]
        while page := await self._ask(lambda: _next(pages, ())):
            paths = (entry["path"] for entry in page)
            found += [path[-64:] for path in paths if self._is_ours(path, path[-64:], after)]
            if limit is not None and len(found) >= limit:
                break
        return found

    def _is_ours(self, path: str, name: str, after: str) -> bool:
        try:
            return path == self._key(check_attachment_id("name", name)) and name > after
        except InvalidInputError:
            return False

    async def _size(self, attachment_id: str) -> int | None:
        found = await self._tried(lambda: self._library.head_async(self._store, self._key(attachment_id)))
        if not isinstance(found, Fault):
            return int(found["size"])
        if found.means == "absent":
            return None
        raise found.error()

    async def _absent(self, attachment_id: str) -> StoreError:
        """Say what it means that there is no such object: a bucket that is not there answers the same."""
        if await self._without_directory():
            return MISSING.error()
        probe = aiter(self._library.list(self._store, self._prefix.rstrip("/") or None, chunk_size=1))
        seen = await self._tried(lambda: _next(probe, ()))
        if isinstance(seen, Fault) and seen.reason != "permission":  # who may read need not be allowed to list
            return seen.error()
        return AttachmentNotFoundError(attachment_id)

    async def _without_directory(self) -> bool:
        """Whether this is a directory that is gone. The library takes it for an empty one."""
        if not isinstance(self._store, self._library.store.LocalStore):
            return False
        root = self._store.prefix
        return root is not None and not await asyncio.to_thread(Path(root).is_dir)

    def _key(self, attachment_id: str) -> str:
        return f"{self._prefix}{attachment_id[:2]}/{attachment_id}"

    async def _ask(self, request: Callable[[], Awaitable[_T]]) -> _T:
        """Make a request. Raises the typed error of what goes wrong."""
        found = await self._tried(request)
        if isinstance(found, Fault):
            raise found.error()
        return found

    async def _tried(self, request: Callable[[], Awaitable[_T]]) -> _T | Fault:
        """Make a request within our patience, and give what went wrong as a value.

        So the error for it is raised where no other one is being handled, and carries none as its context.
        """
        try:
            async with asyncio.timeout(self._patience_ms / 1000):
                return await request()
        except (self._library.exceptions.BaseError, OSError, ValueError, NotImplementedError) as error:
            return fault_of(error, self._patience_ms)


class _AbandonedError(Exception):
    """Told to the library instead of a next block: it then calls the upload off."""


class _Upload:
    """A large upload that takes its blocks one by one. Without ``finish``, nothing of it becomes visible.

    The library pulls blocks, calls an upload off when that fails, and forgets it when it is itself cancelled. So its
    future is never cancelled as long as it can still call off, and the source is only ever read by our own task.
    """

    def __init__(self, start: Callable[[AsyncIterator[bytes]], Awaitable[object]]) -> None:
        self._wire: asyncio.Queue[bytes | Literal["end", "abandon"]] = asyncio.Queue(1)
        self._sent = asyncio.ensure_future(start(self._blocks()))
        # Whatever becomes of it is seen, also where whoever waits for it goes away.
        self._sent.add_done_callback(lambda sent: sent.cancelled() or sent.exception())

    async def _blocks(self) -> AsyncIterator[bytes]:
        while isinstance(block := await self._wire.get(), bytes):
            yield block
        if block == "abandon":
            raise _AbandonedError

    async def add(self, block: bytes | Literal["end"]) -> None:
        """Hand over a block, as soon as there is room. Raises what the upload fails with."""
        handing = asyncio.ensure_future(self._wire.put(block))
        try:
            await asyncio.wait({handing, self._sent}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            handing.cancel()
        if self._sent.done():
            self._sent.result()

    async def finish(self) -> None:
        """Say that this was all, and wait until it is visible."""
        await self.add("end")
        await asyncio.wait({self._sent})
        self._sent.result()

    async def abandon(self, patience_s: float) -> None:
        """Call the upload off, and wait for that as long as it makes sense."""
        if not self._wire.empty():
            self._wire.get_nowait()
        self._wire.put_nowait("abandon")
        await asyncio.wait({self._sent}, timeout=patience_s)
        self._sent.cancel()


async def _next(series: AsyncIterator[_T], end: _T) -> _T:
    """Give what comes next. The library's iterators do not work with the default that ``anext`` takes."""
    try:
        return await anext(series)
    except StopAsyncIteration:
        return end


def _checked_prefix(prefix: str) -> str:
    """Take a prefix of keys, and give it with the slash that ends it."""
    if not isinstance(prefix, str):
        raise InvalidInputError("prefix", f"must be text, not {type(prefix).__name__}")
    if not prefix.strip("/"):
        return ""
    parts = prefix.strip("/").split("/")
    if any(part in {"", ".", ".."} or not part.isprintable() for part in parts):
        raise InvalidInputError("prefix", "must be names with a slash between them, without '.', '..' or empty ones")
    return "/".join(parts) + "/"


def _client_options(scheme: str, config: dict[str, Any]) -> dict[str, Any]:
    """Give the options of the client. Where any are given, the library looks for none in the environment."""
    names = {"allow_http": f"{_ENVIRONMENT[scheme]}_ALLOW_HTTP", "proxy_url": f"{_ENVIRONMENT[scheme]}_PROXY_URL"}
    found = {option: os.environ[name] for option, name in names.items() if os.environ.get(name)}
    return found | (config.get("client_options") or {})


def _opened(url: str, config: dict[str, Any]) -> Any:
    library = _library()
    try:
        return library.store.from_url(url, **config)
    except (library.exceptions.BaseError, OSError, ValueError, TypeError) as error:
        fault, kind = fault_of(error, 0), type(error).__name__
    if fault.means == "absent":
        raise fault.error()
    # What the library says may repeat the address or a key.
    raise InvalidInputError("url", f"or its configuration is not what a store needs ({kind})")
