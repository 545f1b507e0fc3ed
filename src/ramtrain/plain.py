"""What others have said or named, made fit for a terminal, a line of a log, a file's name."""

from __future__ import annotations

import re

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Control characters but for tabs and ends of lines; marks that turn the direction of writing; bytes that are no text.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_TABS_AND_ENDS = re.compile(r"[\t\n]")


def without_colours(text: str) -> str:
    """Return what a program has printed as it reads without a terminal's colours."""
    return _COLOURS.sub("", text)


def printable(text: str) -> str:
    """Return a text with an escape, such as `\\x1b`, for each character that a terminal would act on, or not show."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """Return a name likewise, in one line."""
    return _TABS_AND_ENDS.sub(_escape, printable(text))


def _escape(match: re.Match[str]) -> str:
    number = ord(match.group())
    if 0xDC80 <= number <= 0xDCFF:  # how Python has a byte of a name that is no UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
