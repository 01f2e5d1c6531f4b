"""A process that maps a session, writes it and commits, and holds it until its standard input ends:

    python3 -m tests.deploy.mapped_process SOCKET TOKEN_FILE

Prints "mapped" once it holds a lease, a session and a registered buffer."""

import ctypes
import sys
from pathlib import Path

import numpy

from tests.bench import kvdepot_c

ROUNDS, TOKENS, LAYERS = 6, 256, 2
BUFFER_BYTES = 1 << 20
FETCHED_TOKENS = 16


class Lease(kvdepot_c.Lease):
    def __init__(self, socket: str, token: str):
        self.handle = ctypes.c_void_p()
        kvdepot_c.call("lease_open", socket.encode(), token.encode(), kvdepot_c.TIMEOUT_SECONDS, ctypes.byref(self.handle))


def tokens(random: numpy.random.Generator) -> bytes:
    """K or V of some tokens, in bf16."""
    shape = (TOKENS, kvdepot_c.KV_HEADS, kvdepot_c.HEAD_DIM)
    return (random.standard_normal(shape, dtype=numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def main() -> None:
    socket, token_file = sys.argv[1:]
    lease = Lease(socket, Path(token_file).read_text().strip())
    session = kvdepot_c.Session(lease, "mapped", LAYERS, kvdepot_c.WRITE, TOKENS)
    random = numpy.random.default_rng(1)
    for _ in range(ROUNDS):
        for layer in range(LAYERS):
            kvdepot_c.call("append", session.handle, ctypes.c_size_t(layer), tokens(random), tokens(random), ctypes.c_size_t(TOKENS))
        kvdepot_c.call("commit", session.handle, TOKENS, kvdepot_c.TIMEOUT_SECONDS)
    buffer = ctypes.c_void_p()
    kvdepot_c.call("buffer_register", lease.handle, None, ctypes.c_size_t(BUFFER_BYTES), kvdepot_c.TIMEOUT_SECONDS, ctypes.byref(buffer))
    kvdepot_c.call("fetch", session.handle, ctypes.c_size_t(0), ctypes.c_uint64(0), ctypes.c_uint64(FETCHED_TOKENS), kvdepot_c.BF16,
                   buffer, ctypes.c_size_t(0), ctypes.c_size_t(BUFFER_BYTES // 2), kvdepot_c.TIMEOUT_SECONDS)
    kvdepot_c.call("truncate", session.handle, ctypes.c_uint64(ROUNDS * TOKENS - 100), kvdepot_c.TIMEOUT_SECONDS)
    print("mapped", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
