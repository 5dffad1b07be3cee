"""``attachments list``, ``put``, ``get`` and ``verify``: the content that belongs to sessions, and whether it is sound.

Names and media types of attachments come from users and models: none reaches a terminal as it is. Content goes only
where it was sent: to a pipe, or to a file that is written whole or not at all.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import secrets
import select
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from fastness.cli.json_lines import out_json
from fastness.cli.options import AttachmentsOption, DatabaseOption, JsonOption, SessionArgument
from fastness.cli.progress import progress_bar
from fastness.cli.screen import columns, counted, moment, note, one_line, out
from fastness.cli.session import AttachmentsPlace, attachments_place, open_session, run
from fastness.decide import limits
from fastness.errors import (
    AttachmentDamagedError,
    AttachmentNotFoundError,
    AttachmentNotInManifestError,
    AttachmentStoreError,
    InvalidInputError,
)
from fastness.factory import EngineSessionStoreFactory
from fastness.model.base import Value
from fastness.persistence import (
    AttachmentManifest,
    AttachmentManifestEntry,
    AttachmentRef,
    AttachmentStore,
    SessionAttachmentStore,
)

_FAULTY = 1
_BLOCK_BYTES = 1024 * 1024
_GLANCE_S = 0.2
"""How long a read of standard input stays deaf to an interrupt."""

_SHOWN = 12
"""How many digits of an id a table shows; ``get`` takes them."""

_NAME_WIDTH = 60
_TYPE_WIDTH = 40
"""How many characters of a name and of a media type a table shows; JSON has all of them."""

_ID = re.compile(r"[0-9a-f]{6,64}")
_STANDARD = "-"
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})

SomeSession = Annotated[str | None, typer.Argument(metavar="[ID]", help="The session; all of them if left out.")]


class AttachmentFault(Value, frozen=True):
    """Content that is not as it has to be, and the sessions that refer to it."""

    fault: Literal["missing", "damaged"]
    attachment_id: str
    session_ids: tuple[str, ...]
    detail: str


class AttachmentVerification(Value, frozen=True):
    """What a verification found, each content counted once. ``unwritten_count``: put intended, bytes not there yet."""

    ok_count: int
    ok_byte_count: int
    missing_count: int
    damaged_count: int
    unwritten_count: int
    faults: tuple[AttachmentFault, ...]


def register(app: typer.Typer) -> None:
    """Add the commands, as a group."""
    group = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    group.callback(invoke_without_command=True)(attachments)
    group.command("list")(list_)
    group.command()(put)
    group.command()(get)
    group.command()(verify)
    app.add_typer(group, name="attachments")


def attachments(context: typer.Context) -> None:
    """List, put, get and verify what sessions hold of attachments."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def list_(
    context: typer.Context, session_id: SomeSession = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """List what a session holds, or what all of them do, by content."""
    run(context, database, lambda factory: _list(factory, session_id, as_json=as_json))


def put(
    context: typer.Context,
    session_id: SessionArgument,
    file: Annotated[str, typer.Argument(help="The file; - is standard input.")],
    name: Annotated[str | None, typer.Option(help="What to call it, if not as the file.")] = None,
    media_type: Annotated[
        str | None, typer.Option(help="Such as image/png. Told from the content if left out.")
    ] = None,
    place: AttachmentsOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Keep a file as an attachment of a session, and print its id.

    Of content that the session has already, the list keeps the name and media type it was first put under.
    """
    if name is not None and not name:
        raise InvalidInputError("--name", "is empty; say what to call it, or leave it out")
    if media_type is not None:
        limits.check_media_type("--media-type", media_type)
    where = attachments_place(context, database, place)
    reference = run(context, database, lambda factory: _put(factory, where, session_id, file, name, media_type))
    out_json(reference) if as_json else out(reference.attachment_id)


def get(
    context: typer.Context,
    session_id: SessionArgument,
    attachment_id: Annotated[str, typer.Argument(metavar="ATTACHMENT", help="Its id, or 6 or more digits of it.")],
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A new file, which appears when all is there; - is the terminal."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    place: AttachmentsOption = None,
    database: DatabaseOption = None,
) -> None:
    """Print the content of an attachment, or write it to a file. Exit status 2 says that it is not what it was."""
    where = attachments_place(context, database, place)
    if output is None and sys.stdout.isatty():
        raise InvalidInputError(
            "attachments get", "prints no content to a terminal; name a file with --output, or - to have it there"
        )
    if output is None or output == _STANDARD:
        write: Callable[[bytes], object] = sys.stdout.buffer.write
        run(context, database, lambda factory: _get(factory, where, session_id, attachment_id, write))
        return
    if not output or output.endswith(("/", "/.")):
        raise InvalidInputError(f"--output {output!r}", "names no file")
    with _whole_file(Path(output), force=force) as file:
        size = run(context, database, lambda factory: _get(factory, where, session_id, attachment_id, file.write))
    out(one_line(f"wrote {counted(size, 'byte')} to {output}"))


def verify(
    context: typer.Context,
    session_id: SomeSession = None,
    place: AttachmentsOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read all content that sessions hold, and see that it is what it was. Exit status 1 says that some is not."""
    where = attachments_place(context, database, place)
    report = run(context, database, lambda factory: _verify(factory, where, session_id))
    if as_json:
        out_json(report)
    else:
        for fault in report.faults:
            out(_told(fault))
        out(_verified(report))
    if report.faults:
        raise typer.Exit(_FAULTY)


async def entries_of(manifest: AttachmentManifest, session_id: str | None) -> AsyncIterator[AttachmentManifestEntry]:
    """Go through what a session holds, or all of them, by content, a page in memory at a time."""
    last: AttachmentManifestEntry | None = None
    while page := await manifest.list_attachments(session_id=session_id, after=last):
        last = page[-1]
        for entry in page:
            yield entry


async def _manifest(factory: EngineSessionStoreFactory, session_id: str | None) -> AttachmentManifest:
    return factory.attachment_manifest if session_id is None else await open_session(factory, session_id)


async def _list(factory: EngineSessionStoreFactory, session_id: str | None, *, as_json: bool) -> None:
    manifest = await _manifest(factory, session_id)
    rows: list[tuple[str, ...]] = []
    async for entry in entries_of(manifest, session_id):
        if as_json:
            out_json(entry)
        else:
            rows.append(_row(entry) if session_id is not None else (entry.session_id, *_row(entry)))
    if not as_json:
        session = ("SESSION",) if session_id is None else ()
        heads = (*session, "ATTACHMENT", "STATE", "BYTES", "RECORDED", "MEDIA TYPE", "NAME")
        out(columns(heads, rows) if rows else "no attachments")


def _row(entry: AttachmentManifestEntry) -> tuple[str, ...]:
    found = entry.reference
    size, media_type, name = ("", "", "") if found is None else (f"{found.size:,}", found.media_type, found.name)
    shown = (one_line(media_type, _TYPE_WIDTH), one_line(name, _NAME_WIDTH))
    return entry.attachment_id[:_SHOWN], entry.state, size, moment(entry.recorded_at_epoch_ms), *shown


async def _put(
    factory: EngineSessionStoreFactory,
    place: AttachmentsPlace,
    session_id: str,
    file: str,
    name: str | None,
    media_type: str | None,
) -> AttachmentRef:
    store = place.open()
    session = await open_session(factory, session_id)
    held = SessionAttachmentStore(session, store, session_id)
    called = name_of_file(file) if name is None else name
    source = _standard_input() if file == _STANDARD else regular_file(file)
    try:
        reference = await held.put(source, name=called, media_type=media_type)
    except InvalidInputError as error:
        if error.what != "source" or file == _STANDARD:
            raise
        raise InvalidInputError(f"file {file!r}", error.reason) from None
    await held.commit_refs()
    _note_other_name(reference, await session.find_attachment(session_id, reference.attachment_id))
    return reference


def name_of_file(file: str) -> str:
    """Give the name for a file that was given none."""
    if file == _STANDARD:
        return "stdin"
    name = Path(file).name
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"file {file!r}", "has a name that is not UTF-8; say with --name what to call it"
        ) from None
    return name


def regular_file(file: str) -> Path:
    """Give the file of that name. Raises ``InvalidInputError`` where none can be read."""
    path = Path(file)
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise InvalidInputError(f"file {file!r}", f"cannot be read: {said}") from None
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInputError(f"file {file!r}", "is no regular file; - reads standard input")
    return path


def _note_other_name(put: AttachmentRef, listed: AttachmentManifestEntry | None) -> None:
    """Tell whoever put content once more that the list goes on to show it as it was first put."""
    first = put if listed is None or listed.reference is None else listed.reference
    if (first.name, first.media_type) != (put.name, put.media_type):
        what = f"{one_line(first.name, _NAME_WIDTH)!r} ({one_line(first.media_type, _TYPE_WIDTH)})"
        note(f"the session had this content already, and the list goes on to show it as {what}")


async def _standard_input() -> AsyncIterator[bytes]:
    try:
        descriptor = sys.stdin.fileno()
        while (block := await asyncio.to_thread(_read_some, descriptor)) != b"":
            if block is not None:
                yield block
    except (OSError, AttributeError) as error:  # what was closed is None
        said = getattr(error, "strerror", None) or "it is closed"
        raise InvalidInputError("standard input", f"cannot be read: {said}") from None


def _read_some(descriptor: int) -> bytes | None:
    """Give what comes next, nothing at the end, and None if nothing has come yet: a thread cannot be interrupted."""
    ready, _, _ = select.select([descriptor], [], [], _GLANCE_S)
    return os.read(descriptor, _BLOCK_BYTES) if ready else None


async def _get(
    factory: EngineSessionStoreFactory,
    place: AttachmentsPlace,
    session_id: str,
    given: str,
    write: Callable[[bytes], object],
) -> int:
    store = place.open()
    session = await open_session(factory, session_id)
    held = SessionAttachmentStore(session, store, session_id)
    size = 0
    try:
        async for block in held.stream(await _whole_id(held, given), verify=True):
            write(block)
            size += len(block)
    except AttachmentNotFoundError:
        await place.require_content(store)
        raise
    return size


async def _whole_id(held: SessionAttachmentStore, given: str) -> str:
    """Give the id that begins so, of those that the session holds."""
    what = f"attachment {given!r}"
    if not _ID.fullmatch(given):
        raise InvalidInputError(what, "must be 64 hexadecimal digits in lower case, or the first 6 or more of them")
    unknown = InvalidInputError(what, "is none that the session holds; 'fastness attachments list' shows them")
    if len(given) == 64:
        try:
            await held.require_held(given)
        except AttachmentNotInManifestError:
            raise unknown from None
        return given
    # Behind what would stand right before the first that begins so.
    before = AttachmentManifestEntry(held.session_id, given, "intent", 0)
    found = [each for each in await held.list(after=before, limit=2) if each.attachment_id.startswith(given)]
    if len(found) > 1:
        raise InvalidInputError(what, "is how several begin that the session holds; give more digits")
    if not found:
        raise unknown
    return found[0].attachment_id


@contextmanager
def _whole_file(path: Path, *, force: bool) -> Iterator[IO[bytes]]:
    """Give a file that gets its name when all of it is on the disk; at a failure nothing is left of it."""
    _require_free(path, force=force)
    draft = path.with_name(f".fastness-{secrets.token_hex(8)}")
    try:
        try:
            opened = draft.open("xb")
        except OSError as error:
            raise InvalidInputError(f"file {str(path)!r}", f"cannot be written: {error.strerror}") from None
        with opened as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            draft.replace(path)
        else:
            _name_new(draft, path)
    finally:
        with suppress(OSError):  # such as on a file system that is read only: what went wrong before is told
            draft.unlink()


def _require_free(path: Path, *, force: bool) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInputError(f"file {str(path)!r}", "is there, and is no regular file; name another")
    if not force:
        raise InvalidInputError(f"file {str(path)!r}", "is there; name another, or say --force to replace it")


def _name_new(draft: Path, path: Path) -> None:
    """Give a file its name unless something has it by now: a rename would replace that."""
    try:
        path.hardlink_to(draft)
    except FileExistsError:
        raise InvalidInputError(f"file {str(path)!r}", "was made by somebody else meanwhile; name another") from None
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        draft.rename(path)


async def _verify(
    factory: EngineSessionStoreFactory, place: AttachmentsPlace, session_id: str | None
) -> AttachmentVerification:
    store = place.open()
    manifest = await _manifest(factory, session_id)
    ok = size = unwritten = 0
    faults: list[AttachmentFault] = []
    with progress_bar("attachments") as bar:
        task = bar.add_task("verifying", total=None)
        async for entries in _by_content(manifest, session_id):
            found = await _look_at(manifest, store, entries)
            bar.advance(task)
            if isinstance(found, AttachmentFault):
                if found.fault == "missing" and not ok and not faults:
                    await place.require_content(store)
                faults.append(found)
            elif found is None:
                unwritten += 1
            else:
                ok, size = ok + 1, size + found
    missing = sum(fault.fault == "missing" for fault in faults)
    return AttachmentVerification(ok, size, missing, len(faults) - missing, unwritten, tuple(faults))


async def _by_content(
    manifest: AttachmentManifest, session_id: str | None
) -> AsyncIterator[list[AttachmentManifestEntry]]:
    """Give the entries for each content; they come one behind the other."""
    gathered: list[AttachmentManifestEntry] = []
    async for entry in entries_of(manifest, session_id):
        if gathered and gathered[0].attachment_id != entry.attachment_id:
            yield gathered
            gathered = []
        gathered.append(entry)
    if gathered:
        yield gathered


async def _look_at(
    manifest: AttachmentManifest, store: AttachmentStore, entries: list[AttachmentManifestEntry]
) -> AttachmentFault | int | None:
    """Read some content, and say what is wrong with it, or how many bytes it has, or None if it was never put."""
    attachment_id = entries[0].attachment_id
    holders = tuple(entry.session_id for entry in entries)
    size = 0
    try:
        async for block in store.stream(attachment_id, verify=True):
            size += len(block)
    except AttachmentNotFoundError as error:
        committed = tuple(entry.session_id for entry in entries if entry.state == "committed")
        # It may have been let go of, and swept, since it was listed.
        holders = tuple([each for each in committed if await manifest.holds_ref(each, attachment_id)])
        return AttachmentFault("missing", attachment_id, holders, str(error)) if holders else None
    except AttachmentDamagedError as error:
        return AttachmentFault("damaged", attachment_id, holders, error.detail)
    except AttachmentStoreError as error:
        if error.reason != "io":
            raise
        # One bad spot on a disk must not keep the rest from being looked at.
        return AttachmentFault("damaged", attachment_id, holders, error.detail)
    wrong = [entry for entry in entries if entry.reference is not None and entry.reference.size != size]
    if not wrong:
        return size
    detail = f"attachment {attachment_id!r} has {counted(size, 'byte')}, not as many as its reference says"
    return AttachmentFault("damaged", attachment_id, tuple(entry.session_id for entry in wrong), detail)


def _told(fault: AttachmentFault) -> str:
    others = len(fault.session_ids) - 1
    where = f"session {fault.session_ids[0]}" + (f" and {counted(others, 'other')}" if others else "")
    return one_line(f"{where}: {fault.fault}: {fault.detail}")


def _verified(report: AttachmentVerification) -> str:
    text = f"{counted(report.ok_count, 'attachment')} ({report.ok_byte_count:,} bytes) ok"
    text += f", {report.missing_count:,} missing, {report.damaged_count:,} damaged"
    return text + (f"; {report.unwritten_count:,} not written yet" if report.unwritten_count else "")
