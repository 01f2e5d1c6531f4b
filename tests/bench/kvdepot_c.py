"""client/kvdepot.h over ctypes, as far as benches need it: mapped sessions on a GPU in bf16, 32/8 heads of 128."""

import ctypes
from pathlib import Path

import results

BF16, PLANES, READ, WRITE = 1, 2, 1, 2
KV_HEADS, QUERY_HEADS, HEAD_DIM = 8, 32, 128
TIMEOUT_SECONDS = ctypes.c_double(60)

_address, _size = ctypes.c_void_p, ctypes.c_size_t


class _LayerShape(ctypes.Structure):
    _fields_ = [("kv_heads", ctypes.c_uint32), ("query_heads", ctypes.c_uint32), ("head_dim", ctypes.c_uint32),
                ("sliding_window", ctypes.c_uint32), ("soft_cap", ctypes.c_float)]


class _SessionSpec(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("name", ctypes.c_char_p), ("model", ctypes.c_char_p),
                ("calibration", ctypes.c_char_p), ("dtype", ctypes.c_int), ("codec", ctypes.c_int),
                ("profile", ctypes.c_int), ("layers", ctypes.POINTER(_LayerShape)), ("layer_count", _size)]


class _SessionState(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("committed_token_count", ctypes.c_uint64), ("generation", ctypes.c_uint64),
                ("directory_version", ctypes.c_uint64), ("room_tokens", ctypes.c_uint64)]


class Query(ctypes.Structure):
    _fields_ = [("struct_size", _size), ("session", _address), ("token_count", _size), ("k", _address),
                ("v", _address), ("q", _address), ("output", _address), ("log_sum_exp", _address)]


def _load() -> ctypes.CDLL:
    # A bundle has it beside the libraries that it needs.
    beside = Path("lib/libkvdepot_client.so")
    library = ctypes.CDLL(str(beside) if beside.exists() else results.program("client/libkvdepot_client.so"))
    library.kvdepot_error_message.restype = ctypes.c_char_p
    return library


_library = None


def call(name: str, *arguments) -> None:
    """Calls kvdepot_NAME."""
    global _library
    _library = _library or _load()
    code = getattr(_library, "kvdepot_" + name)(*arguments)
    if code != 0:
        raise RuntimeError(f"kvdepot_{name}: code {code}: {_library.kvdepot_error_message().decode()}")


class Lease:
    def __init__(self, socket: str):
        self.handle = _address()
        call("lease_open", socket.encode(), None, TIMEOUT_SECONDS, ctypes.byref(self.handle))

    def close(self) -> None:
        _library.kvdepot_lease_close(self.handle)


class Session:
    def __init__(self, lease: Lease, name: str, layers: int, access: int, room_tokens: int = 0):
        shapes = (_LayerShape * layers)(*[_LayerShape(KV_HEADS, QUERY_HEADS, HEAD_DIM, 0, 0)] * layers)
        spec = _SessionSpec(ctypes.sizeof(_SessionSpec), name.encode(), None, None, BF16, PLANES, 0, shapes, layers)
        self.handle = _address()
        call("session_create", lease.handle, ctypes.byref(spec), access, room_tokens, TIMEOUT_SECONDS,
             ctypes.byref(self.handle))

    def committed(self) -> int:
        state = _SessionState(ctypes.sizeof(_SessionState))
        call("session_get_state", self.handle, ctypes.byref(state))
        return state.committed_token_count

    def refresh(self) -> None:
        call("refresh", self.handle, TIMEOUT_SECONDS)

    def close(self) -> None:
        _library.kvdepot_session_close(self.handle)


class Stream:
    """Of a torch.cuda.Stream."""

    def __init__(self, stream):
        self.handle = _address()
        call("cuda_stream_create", _address(stream.cuda_stream), ctypes.byref(self.handle))

    def append(self, session: Session, layer: int, k, v) -> None:
        call("cuda_append", self.handle, session.handle, _size(layer), _address(k.data_ptr()), _address(v.data_ptr()),
             _size(k.shape[0]))

    def attend(self, layer: int, queries, appends: bool) -> None:
        call("cuda_append_attend" if appends else "cuda_attend", self.handle, _size(layer), ctypes.c_float(0), queries,
             _size(len(queries)))

    def commit(self, session: Session, room_tokens: int = 0) -> None:
        call("cuda_commit", self.handle, session.handle, room_tokens)

    def wait(self, session: Session) -> None:
        call("cuda_wait", self.handle, session.handle, TIMEOUT_SECONDS)

    def refresh(self, session: Session) -> None:
        call("cuda_refresh", self.handle, session.handle)

    def truncate(self, session: Session, token_count: int) -> None:
        call("cuda_truncate", self.handle, session.handle, ctypes.c_uint64(token_count), TIMEOUT_SECONDS)

    def close(self) -> None:
        _library.kvdepot_cuda_stream_close(self.handle)


def query(session: Session, q, output, log_sum_exp, k=None, v=None) -> Query:
    """Of tensors [token][head][channel], which outlive it."""
    return Query(ctypes.sizeof(Query), session.handle, q.shape[0], k.data_ptr() if k is not None else None,
                 v.data_ptr() if v is not None else None, q.data_ptr(), output.data_ptr(), log_sum_exp.data_ptr())
