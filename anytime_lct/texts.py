"""Texts, the same in training and where networks answer: files decoded without a byte-order mark, texts as tokens."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import UnreadableError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PADDING = "[PAD]"  # token 0 of a tokenizer that is made here
MOST_TOKENS, VOCABULARY = 256, 30_000  # of a text; of a tokenizer
LEARNT, MEASURED, AT_ONCE = 20_000, 2_000, 1_000  # texts that give a tokenizer, or a length, or are encoded together

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


def is_whole(text: str) -> bool:
    """Return whether a text has no half of a character, as one read from other bytes than UTF-8 has.

    >>> is_whole("caf\\udcff")
    False
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_tokenizer(texts: Sequence[str]) -> str:
    """Return a tokenizer of the library `tokenizers`, as its JSON, made from texts: equal texts give equal ones.

    It is a byte-level BPE of small letters (Sennrich et al., ACL 2016), which no symbol is unknown to. Raises
    ModuleNotFoundError without the library (extra `text`).
    """
    _library()
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, min_frequency=2, special_tokens=[PADDING], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(texts[:: -(-len(texts) // LEARNT)], trainer)
    return tokenizer.to_str()


def fit_tokenizer(content: str, texts: Sequence[str], length: int | None = None) -> str:
    """Return a tokenizer, as its JSON, that cuts texts to `length` tokens and fills shorter ones up to it.

    By default as many as 95 of 100 texts have, and at most 256. Raises ValueError for what is no tokenizer, and
    ModuleNotFoundError without the library.
    """
    tokenizer = _parse(content)
    padding: dict[str, Any] = tokenizer.padding or {}
    if length is None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        some = tokenizer.encode_batch_fast(list(texts[:: -(-len(texts) // MEASURED)]))
        length = max(1, min(MOST_TOKENS, int(np.quantile([len(each.ids) for each in some], 0.95, method="higher"))))
    names = [padding["pad_token"]] if padding else [PADDING, "<pad>", "<|endoftext|>"]
    known = [name for name in names if tokenizer.token_to_id(name) is not None]
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(
        length=length, pad_id=tokenizer.token_to_id(known[0]) if known else 0, pad_token=known[0] if known else PADDING
    )
    return tokenizer.to_str()


def vocabulary_size(tokenizer: str) -> int:
    """Return how many tokens a tokenizer, as its JSON, has; raises ValueError for what is none."""
    numbers = _parsed(tokenizer).get_vocab(with_added_tokens=True).values()
    return 1 + max(numbers, default=0)


def as_tokens(texts: Sequence[str], tokenizer: str) -> NDArray[np.int64]:
    """Return texts as numbers of tokens (B, T) by a tokenizer, as its JSON; raises ValueError for what is none."""
    encode = _parsed(tokenizer).encode_batch_fast
    batches = [list(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)]
    return np.concatenate([np.array([each.ids for each in encode(batch)], np.int64) for batch in batches])


@lru_cache(maxsize=8)
def _parsed(content: str) -> Tokenizer:
    """Return a tokenizer that nobody changes."""
    return _parse(content)


def _parse(content: str) -> Tokenizer:
    _library()
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(content)
    except Exception as error:  # the library raises no other kind
        raise ValueError(f"it is no tokenizer of the library tokenizers: {error}") from None


def _library() -> None:
    """Keep the library to one thread: its pool does not survive the processes that are started from this one."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
