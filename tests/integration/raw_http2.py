"""One gRPC call over a Unix socket, by hand: how much may come and when it is read is the test's to say."""

import socket
import struct
import time

WINDOW_MAX = (1 << 31) - 1
DEFAULT_WINDOW = 65535
_DATA, _HEADERS, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_STREAM = 1


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    """HPACK: literal without indexing (RFC 7541, 6.2.2), as both are short."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


class RawCall:
    def __init__(self, path: str, method: str, request: bytes, window: int = DEFAULT_WINDOW):
        """Sends all of the request; `window`: bytes that the daemon may send before open_window."""
        self.answer = b""
        self.trailers = b""
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"),
                   (b":path", f"/kvdepot.v1.KvDepotService/{method}".encode()), (b"te", b"trailers"),
                   (b"content-type", b"application/grpc")]
        self._socket.sendall(
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))
            + (_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", window - DEFAULT_WINDOW)) if window > DEFAULT_WINDOW else b"")
            + _frame(_HEADERS, _END_HEADERS, _STREAM, b"".join(_header(*header) for header in headers))
            + _frame(_DATA, _END_STREAM, _STREAM, b"\0" + struct.pack(">I", len(request)) + request))

    def open_window(self) -> None:
        for stream in (0, _STREAM):
            self._socket.sendall(_frame(_WINDOW_UPDATE, 0, stream, struct.pack(">I", WINDOW_MAX - DEFAULT_WINDOW)))

    def read_until(self, condition, seconds: float = 60) -> None:
        """Reads until that holds; ConnectionError if the daemon closes before, TimeoutError."""
        deadline = time.monotonic() + seconds
        while not condition():
            self._socket.settimeout(max(.001, deadline - time.monotonic()))
            received = self._socket.recv(1 << 16)
            if not received:
                raise ConnectionError("the daemon has closed the connection")
            self._received += received
            self._take_frames()

    def _take_frames(self) -> None:
        while len(self._received) >= 9:
            end = 9 + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                return
            kind, flags, payload = self._received[3], self._received[4], self._received[9:end]
            self._received = self._received[end:]
            if kind == _DATA:
                self.answer += payload
            elif kind == _HEADERS and flags & _END_STREAM:
                self.trailers = payload
            elif kind in (_SETTINGS, _PING) and not flags & _ACK:
                self._socket.sendall(_frame(kind, _ACK, 0, payload if kind == _PING else b""))

    def answer_is_whole(self) -> bool:
        """Whether what came is whole messages, and then the end with status 0."""
        rest = self.answer
        while len(rest) >= 5 and len(rest) >= 5 + int.from_bytes(rest[1:5], "big"):
            rest = rest[5 + int.from_bytes(rest[1:5], "big"):]
        return not rest and b"grpc-status\x010" in self.trailers

    def close(self) -> None:
        self._socket.close()
