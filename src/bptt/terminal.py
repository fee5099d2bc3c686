r"""Showing text that others wrote in a terminal, which must not obey it.

Names of columns, labels and files, and what a model writes, may hold escape sequences, which rename the window, hide lines
or paste commands, and characters that reverse the order of the letters. They are shown as \x1b and \u202e instead.
"""

_CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]  # C0, DEL and C1
_SEPARATORS = [0x2028, 0x2029]  # of lines and paragraphs
_TURNING = [
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
]  # embeddings, overrides and isolates of the writing direction
_SHOWN = {c: f"\\x{c:02x}" if c < 0x100 else f"\\u{c:04x}" for c in (*_CONTROLS, *_SEPARATORS, *_TURNING)}
_SHOWN_OVER_LINES = {c: shown for c, shown in _SHOWN.items() if chr(c) not in "\t\n"}


def visible(text: object) -> str:
    r"""Return a text in one line, with every control character written out.

    >>> print(visible("a\x1b[31m\nb"))
    a\x1b[31m\x0ab
    """
    return str(text).translate(_SHOWN)


def visible_lines(text: str) -> str:
    """Return a text with its control characters written out, but for tabs and the ends of lines."""
    return text.translate(_SHOWN_OVER_LINES)
