"""What content is told to be: by its bytes first, and by its name where that fits them."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastness.attachments.media import Media, choose, describe


def archive(*names: str) -> bytes:
    """A zip archive of files with these names."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in names:
            made.writestr(name, "x" * 20)
    return file.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = b"".join(
    (
        b"\x89PNG\r\n\x1a\n",
        chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 2, 8, 2, 0, 0, 0)),
        chunk(b"IDAT", zlib.compress(bytes(20))),
        chunk(b"IEND", b""),
    )
)
JPEG = b"".join(
    (
        b"\xff\xd8\xff\xe0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0",
        b"\xff\xc0\0\x11\x08" + struct.pack(">HH", 7, 6) + b"\x03\x01\x22\0\x02\x11\x01\x03\x11\x01",
        b"\xff\xd9",
    )
)
GIF = b"GIF89a" + struct.pack("<HHBBB", 5, 4, 0, 0, 0) + b";"
VP8X = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (8).to_bytes(3, "little") + (7).to_bytes(3, "little")
WEBP = b"RIFF" + struct.pack("<I", 4 + len(VP8X)) + b"WEBP" + VP8X
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="3"/>'
PDF = b"%PDF-1.7\n1 0 obj<<>>endobj\ntrailer<<>>\n%%EOF\n"
ZIP = archive("a.txt")
DOCX = archive("[Content_Types].xml", "_rels/.rels", "word/document.xml")
HTML = b"<!DOCTYPE html><html><body>hello</body></html>"
NOISE = b"\x9a\x8b\0\x13" * 20
LATIN = "na\u00efve caf\u00e9".encode("latin-1")
WORD = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
UNKNOWN = "application/octet-stream"

TOLD = [
    pytest.param(PNG, "a.png", Media("image/png", 3, 2), id="png"),
    pytest.param(PNG, "upload", Media("image/png", 3, 2), id="png without a name that says so"),
    pytest.param(PNG, "a.txt", Media("image/png", 3, 2), id="png that is called text"),
    pytest.param(PNG, "a.jpg", Media("image/png", 3, 2), id="png that is called jpeg"),
    pytest.param(PNG[:12], "a.png", Media("image/png"), id="png that is cut off before its size"),
    pytest.param(JPEG, "a.jpg", Media("image/jpeg", 6, 7), id="jpeg"),
    pytest.param(GIF, "a.gif", Media("image/gif", 5, 4), id="gif"),
    pytest.param(WEBP, "a.webp", Media("image/webp", 9, 8), id="webp"),
    pytest.param(SVG, "a.svg", Media("image/svg+xml", 4, 3), id="svg"),
    pytest.param(PDF, "a.pdf", Media("application/pdf"), id="pdf"),
    pytest.param(PDF, "a.txt", Media("application/pdf"), id="pdf that is called text"),
    pytest.param(ZIP, "a.zip", Media("application/zip"), id="zip"),
    pytest.param(DOCX, "upload", Media("application/zip"), id="docx without a name that says so"),
    pytest.param(DOCX, "a.docx", Media(WORD), id="docx"),
    pytest.param(DOCX, "a.png", Media("application/zip"), id="docx that is called png"),
    pytest.param(b'{"a": 1}', "a.json", Media("application/json"), id="json"),
    pytest.param(b'{"a": 1}', "a", Media("text/plain"), id="json without a name that says so"),
    pytest.param(b"a,b\n1,2\n", "a.csv", Media("text/csv"), id="csv"),
    pytest.param(b"# hi\n\ntext\n", "a.md", Media("text/markdown"), id="markdown"),
    pytest.param(b"import os\n", "a.py", Media("text/x-python"), id="program"),
    pytest.param(HTML, "a.html", Media("text/html"), id="html"),
    pytest.param(HTML, "a.png", Media("text/html"), id="html that is called png"),
    pytest.param(b"BMW is a car", "a.txt", Media("text/plain"), id="text that begins like a bitmap"),
    pytest.param(b"BMW is a car", "a.bmp", Media("text/plain"), id="text that is called a bitmap"),
    pytest.param(NOISE, "a", Media(UNKNOWN), id="noise"),
    pytest.param(NOISE, "a.txt", Media(UNKNOWN), id="noise that is called text"),
    pytest.param(b"", "a", Media("text/plain"), id="nothing"),
    pytest.param(b"", "a.csv", Media("text/csv"), id="nothing that is called csv"),
    pytest.param(b"", "a.png", Media("text/plain"), id="nothing that is called png"),
    pytest.param("a €".encode()[:-1], "a.txt", Media("text/plain"), id="text cut in the middle of a character"),
    pytest.param("€ a".encode()[1:], "a.txt", Media(UNKNOWN), id="text whose first character is cut"),
    pytest.param(LATIN, "a.txt", Media(UNKNOWN), id="text in latin-1"),
    pytest.param(b"a\0b", "a.txt", Media(UNKNOWN), id="text with NUL"),
]


@pytest.mark.parametrize(("head", "name", "told"), TOLD)
def test_content_is_what_its_bytes_say(head: bytes, name: str, told: Media) -> None:
    """A name says which of several formats that begin alike it is, and what kind of text; more it cannot do."""
    assert describe(head, name) == told


CHOICES = [
    ([("image/png", 0.8)], False, "image/png", "image/png"),
    ([("image/png", 0.8)], False, "image/gif", "image/png"),
    ([("image/png", 0.8)], False, None, "image/png"),
    ([("a/one", 0.4), ("a/two", 0.4)], False, "a/two", "a/two"),
    ([("a/one", 0.4), ("application/zip", 0.4)], False, None, "application/zip"),
    ([("text/html", 0.8)], True, "text/csv", "text/csv"),
    ([("text/html", 0.8)], True, "image/png", "text/html"),
    ([("image/bmp", 0.2)], True, None, "text/plain"),
    ([("image/bmp", 0.2)], False, None, "image/bmp"),
    ([("image/bmp", 0.2), ("a/b", 0.1)], False, "a/b", "a/b"),
    ([("image/bmp", 0.2)], False, "text/csv", "image/bmp"),
    ([], True, "text/csv", "text/csv"),
    ([], True, "application/json", "application/json"),
    ([], True, "image/png", "text/plain"),
    ([], True, None, "text/plain"),
    ([], False, "text/csv", "application/octet-stream"),
    ([], False, None, "application/octet-stream"),
]


@pytest.mark.parametrize(("matches", "is_text", "named", "chosen"), CHOICES)
def test_bytes_go_before_names(matches: list[tuple[str, float]], is_text: bool, named: str | None, chosen: str) -> None:
    """What is certain counts most, then what is text, then the name, then what is possible."""
    assert choose(matches, is_text, named) == chosen


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    st.sampled_from((b"", PNG[:16], JPEG[:24], GIF[:6], WEBP[:12], ZIP[:30], PDF[:5], SVG[:20], b"BM", b"II*\0")),
    st.binary(max_size=200),
    st.text(max_size=10),
)
def test_whatever_the_bytes_are_there_is_an_answer(beginning: bytes, rest: bytes, name: str) -> None:
    """Broken content of every kind, under any name, is told as something; its size in pixels is none or positive."""
    told = describe(beginning + rest, name)
    assert "/" in told.media_type
    assert (told.width is None) == (told.height is None)
    assert told.width is None or (told.width > 0 and told.height is not None and told.height > 0)
