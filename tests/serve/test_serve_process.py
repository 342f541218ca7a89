"""The command, in a process of its own, over real sockets."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import browser
import pytest
import serving

import t5x_lite
from t5x_lite import cli, config
from t5x_lite.serve import server

ROOT = Path(t5x_lite.__file__).parent.parent


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """What starts a server with one second of patience."""
    folder = tmp_path_factory.mktemp("process")
    with config.fresh():
        serving.parse(folder)
        weights = serving.weights(folder)
    command = [sys.executable, "-m", "t5x_lite", "serve", f"--gin_file={folder}/tiny.gin",
               f"--checkpoint={weights}", "--port=0"]  # fmt: skip
    return command + [f"--gin.{binding}" for binding in serving.BINDINGS]


@contextlib.contextmanager
def served(command):
    """(process, port, what it says, its reader) of a server of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    said = []
    for line in process.stderr:
        said.append(line)
        if found := re.search(r"serving weights at http://127.0.0.1:(\d+)/ ", line):
            break
    else:
        pytest.fail("".join(said))
    reader = threading.Thread(target=lambda: said.extend(process.stderr), daemon=True)
    reader.start()
    yield process, int(found[1]), said, reader
    process.kill()
    process.wait()
    reader.join()
    process.stderr.close()


@pytest.fixture(scope="module")
def running(command):
    """One server for all tests that leave it as it was."""
    with served(command) as server:
        yield server


def post(port: int, body: dict, timeout: float = 60) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), headers)
    response = connection.getresponse()
    found = response.status, response.read().decode()
    connection.close()
    return found


def test_slow_clients_are_ended_and_others_served(running):
    port = running[1]
    heads = [
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: loc",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n"
        b"Content-Type: application/json\r\n\r\n{",
    ]
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in heads]
    for s, head in zip(slow, heads, strict=True):
        s.settimeout(60)
        s.sendall(head)
    status, text = post(port, {"prompt": "hello", "max_tokens": 8})
    assert status == 200 and json.loads(text)["usage"]["completion_tokens"] >= 1
    ends = []
    for s in slow:
        try:
            ends.append(s.recv(1000))
        except ConnectionResetError:
            ends.append(b"")
        s.close()
    assert ends[:2] == [b"", b""] and (b" 408 " in ends[2] or ends[2] == b"")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("head", [b"", b"Host: localhost\r\n"])
def test_http_1_0_is_answered_without_chunks_and_closed(running, head, stream):
    body = json.dumps({"prompt": "hello", "max_tokens": 8, "temperature": 0, "stream": stream})
    with socket.create_connection(("127.0.0.1", running[1]), timeout=60) as s:
        s.sendall(b"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\n" + head
                  + f"Content-Length: {len(body)}\r\n\r\n{body}".encode())  # fmt: skip
        answer = b""
        while part := s.recv(65536):  # to the end of the connection
            answer += part
    head, _, text = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head and b"chunked" not in head.lower()
    assert text.endswith(b"data: [DONE]\n\n") if stream else json.loads(text)["choices"]


def test_another_host_is_refused_in_the_shape_of_openai(running):
    with socket.create_connection(("127.0.0.1", running[1]), timeout=60) as s:
        s.sendall(b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        answer = b""
        while part := s.recv(65536):
            answer += part
    assert b" 400 " in answer and b"evil.example" in answer and b'"error"' in answer


def test_a_client_that_leaves_makes_room(running):
    port = running[1]
    for _ in range(12):  # more than may wait
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = json.dumps({"prompt": "a", "max_tokens": 24, "n": 3, "stream": True})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        connection.close()
    end = time.monotonic() + 60
    while (status := post(port, {"prompt": "hello"})[0]) == 429 and time.monotonic() < end:
        time.sleep(0.1)
    assert status == 200


def test_the_client_of_openai(running):
    """Each kind of call that it has for texts, by its own types."""
    openai = pytest.importorskip("openai", reason="the openai package isn't installed")
    client = openai.OpenAI(
        base_url=f"http://127.0.0.1:{running[1]}/v1", api_key="x", max_retries=0, timeout=60
    )
    assert [model.id for model in client.models.list()] == ["weights"]
    ask = {"model": "weights", "max_tokens": 9, "temperature": 0}
    whole = client.completions.create(prompt="hello", logprobs=2, **ask)
    assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.token_logprobs)
    chunks = list(client.completions.create(prompt="hello", stream=True, **ask))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    messages = [{"role": "user", "content": "hello"}]
    chat = client.chat.completions.create(messages=messages, **ask)
    chunks = list(client.chat.completions.create(messages=messages, stream=True, **ask))
    said = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert said == chat.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="a prompt of 61 tokens"):
        client.completions.create(prompt="x" * 60, model="weights")
    with pytest.raises(openai.BadRequestError, match="makes|writes texts"):
        client.embeddings.create(model="weights", input="x")


@pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(running, tmp_path):
    address = f"http://127.0.0.1:{running[1]}/"
    with browser.Browser(tmp_path / "profile") as opened:
        for width, dark in ((420, True), (1200, False)):
            opened.open(address, width, dark)
            assert opened.value("document.documentElement.scrollWidth") == width
            for kind, body in (("text", "answer"), ("chat", "talk")):
                opened.value(
                    f"$('kind').value = '{kind}'; $('prompt').value = 'hello'; "
                    "$('form').requestSubmit()"
                )
                end = time.monotonic() + 60
                while "tokens in" not in opened.value("$('status').textContent"):
                    assert time.monotonic() < end, opened.value("$('status').textContent")
                    time.sleep(0.1)
                assert opened.value(f"$('{body}').textContent")
            assert opened.problems == []
            assert {urlsplit(url).netloc for url in opened.requests} == {f"127.0.0.1:{running[1]}"}


def test_another_cannot_have_the_port(running):
    with pytest.raises(t5x_lite.errors.UserError, match="try another --port"):
        server.bind("127.0.0.1", running[1])


def test_sigterm_ends_what_runs_and_exits_with_0(command):
    with served(command) as server:
        ends_with_0(*server)


def ends_with_0(process, port, said, reader):
    answers: list = []

    def ask():
        try:
            answers.append(post(port, {"prompt": "hello", "max_tokens": 24})[0])
        except OSError as error:
            answers.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reader.join(60)  # it has read all that there is
    for thread in threads:
        thread.join()
    # Those who came in time are answered; others find nobody, or are told.
    assert all(a in (200, 503) or isinstance(a, OSError) for a in answers), answers
    assert any("SIGTERM: no new requests" in line for line in said)
    assert not any("Traceback" in line for line in said), said


def test_mistakes_are_one_line(tmp_path, capsys):
    assert cli.main(["serve"]) == 2
    assert "serve needs --gin_file" in capsys.readouterr().err
