"""`generate`: prompts in, sequences out; what is asked is checked here, and a running batch does it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from mindone_audio.backbone.checkpoint_model import to_numpy
from mindone_audio.generation import sampling
from mindone_audio.generation.beam import BeamSearch
from mindone_audio.generation.engine import FIRST, Engine
from mindone_audio.generation.matcher import compile_constraint
from mindone_audio.generation.row import GenerationRequest, Row
from mindone_audio.generation.running_batch import EXPECTED_TOKENS, RunningBatch, mode_of, prefilled
from mindone_audio.generation.sequences import Sequences
from mindone_audio.generation.settings import GenerationSettings, settle


class EngineMixin:
    """Gives a `CheckpointModel` its graphs."""

    engine_class: type[Engine] = Engine
    _engines_of: int | None = None  # the `weights_version` that the engines' graphs were compiled for
    _engines: dict[bool, Engine]

    def warm_up(self, rows: int = 1, tokens: int = 512) -> None:
        """Compile prefill and decode step for so many sequences of so many tokens, before a `generate` needs them."""
        engine = self.engine(True)
        Sequences(engine, 1, tokens, prefills=True).warm_up([FIRST[:1]])
        if rows > 1:
            Sequences(engine, rows, tokens).warm_up([])

    def warm_up_more(self, engine: Engine) -> None:
        """Compile what only this family has besides encoders, prefills and steps: nothing."""

    def engine(self, compiled: bool = True) -> Engine:
        """The graphs and caches of this model as it is now; compiled=False: the same, interpreted."""
        version = self.weights_version
        if self._engines_of != version:
            self._engines_of, self._engines = version, {}
        if compiled not in self._engines:
            self._engines[compiled] = self.engine_class(self, compiled)
        return self._engines[compiled]


class GenerationMixin(EngineMixin):
    """Gives an `AudioLanguageModel` its `generate`."""

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
        for stop_strings, and for a constraint, {"json_schema": …} for example, which the new tokens then follow.
        compile=False interprets the same code, many times slower. Sequences that end early are filled with the padding
        token. Raises `ValueError` for inputs that do not fit together or a setting that is not supported.
        """
        requests = self.requests(input_ids, attention_mask, generation_config, tokenizer, **settings)
        chosen, given = requests[0].settings, to_numpy(input_ids).astype(np.int32)
        _check_streamer(streamer, len(given), chosen)
        if streamer is not None:
            streamer.put(given)
        if chosen.num_beams > 1:
            new_tokens, _, _ = _beams(self.engine(compile), requests)
        else:
            steps = []
            for tokens in columns(self.engine(compile), requests):
                steps.append(tokens)
                if streamer is not None:
                    streamer.put(tokens)
            new_tokens = np.stack(steps, 1)
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
        requests = self.requests(input_ids, attention_mask, generation_config, tokenizer, **settings)
        if requests[0].settings.num_beams > 1:
            raise ValueError(
                f"num_beams={requests[0].settings.num_beams} cannot be streamed: leave it out, or use generate"
            )
        return columns(self.engine(compile), requests)

    def requests(
        self, input_ids=None, attention_mask=None, generation_config=None, tokenizer=None, **settings
    ) -> list[GenerationRequest]:
        """The prompts of a batch, each checked and apart, as a `RunningBatch` takes them; nothing is computed.

        The arguments and errors are those of `generate`.
        """
        audio = {name: settings.pop(name) for name in self.audio_inputs if name in settings}
        vocabulary = self.language_model.config.vocab_size
        chosen = settle(self.generation_config, settings, generation_config, vocabulary=vocabulary)
        prompt, features, lengths = self.prompt(input_ids, attention_mask, **audio)
        if not prompt.lengths.all():
            raise ValueError(f"prompt {int(prompt.lengths.argmin())} has no token that attention_mask lets be seen")
        chosen = chosen.resolve_length(prompt.input_ids.shape[1], self.language_model.config.max_positions)
        ended, constraint = end_test(chosen, tokenizer), None
        if chosen.constraint is not None:
            ends, most = chosen.eos_token_ids, chosen.max_new_tokens
            constraint = compile_constraint(chosen.constraint, tokenizer, vocabulary, ends, most)
        per_clip = 1 if features is None else int(self.audio_tokens(np.array(features.shape[2])))
        requests = []
        for ids, mask, index in zip(prompt.input_ids, prompt.mask, prompt.audio_index):
            index, clips = index[mask], None
            if (index >= 0).any():
                own, places = np.unique(index[index >= 0] // per_clip, return_inverse=True)
                index[index >= 0] = places * per_clip + index[index >= 0] % per_clip
                clips = features[own], lengths[own]
            requests.append(GenerationRequest(ids[mask], index, clips, chosen, ended, constraint=constraint))
        return requests


def columns(engine: Engine, requests: list[GenerationRequest]) -> Iterator[np.ndarray]:
    """The next token of every sequence, int32 (rows), padding after its end, until all have ended."""
    groups = [request.rows() for request in requests]
    rows: list[Row] = sum(groups, [])
    running, padding = RunningBatch(engine), requests[0].settings.padding
    for _ in running.admit(groups):
        pass
    count = 0
    while True:
        for row in rows:
            if count >= len(row.tokens):
                row.check()
        if any(count < len(row.tokens) for row in rows):  # a step may have made more than one
            yield np.array([row.tokens[count] if count < len(row.tokens) else padding for row in rows], np.int32)
            count += 1
        elif not running.step():
            return


def generated(
    engine: Engine, requests: Iterable[tuple[Any, GenerationRequest]], most: int
) -> Iterator[tuple[Any, np.ndarray | Exception]]:
    """New tokens int32 (length) of each request, with the tag that it came with, as soon as they are known.

    The arguments are those of `ended_rows`. Instead of tokens a `ValueError` where scores leave no token to choose.
    """
    for tag, row in ended_rows(engine, requests, most):
        yield tag, np.array(row.tokens, np.int32) if row.error is None else row.error


def ended_rows(
    engine: Engine, requests: Iterable[tuple[Any, GenerationRequest]], most: int
) -> Iterator[tuple[Any, Row]]:
    """The row of each request, with the tag that it came with, as soon as it has ended.

    Up to `most` requests are generated side by side, of any settings that ask for one sequence; the next ones are taken
    when half of the places are free. Beams wait until no row is left, since both may need the same cache. An iterator
    of requests that had none may have one later, made of a row that has ended.
    """
    running, waiting = RunningBatch(engine), iter(requests)
    rows: dict[int, tuple[Any, Row]] = {}
    beams: list[tuple[Any, GenerationRequest]] = []
    while True:
        free = most - len(rows) - len(beams)
        if 2 * free >= most and (group := list(islice(waiting, free))):
            beams += [entry for entry in group if entry[1].settings.num_beams > 1]
            new = [(tag, request.rows()[0]) for tag, request in group if request.settings.num_beams == 1]
            if new:
                rows |= {id(entry[1]): entry for entry in new}
                for _ in running.admit([[row] for _, row in new]):
                    pass
        elif not rows and beams:
            now, beams = beams, []
            yield from _beams_of(now, engine)
        elif not rows:
            return
        for key in [key for key, (_, row) in rows.items() if row.ended]:
            yield rows.pop(key)
        running.step()


def streamed(
    engine: Engine, requests: Iterable[tuple[Any, GenerationRequest]], streamer
) -> Iterator[tuple[Any, np.ndarray]]:
    """`generated` one by one, with a streamer that is told the prompt and then each token."""
    for tag, request in requests:
        _check_streamer(streamer, 1, request.settings)
        streamer.put(request.input_ids[None])
        tokens = []
        for step in columns(engine, [request]):
            streamer.put(step)
            tokens.append(int(step[0]))
        streamer.end()
        yield tag, np.array(tokens, np.int32)


def _beams_of(entries: list[tuple[Any, GenerationRequest]], engine: Engine) -> Iterator[tuple[Any, Row]]:
    """`ended_rows` for beams: those with equal settings together."""
    groups: dict[str, list[tuple[Any, GenerationRequest]]] = {}
    for entry in entries:
        groups.setdefault(repr(entry[1].settings), []).append(entry)
    for group in groups.values():
        requests = [request for _, request in group]
        tokens, means, asked = _beams(engine, requests)
        for (tag, request), own, mean, also in zip(group, tokens, means, asked):
            row = Row(request)
            row.tokens = _without_padding(own, request.settings).tolist()
            row.log_probabilities, row.prompt_scores, row.reason = [float(mean)], also, "stop"
            yield tag, row


def _without_padding(tokens: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """A row of a batch up to its end token, as it would be alone; without one, up to the padding after it."""
    if (ends := np.flatnonzero(np.isin(tokens, settings.eos_token_ids))).size:
        return tokens[: ends[0] + 1]
    own = np.flatnonzero(tokens != settings.padding)
    return tokens[: own[-1] + 1] if own.size else tokens[:0]


def _beams(engine: Engine, requests: list[GenerationRequest]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Beam search: int32 (batch * num_return_sequences, new tokens), the mean log probability of the tokens of each,
    and of each request the scores at the places of its prompt that it also asks for."""
    settings = requests[0].settings
    batch, beams = len(requests), settings.num_beams
    longest = max(request.prompt_tokens for request in requests)
    room = longest + min(settings.max_new_tokens, EXPECTED_TOKENS)
    sequences, scores, asked = Sequences(engine, batch * beams, room), [None] * batch, [None] * batch
    modes = [mode_of(engine, request) for request in requests]
    for result in prefilled(engine, requests, answer=1):
        if result is not None:
            number, source, end, scores[number], _, asked[number] = result
            rows = list(range(number * beams, (number + 1) * beams))
            sequences.insert(rows, source, requests[number].prompt_tokens, end, modes[number])
    prompts = np.full((batch, longest), -1, np.int32)
    for row, request in zip(prompts, requests):
        row[longest - request.prompt_tokens :] = request.input_ids
    repeated, scores = np.repeat(prompts, beams, 0), np.repeat(np.stack(scores), beams, 0)
    chain = sampling.score_functions(settings, longest, requests[0].rules)
    search = BeamSearch(batch, settings)

    def ended(tokens: np.ndarray) -> np.ndarray:
        return requests[0].ended(tokens) | (tokens.shape[1] >= settings.max_new_tokens)

    while True:
        log_probabilities = sampling.log_softmax(scores)
        history = np.concatenate([repeated, search.running.reshape(batch * beams, -1)], 1)
        rows, tokens = search.step(sampling.process(chain, log_probabilities, history), ended)
        if search.done:
            return *search.result(), asked
        sequences.reorder(rows)
        if sequences.full:
            sequences = sequences.moved(list(range(batch * beams)), batch * beams, sequences.positions + 1)
        running = search.running.reshape(batch * beams, -1)
        longer = [requests[row // beams].continued(running[row].tolist()) for row in range(batch * beams)]
        again = [row for row, request in enumerate(longer) if mode_of(engine, request) != modes[row // beams]]
        # These are run again as prompts, since all their tokens are computed in another way now.
        sequences.idle[again] = True
        padded = np.pad(tokens, (0, sequences.batch - len(tokens)))
        scores = sequences.extend(padded)[0].asnumpy()[: len(tokens)]
        for row in again:
            modes[row // beams] = mode_of(engine, longer[row])
            _, source, end, scores[row], _, _ = next(filter(None, prefilled(engine, [longer[row]], answer=1)))
            sequences.insert([row], source, longer[row].prompt_tokens, end, modes[row // beams])


def end_test(settings: GenerationSettings, tokenizer) -> Callable[[np.ndarray], np.ndarray]:
    """A test of new tokens int (rows, length): which rows end here, by a token or a string."""
    eos = np.array(settings.eos_token_ids, np.int32)
    stops = settings.stops
    if stops and tokenizer is None:
        raise ValueError("stop_strings needs the tokenizer: generate(..., tokenizer=processor.tokenizer)")
    # A stop string is at most as many tokens as it has bytes; a few more, since a token can hold more than its end.
    tail = max((len(s.encode()) for s in stops), default=0) + 8

    def ended(new_tokens: np.ndarray) -> np.ndarray:
        result = (new_tokens[:, -1:] == eos).any(1)
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
