"""The text of an answer as it is written: whole characters only, and never a part of a string that ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

CUT = "\ufffd"  # what a decoder makes of bytes that are no whole character yet


class TextStream:
    """Turns tokens into pieces of text as they come.

    The pieces together are `text`: the decoded answer up to the first stop string, without outer white space. What may
    turn out to be the beginning of a stop string, or white space at the end, is held back until more is known.

    Args:
        decode: text of token ids, control tokens left out.
        stop: strings that end the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._read = self._known = 0  # tokens whose text is known; where the window of the next ones begins
        self._raw = ""
        self._shown = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """What is shown so far."""
        return self._raw[: self._shown].strip()

    @property
    def written(self) -> int:
        """Characters so far, with white space at the end that may never be shown."""
        return len(self._raw.lstrip())

    def push(self, token: int) -> str:
        """Take the next token and return the piece of text that is certain now; empty where none is."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before, window = self._window()
        return "" if window.endswith(CUT) or not window.startswith(before) else self._grow(window[len(before) :])

    def end(self) -> str:
        """The piece that is left when no token follows."""
        if self.stopped:
            return ""
        before, window = self._window()
        piece = self._grow(window[len(before) :] if window.startswith(before) else "")
        return piece if self.stopped else piece + self._show(len(self._raw.rstrip()))

    def _window(self) -> tuple[str, str]:
        """The text before the next tokens, and with them: a token's text can depend on its neighbours."""
        return self._decode(self._ids[self._known : self._read]), self._decode(self._ids[self._known :])

    def _grow(self, new: str) -> str:
        """Append text; what was there has no stop string in it."""
        longest = max(map(len, self._stop), default=0)
        start = max(len(self._raw) - longest + 1, 0)
        self._raw += new
        self._known, self._read = self._read, len(self._ids)
        places = [position for stop in self._stop if (position := self._raw.find(stop, start)) >= 0]
        if places:
            self.stopped = True
            self._raw = self._raw[: min(places)]
            return self._show(len(self._raw.rstrip()))
        return self._show(len(self._raw[: self._certain()].rstrip()))

    def _certain(self) -> int:
        """Where the longest end of the text begins that a stop string may begin with."""
        for length in range(min(max(map(len, self._stop), default=1) - 1, len(self._raw)), 0, -1):
            end = self._raw[-length:]
            if any(stop.startswith(end) for stop in self._stop):
                return len(self._raw) - length
        return len(self._raw)

    def _show(self, until: int) -> str:
        """What of the text up to a place has not been shown; nothing of white space at the very beginning."""
        start, self._shown = self._shown, max(self._shown, until)
        piece = self._raw[start : self._shown]
        return piece if self._raw[:start].strip() else piece.lstrip()
