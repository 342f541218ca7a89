"""The server, in this process: answers alone and in company, streams, and refusals."""

import asyncio
import base64
import dataclasses
import json
import threading

import httpx2
import numpy as np
import pytest
import serving
from prometheus_client.parser import text_string_to_metric_families

from t5x_lite import config
from t5x_lite.data.chat import ChatTemplate
from t5x_lite.data.vocabulary import ByteVocabulary
from t5x_lite.programs.serve import build
from t5x_lite.serve import page
from t5x_lite.serve.app import App
from t5x_lite.serve.engine import Engine
from t5x_lite.serve.service import Vectors
from t5x_lite.serve.settings import ServeConfig

INPUTS = ["hello", "the quick brown fox", "a", "jumps over the lazy dog", "zz zz", "then"]
JSON = {"content-type": "application/json"}
CHAT = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    with config.fresh():
        serving.parse(folder)
        name, service = build(str(serving.weights(folder)), settings := config.call("ServeConfig"))
        service.warm_up()
        yield name, service, settings
        service.close()


def make(built, **options) -> App:
    name, service, settings = built
    shown = page.render(name, embeds=False, has_encoder=True, max_tokens=24, key=False)
    return App(service, settings, name=name, page=shown, **options)


@pytest.fixture
def app(built):
    return make(built)


def call(app: App, *requests: tuple, together: bool = False, **client) -> list[httpx2.Response]:
    """Responses to (method, path[, options]), one after the other or all at once."""

    async def all_of_them():
        transport = httpx2.ASGITransport(app.asgi)
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=60, **client
        ) as http:
            sends = [http.request(r[0], r[1], **(r[2] if len(r) > 2 else {})) for r in requests]
            if together:
                return await asyncio.gather(*sends)
            return [await send for send in sends]

    return asyncio.run(all_of_them())


def completion(prompt, **more) -> tuple:
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0} | more
    return "POST", "/v1/completions", {"json": body}


def events(response) -> list[dict]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def samples(app: App) -> dict[str, float]:
    [response] = call(app, ("GET", "/metrics"))
    families = text_string_to_metric_families(response.text)
    return {s.name + "".join(s.labels.values()): s.value for f in families for s in f.samples}


def test_answers_in_company_are_those_alone(app):
    asked = [completion(p, seed=i, temperature=i % 2) for i, p in enumerate(INPUTS)]
    alone = [r.json()["choices"] for r in call(app, *asked)]
    again = [r.json()["choices"] for r in call(app, *reversed(asked), together=True)]
    assert again == alone[::-1]
    assert len({str(choices) for choices in alone}) > 3
    assert all(c[0]["finish_reason"] in ("stop", "length") for c in alone)


def test_a_stream_is_the_same_answer(app):
    [whole] = call(app, completion("hello", n=2, seed=7, temperature=1, logprobs=2))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    [stream] = call(app, completion("hello", n=2, seed=7, temperature=1, logprobs=2, **options))
    whole, found = whole.json(), events(stream)
    for index, choice in enumerate(whole["choices"]):
        mine = [c for e in found for c in e["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert [c["finish_reason"] for c in mine if c["finish_reason"]] == [choice["finish_reason"]]
        for name, values in choice["logprobs"].items():
            assert sum((c["logprobs"][name] for c in mine if c["logprobs"]), []) == values
        assert len(choice["logprobs"]["token_logprobs"]) <= 12
        assert all(value < 0 for value in choice["logprobs"]["token_logprobs"])
    assert found[-1]["choices"] == [] and found[-1]["usage"] == whole["usage"]
    assert whole["usage"]["prompt_tokens"] == len("hello") + 1  # bytes, and EOS
    assert len({e["id"] for e in found}) == 1


def test_several_prompts_ids_and_echo(app):
    ids = [b + 3 for b in b"hello"]
    both, as_ids, echoed = call(
        app, completion(["hello", "a"]), completion(ids), completion("hello", echo=True)
    )
    texts = [c["text"] for c in both.json()["choices"]]
    assert [c["index"] for c in both.json()["choices"]] == [0, 1]
    assert as_ids.json()["choices"][0]["text"] == texts[0]
    assert echoed.json()["choices"][0]["text"] == "hello" + texts[0]


def test_a_stop_ends_a_text(app):
    for prompt in INPUTS:
        [whole] = call(app, completion(prompt))
        text = whole.json()["choices"][0]["text"].replace("\ufffd", "")
        if len(text) > 2:
            break
    stop = text[1:3]
    cut, stream = call(
        app, completion(prompt, stop=stop), completion(prompt, stop=[stop], stream=True)
    )
    choice = cut.json()["choices"][0]
    assert stop not in choice["text"] and choice["finish_reason"] == "stop"
    assert cut.json()["usage"]["completion_tokens"] <= whole.json()["usage"]["completion_tokens"]
    assert "".join(c["text"] for e in events(stream) for c in e["choices"]) == choice["text"]


def test_a_chat_and_its_stream(app):
    body = {"messages": CHAT, "max_tokens": 9, "temperature": 0, "logprobs": True,
            "top_logprobs": 2}  # fmt: skip
    whole, stream, bad = call(
        app,
        ("POST", "/v1/chat/completions", {"json": body}),
        ("POST", "/v1/chat/completions", {"json": body | {"stream": True}}),
        ("POST", "/v1/chat/completions", {"json": {"messages": [*CHAT, *CHAT]}}),
    )
    choice = whole.json()["choices"][0]
    assert choice["message"]["role"] == "assistant"
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    found = events(stream)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["delta"]["content"] for e in found for c in e["choices"])
    assert text == choice["message"]["content"]
    assert bad.status_code == 400 and "user" in bad.json()["error"]["message"]


def test_a_stop_that_the_vocabulary_spells_ends_a_chat(built, app, monkeypatch):
    body = {"messages": CHAT, "max_tokens": 20, "temperature": 0}
    [whole] = call(app, chat := ("POST", "/v1/chat/completions", {"json": body}))
    text = whole.json()["choices"][0]["message"]["content"]
    stop = text[4:6]  # two tokens of bytes
    assert len(stop.encode()) >= 2
    service = built[1]
    template = ChatTemplate("plain", assistant="Assistant: {content}{stop}\n\n", stop=stop)
    own = dataclasses.replace(service.reading, template=template)
    monkeypatch.setattr(service, "reading", own)
    [cut] = call(app, chat)
    choice = cut.json()["choices"][0]
    assert choice["message"]["content"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_without_a_seed_every_text_is_drawn_anew(built, app, monkeypatch):
    seeds, submit = [], built[1].engine.submit

    def submitted(jobs):
        seeds.append([job.seed for job in jobs])
        submit(jobs)

    monkeypatch.setattr(built[1].engine, "submit", submitted)
    call(app, completion(["a"] * 4, max_tokens=1), completion(["a", "b"], n=2, seed=7))
    assert len(set(seeds[0])) == 4 and seeds[1] == [7, 8, 7, 8]


def test_the_type_of_a_body_is_read_in_any_case(app):
    options = {"content": b'{"prompt": "a", "max_tokens": 1}',
               "headers": {"content-type": "Application/JSON; charset=UTF-8"}}  # fmt: skip
    [found] = call(app, ("POST", "/v1/completions", options))
    assert found.status_code == 200


@pytest.mark.parametrize("status, param, request_", [
    (400, "prompt", completion("x" * 40)),
    (400, "max_tokens", completion("x", max_tokens=25)),
    (400, "n", completion(["x", "y"], n=3)),
    (400, "prompt", completion([5, 0])),
    (400, "prompt", completion([9999])),
    (400, None, ("POST", "/v1/completions", {"content": b"{", "headers": JSON})),
    (400, None, ("POST", "/v1/completions", {"content": b"{}", "headers": {"content-type": "a"}})),
    (400, None, ("POST", "/v1/embeddings", {"json": {"input": "x"}})),
    (404, None, ("GET", "/v1/nothing")),
    (404, "model", ("GET", "/v1/models/other")),
    (405, None, ("GET", "/v1/completions")),
    (413, None, ("POST", "/v1/completions", {"json": {"prompt": "x" * 6000}})),
])  # fmt: skip
def test_what_is_refused_and_how(app, status, param, request_):
    [response] = call(app, request_)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["message"] and error["type"]


def test_a_body_without_a_length_is_measured_and_a_slow_one_refused(app):
    async def large():
        for _ in range(20):
            yield b"x" * 1000

    waited = []

    async def slow():
        yield b"{"
        await asyncio.sleep(60)  # read_seconds is 1
        waited.append(True)
        yield b"}"

    responses = call(app, *[("POST", "/v1/completions", {"content": content(), "headers": JSON})
                            for content in (large, slow)])  # fmt: skip
    assert [r.status_code for r in responses] == [413, 408]
    assert responses[1].headers["connection"] == "close"
    assert not waited


def test_what_is_too_much_at_once_is_refused_and_the_rest_is_right(built, app, monkeypatch):
    engine: Engine = built[1].engine
    [alone] = call(app, completion("hello", max_tokens=24))
    all_asked, left, submit, admit = threading.Event(), iter(range(23, -1, -1)), *(
        getattr(engine, name) for name in ("submit", "_admit")
    )  # fmt: skip

    def counted(jobs):
        try:
            submit(jobs)
        finally:
            if next(left) == 0:
                all_asked.set()

    monkeypatch.setattr(engine, "submit", counted)
    monkeypatch.setattr(engine, "_admit", lambda: (all_asked.wait(60), admit()))
    responses = call(app, *[completion("hello", max_tokens=24)] * 24, together=True)
    statuses = [r.status_code for r in responses]
    # Three slots, and six that wait.
    assert (statuses.count(200), statuses.count(429)) == (9, 15)
    right = [r.json()["choices"] for r in responses if r.status_code == 200]
    assert all(choices == alone.json()["choices"] for choices in right)
    refused = responses[statuses.index(429)]
    assert refused.json()["error"]["type"] == "rate_limit_error" and refused.headers["retry-after"]


def test_a_key_and_a_host_can_be_asked_for(built):
    app = make(built, api_key="secret")
    right = {"headers": {"authorization": "Bearer secret"}}
    wrong = {"headers": {"authorization": "Bearer other"}}
    responses = call(
        app, ("GET", "/v1/models"), ("GET", "/v1/models", wrong), ("GET", "/v1/models", right),
        ("GET", "/metrics"), ("GET", "/health"), completion("x"),
    )  # fmt: skip
    assert [r.status_code for r in responses] == [401, 401, 200, 401, 200, 401]
    assert responses[0].json()["error"]["code"] == "invalid_api_key"
    strange = {"headers": {"host": "evil.example"}}
    assert call(app, ("GET", "/health", strange))[0].status_code == 400
    assert call(make(built, local=False), ("GET", "/health", strange))[0].status_code == 200


def test_health_models_and_metrics(app, built):
    call(app, completion("hello"), completion("x", max_tokens=99))
    health, models, one = call(
        app, ("GET", "/health"), ("GET", "/v1/models"), ("GET", f"/v1/models/{built[0]}")
    )
    assert health.json() == {"status": "ok", "model": "weights"}
    assert models.json()["data"] == [one.json()] and one.json()["id"] == "weights"
    found = samples(app)
    assert found["t5x_lite_requests_total/v1/completions200"] == 1
    assert found["t5x_lite_requests_total/v1/completions400"] == 1
    assert found["t5x_lite_tokens_totalprompt"] == 6
    assert 1 <= found["t5x_lite_tokens_totalcompletion"] <= 12
    assert found["t5x_lite_request_seconds_count/v1/completions"] == 2
    assert found["t5x_lite_queue_length"] == found["t5x_lite_running"] == 0


def test_an_answer_takes_so_long_at_most_and_a_closing_server_says_so(built, monkeypatch):
    name, service, _ = built
    busy = threading.Event()
    monkeypatch.setattr(service.engine, "submit", lambda jobs: busy.set())  # nobody works
    app = App(service, ServeConfig(request_seconds=0.2), name=name, page="")
    late, stream = call(app, completion("x"), completion("x", stream=True))
    assert late.status_code == 408 and "0.2 seconds" in late.json()["error"]["message"]
    assert "0.2 seconds" in stream.text and "[DONE]" not in stream.text
    app.closing = True
    closing, health = call(app, completion("x"), ("GET", "/health"))
    assert (closing.status_code, health.status_code) == (503, 503)


def test_what_fails_is_told_and_the_next_is_served(built, app, monkeypatch):
    engine: Engine = built[1].engine
    [before] = call(app, completion("hello"))

    class Broken:
        rows, eos_ids = engine._slots.rows, engine._slots.eos_ids

        def start(self, *args):
            raise RuntimeError("out of memory")

        empty = start

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_slots", Broken())
        [failed] = call(app, completion("hello"))
    assert failed.status_code == 500 and failed.json()["error"]["type"] == "server_error"
    [after] = call(app, completion("hello"))
    assert after.json()["choices"] == before.json()["choices"]


def test_what_fails_at_its_start_fails_alone(built, app, monkeypatch):
    engine: Engine = built[1].engine
    asked = [completion(p, max_tokens=24, seed=i, temperature=1) for i, p in enumerate(INPUTS[:4])]
    [*alone] = call(app, *asked)
    start = engine._start

    def starting(row, job):
        if job.seed == 2:
            engine._rows.top_k[row] = 2**31  # an OverflowError, as numpy's
        return start(row, job)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_start", starting)
        together = call(app, *asked, together=True)
    assert [r.status_code for r in together] == [200, 200, 500, 200]
    for i in (0, 1, 3):
        assert together[i].json()["choices"] == alone[i].json()["choices"]
    [again] = call(app, asked[2])
    assert again.json()["choices"] == alone[2].json()["choices"]
    assert engine.running == 0


def test_a_top_p_of_0_takes_the_most_probable_token(app):
    greedy, nucleus = call(
        app, completion("hello"), completion("hello", temperature=1, top_p=0, seed=3)
    )
    assert nucleus.json()["choices"] == greedy.json()["choices"]


def test_the_page_calls_nobody_else(app):
    [response] = call(app, ("GET", "/"))
    assert "connect-src &#x27;self&#x27;" in response.text or "connect-src 'self'" in response.text
    assert "http://" not in response.text and "https://" not in response.text
    for route in ("/v1/completions", "/v1/chat/completions"):
        assert route in response.text


def test_vectors_of_waiting_texts_are_made_together():
    calls, all_asked = [], threading.Event()

    def embed(records):
        calls.append([r["input"] for r in records])
        assert all_asked.wait(60)
        for record in records:
            long = {"truncated": True} if len(record["input"]) > 9 else {}
            yield record | {"embedding": [float(len(record["input"])), 1.0]} | long

    settings = ServeConfig(max_texts=3, max_waiting=100)
    vectors = Vectors(embed, ByteVocabulary(), settings)
    app = App(vectors, settings, name="v", page="")
    of = vectors.of

    async def counted(texts):
        left.discard(len(texts[0]))
        if not left:  # in a moment: this one has yet to be put beside the others
            asyncio.get_running_loop().call_soon(all_asked.set)
        return await of(texts)

    vectors.of, left = counted, set(range(1, 9))
    ask = [("POST", "/v1/embeddings", {"json": {"input": ["x" * i, "y"]}}) for i in range(1, 9)]
    responses = call(app, *ask, together=True)
    for i, response in enumerate(responses, 1):
        data = response.json()["data"]
        assert [d["embedding"][0] for d in data] == [float(i), 1.0]
        assert response.json()["usage"]["prompt_tokens"] == i + 1
    assert len(calls) < len(ask)
    packed, many, long, text = call(
        app,
        ("POST", "/v1/embeddings", {"json": {"input": "abc", "encoding_format": "base64"}}),
        ("POST", "/v1/embeddings", {"json": {"input": ["x"] * 4}}),
        ("POST", "/v1/embeddings", {"json": {"input": "x" * 10}}),
        completion("x"),
    )
    raw = base64.b64decode(packed.json()["data"][0]["embedding"])
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4"), [3.0, 1.0])
    assert [r.status_code for r in (many, long, text)] == [400, 400, 400]
    assert long.json()["error"]["code"] == "context_length_exceeded"
