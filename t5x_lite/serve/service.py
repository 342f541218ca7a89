"""What a server does with a request for texts or vectors, once it is read; nothing of HTTP."""

import asyncio
import contextlib
import math
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any

import numpy as np

from t5x_lite.data.reading import Reading
from t5x_lite.data.vocabulary import Vocabulary
from t5x_lite.errors import UserError
from t5x_lite.serve.answers import Piece, Text
from t5x_lite.serve.engine import Closing, Engine, Full, Job
from t5x_lite.serve.requests import Asked, Refused
from t5x_lite.serve.settings import ServeConfig

_NARROWEST = 32  # tokens, of a batch of prompts
_WARM_UP_TOKENS = 2  # a first one, and one of a slice


class Texts:
    """Answers requests by an engine's tokens.

    reading: what the model reads of a prompt or a conversation.
    max_prompt, max_tokens: limits in tokens; of an encoder's input, EOS included.
    """

    def __init__(
        self,
        engine: Engine,
        vocabulary: Vocabulary,
        settings: ServeConfig,
        *,
        reading: Reading,
        max_prompt: int,
        max_tokens: int,
    ):
        self.engine, self.vocabulary, self._settings = engine, vocabulary, settings
        self.reading, self.has_encoder = reading, reading.attention == "encoder"
        self.max_prompt, self.max_tokens = max_prompt, max_tokens

    def prepare(self, asked: Asked) -> "Answer":
        """Checks a request, and puts its texts in the queue; raises Refused."""
        if asked.messages is not None:
            prompts, stop_ids = [self._chat(asked.messages)], self._stop_ids
            stops = (*asked.stop, *self.reading.stop_texts(self.vocabulary))
        else:
            prompts, stop_ids = [self._ids(prompt) for prompt in asked.prompts], ()
            stops = asked.stop
        if len(prompts) * asked.n > self._settings.max_texts:
            raise Refused(400, f"{len(prompts)} prompts times n = {asked.n}: at most "
                          f"{self._settings.max_texts} texts at a time", param="n")  # fmt: skip
        limit = asked.max_tokens or self.max_tokens
        if limit > self.max_tokens:
            raise Refused(400, f"max_tokens is {limit}, and at most {self.max_tokens}",
                          param="max_tokens")  # fmt: skip
        for ids in prompts:
            if len(ids) > self.max_prompt:
                raise Refused(400, f"a prompt of {len(ids)} tokens, and at most {self.max_prompt}",
                              param="prompt", code="context_length_exceeded")  # fmt: skip
        answer, jobs = Answer(self.engine), []
        given = asked.seed  # of the first copy; each has another
        for ids in prompts:
            for copy in range(asked.n):
                separate = self.reading.attention != "causal"
                context: list[int] = [] if separate else ids.tolist()
                text = Text(self.vocabulary, context, stops, stop_ids)
                answer.contexts.append(context)
                job = Job(
                    batch=self._batch(ids),
                    limit=limit,
                    tell=answer.teller(len(jobs), text),
                    seed=random.getrandbits(32) if given is None else (given + copy) % 2**32,
                    temperature=asked.temperature,
                    top_k=asked.top_k,
                    top_p=asked.top_p,
                    alternatives=bool(asked.log_probs),
                )
                jobs.append(job)
        answer.prompt_tokens = sum(map(len, prompts))
        if asked.echo:
            answer.prompts = [p if isinstance(p, str) else self.vocabulary.decode(p)
                              for p in asked.prompts for _ in range(asked.n)]  # fmt: skip
        answer.submit(jobs)
        return answer

    def warm_up(self) -> None:
        """Compiles what requests will need, before there are any; blocks until it is done."""
        done = threading.Semaphore(0)
        failed = []

        def tell(tokens, ended):
            if ended == "error":
                failed.append(ended)
            if ended:
                done.release()

        widths = self._widths()
        # The first once more, with a cache that has gone through it all.
        for width in [*widths, widths[0]]:
            batch = self._batch(np.full((width,), self.vocabulary.unk_id, np.int32))
            # Draws and alternatives are in branches of the same program.
            self.engine.submit([Job(batch, min(_WARM_UP_TOKENS, self.max_tokens), tell)])
            done.acquire()
        if failed:
            raise UserError("the model can't be decoded here; the log says why.")

    def close(self) -> None:
        """Ends the engine's thread; what it hasn't done is refused."""
        self.engine.close(0.0)

    def _widths(self) -> list[int]:
        if self.has_encoder:
            return [self.max_prompt]
        return sorted({self._width(2**i) for i in range(self.max_prompt.bit_length() + 1)})

    def _width(self, length: int) -> int:
        """A few widths only, as each is compiled: a quarter of the next."""
        steps = math.ceil(math.log(max(length, _NARROWEST) / _NARROWEST, 4))
        return min(self.max_prompt, _NARROWEST * 4**steps)

    def _batch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        width = self.max_prompt if self.has_encoder else self._width(len(ids))
        row = np.zeros((1, width), np.int32)
        row[0, : len(ids)] = ids
        return {"encoder_input_tokens" if self.has_encoder else "prompts": row}

    def _ids(self, prompt: str | list[int]) -> np.ndarray:
        if isinstance(prompt, str):
            ids = self.vocabulary.encode(prompt)
        else:
            size = self.vocabulary.size
            if bad := [i for i in prompt if not 0 < i < size]:
                raise Refused(400, f"token id {bad[0]}: expected 1 to {size - 1}", param="prompt")
            ids = np.array(prompt, np.int32)
        return self.reading.inputs(ids, self.vocabulary.eos_id)

    def _chat(self, messages: Sequence[Any]) -> np.ndarray:
        try:
            ids = self.reading.chat(messages, self.vocabulary)
        except UserError as error:
            raise Refused(400, str(error), param="messages") from None
        return self.reading.inputs(ids, self.vocabulary.eos_id)

    @property
    def _stop_ids(self) -> tuple[int, ...]:
        return self.reading.stop_ids(self.vocabulary)


class Answer:
    """Texts that are being written. To be used in a ``with``: leaving it ends what goes on."""

    def __init__(self, engine: Engine):
        self._engine, self._loop = engine, asyncio.get_running_loop()
        self._news: asyncio.Queue[tuple[int, list, str | None]] = asyncio.Queue()
        self._texts: list[Text] = []
        self._jobs: list[Job] = []
        self.prompts: list[str] = []
        self.contexts: list[list[int]] = []
        self.prompt_tokens = 0

    def teller(self, index: int, text: Text) -> Callable[[list, str | None], None]:
        self._texts.append(text)

        def tell(tokens: list, ended: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._news.put_nowait, (index, tokens, ended))

        return tell

    def submit(self, jobs: list[Job]) -> None:
        try:
            self._engine.submit(jobs)
        except Full:
            raise Refused(429, "too many requests wait already; try again later") from None
        except Closing:
            raise Refused(503, "the server is stopping") from None
        self._jobs = jobs

    def __enter__(self) -> "Answer":
        return self

    def __exit__(self, *exception) -> None:
        for job in self._jobs:
            job.cancelled = True

    @property
    def size(self) -> int:
        return len(self._texts)

    @property
    def usage(self) -> dict[str, int]:
        written = sum(text.count for text in self._texts)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    async def pieces(self) -> AsyncIterator[tuple[int, Piece]]:
        """(choice, its next piece), until all have ended; raises Refused if decoding failed."""
        for index, prompt in enumerate(self.prompts):
            yield index, Piece(prompt, [], None)
        while any(text.finish is None for text in self._texts):
            index, tokens, ended = await self._news.get()
            if ended == "error":
                raise Refused(503 if not self._engine.alive else 500, "decoding was broken off")
            text = self._texts[index]
            if text.finish is not None:
                continue
            piece = text.add(tokens, ended)
            if text.finish is not None:  # perhaps at a stop, of which the engine doesn't know
                self._jobs[index].cancelled = True
            yield index, piece

    async def whole(self) -> list[Piece]:
        """Each choice as one piece."""
        found: list[list[Piece]] = [[] for _ in self._texts]
        async for index, piece in self.pieces():
            found[index].append(piece)
        return [
            Piece(
                "".join(p.text for p in pieces),
                [token for p in pieces for token in p.tokens],
                pieces[-1].finish,
                [text for p in pieces for text in p.texts or ()],
            )
            for pieces in found
        ]


class Vectors:
    """Embeds what waits, together; ``embed`` is `programs.embed.embedder`'s function."""

    def __init__(
        self,
        embed: Callable[[Sequence[dict[str, Any]]], Iterable[dict[str, Any]]],
        vocabulary: Vocabulary,
        settings: ServeConfig,
    ):
        self._embed, self.vocabulary, self._settings = embed, vocabulary, settings
        self._waiting: list[tuple[list[str], asyncio.Future]] = []
        self._working: asyncio.Task | None = None

    @property
    def waiting(self) -> int:
        return sum(len(texts) for texts, _ in self._waiting)

    @property
    def running(self) -> int:
        return int(self._working is not None and not self._working.done())

    def warm_up(self) -> None:
        self._embed_all([{"input": ""}])

    def close(self) -> None:
        pass

    async def of(self, texts: list[str]) -> tuple[list[list[float]], int]:
        """Vectors, and how many tokens were read; raises Refused."""
        if len(texts) > self._settings.max_texts:
            raise Refused(400, f"{len(texts)} texts, and at most {self._settings.max_texts}",
                          param="input")  # fmt: skip
        if self.waiting + len(texts) > self._settings.max_waiting:
            raise Refused(429, "too many texts wait already; try again later")
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((texts, done))
        if not self.running:
            self._working = asyncio.create_task(self._work())
        found = await done
        if any("truncated" in record for record in found):
            raise Refused(400, "a text is too long for this model", param="input",
                          code="context_length_exceeded")  # fmt: skip
        read = sum(len(self.vocabulary.encode(text)) for text in texts)
        return [record["embedding"] for record in found], read

    def _embed_all(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return list(self._embed(records))

    async def _work(self) -> None:
        while self._waiting:
            some, self._waiting = self._waiting, []
            records = [{"input": text} for texts, _ in some for text in texts]
            try:
                found = await asyncio.to_thread(self._embed_all, records)
            except Exception as error:
                for _, done in some:
                    if not done.done():
                        done.set_exception(Refused(500, f"embedding failed: {error}"))
                continue
            for texts, done in some:
                mine, found = found[: len(texts)], found[len(texts) :]
                if not done.done():  # its client may have left
                    done.set_result(mine)
