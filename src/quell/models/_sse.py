"""Server-sent events: lines become the data of events (WHATWG HTML, 9.2.6), whatever pieces they come in."""

from __future__ import annotations

from quell.domain import ModelError, ModelFault

_EVENT_MAX_BYTES = 8 * 1024 * 1024


class EventSplitter:
    """Takes pieces of bytes, gives the data of whole events."""

    __slots__ = ("_data", "_rest")
    END = b"\n\n"
    """What a server that forgot the last empty line left out."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> list[bytes]:
        """Return the data of every event that this piece completes. Raises ModelError for one without end."""
        is_one = piece.startswith(b"data: ") and piece.endswith(b"\n\n") and piece.find(b"\n") == len(piece) - 2
        if is_one and not self._rest and not self._data:
            return [piece[6:-2]]  # as nearly all come
        text = self._rest + piece if self._rest else piece
        lines = text.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _EVENT_MAX_BYTES:
            raise ModelError("an event of the answer has no end", fault=ModelFault.BAD_ANSWER, said=True)
        found: list[bytes] = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]  # noqa: PLW2901 - the same line without its end
            if line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif not line and self._data:
                found.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data = []
        return found

    def end(self) -> list[bytes]:
        """Return what a server that forgot the last empty line left behind."""
        return self.feed(self.END)
