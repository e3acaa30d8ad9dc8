"""Words and phrases for which a caption is left out. The project brings no list: who makes the pictures chooses it."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from m2m.errors import UserError
from m2m.files import open_regular

_WORD = re.compile(r"\w+")
_COMMENT = re.compile(r"(^|\s)#.*")
_EXPECTED = "expected UTF-8 text, a word or phrase a line, and comments after #"


@dataclass(frozen=True)
class Blocklist:
    """What no caption may hold: as whole words, in any case, with any blanks between the words of a phrase."""

    sha256: str
    """Of the file."""
    entries: Mapping[str, tuple[re.Pattern[str], ...]]
    """By their first word, so that a caption is held against few of them; those without a word by none."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a UTF-8 file of a word or phrase a line; what stands after # is a comment, at the beginning
        of a line or behind a blank.

        Raises:
            UserError: it cannot be read, is no UTF-8, or holds no word.
        """
        try:
            with open_regular(path) as file:
                content = file.read()
            lines = content.decode("utf-8-sig").splitlines()
        except OSError as error:
            raise UserError(f"captions.blocklist: cannot read {path}: {error.strerror}; {_EXPECTED}") from error
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"captions.blocklist: {path} is not UTF-8 in line {line}; {_EXPECTED}") from error
        entries: dict[str, tuple[re.Pattern[str], ...]] = {}
        for words in (_folded(_COMMENT.sub("", line)).split() for line in lines):
            if words:
                pattern = re.compile(r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)")
                first = _WORD.search(" ".join(words))
                key = first[0] if first else ""
                entries[key] = (*entries.get(key, ()), pattern)
        if not entries:
            raise UserError(f"captions.blocklist: {path} holds no word; {_EXPECTED}, or null for no list")
        return cls(hashlib.sha256(content).hexdigest(), entries)

    def blocks(self, text: str) -> bool:
        """Whether a text holds an entry."""
        folded = _folded(text)
        first_words = self.entries.keys() & {"", *_WORD.findall(folded)}
        return any(pattern.search(folded) for word in first_words for pattern in self.entries[word])


def _folded(text: str) -> str:
    """One way to write what may be written in several: letters of any width and case."""
    return unicodedata.normalize("NFKC", text).casefold()
