"""The object store against an S3 service on loopback, and against services that are ill."""

from __future__ import annotations

import asyncio
import hashlib
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import S3Store

from fastness.attachments.objects import ObjectAttachmentStore
from fastness.errors import (
    AttachmentDamagedError,
    AttachmentNotFoundError,
    AttachmentStoreError,
    InvalidInputError,
    StoreError,
)
from fastness.model.attachments import AttachmentSource
from tests.servers.s3 import CREDENTIALS, S3Server, client_options
from tests.servers.sick import HANGS, OBJECT, Answer, Request, Script, SickServer, in_turn

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
UNKNOWN = "0" * 64
LARGE = bytes(range(256)) * (12 * 4096) + b"and a rest"
"""A bit more than 12 MiB: two parts."""
LARGE_ID = hashlib.sha256(LARGE).hexdigest()
HANGS_AT_MOST_S = 30
SOON_MS = 1_000
"""A patience that a test waits out: long enough for a request to reach a server on a slow machine."""
"""When a test gives up on what should have given up by itself long before."""

Operation = Callable[[ObjectAttachmentStore], Awaitable[object]]
OPERATIONS: dict[str, Operation] = {
    "put": lambda store: store.put(b"hello"),
    "large put": lambda store: store.put(LARGE),
    "stream put": lambda store: store.put(stream(LARGE), attachment_id=LARGE_ID),
    "get": lambda store: store.get(HELLO),
    "part": lambda store: store.get(HELLO, start=1, end=3),
    "size": lambda store: store.size(HELLO),
    "delete": lambda store: store.delete(HELLO),
    "list": lambda store: store.list(),
}


@pytest.fixture(scope="module")
def service() -> Iterator[S3Server]:
    """An S3 service for all tests."""
    with S3Server() as started:
        yield started


@pytest.fixture
def bucket(service: S3Server) -> str:
    """A bucket of this test."""
    return service.bucket()


@pytest.fixture
def store(service: S3Server, bucket: str) -> ObjectAttachmentStore:
    """The store under test, below a prefix of the bucket."""
    return ObjectAttachmentStore.from_url(f"s3://{bucket}/some/where", **service.options())


def ill(server: SickServer, patience_ms: int = 10_000) -> ObjectAttachmentStore:
    """A store on a server that misbehaves. It asks again soon, so that the tests do not wait."""
    soon = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    options = {"retry_config": {"backoff": soon}, **client_options(server.endpoint)}
    return ObjectAttachmentStore.from_url("s3://bucket", patience_ms=patience_ms, **options)


async def stream(content: bytes) -> AsyncIterator[bytes]:
    """Content in pieces."""
    for at in range(0, len(content), 1_000_000):
        yield content[at : at + 1_000_000]


async def failure(operation: Awaitable[object]) -> AttachmentStoreError:
    """The error of an operation, which comes in bounded time and carries nothing secret."""
    async with asyncio.timeout(HANGS_AT_MOST_S):
        with pytest.raises(AttachmentStoreError) as raised:
            await operation
    shown = repr(raised.value) + "".join(traceback.format_exception(raised.value))
    for secret in (*CREDENTIALS.values(), "X-Amz-", "Signature", "the body of the answer"):
        assert secret not in shown
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    return raised.value


@pytest.mark.parametrize("kind", ["bytes", "path", "stream"])
@pytest.mark.parametrize("content", [b"", b"hello", LARGE], ids=["0", "5", "12 MiB"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown id", "known id"])
async def test_what_was_put_is_read_back(
    store: ObjectAttachmentStore, tmp_path: Path, content: bytes, kind: str, known: bool
) -> None:
    """Content of any size from any source is kept by the service, and comes back whole and in parts."""
    path = tmp_path / "source"
    path.write_bytes(content)
    attachment_id = hashlib.sha256(content).hexdigest()
    sources: dict[str, AttachmentSource] = {"bytes": content, "path": path, "stream": stream(content)}
    assert await store.put(sources[kind], attachment_id=attachment_id if known else None) == attachment_id
    assert await store.get(attachment_id, verify=True) == content
    assert await store.size(attachment_id) == len(content)
    assert await store.get(attachment_id, start=1, end=4) == content[1:4]
    assert await store.get(attachment_id, end=3) == content[:3]
    assert await store.get(attachment_id, start=5) == content[5:]
    assert await store.get(attachment_id, start=len(content)) == b""
    assert await store.list() == [attachment_id]


async def test_large_content_comes_in_blocks(store: ObjectAttachmentStore) -> None:
    """A stream gives large content in blocks, none much larger than 4 MiB."""
    await store.put(LARGE)
    sizes = [len(block) async for block in store.stream(LARGE_ID, verify=True)]
    assert sum(sizes) == len(LARGE)
    assert max(sizes) < 5_000_000


async def test_what_is_there_is_not_written_again(store: ObjectAttachmentStore, service: S3Server, bucket: str) -> None:
    """A second put of the same content changes nothing in the bucket."""
    await store.put(b"hello")
    await store.put(LARGE)
    raw = S3Store(bucket, **service.options())
    before = {entry["path"]: entry["last_modified"] for entry in await obstore.list(raw).collect_async()}
    key = f"some/where/2c/{HELLO}"
    await obstore.put_async(raw, key, b"HELLO")
    await store.put(b"hello")
    await store.put(LARGE)
    await store.put(stream(LARGE), attachment_id=LARGE_ID)
    after = {entry["path"]: entry["last_modified"] for entry in await obstore.list(raw).collect_async()}
    assert bytes(await (await obstore.get_async(raw, key)).bytes_async()) == b"HELLO"
    assert {name: when for name, when in after.items() if name != key} == {
        name: when for name, when in before.items() if name != key
    }
    with pytest.raises(AttachmentDamagedError):
        await store.get(HELLO, verify=True)


async def test_the_same_bytes_at_once_are_one_object(store: ObjectAttachmentStore) -> None:
    """Fifty puts of the same bytes at once all succeed."""
    assert set(await asyncio.gather(*(store.put(b"hello") for _ in range(50)))) == {HELLO}
    assert await store.list() == [HELLO]
    assert await store.get(HELLO, verify=True) == b"hello"


async def test_pages_are_in_order(store: ObjectAttachmentStore, service: S3Server, bucket: str) -> None:
    """Pages put together are all ids in their order, without strangers."""
    put = sorted([await store.put(str(number).encode()) for number in range(25)])
    raw = S3Store(bucket, **service.options())
    for stranger in ("some/where/readme", f"some/where/ff/{HELLO}", f"2c/{HELLO}"):
        await obstore.put_async(raw, stranger, b"hello")
    found: list[str] = []
    while page := await store.list(after=found[-1] if found else "", limit=7):
        assert len(page) <= 7
        found += page
    assert found == put


async def test_a_service_that_begins_each_page_anew_does_not_lead_in_circles() -> None:
    """Where a service overlooks what a page is to begin behind, ids that were given before are left out."""
    keys = [f"{UNKNOWN[:2]}/{UNKNOWN}", f"{HELLO[:2]}/{HELLO}"]
    entry = "<Contents><Key>{}</Key><Size>5</Size><LastModified>2006-01-02T15:04:05Z</LastModified></Contents>"
    page = f"<ListBucketResult>{''.join(entry.format(key) for key in keys)}</ListBucketResult>"
    async with SickServer(in_turn(Answer(200, page.encode()))) as server:
        store = ill(server)
        assert await store.list() == [UNKNOWN, HELLO]
        assert await store.list(after=UNKNOWN) == [HELLO]
        assert await store.list(after=HELLO) == []


async def test_delete_is_idempotent(store: ObjectAttachmentStore) -> None:
    """The first delete gives the bytes that it freed, the next one 0, and the content is gone."""
    await store.put(b"hello")
    assert await store.delete(HELLO) == 5
    assert await store.delete(HELLO) == 0
    with pytest.raises(AttachmentNotFoundError):
        await store.get(HELLO)
    with pytest.raises(AttachmentNotFoundError):
        await store.size(HELLO)


async def test_an_upload_that_is_refused_is_called_off(
    store: ObjectAttachmentStore, service: S3Server, bucket: str
) -> None:
    """Large content that is not what was expected leaves nothing in the bucket, neither an object nor parts."""
    with pytest.raises(InvalidInputError, match="hashes to"):
        await store.put(stream(LARGE), attachment_id=UNKNOWN)
    assert await store.list() == []
    assert service.unfinished(bucket) == 0


async def test_an_upload_whose_stream_fails_is_called_off(
    store: ObjectAttachmentStore, service: S3Server, bucket: str
) -> None:
    """A stream that fails half way leaves nothing in the bucket, and its own error comes through."""
    begun: list[int] = []

    async def broken() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield LARGE
        while not service.unfinished(bucket):
            await asyncio.sleep(0.01)
        begun.append(service.unfinished(bucket))
        raise ConnectionResetError("the application's own")

    with pytest.raises(ConnectionResetError, match="the application's own"):
        await store.put(broken(), attachment_id=LARGE_ID)
    assert begun == [1]
    assert await store.list() == []
    assert service.unfinished(bucket) == 0


async def test_an_upload_that_is_cancelled_is_called_off(
    store: ObjectAttachmentStore, service: S3Server, bucket: str
) -> None:
    """Cancelling a put in the middle leaves no parts in the bucket."""
    reached = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield LARGE
        while not service.unfinished(bucket):
            await asyncio.sleep(0.01)
        reached.set()
        await asyncio.Event().wait()

    put = asyncio.create_task(store.put(endless(), attachment_id=LARGE_ID))
    async with asyncio.timeout(HANGS_AT_MOST_S):
        await reached.wait()
        assert service.unfinished(bucket) == 1
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
    assert await store.list() == []
    assert service.unfinished(bucket) == 0


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_a_bucket_that_does_not_exist_is_missing(service: S3Server, operation: Operation) -> None:
    """Without its bucket a store has no answer: not that there is nothing, and not that this one is not there."""
    store = ObjectAttachmentStore.from_url("s3://no-such-bucket/some/where", **service.options())
    assert (await failure(operation(store))).reason == "missing"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_no_permission_is_said_at_once(operation: Operation, status: int) -> None:
    """Credentials that the service refuses are an error of permission, without any repetition."""
    async with SickServer(in_turn(Answer(status, b"the body of the answer"))) as server:
        error = await failure(operation(ill(server)))
        assert len(server.requests) == 1
    assert error.reason == "permission"
    assert f"HTTP status {status}" in str(error)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_a_service_that_fails_for_ever_is_asked_a_bounded_number_of_times(operation: Operation) -> None:
    """A service that only answers 500 is asked again some times, and then there is an error that names the status."""
    async with SickServer(in_turn(Answer(500, b"the body of the answer"))) as server:
        error = await failure(operation(ill(server)))
        assert 2 <= len(server.requests) <= 7
    assert error.reason == "refused"
    assert "HTTP status 500" in str(error)


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_a_service_that_hangs_is_unreachable(operation: Operation) -> None:
    """A service that says nothing at all is given up within our patience."""
    async with SickServer(in_turn(HANGS)) as server:
        error = await failure(operation(ill(server, SOON_MS)))
        assert server.requests
    assert error.reason == "unreachable"


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_a_service_that_is_not_there_is_unreachable(operation: Operation) -> None:
    """Where nobody listens, the error says that the service cannot be reached."""
    async with SickServer(in_turn(HANGS)) as server:
        pass
    assert (await failure(operation(ill(server)))).reason == "unreachable"


async def test_a_service_that_recovers_is_not_noticed() -> None:
    """Two failures and then an answer are an answer."""
    script = in_turn(Answer(500), Answer(503), Answer(200, b"hello", OBJECT))
    async with SickServer(script) as server:
        assert await ill(server).get(HELLO, verify=True) == b"hello"
        assert server.seen("GET") == 3
    async with SickServer(in_turn(Answer(500), Answer(503), Answer(200, b"", OBJECT))) as server:
        assert await ill(server).put(b"hello") == HELLO
        assert [request.headers["if-none-match"] for request in server.requests] == ["*", "*", "*"]


@pytest.mark.parametrize("length", [6, 5_000_000])
async def test_a_body_that_ends_short_is_an_error(length: int) -> None:
    """An answer that breaks off before its end never passes for content, neither whole nor as a stream's last block."""
    async with SickServer(in_turn(Answer(200, b"hello", OBJECT, length))) as server:
        await failure(ill(server).get(HELLO))
        assert server.seen("GET") >= 1


async def test_a_part_that_is_shorter_than_it_says_is_an_error() -> None:
    """A part whose body is whole for HTTP and lacks bytes of what its own range says is no content either."""
    said = {**OBJECT, "content-range": "bytes 1-3/5"}
    async with SickServer(in_turn(Answer(206, b"e", said))) as server:
        error = await failure(ill(server).get(HELLO, start=1, end=4))
    assert error.reason == "io"
    assert "after 1 of 3 bytes" in str(error)


async def test_a_body_that_stalls_is_unreachable() -> None:
    """An answer that stops in the middle is given up within our patience."""

    def script(request: Request) -> Answer:
        return HANGS if "range" in request.headers else Answer(200, b"hello", OBJECT, 6)

    async with SickServer(script) as server:
        assert (await failure(ill(server, SOON_MS).get(HELLO))).reason == "unreachable"


@pytest.mark.parametrize("status", [400, 501])
async def test_a_service_without_conditions_is_written_plainly(status: int) -> None:
    """Where the service takes no conditional writes, small content is written without, and that is remembered."""

    def script(request: Request) -> Answer:
        return Answer(status) if "if-none-match" in request.headers else Answer(200, b"", OBJECT)

    async with SickServer(script) as server:
        store = ill(server)
        assert await store.put(b"hello") == HELLO
        conditional = sum("if-none-match" in request.headers for request in server.requests)
        assert await store.put(b"") == hashlib.sha256(b"").hexdigest()
        assert sum("if-none-match" in request.headers for request in server.requests) == conditional
        assert server.seen("PUT") == conditional + 2


async def test_a_refusal_that_has_another_reason_stays_one() -> None:
    """A service that answers 400 to the plain write too has refused it, and conditions are tried again next time."""
    async with SickServer(in_turn(Answer(400, b"the body of the answer"))) as server:
        store = ill(server)
        for times in (1, 2):
            error = await failure(store.put(b"hello"))
            assert error.reason == "refused"
            assert "HTTP status 400" in str(error)
            assert sum("if-none-match" in request.headers for request in server.requests) == times


async def test_a_conflict_is_not_taken_for_presence() -> None:
    """A conditional write that the service refuses for a conflict is done again where nothing is there after all."""

    def script(request: Request) -> Answer:
        if "if-none-match" in request.headers:
            return Answer(409)
        return Answer(404) if request.method == "HEAD" else Answer(200, b"", OBJECT)

    async with SickServer(script) as server:
        assert await ill(server).put(b"hello") == HELLO
        assert [request.method for request in server.requests] == ["PUT", "HEAD", "PUT"]


def upload_of(part: Answer) -> Script:
    """A service that takes uploads in parts and answers each part in one way."""
    begun = b"<InitiateMultipartUploadResult><UploadId>one</UploadId></InitiateMultipartUploadResult>"

    def script(request: Request) -> Answer:
        if request.method == "HEAD":
            return Answer(404)
        return {"POST": Answer(200, begun), "PUT": part, "DELETE": Answer(204)}[request.method]

    return script


async def test_an_upload_whose_parts_fail_is_called_off() -> None:
    """Where parts fail for ever, the upload is called off, and the error names the status."""
    async with SickServer(upload_of(Answer(500))) as server:
        error = await failure(ill(server).put(LARGE))
        assert server.seen("DELETE") == 1
    assert error.reason == "refused"
    assert "HTTP status 500" in str(error)


@pytest.mark.parametrize("operation", ["large put", "stream put"])
async def test_an_upload_whose_parts_hang_is_unreachable(operation: str) -> None:
    """Where parts hang, the put is given up, and its parts too."""
    async with SickServer(upload_of(HANGS)) as server:
        error = await failure(OPERATIONS[operation](ill(server, SOON_MS)))
        assert server.seen("PUT") >= 1
    assert error.reason == "unreachable"


async def test_the_store_of_an_application_has_our_patience_too() -> None:
    """A store that was configured elsewhere, with patience of its own, is given up within ours."""
    async with SickServer(in_turn(HANGS)) as server:
        raw = S3Store("bucket", **client_options(server.endpoint))
        store = ObjectAttachmentStore(raw, patience_ms=200)
        for operation in ("put", "large put", "get", "list"):
            assert (await failure(OPERATIONS[operation](store))).reason == "unreachable"


async def test_an_unknown_id_is_told_from_a_service_that_cannot_say() -> None:
    """Whether an object or its bucket is missing is asked; without an answer to that, the answer is no not-found."""

    def script(listed: Answer) -> Script:
        return lambda request: listed if "list-type" in request.target else Answer(404)

    empty = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListBucketResult>'
    answers: list[tuple[Answer, type[StoreError]]] = [
        (Answer(200, empty), AttachmentNotFoundError),
        (Answer(404), AttachmentStoreError),
        (Answer(403), AttachmentNotFoundError),
        (Answer(500), AttachmentStoreError),
    ]
    for listed, expected in answers:
        async with SickServer(script(listed)) as server:
            with pytest.raises(expected):
                await ill(server).get(HELLO)


def test_a_store_shows_no_secrets() -> None:
    """What a store says of itself in logs has no credentials in it."""
    options: dict[str, Any] = client_options("http://127.0.0.1:1")
    shown = repr(ObjectAttachmentStore.from_url("s3://bucket", **options))
    assert not re.search("|".join(CREDENTIALS.values()), shown)
