"""gRPC calls over a Unix socket, by hand: what is sent, how much may come and when it is read is the test's to say."""

import select
import socket
import struct
import time

WINDOW_MAX = (1 << 31) - 1
DEFAULT_WINDOW = 65535
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_INITIAL_WINDOW_SIZE = 4
_STREAM = 1
_FRAME_BYTES_MAX = 16384
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _header(name: bytes, value: bytes) -> bytes:
    """HPACK: literal without indexing (RFC 7541, 6.2.2), as both are short."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


def _headers(method: str) -> bytes:
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"localhost"),
              (b":path", f"/kvdepot.v1.KvDepotService/{method}".encode()), (b"te", b"trailers"),
              (b"content-type", b"application/grpc")]
    return b"".join(_header(*field) for field in fields)


def _split_frames(received: bytes) -> tuple:
    """([(kind, flags, stream, payload)], rest): the rest is the beginning of a frame."""
    frames = []
    while len(received) >= 9:
        end = 9 + int.from_bytes(received[:3], "big")
        if len(received) < end:
            break
        stream = int.from_bytes(received[5:9], "big") & WINDOW_MAX
        frames.append((received[3], received[4], stream, received[9:end]))
        received = received[end:]
    return frames, received


class HalfSentCalls:
    """Calls on one connection that send most of a large message, as fast as the daemon lets them, and never the rest."""

    def __init__(self, path: str, method: str, count: int, message_bytes: int):
        self.sent_bytes = 0
        self._received = b""
        self._message_bytes = message_bytes
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._window = self._initial_window = DEFAULT_WINDOW
        # Of each stream, what the daemon takes and how much of the message is still to be sent.
        self._streams = {1 + 2 * i: [DEFAULT_WINDOW, message_bytes] for i in range(count)}
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, b""))
        for stream in self._streams:
            self._socket.sendall(_frame(_HEADERS, _END_HEADERS, stream, _headers(method)))

    def send_for(self, seconds: float) -> None:
        """Also ends when the daemon closes the connection."""
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                self._send()
                readable, _, _ = select.select([self._socket], [], [], .05)
                if readable:
                    received = self._socket.recv(1 << 16)
                    if not received:
                        return
                    self._received += received
                    self._take_frames()
        except OSError:
            return

    def _send(self) -> None:
        for stream, state in self._streams.items():
            while (size := min(state[0], self._window, _FRAME_BYTES_MAX, state[1] - 1)) > 0:
                # Whose length is said first, and never comes up to it.
                begin = b"\0" + struct.pack(">I", self._message_bytes) if state[1] == self._message_bytes else b""
                self._socket.sendall(_frame(_DATA, 0, stream, (begin + bytes(size))[:size]))
                self._window -= size
                self.sent_bytes += size
                state[0] -= size
                state[1] -= size

    def _take_frames(self) -> None:
        frames, self._received = _split_frames(self._received)
        for kind, flags, stream, payload in frames:
            if kind == _WINDOW_UPDATE and stream == 0:
                self._window += int.from_bytes(payload, "big")
            elif kind == _WINDOW_UPDATE and stream in self._streams:
                self._streams[stream][0] += int.from_bytes(payload, "big")
            elif kind == _RST_STREAM:
                self._streams.pop(stream, None)
            elif kind == _SETTINGS and not flags & _ACK:
                for name, value in struct.iter_unpack(">HI", payload):
                    if name == _INITIAL_WINDOW_SIZE:
                        for state in self._streams.values():
                            state[0] += value - self._initial_window
                        self._initial_window = value
                self._socket.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _PING and not flags & _ACK:
                self._socket.sendall(_frame(_PING, _ACK, 0, payload))

    def close(self) -> None:
        self._socket.close()


class RawCall:
    def __init__(self, path: str, method: str, request: bytes, window: int = DEFAULT_WINDOW):
        """Sends all of the request; `window`: bytes that the daemon may send before open_window."""
        self.answer = b""
        self.trailers = b""
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, window))
            + (_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", window - DEFAULT_WINDOW)) if window > DEFAULT_WINDOW else b"")
            + _frame(_HEADERS, _END_HEADERS, _STREAM, _headers(method))
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
        frames, self._received = _split_frames(self._received)
        for kind, flags, _, payload in frames:
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
