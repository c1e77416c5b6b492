"""Texts in files, the same in training and where networks answer: decoded as a whole, without a byte-order mark."""

from __future__ import annotations

import codecs

from anytime_lct.errors import UnreadableError

# A UTF-32 mark begins with that of UTF-16, so it is looked for first.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(content: bytes) -> str:
    """Return the encoding that the byte-order mark of a text names; UTF-8 without one.

    >>> encoding_of("ab".encode("utf-16"))
    'utf-16'
    """
    return next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "utf-8")


def decode(content: bytes, name: str, encoding: str | None, remedy: str) -> str:
    """Decode the content of the file `name` by `encoding`; by default by its byte-order mark, or else as UTF-8.

    The mark is no part of the text. Raises UnreadableError, which ends with `remedy`.

    >>> decode(b"\\xef\\xbb\\xbfcaf\\xc3\\xa9", "a.txt", None, "save it as UTF-8")
    'café'
    """
    codec = encoding or encoding_of(content)
    try:
        text = content.decode(codec)
    except LookupError:
        raise UnreadableError(
            f"Expected an encoding that Python knows, got '{codec}' for '{name}'; {remedy}."
        ) from None
    except UnicodeError as error:
        position = (
            f"byte {content[error.start]:#04x} at {error.start}" if isinstance(error, UnicodeDecodeError) else error
        )
        raise UnreadableError(f"Expected {codec.upper()} text in '{name}', got {position}; {remedy}.") from None
    if encoding is None and "\0" in text:
        raise UnreadableError(f"Expected text in '{name}', got zero bytes, as UTF-16 without a mark has; {remedy}.")
    return text.removeprefix("\ufeff")
