"""`t5x_lite serve` under load: many clients at once, on this machine.

  python benchmarks/serve.py --gin_file=runs/quickstart/config.gin --json=serve.json
  python benchmarks/serve.py --gin_file=... --clients=8 --seconds=3      # does it run?

It starts a server of its own, asks for each prompt's answer alone, greedy and sampled with a seed,
and then lets all clients ask for the same at once, streamed and not, for a bounded time. Every
answer must be the one that its prompt had alone. Meanwhile others misbehave: bodies too large or
no JSON, and connections that say a byte now and then. Then the server is told to stop while
requests run. Exit status 0 only if nothing was lost or mixed up, what misbehaved was refused, the
memory stayed flat (--growth) and the server ended with status 0.
"""

import argparse
import collections
import http.client
import inspect
import json
import random
import re
import signal
import socket
import statistics
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

HEADERS = {"content-type": "application/json"}


class Server:
    """A server process of its own, on a free port."""

    def __init__(self, gin_file: str, arguments: list[str], slow_seconds: float):
        self.slow_seconds = slow_seconds
        command = [
            sys.executable, "-m", "t5x_lite", "serve", f"--gin_file={gin_file}", "--port=0",
            f"--gin.ServeConfig.read_seconds={slow_seconds}", *arguments,
        ]  # fmt: skip
        started = time.monotonic()
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.port, self.said = 0, []
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r"http://[^/]*:(\d+)/ ", line):
                self.port = int(found[1])
                break
        if not self.port:
            sys.exit("".join(self.said) or "the server said nothing")
        self.start_seconds = time.monotonic() - started
        threading.Thread(target=lambda: self.said.extend(self.process.stderr), daemon=True).start()

    def memory(self) -> float:
        """Resident, in MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * 4096 / 1e6

    def post(self, body, path: str = "/v1/completions", connection=None, timeout: float = 120):
        """(status, JSON or the joined events of a stream)."""
        own = connection or http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        own.request("POST", path, data, HEADERS)
        response = own.getresponse()
        text = response.read().decode()
        if connection is None:
            own.close()
        if response.getheader("content-type", "").startswith("text/event-stream"):
            return response.status, _joined(text)
        return response.status, json.loads(text)


def _joined(events: str) -> dict:
    """A stream as the answer that would have come whole."""
    lines = [line.removeprefix("data: ") for line in events.split("\n\n") if line]
    if lines[-1:] != ["[DONE]"]:
        return {"error": lines[-1:]}
    choices = [c for line in lines[:-1] for c in json.loads(line)["choices"]]
    finish = [c["finish_reason"] for c in choices if c["finish_reason"]]
    text = "".join(c["text"] for c in choices)
    return {"choices": [{"text": text, "finish_reason": finish[0] if finish else None}]}


def questions(count: int, tokens: int) -> list[dict]:
    """Requests that differ in prompt and length; every other one is sampled, with its own seed."""
    lines = [s.strip() for s in inspect.getsource(string).splitlines() if len(s.strip()) > 20]
    found = []
    for i in range(count):
        body = {"prompt": f"{lines[i % len(lines)]} {i}"[: 30 + i % 50]}
        body |= {"max_tokens": tokens // 2 + i % (tokens // 2), "temperature": i % 2 * 1.0}
        found.append(body | {"seed": i, "top_p": 0.95, "stop": ["\n\n"]})
    return found


def same(a: dict, b: dict) -> bool:
    parts = ("text", "finish_reason")
    return [a["choices"][0].get(p) for p in parts] == [b["choices"][0].get(p) for p in parts]


def load(server: Server, asked: list[dict], alone: list[dict], clients: int, seconds: float):
    """What the clients saw; they ask until the time is over, and then wait for their answers."""
    seen, lock, end = collections.Counter(), threading.Lock(), time.monotonic() + seconds
    latencies, wrong = [], []

    def client(number: int) -> None:
        draw = random.Random(number)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=300)
        while time.monotonic() < end:
            i = draw.randrange(len(asked))
            started = time.monotonic()
            try:
                body = asked[i] | {"stream": draw.random() < 0.5}
                status, answer = server.post(body, connection=connection)
            except (OSError, http.client.HTTPException, ValueError) as error:
                with lock:
                    seen["lost"] += 1
                    wrong.append(repr(error))
                connection.close()
                continue
            taken = time.monotonic() - started
            with lock:
                if status == 429:
                    seen["refused"] += 1
                elif status != 200 or "error" in answer:
                    seen["lost"] += 1
                    wrong.append(f"{status}: {answer}")
                elif not same(answer, alone[i]):
                    seen["mixed up"] += 1
                    wrong.append(f"{i}: {answer['choices'][0]} alone {alone[i]['choices'][0]}")
                else:
                    seen["right"] += 1
                    latencies.append(taken)
            if status == 429:
                time.sleep(0.2)
        connection.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(seconds / 2)
    middle = server.memory()
    for thread in threads:
        thread.join()
    return seen, sorted(latencies), wrong, middle, time.monotonic() - started


def misbehave(server: Server, seconds: float, results: dict[str, bool]) -> None:
    """Refusals that there must be while others are served."""
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    for number, s in enumerate(slow):
        s.settimeout(seconds)
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        if number % 2:  # a whole head, and then the body byte by byte
            s.sendall(b"Content-Type: application/json\r\nContent-Length: 999\r\n\r\n")
    large = json.dumps({"prompt": "x" * 2_000_000}).encode()
    results["too large: 413"] = _status(server, large) in (413, None)  # or cut off while it sends
    results["no JSON: 400"] = _status(server, b"{prompt}") == 400
    results["bad value: 400"] = _status(server, b'{"prompt": "a", "temperature": 9}') == 400
    results["too many tokens: 400"] = _status(server, b'{"prompt":"a","max_tokens":99999}') == 400
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"\x00\xff nonsense \r\n\r\n")
    results["no HTTP: 400 or closed"] = raw.recv(100)[:12] in (b"HTTP/1.1 400", b"")
    raw.close()
    end, ended = time.monotonic() + 3 * server.slow_seconds + 5, set()
    while len(ended) < len(slow) and time.monotonic() < end:
        for s in slow:
            try:
                s.sendall(b"x" if slow.index(s) % 2 else b"a")
                s.setblocking(False)
                try:
                    if b"408" in (data := s.recv(1000)) or not data:
                        ended.add(s)
                except BlockingIOError:
                    pass
                s.setblocking(True)
            except OSError:
                ended.add(s)
        time.sleep(0.25)
    results["slow: 408 or closed"] = len(ended) == len(slow)
    for s in slow:
        s.close()


def _status(server: Server, body: bytes) -> int | None:
    try:
        return server.post(body)[0]
    except (OSError, http.client.HTTPException):
        return None


def stop(server: Server, asked: list[dict]) -> tuple[bool, float, list]:
    """SIGTERM while requests run: (whether it ended with 0, seconds, what those requests got)."""
    got = []

    def last(body: dict) -> None:
        try:
            got.append(server.post(body)[0])
        except (OSError, http.client.HTTPException) as error:
            got.append(repr(error))

    threads = [threading.Thread(target=last, args=(body,)) for body in asked[:16]]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    started = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    status = server.process.wait(60)
    for thread in threads:
        thread.join()
    return status == 0, time.monotonic() - started, sorted(set(map(str, got)))


def tokens_written(server: Server) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(r'tokens_total{kind="completion"} (\S+)', text)[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gin_file", required=True, help="of a run that has checkpoints")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=24, help="the most of an answer")
    parser.add_argument("--slow_seconds", type=float, default=5, help="before slow ones are ended")
    parser.add_argument("--growth", type=float, default=1.1, help="of memory, middle to end")
    parser.add_argument("--json")
    args, more = parser.parse_known_args()
    server = Server(args.gin_file, more, args.slow_seconds)
    try:
        asked = questions(args.prompts, args.tokens)
        alone = [server.post(body)[1] for body in asked]
        memory, written, results = [server.memory()], tokens_written(server), {}
        bad = threading.Thread(target=misbehave, args=(server, args.seconds + 60, results))
        bad.start()
        seen, latencies, wrong, middle, taken = load(
            server, asked, alone, args.clients, args.seconds
        )
        memory += [middle, server.memory()]
        bad.join()
        written = tokens_written(server) - written
        clean, stop_seconds, got = stop(server, asked)
    finally:
        server.process.kill()
        server.process.wait()
    results["nothing lost"] = not seen["lost"]
    results["nothing mixed up"] = not seen["mixed up"]
    results["memory flat"] = memory[2] <= args.growth * memory[1]
    results["ended with status 0"] = clean
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else [0.0] * 99
    report = {
        "clients": args.clients,
        "seconds": round(taken, 1),
        "answers": dict(seen),
        "answers_per_second": round(seen["right"] / taken, 1),
        "tokens_per_second": round(written / taken, 1),
        "latency_seconds": {f"p{p}": round(cuts[p - 1], 3) for p in (50, 90, 99)},
        "memory_mb": [round(m) for m in memory],
        "start_seconds": round(server.start_seconds, 1),
        "stop_seconds": round(stop_seconds, 1),
        "at_the_end": got,
        "checks": results,
    }
    for name, value in report.items():
        print(f"{name.replace('_', ' '):20} {value}")
    for line in wrong[:5]:
        print("wrong:", line[:300])
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))
    return 0 if seen["right"] and all(results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
