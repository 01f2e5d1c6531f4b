"""Mapped sessions on the GPU, beside the same kernel in one process, cuDNN in bf16, and attends over gRPC.

A daemon of its own serves; this process, and for clients8/* eight more, attend over its memory through CUDA graphs.
Layers of a session take the part of attend.py's copies: together they are larger than any cache. Writes
mapped_<gpu>.json.

  python3 tests/bench/mapped.py [--results FOLDER] [--quick] [ROW...]

clients8/*_mps need nvidia-cuda-mps-control, in PATH or in the folder that MPS_BIN names.
"""

import argparse
import contextlib
import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import attend
import kvdepot_c
import results
import torch
from kvdepot_c import HEAD_DIM, KV_HEADS, QUERY_HEADS

# Tokens of a session and how many layers it has.
SHAPES = {8192: 64, 32768: 16, 131072: 5}
PIECE = 8192  # tokens of an append
BF16_TOKEN_BYTES = 2 * KV_HEADS * HEAD_DIM * 2
CLIENTS = 8
CLIENT_LAYERS, CLIENT_TOKENS = 32, 8192
# Per cent of the GPU's multiprocessors that each client has under MPS in clients8/*_mps: an attend of every client
# runs at once. In clients8/*_mps_whole each has all of them, and they run one after the other.
MPS_SHARE = -(-100 // CLIENTS)
# What a session without a calibration makes for `compact`: one pattern step above the mean for K, one below for V.
attend.PATTERNS["own"] = ([7], [5])


class Daemon:
    """Its socket lies in a folder that goes with it."""

    def __init__(self, folder: str):
        self.socket = folder + "/socket"
        self.process = subprocess.Popen(
            [results.program("server/kvdepotd"), f"--listen=unix://{self.socket}", "--device=cuda:0",
             "--metrics_address=", "--memory_budget=48GiB", "--log_level=warn"])
        subprocess.run([results.program("client/cli/kvdepot"), "info", "--wait", "--timeout=60s",
                        f"--target={self.socket}"], check=True, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def daemon():
    with tempfile.TemporaryDirectory() as folder:
        serving = Daemon(folder)
        try:
            yield serving
        finally:
            serving.stop()


@contextlib.contextmanager
def mps():
    """An MPS server of our own while it lasts."""
    with tempfile.TemporaryDirectory() as folder:
        names = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        os.environ.update(names)
        try:
            subprocess.run([mps_control(), "-d"], check=True)
            yield
        finally:
            subprocess.run([mps_control()], input=b"quit\n", check=False, stdout=subprocess.DEVNULL)
            for name in names:
                del os.environ[name]


def mps_control() -> str | None:
    folders = [os.environ.get("MPS_BIN", ""), os.environ["PATH"], "/usr/local/nvidia/bin"]
    return shutil.which("nvidia-cuda-mps-control", path=":".join(folders))


class Client:
    """One mapped session and its stream."""

    def __init__(self, socket: str, name: str, layers: int, access: int, room_tokens: int = 0):
        self.layers = layers
        self.torch_stream = torch.cuda.Stream()
        self.lease = kvdepot_c.Lease(socket)
        self.session = kvdepot_c.Session(self.lease, name, layers, access, room_tokens)
        self.stream = kvdepot_c.Stream(self.torch_stream)
        self.stream.refresh(self.session)
        self.q, self.k, self.v = (
            torch.randn(layers, 1, heads, HEAD_DIM, device="cuda").bfloat16() for heads in (QUERY_HEADS, KV_HEADS, KV_HEADS))
        self.output = torch.zeros(layers, 1, QUERY_HEADS, HEAD_DIM, device="cuda")
        self.log_sum_exp = torch.zeros(layers, 1, QUERY_HEADS, device="cuda")
        torch.cuda.synchronize()
        self.queries = [
            (kvdepot_c.Query * 1)(kvdepot_c.query(self.session, self.q[i], self.output[i], self.log_sum_exp[i],
                                                  self.k[i], self.v[i])) for i in range(layers)]

    def launch(self, layer: int, appends: bool) -> None:
        self.stream.attend(layer, self.queries[layer], appends)

    def graph(self, launches: int, appends: bool) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.torch_stream):
            for i in range(launches):
                self.launch(i % self.layers, appends)
        return graph

    def replay(self, graph: torch.cuda.CUDAGraph) -> None:
        with torch.cuda.stream(self.torch_stream):
            graph.replay()

    def commit(self, room_tokens: int = 0) -> None:
        self.stream.commit(self.session, room_tokens)
        self.stream.wait(self.session)
        self.stream.refresh(self.session)

    def fill(self, tokens: int, k: torch.Tensor, v: torch.Tensor) -> list[tuple[float, float]]:
        """Appends pieces of a prompt to every layer until there are so many. Seconds of each piece, all layers, from
        the first call to the daemon's answer, and to the answer that shows it sealed."""
        seconds = []
        while self.session.committed() < tokens:
            torch.cuda.synchronize()
            begin = time.perf_counter()
            for layer in range(self.layers):
                self.stream.append(self.session, layer, k, v)
            # The next piece's room, or a decoder's.
            left = tokens - self.session.committed() - k.shape[0]
            self.stream.commit(self.session, k.shape[0] if left > 0 else 256)
            self.stream.wait(self.session)
            answered = time.perf_counter() - begin
            self.commit()
            seconds.append((answered, time.perf_counter() - begin))
        return seconds

    def close(self) -> None:
        self.stream.close()
        self.session.close()
        self.lease.close()


def prompt() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(PIECE, KV_HEADS, HEAD_DIM, device="cuda").bfloat16() for _ in range(2))


def timed_graph(client: Client, appends: bool, launches: int, replays: int, commits: bool) -> list[float]:
    graph = client.graph(launches, appends)
    times = []
    for replay in range(replays + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(client.torch_stream):
            begin.record()
            graph.replay()
            end.record()
        end.synchronize()
        if replay >= 3:
            times.append(begin.elapsed_time(end) * 1000 / launches)
        if commits and replay % 32 == 31:
            client.commit()
    return times


def row(name: str, times: list[float], **more) -> dict:
    return {"name": name, "value": statistics.median(times), "unit": "us", "repeats": len(times),
            "spread": results.spread(times), **more}


def attend_rows(library: ctypes.CDLL, socket: str, tokens: int, replays: int) -> list[dict]:
    layers = SHAPES[tokens]
    writer = Client(socket, f"attend-{tokens}", layers, kvdepot_c.WRITE, PIECE)
    writer.fill(tokens, *prompt())
    reader = Client(socket, f"attend-{tokens}", layers, kvdepot_c.READ)
    launches = layers * max(1, 64 // layers)
    mapped = timed_graph(reader, False, launches, replays, False)
    # A token a layer and replay: as in decoding.
    appending = timed_graph(writer, True, layers, replays, True)
    case = attend.Case(f"b1_l{tokens}", "own", [tokens])
    alone, _, _ = attend.ours(library, case, replays)
    bf16 = attend.cudnn(case, replays)
    reader.close()
    writer.close()
    delete(socket, f"attend-{tokens}")
    cudnn = {"cudnn_us": statistics.median(bf16), "cudnn_over_ours": statistics.median(bf16) / statistics.median(mapped)}
    return [
        row(f"mapped_attend/b1_l{tokens}", mapped, opponent="the same kernel in one process",
            opponent_value=statistics.median(alone), opponent_spread=results.spread(alone),
            ratio=statistics.median(alone) / statistics.median(mapped), shown=["cudnn_us", "cudnn_over_ours"], **cudnn),
        row(f"append_attend/b1_l{tokens}", appending, opponent="mapped attend alone",
            opponent_value=statistics.median(mapped), ratio=statistics.median(mapped) / statistics.median(appending),
            more_us=statistics.median(appending) - statistics.median(mapped), shown=["more_us"]),
    ]


def prompt_row(socket: str, repeats: int) -> dict:
    layers, seconds = 32, []
    size = layers * PIECE * BF16_TOKEN_BYTES
    k, v = prompt()
    for i in range(repeats):
        client = Client(socket, f"prompt-{i}", layers, kvdepot_c.WRITE, PIECE)
        seconds += client.fill(PIECE, k, v)
        client.close()
        delete(socket, f"prompt-{i}")
    rates, sealed = ([size / each for each in column] for column in zip(*seconds))
    return {"name": "prompt_append/l8192_x32", "value": statistics.median(rates), "unit": "bytes/s of bf16",
            "repeats": len(rates), "spread": results.spread(rates), "until_sealed": statistics.median(sealed),
            "shown": ["until_sealed"]}


def decode_row(socket: str, tokens: int) -> dict:
    """Generates tokens behind a prompt, a commit every few dozen that nobody waits for, against the same steps without
    a commit, and so without sealing: those are taken in turns at the same lengths, and dropped again."""
    layers, between, turn = 32, 32, 128
    client = Client(socket, "decode", layers, kvdepot_c.WRITE, PIECE)
    client.fill(PIECE, *prompt())
    graph = client.graph(layers, True)

    def steps(count: int, commits: bool) -> float:
        client.torch_stream.synchronize()
        begin = time.perf_counter()
        for step in range(1, count + 1):
            client.replay(graph)
            if commits and step % between == 0:
                client.stream.commit(client.session)
                client.stream.refresh(client.session)
        client.torch_stream.synchronize()
        return time.perf_counter() - begin

    steps(turn, True)
    client.commit()
    rates = []
    for _ in range(tokens // turn):
        # All that is due is sealed, and shown, before either.
        client.commit()
        committed = client.session.committed()
        alone = steps(turn, False)
        client.stream.truncate(client.session, committed)
        client.stream.refresh(client.session)
        sealing = steps(turn, True)
        client.stream.wait(client.session)
        client.commit()
        if client.session.committed() != committed + turn:
            raise RuntimeError(f"{client.session.committed()} tokens are committed, not {committed + turn}")
        rates.append((turn / sealing, turn / alone))
    client.close()
    delete(socket, "decode")
    sealing, alone = zip(*rates)
    # Of all the tokens, as they come one after the other.
    rate, rate_alone = (len(each) / sum(1 / one for one in each) for each in (sealing, alone))
    return {"name": "decode_sealing/l8192_x32", "value": rate, "unit": "tokens/s", "opponent": "the same without commits",
            "opponent_value": rate_alone, "ratio": rate / rate_alone, "repeats": len(rates),
            "spread": results.spread(list(sealing))}


def delete(socket: str, name: str) -> None:
    subprocess.run([results.program("client/cli/kvdepot"), "delete", name, f"--target={socket}"], check=True,
                   stdout=subprocess.DEVNULL)


def rpc_row(socket: str, mapped: dict) -> dict:
    output = subprocess.run(
        [results.program("client/cli/kvdepot"), "bench", f"--tokens={CLIENT_TOKENS}", "--rounds=300", "--json",
         f"--target={socket}"], check=True, capture_output=True, text=True).stdout
    microseconds = 1e6 * json.loads(output)["attend_p50_seconds"]
    return {"name": "rpc_attend/b1_l8192", "value": mapped["value"], "unit": "us", "opponent": "Attend over gRPC, p50",
            "opponent_value": microseconds, "ratio": microseconds / mapped["value"], "repeats": 300,
            "spread": mapped["spread"]}


def client_main(socket: str, names: list[str], seconds: float) -> None:
    """Replays a graph of all layers of each session in turn, one synchronisation a replay, and prints how often a
    second a layer was attended to."""
    clients = [Client(socket, name, CLIENT_LAYERS, kvdepot_c.READ) for name in names]
    graphs = [client.graph(CLIENT_LAYERS, False) for client in clients]

    def turn() -> None:
        for client, graph in zip(clients, graphs):
            client.replay(graph)
            client.torch_stream.synchronize()

    turn()
    print("ready", flush=True)
    sys.stdin.readline()
    replays, begin = 0, time.perf_counter()
    while time.perf_counter() < begin + seconds:
        turn()
        replays += len(clients)
    print(replays * CLIENT_LAYERS / (time.perf_counter() - begin), flush=True)
    for client in clients:
        client.close()


def clients_rate(socket: str, sessions: list[list[str]], seconds: float, share: int = 0) -> float:
    """Attends a second of one process for each list of sessions, all at once. `share`: per cent of the GPU's
    multiprocessors that MPS gives to each; 0: all of them."""
    environment = dict(os.environ)
    if share:
        environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] = str(share)
    processes = [
        subprocess.Popen([sys.executable, __file__, "--client", socket, str(seconds), *names], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True, env=environment) for names in sessions]
    for process in processes:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("a client did not start")
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(process.communicate()[0]) for process in processes)


def clients_rows(socket: str, kinds: dict[str, int], seconds: float) -> list[dict]:
    """`kinds`: name of a row's kind, and the share of each client in it."""
    names = [f"client-{i}" for i in range(CLIENTS)]
    k, v = prompt()
    for name in names:
        client = Client(socket, name, CLIENT_LAYERS, kvdepot_c.WRITE, PIECE)
        client.fill(CLIENT_TOKENS, k, v)
        client.close()
    rows = []
    for sharing, lists in (("separate", [[name] for name in names]), ("shared", [names[:1]] * CLIENTS)):
        # The same sessions' layers, by one process.
        alone = clients_rate(socket, [[names_of[0] for names_of in lists]], seconds)
        for kind, share in kinds.items():
            together = clients_rate(socket, lists, seconds, share)
            row = {"name": f"clients8/{sharing}_{kind}", "value": together, "unit": "attends/s", "repeats": 1,
                   "spread": 0.0, "opponent": "one process, the same work", "opponent_value": alone,
                   "ratio": together / alone}
            rows.append(row | ({"active_thread_percentage": share} if share else {}))
    for name in names:
        delete(socket, name)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("words", nargs="*", metavar="ROW", help="measure the rows whose names hold one of these")
    parser.add_argument("--quick", action="store_true", help="few repeats, to see that it runs")
    parser.add_argument("--results", type=Path, help="folder to write to")
    options = parser.parse_args()
    replays, seconds = (5, 0.5) if options.quick else (50, 3.0)
    gpu = torch.cuda.get_device_name()
    library = attend.load_library()
    rows = []

    def wanted(*names: str) -> bool:
        return not options.words or any(word in name for word in options.words for name in names)

    def add(new: list[dict]) -> None:
        for each in new:
            rows.append(each)
            print({key: each.get(key) for key in ("name", "value", "opponent_value", "ratio", "spread", "more_us",
                                                  "cudnn_us")}, flush=True)
        if options.results:
            name = re.search(r"[A-Z]\d+", gpu).group().lower()
            results.write(str(options.results / f"mapped_{name}.json"), rows, gpu)

    with daemon() as serving:
        for tokens in SHAPES:
            if wanted(f"mapped_attend/b1_l{tokens}", f"append_attend/b1_l{tokens}"):
                add(attend_rows(library, serving.socket, tokens, replays))
        mapped = next((each for each in rows if each["name"] == "mapped_attend/b1_l8192"), None)
        if mapped and wanted("rpc_attend/b1_l8192"):
            add([rpc_row(serving.socket, mapped)])
        if wanted("prompt_append/l8192_x32"):
            add([prompt_row(serving.socket, 3 if options.quick else 10)])
        if wanted("decode_sealing/l8192_x32"):
            add([decode_row(serving.socket, 512 if options.quick else 4096)])
        if wanted("clients8/separate_nomps", "clients8/shared_nomps"):
            add(clients_rows(serving.socket, {"nomps": 0}, seconds))
    if wanted("clients8/separate_mps", "clients8/shared_mps"):
        if mps_control() is None:
            sys.exit("mapped.py: no nvidia-cuda-mps-control, MPS_BIN says where it is")
        # Daemon and clients; this process, which makes the sessions, has opened the device before.
        with mps(), daemon() as serving:
            add(clients_rows(serving.socket, {"mps": MPS_SHARE, "mps_whole": 0}, seconds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client_main(sys.argv[2], sys.argv[4:], float(sys.argv[3]))
    else:
        main()
