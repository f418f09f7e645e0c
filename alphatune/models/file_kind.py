"""What a file is, by its first bytes: what is no checkpoint is refused by its name, with the next step."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of file that holds no weights that can be read, and what to do about it."""

    name: str
    hint: str


_DOWNLOAD = "download it again"
_CONVERT = "load it with the library it comes from, and save a PyTorch state dict"
_UNPACK = "unpack it, and give the checkpoint in it"
#: by what they begin with, at an offset
_BEGINNINGS = [
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras and TensorFlow write them", _CONVERT)),
    (4, b"TFL3", Kind("a TensorFlow Lite model", _CONVERT)),
    (0, b"GGUF", Kind("a GGUF model", _CONVERT)),
    (0, b"MATLAB 5.0", Kind("a MATLAB file", _CONVERT)),
    (0, b"\x89PNG", Kind("an image (PNG)", "images are given as DATA")),
    (0, b"\xff\xd8\xff", Kind("an image (JPEG)", "images are given as DATA")),
    (0, b"GIF8", Kind("an image (GIF)", "images are given as DATA")),
    (8, b"WEBP", Kind("an image (WebP)", "images are given as DATA")),
    (0, b"II*\0", Kind("an image (TIFF)", "images are given as DATA")),
    (0, b"%PDF", Kind("a PDF document", _DOWNLOAD)),
    (0, b"PAR1", Kind("a Parquet table", "tables of images are given as DATA")),
    (0, b"\x28\xb5\x2f\xfd", Kind("a file compressed with zstd", _UNPACK)),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", _UNPACK)),
    (0, b"Rar!", Kind("a RAR archive", _UNPACK)),
    (0, b"\x7fELF", Kind("a compiled program", _DOWNLOAD)),
    (0, b"PK\x05\x06", Kind("an empty zip archive", _DOWNLOAD)),
]
_IMAGE = re.compile(rb"BM.{4}\0\0\0\0", re.DOTALL)
#: a protobuf whose first field is a small version, and then one of ModelProto's
_ONNX = re.compile(rb"\x08[\x01-\x20](\x12.[\w.\- ]*[\x1a\x22\x28\x2a\x3a]|[\x3a\x42])", re.DOTALL)
_WEB_PAGE = re.compile(r"\s*(<!doctype html|<html|<head|<body)", re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>\s*([^<]{1,80})", re.IGNORECASE)
_POINTER = "version https://git-lfs.github.com/spec/"


def kind_of(head: bytes, size: int) -> Kind:
    """What a file is that is no checkpoint.

    Args:
        head: its first bytes, some thousand.
        size: of the whole file, in bytes.
    """
    if not size:
        return Kind("an empty file", _DOWNLOAD)
    for offset, beginning, kind in _BEGINNINGS:
        if head[offset : offset + len(beginning)] == beginning:
            return kind
    if _IMAGE.match(head):
        return Kind("an image (BMP)", "images are given as DATA")
    if _ONNX.match(head):
        return Kind("an ONNX model", "give the PyTorch checkpoint it was exported from")
    if not head.strip(b"\0"):
        return Kind("nothing but zeros at its beginning: a download that never finished", _DOWNLOAD)
    if (text := text_of(head)) is not None:
        return _kind_of_text(text)
    return Kind("no format of weights that is known", "give a PyTorch checkpoint or a .safetensors file")


def text_of(head: bytes) -> str | None:
    """The beginning of a file as text; None where it is none."""
    for encoding in ("utf-16",) if head[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig",):
        try:
            text = head.decode(encoding, errors="strict")
        except UnicodeDecodeError as error:
            if error.start < len(head) - 4:  # else a letter that was cut in two
                return None
            text = head[: error.start].decode(encoding, errors="replace")
        return text if all(c.isprintable() or c in "\t\r\n\f\v" for c in text) else None
    return None


def _kind_of_text(text: str) -> Kind:
    if text.startswith(_POINTER):
        return Kind("a git-lfs pointer: the weights themselves were not downloaded", "git lfs pull")
    if _WEB_PAGE.match(text):
        title = _TITLE.search(text)
        name = f", titled {' '.join(title[1].split())!r}" if title else ""
        return Kind(f"an HTML page{name}: the download gave a web page in place of the weights", _DOWNLOAD)
    if text.lstrip().startswith("<"):
        return Kind("an XML or HTML document, perhaps an error message of the server", _DOWNLOAD)
    if re.match(r"https?://\S+\s*$", text):
        return Kind("a text file that holds a web address", "download what it names")
    if text.lstrip()[:1] in ("{", "["):
        return Kind("a JSON file", "give the file that holds the weights")
    if re.match(r"\s*(#!|import |from \w+ import |def |class )", text):
        return Kind("a program's source", f"code is given as MODEL, e.g. {'file.py:factory'}")
    if re.match(r"(---\s|%YAML|\s*#.*\n|[\w.-]+:(\s|$))", text):
        return Kind("a text file (YAML, by the look of it)", "give the file that holds the weights")
    return Kind("a text file", "give the file that holds the weights")
