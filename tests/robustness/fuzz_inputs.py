"""Inputs of a fuzzer: how they are taken apart, changed, and what may come of them.

A target either finds the right thing, held against something independent where there is one, or
meets a documented error whose message names what it is about and is not a book. Anything else is a
finding. The last byte of an input chooses a part of its target.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import atheris

MOST_TOLD = 2000  # characters of a message
KEPT = tempfile.TemporaryDirectory(prefix="fuzz-")  # until the process ends
WORK = Path(KEPT.name)
Part = Callable[[bytes], None]


@dataclass(frozen=True)
class Target:
    """`parts` by the last byte of an input, `seeds` with it, and how inputs are changed."""

    parts: tuple[Part, ...]
    seeds: Callable[[], list[bytes]]
    change: Callable[[bytes, int, random.Random], bytes]
    longest: int

    def examine(self, data: bytes) -> None:
        if data:
            self.parts[data[-1] % len(self.parts)](data[:-1])

    def changed(self, data: bytes, most: int, seed: int) -> bytes:
        """An input like another, mostly for the same part."""
        chance = random.Random(seed)
        if not data or chance.random() < 0.02:
            return atheris.Mutate(data, most)
        return self.change(data[:-1], most - 1, chance)[: most - 1] + data[-1:]


@contextlib.contextmanager
def may_refuse(*named: str, errors: tuple[type[Exception], ...] = (ValueError,)) -> Iterator[None]:
    """Errors of these types, with one of the names in their messages; none of a decoder's own."""
    try:
        yield
    except errors as error:
        if isinstance(error, (UnicodeError, json.JSONDecodeError)):
            raise
        told = str(error)
        if not any(name in told for name in named):
            raise AssertionError(f"names none of {named}: {told}") from error
        if len(told) > MOST_TOLD:
            raise AssertionError(f"a message of {len(told)} characters: {told[:200]}") from error


def folder(name: str) -> Path:
    path = WORK / name
    path.mkdir(exist_ok=True)
    return path


# --- changes -------------------------------------------------------------------------------------

TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\w.+-]+|\s+|.', re.DOTALL)
ODD = [b"0", b"1", b"-1", b"1.5", b"16384", b"1000000", b"9" * 20, b"1e999", b"-1e999", b"NaN",
       b"nan", b"inf", b"null", b"true", b"false", b'""', b'"x"', b'"\\ud800"', b'"\\u0000"', b"[]",
       b"{}", b"[[]]", b"[1]", b"[1, 2]", b"[1, 2, 3]", b'{"a": 1}', b"[points]", b"1979-05-27",
       b'"../x"', b'"/x"', b'"none"', b"{", b"}", b"{{", b"}}", b"{0}", b"{!r}", b"{:>9}", b"\x1e",
       b"<end_of_text>", b"<start_of_text>", b"\0", b"\xff", b"\xed\xa0\x80", "\u200b".encode(),
       "🦆".encode(), b"[" * 2000, b'"multimodal_cfg": {"width": 8, "layers": 1, "heads": 1}',
       b'"tokenizer_kwargs": {"clean": "lower"}', b'"attentional_pool": true', b'"size": 8',
       b'"timm_model_name": "x"', b'"hf_tokenizer_name": "x"', b'"init_logit_bias": 0',
       b'"pos_embed_type": "sin_cos_2d"', b'"pool_type": "avg"',
       b'"custom_text": true']  # fmt: skip


def by_token(data: bytes, most: int, chance: random.Random) -> bytes:
    """Words, numbers and signs of a text exchanged, left out and put in; or a few bytes."""
    if chance.random() < 0.3:
        return atheris.Mutate(data, most)
    tokens = TOKENS.findall(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.randrange(len(tokens) + 1)
        other = chance.choice(ODD if chance.random() < 0.7 or not tokens else tokens)
        drop, put = chance.choice(((1, [other]), (1, [other]), (0, [other]), (1, []), (5, [])))
        tokens[place : place + drop] = put
    return b"".join(tokens)


def by_byte(data: bytes, most: int, chance: random.Random) -> bytes:
    return atheris.Mutate(data, most)


SIGNATURE = b"\x89PNG\r\n\x1a\n"


def resealed(data: bytes, most: int, chance: random.Random) -> bytes:
    """Bytes, and then the checksums of a PNG's chunks, which would end every other change."""
    data = atheris.Mutate(data, most)
    if not data.startswith(SIGNATURE) or chance.random() < 0.2:
        return data
    whole, place = bytearray(data), len(SIGNATURE)
    while place + 12 <= len(whole):
        end = place + 8 + struct.unpack_from(">I", whole, place)[0]
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)
