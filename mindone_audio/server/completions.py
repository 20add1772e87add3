"""What /v1/chat/completions answers: one object, or chunks as they come."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

from fastapi.responses import JSONResponse, Response

from mindone_audio.generation.events import Delta, Token
from mindone_audio.inputs.conversation import chat_clips
from mindone_audio.server.chat import ChatRequest, prepare_chat
from mindone_audio.server.exchange import event_stream, frame
from mindone_audio.server.service import Place, Service, collected
from mindone_audio.server.tools import Choice

IMPOSSIBLE = -9999.0  # what OpenAI gives for a probability of 0, whose logarithm JSON cannot write


async def chat_completion(service: Service, body: bytes, place: Place) -> Response:
    """The answer to a body of /v1/chat/completions."""
    asked, prepared = await service.in_pool(prepare_chat, body, service)
    service.hold(place, sum(map(len, chat_clips(asked.messages))))
    deltas = service.deltas(prepared, model=asked.model, logprobs=asked.logprobs)
    answer = Answer(service, asked, prepared)
    if asked.stream:
        return await event_stream(answer.chunks(deltas))
    return JSONResponse(await answer.whole(deltas))


class Answer:
    """The answer to one request, as one object or in chunks.

    Greedy decoding computes one answer whatever n is; it is every choice.
    """

    def __init__(self, service: Service, asked: ChatRequest, prepared: Any):
        self.service, self.asked, self.prepared = service, asked, prepared
        self.same = prepared.settings.num_return_sequences == 1
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.tokens = 0

    async def whole(self, deltas: AsyncIterator[Delta]) -> dict:
        """All of the answer."""
        heard: list[list[Delta]] = [[] for _ in range(self.prepared.settings.num_return_sequences)]
        await collected(deltas, lambda delta: heard[delta.index].append(delta))
        choices = []
        for index in range(self.asked.n):
            own = heard[0 if self.same else index]
            tokens = [token for delta in own for token in delta.tokens]
            self.tokens += len(tokens)
            made = self._choice()
            for delta in own:
                made.add(delta)
            choice = {"index": index, "message": made.message, "logprobs": self._logprobs(tokens)}
            choices.append(choice | {"finish_reason": made.finish_reason(own[-1].finish_reason)})
        return self._object("chat.completion") | {"choices": choices, "usage": self._usage()}

    async def chunks(self, deltas: AsyncIterator[Delta]) -> AsyncIterator[bytes]:
        """The answer in server-sent events. The first one waits for the first delta, so that it may fail before."""
        every, started = range(self.asked.n), False
        made = [self._choice() for _ in every]
        begin = {"role": "assistant", "content": "" if self.asked.tools is None else None, "refusal": None}
        async with aclosing(deltas):
            async for delta in deltas:
                if not started:
                    started = True
                    for index in every:
                        yield self._chunk(index, begin)
                for index in every if self.same else (delta.index,):
                    self.tokens += len(delta.tokens)
                    logprobs = self._logprobs(delta.tokens)
                    told = made[index].add(delta)
                    if not told and logprobs and logprobs["content"]:
                        told = [{"content": ""} if self.asked.tools is None else {}]
                    for own in told:
                        yield self._chunk(index, own, logprobs)
                        logprobs = logprobs and {"content": [], "refusal": None}  # each token once
                    if delta.finish_reason is not None:
                        yield self._chunk(index, {}, None, made[index].finish_reason(delta.finish_reason))
        if self.asked.include_usage:
            yield frame(self._object("chat.completion.chunk") | {"choices": [], "usage": self._usage()})

    def _choice(self) -> Choice:
        decode = partial(self.service.pipe.processor.decode, skip_special_tokens=True)
        return Choice(None if self.asked.tools is None else self.asked.tools.reader(decode))

    def _chunk(self, index: int, delta: dict, logprobs: dict | None = None, finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        usage = {"usage": None} if self.asked.include_usage else {}
        return frame(self._object("chat.completion.chunk") | {"choices": [choice]} | usage)

    def _object(self, kind: str) -> dict:
        facts = {"id": self.id, "object": kind, "created": self.created, "model": self.asked.model}
        return facts | {"system_fingerprint": None}

    def _usage(self) -> dict:
        prompt = self.prepared.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
            "prompt_tokens_details": {"audio_tokens": self.prepared.audio_tokens, "cached_tokens": 0},
        }

    def _logprobs(self, tokens: Sequence[Token]) -> dict | None:
        if self.asked.logprobs is None:
            return None
        ends = self.prepared.settings.eos_token_ids
        own = [token for token in tokens if token.id not in ends]
        return {"content": token_logprobs(self.service, own, top=True), "refusal": None}


def finite(logprob: float) -> float:
    """A log probability as JSON can write it."""
    return max(float(logprob), IMPOSSIBLE)


def token_logprobs(service: Service, tokens: Sequence[Token], *, top: bool = False) -> list[dict]:
    """OpenAI's list of tokens with their log probabilities. tokens: without the one that ends an answer."""

    def entry(token: int, logprob: float) -> dict:
        text = service.pipe.processor.decode([token])
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}

    listed = []
    for token in tokens:
        others = {"top_logprobs": [entry(*pair) for pair in token.top]} if top else {}
        listed.append(entry(token.id, token.logprob) | others)
    return listed
