"""Reading the text form character by character, and errors that show the line with a caret."""

from __future__ import annotations

import re

from planish.ir.errors import IRError

_SPACE = re.compile(r"\s*")
_SPACE_AND_COMMENTS = re.compile(r"(\s|//[^\n]*)*")
_COMMENT = re.compile(r"[ \t]*//[ ]?([^\n]*?)[ \t\r]*(?=\n|$)")
_PLAIN = re.compile(r"[\w.]+", re.ASCII)
_ESCAPE = re.compile(r"\\u\{([0-9a-f]{1,6})\}")


class Scanner:
    """A position in a text. `word` skips spaces before it reads; comments are read only where the grammar has them."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def error(self, sentence: str, at: int | None = None) -> IRError:
        """An error that shows the line of position `at` (here by default) with a caret."""
        at = self.position if at is None else at
        start = self.text.rfind("\n", 0, at) + 1
        end = self.text.find("\n", at)
        line = self.text[start : len(self.text) if end < 0 else end]
        number = self.text.count("\n", 0, at) + 1
        return IRError(f"line {number}, column {at - start + 1}: {sentence}\n    {line}\n    {' ' * (at - start)}^")

    def skip(self) -> int:
        """Move past spaces and newlines; return the position of what follows."""
        found = _SPACE.match(self.text, self.position)
        self.position = found.end() if found else self.position
        return self.position

    def skip_comments(self) -> int:
        """Move past spaces, newlines and comments."""
        found = _SPACE_AND_COMMENTS.match(self.text, self.position)
        self.position = found.end() if found else self.position
        return self.position

    def comment(self) -> str:
        """The comment that ends this line, without its escapes; empty when there is none."""
        found = _COMMENT.match(self.text, self.position)
        if not found:
            return ""
        start, self.position = found.start(1), found.end()
        return self._unescape(found.group(1), start)

    def peek(self, literal: str) -> bool:
        self.skip()
        return self.text.startswith(literal, self.position)

    def accept(self, literal: str) -> bool:
        """Read the literal if it comes next."""
        if not self.peek(literal):
            return False
        self.position += len(literal)
        return True

    def accept_on_line(self, literal: str) -> bool:
        """Read the literal if it comes next on this line: on the next one `//` begins a comment."""
        start = self.position
        return "\n" not in self.text[start : self.skip()] and self.accept(literal)

    def expect(self, literal: str, after: str) -> None:
        """Read the literal; raise IRError when something else comes next."""
        if not self.accept(literal):
            raise self.error(f"expected {literal!r} after {after}")

    def match(self, pattern: re.Pattern[str]) -> str | None:
        """Read what the pattern matches here, after spaces."""
        found = pattern.match(self.text, self.skip())
        if not found:
            return None
        self.position = found.end()
        return found.group()

    def accept_word(self, word: str) -> bool:
        """Read a whole word if it comes next."""
        return self.match(re.compile(rf"{word}\b")) is not None

    def name(self, what: str, sigil: str = "") -> str:
        """A name, plain or quoted, after its sigil."""
        start = self.skip()
        if sigil and not self.accept(sigil):
            raise self.error(f"expected {what}, which starts with {sigil!r}")
        if self.text.startswith('"', self.position):
            return self.quoted('"')
        found = _PLAIN.match(self.text, self.position)
        if not found:
            raise self.error(f"expected {what}", start)
        self.position = found.end()
        return found.group()

    def quoted(self, mark: str) -> str:
        """A text between two marks."""
        start = self.skip()
        end = self.text.find(mark, start + 1)
        if end < 0 or "\n" in self.text[start:end]:
            raise self.error(f"the closing {mark} is missing", start)
        self.position = end + 1
        return self._unescape(self.text[start + 1 : end], start + 1)

    def _unescape(self, text: str, start: int) -> str:
        rest = _ESCAPE.sub("", text)
        if "\\" in rest:
            raise self.error("a backslash must start an escape such as \\u{2028}", start + text.index("\\"))

        def character(found: re.Match[str]) -> str:
            code = int(found.group(1), 16)
            if code > 0x10FFFF:
                raise self.error(f"there is no character {code:x}", start + found.start())
            return chr(code)

        return _ESCAPE.sub(character, text)
