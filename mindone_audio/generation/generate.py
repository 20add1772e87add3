"""`generate`: the layers of generators over the engine, step to token stream to sequences."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindone_audio.backbone.prompt import Prompt
from mindone_audio.generation import sampling
from mindone_audio.generation.beam import BeamSearch
from mindone_audio.generation.engine import PACK, PACKED, Engine, Sequences, prompt_width
from mindone_audio.generation.settings import GenerationSettings, settle

_EXPECTED_TOKENS = 128  # that a cache has room for at first; few answers are longer, whatever max_new_tokens allows


@dataclass(frozen=True)
class GenerationRequest:
    """One call of `generate`: its inputs checked, its clips encoded (rows of embeddings, or None), its settings final.

    ended: a test of new tokens int (rows, length). given: input_ids as they came, int32 (batch, length).
    """

    engine: Engine
    prompt: Prompt
    audio: Tensor | None
    settings: GenerationSettings
    ended: Callable[[np.ndarray], np.ndarray]
    given: np.ndarray


class GenerationMixin:
    """Gives an `AudioLanguageModel` its `generate`."""

    _engines_of: int | None = None  # the `weights_version` that the engines' graphs were compiled for
    _engines: dict[bool, Engine]

    def generate(
        self,
        input_ids=None,
        attention_mask=None,
        *,
        generation_config=None,
        streamer=None,
        tokenizer=None,
        compile: bool = True,
        **settings,
    ) -> Tensor:
        """Continue each prompt of a batch: int32 (batch * num_return_sequences, length), the prompt first.

        input_ids int (batch, length), padded on either side where attention_mask is 0. What else the processor made
        (`audio_inputs`: features (clips, mel bins, frames) and their mask, the clips of all prompts in the order of
        their placeholders) goes in by its names. Masks may be of any dtype, and everything may be NumPy or MindSpore.
        `settings` are the fields of `GenerationSettings` and change `generation_config` (a GenerationConfig or a dict),
        which changes the checkpoint's: as in Hugging Face, what it leaves at its default is the checkpoint's.
        streamer: an object with `put` and `end` such as transformers' TextStreamer, for one prompt. tokenizer: needed
        for stop_strings. compile=False interprets the same code, many times slower. Sequences that end early are filled
        with the padding token. Raises `ValueError` for inputs that do not fit together or a setting that is not
        supported.
        """
        request = self._request(input_ids, attention_mask, generation_config, tokenizer, compile, settings)
        chosen, given = request.settings, request.given
        _check_streamer(streamer, len(given), chosen)
        if streamer is not None:
            streamer.put(given)
        if chosen.num_beams > 1:
            new_tokens = _beams(request)
        else:
            columns = []
            for tokens in token_stream(request):
                columns.append(tokens)
                if streamer is not None:
                    streamer.put(tokens)
            new_tokens = np.stack(columns, 1)
        if streamer is not None:
            streamer.end()
        return Tensor(np.concatenate([np.repeat(given, chosen.num_return_sequences, 0), new_tokens], 1), ms.int32)

    def stream(
        self, input_ids=None, attention_mask=None, *, generation_config=None, tokenizer=None, compile=True, **settings
    ) -> Iterator[np.ndarray]:
        """What `generate` appends, a step at a time: int32 (batch * num_return_sequences) as soon as it is known.

        The arguments are those of `generate`, checked here and not at the first step. Raises `ValueError` for beams,
        which are not known before the end.
        """
        request = self._request(input_ids, attention_mask, generation_config, tokenizer, compile, settings)
        if request.settings.num_beams > 1:
            raise ValueError(
                f"num_beams={request.settings.num_beams} cannot be streamed: leave it out, or use generate"
            )
        return token_stream(request)

    def _request(
        self, input_ids, attention_mask, generation_config, tokenizer, compile: bool, settings: dict
    ) -> GenerationRequest:
        """Check everything, and encode the clips."""
        audio = {name: settings.pop(name) for name in self.audio_inputs if name in settings}
        vocabulary = self.language_model.config.vocab_size
        chosen = settle(self.generation_config, settings, generation_config, vocabulary=vocabulary)
        prompt, features, lengths = self.prompt(input_ids, attention_mask, **audio)
        if not prompt.lengths.all():
            raise ValueError(f"prompt {int(prompt.lengths.argmin())} has no token that attention_mask lets be seen")
        chosen = chosen.resolve_length(prompt.input_ids.shape[1], self.language_model.config.max_positions)
        ended = _end_test(chosen, tokenizer)
        engine = self._engine(compile)
        encoded = None if features is None else engine.encode(features, lengths)
        given = np.asarray(input_ids.asnumpy() if isinstance(input_ids, Tensor) else input_ids).astype(np.int32)
        return GenerationRequest(engine, prompt, encoded, chosen, ended, given)

    def warm_up(self, rows: int = 1, tokens: int = 512) -> None:
        """Compile prefill and decode step for so many sequences of so many tokens, before a `generate` needs them."""
        engine = self._engine(True)
        if rows > 1:
            engine.sequences(rows, tokens).extend(np.zeros(rows, np.int32))
        one = engine.sequences(1, tokens)
        one.prefill(np.zeros(1, np.int32), np.ones(1, int))
        one.extend(np.zeros(1, np.int32))

    def _engine(self, compiled: bool) -> Engine:
        version = self.weights_version
        if self._engines_of != version:
            self._engines_of, self._engines = version, {}
        if compiled not in self._engines:
            self._engines[compiled] = Engine(self, compiled)
        return self._engines[compiled]


def token_stream(request: GenerationRequest) -> Iterator[np.ndarray]:
    """The next token of every sequence, int32 (rows), until all have ended or max_new_tokens is reached."""
    prompt, settings, ended = request.prompt, request.settings, request.ended
    copies = settings.num_return_sequences
    rows = len(prompt.input_ids) * copies
    sequences, scores, best = _prefill(request, copies)
    history = np.repeat(_without_padding(prompt), copies, 0)
    chain = sampling.score_functions(settings, history.shape[1])
    sample = sampling.Sampler(rows, settings.seed, copies) if settings.do_sample else None
    prompt_length, done = history.shape[1], np.zeros(rows, bool)
    history = np.concatenate([history, np.zeros((rows, settings.max_new_tokens), np.int32)], 1)
    for produced in range(1, settings.max_new_tokens + 1):
        last = prompt_length + produced
        if chain:  # which rows that have ended are spared: it could forbid all of their tokens
            going = np.flatnonzero(~done)
            chosen = sampling.process(chain, scores[going], history[going, : last - 1])
            tokens = np.zeros(rows, np.int32)
            tokens[going] = sample(chosen, going) if sample else sampling.greedy(chosen)
        else:
            if produced == 1:
                sampling.refuse_invalid(scores)  # of a broken model these are NaN at once
            tokens = best  # greedy: the graph has chosen, the scores stay on the device
        tokens = np.where(done, settings.padding, tokens).astype(np.int32)
        history[:, last - 1] = tokens
        done |= ended(history[:, prompt_length:last])
        yield tokens
        if done.all() or produced == settings.max_new_tokens:
            return
        outputs = sequences.extend(tokens)
        if chain:
            scores = outputs[0].asnumpy()[:rows]
        else:
            best = outputs[1].asnumpy()[:rows]


def _without_padding(prompt: Prompt) -> np.ndarray:
    """The tokens that score functions see: int32 (batch, length), -1 for padding."""
    return np.where(prompt.mask, prompt.input_ids, -1).astype(np.int32)


def _prefill(request: GenerationRequest, copies: int) -> tuple[Sequences, np.ndarray, np.ndarray]:
    """Run each prompt once, then give it `copies` sequences: these, and the scores and the best token of each."""
    engine, prompt, settings = request.engine, request.prompt, request.settings
    answer, lengths = min(settings.max_new_tokens, _EXPECTED_TOKENS), prompt.lengths
    if len(lengths) * copies == 1:
        sequences, outputs = _prefill_some(request, [0], answer)
        return sequences, *(output.asnumpy() for output in outputs)
    together = engine.sequences(len(lengths) * copies, int(lengths.max()) + answer)
    together.length = int(lengths.max())
    rows = np.arange(len(lengths) * copies).reshape((-1, copies))
    packs, found = _packs(lengths), []
    for pack in packs:
        some, outputs = _prefill_some(request, pack, 1)
        together.insert(rows[pack], some, lengths[pack])
        found.append([output.asnumpy() for output in outputs])
    order = np.repeat(np.argsort(np.concatenate(packs)), copies)
    return together, *(np.concatenate(outputs)[order] for outputs in zip(*found))


def _packs(lengths: np.ndarray) -> list[list[int]]:
    """Which prompts, of so many tokens, are prefilled together: each goes to the first pack that has room for it."""
    packs: list[list[int]] = []
    for row in np.argsort(-lengths, kind="stable").tolist():
        fitting = (pack for pack in packs if len(pack) < PACKED and lengths[[*pack, row]].sum() <= PACK)
        if pack := next(fitting, None):
            pack.append(row)
        else:
            packs.append([row])
    return packs


def _prefill_some(request: GenerationRequest, rows: list[int], answer: int) -> tuple[Sequences, tuple[Tensor, Tensor]]:
    """Some prompts of the batch one behind the other, with room for so many tokens of answer."""
    prompt, mask = request.prompt, request.prompt.mask[rows]
    one, lengths = request.engine.sequences(1, prompt_width(int(mask.sum())) + answer), prompt.lengths[rows]
    return one, one.prefill(prompt.input_ids[rows][mask], lengths, request.audio, prompt.audio_index[rows][mask])


def _beams(request: GenerationRequest) -> np.ndarray:
    """Beam search: int32 (batch * num_return_sequences, new tokens)."""
    prompt, settings = request.prompt, request.settings
    batch, beams = len(prompt.input_ids), settings.num_beams
    sequences, scores, _ = _prefill(request, beams)
    repeated = np.repeat(_without_padding(prompt), beams, 0)
    chain = sampling.score_functions(settings, repeated.shape[1])
    search = BeamSearch(batch, settings)
    while True:
        log_probabilities = sampling.log_softmax(scores)
        history = np.concatenate([repeated, search.running.reshape(batch * beams, -1)], 1)
        rows, tokens = search.step(sampling.process(chain, log_probabilities, history), request.ended)
        if search.done:
            return search.result()
        sequences.reorder(rows)
        scores = sequences.extend(tokens)[0].asnumpy()[: len(tokens)]


def _end_test(settings: GenerationSettings, tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """A test of new tokens int (rows, length): which rows end here, by token, by string or by length."""
    eos = np.array(settings.eos_token_ids, np.int32)
    stops = settings.stops
    if stops and tokenizer is None:
        raise ValueError("stop_strings needs the tokenizer: generate(..., tokenizer=processor.tokenizer)")
    # A stop string is at most as many tokens as it has bytes; a few more, since a token can hold more than its end.
    tail = max((len(s.encode()) for s in stops), default=0) + 8

    def ended(new_tokens: np.ndarray) -> np.ndarray:
        result = (new_tokens[:, -1:] == eos).any(1)
        if new_tokens.shape[1] >= settings.max_new_tokens:
            result[:] = True
        for row in np.flatnonzero(~result) if stops else ():
            for first in range(tail, tail + 4):  # a tail that begins within a character can be no text at all
                text = tokenizer.decode(new_tokens[row, -first:].tolist(), skip_special_tokens=False)
                if not text.startswith("\ufffd"):
                    break
            result[row] = any(stop in text for stop in stops)
        return result

    return ended


def _check_streamer(streamer, batch: int, settings: GenerationSettings) -> None:
    if streamer is not None and (batch * settings.num_return_sequences > 1 or settings.num_beams > 1):
        raise ValueError(
            f"a streamer takes one sequence without beams, not {batch} prompts with num_return_sequences="
            f"{settings.num_return_sequences} and num_beams={settings.num_beams}: leave the streamer out"
        )
