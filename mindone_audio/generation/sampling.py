"""From scores to the next token, in NumPy on the host: a chain of score functions and a draw.

A score function takes scores fp32 (rows, vocab) and the tokens so far int (rows, length), -1 where there is none but
padding, and returns new scores; -inf forbids a token. The order is that of transformers: penalties, forbidden tokens,
then temperature, top_k, top_p, min_p. What only OpenAI's API has comes before, as in vLLM: biases, then its penalties.
"""

from collections.abc import Callable, Sequence

import numpy as np

from mindone_audio.generation.settings import GenerationSettings

ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
Rule = Callable[[int], ScoreFunction]  # makes one for a prompt of so many tokens


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis, in float64 so that a cumulative sum ends at 1."""
    exponentials = np.exp(scores.astype(np.float64) - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Log probabilities over the last axis, in fp32."""
    shifted = scores - scores.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def repetition_penalty(penalty: float) -> ScoreFunction:
    """Divide positive and multiply negative scores of tokens seen before, the prompt included (arXiv 1909.05858)."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(tokens >= 0)
        tokens = tokens[rows, columns]
        seen = scores[rows, tokens]
        scores = scores.copy()
        scores[rows, tokens] = np.where(seen < 0, seen * np.float32(penalty), seen / np.float32(penalty))
        return scores

    return apply


def bias(biases: dict[int, float]) -> ScoreFunction:
    """Add to the scores of tokens, by their ids."""
    token_ids, values = list(biases), np.array(list(biases.values()), np.float32)

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        scores[:, token_ids] += values
        return scores

    return apply


def penalties(presence: float, frequency: float, prompt_length: int) -> ScoreFunction:
    """Subtract `frequency` for each time that a token was generated and `presence` once; the prompt does not count."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        for row, generated in zip(scores, tokens[:, prompt_length:]):
            token_ids, counts = np.unique(generated[generated >= 0], return_counts=True)
            row[token_ids] -= np.float32(frequency) * counts.astype(np.float32) + np.float32(presence)
        return scores

    return apply


def no_repeat_ngram(size: int) -> ScoreFunction:
    """Forbid what would repeat any `size` tokens in a row, the prompt's included."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        for row, sequence in zip(scores, tokens):
            sequence = sequence[sequence >= 0]
            if len(sequence) >= size:
                ngrams = np.lib.stride_tricks.sliding_window_view(sequence, size)
                matching = (ngrams[:, :-1] == sequence[len(sequence) - size + 1 :]).all(1)
                row[ngrams[matching, -1]] = -np.inf
        return scores

    return apply


def suppress(token_ids: list[int], at: int | None = None) -> ScoreFunction:
    """Forbid tokens always, or only where the sequence, prompt included, has the length `at`."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        if at is None or tokens.shape[1] == at:
            scores = scores.copy()
            scores[:, token_ids] = -np.inf
        return scores

    return apply


def forbid_end_before(length: int, eos_token_ids: list[int]) -> ScoreFunction:
    """Forbid the end tokens while the sequence, prompt included, is shorter than `length`."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        if tokens.shape[1] < length:
            scores = scores.copy()
            scores[:, eos_token_ids] = -np.inf
        return scores

    return apply


def temperature(value: float) -> ScoreFunction:
    """Divide by `value`: below 1 sharper, above 1 flatter."""
    return lambda scores, tokens: scores / np.float32(value)


def top_k(k: int) -> ScoreFunction:
    """Keep the k best scores (and equals of the k-th)."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        if k >= scores.shape[1]:
            return scores
        threshold = np.partition(scores, -k, axis=1)[:, -k, None]
        return np.where(scores < threshold, -np.inf, scores)

    return apply


def top_p(p: float) -> ScoreFunction:
    """Keep the smallest set of best tokens whose probabilities reach p (arXiv 1904.09751), at least one."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        scores = scores.copy()
        for row in scores:
            kept = np.flatnonzero(row > -np.inf)  # after top_k only few are left to sort
            ascending = kept[np.argsort(row[kept], kind="stable")]
            dropped = np.cumsum(softmax(row[ascending])) <= 1 - p
            dropped[-1] = False
            row[ascending[dropped]] = -np.inf
        return scores

    return apply


def min_p(fraction: float) -> ScoreFunction:
    """Keep tokens at least `fraction` times as probable as the most probable one (arXiv 2407.01082)."""

    def apply(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        probabilities = softmax(scores)
        return np.where(probabilities < fraction * probabilities.max(1, keepdims=True), -np.inf, scores)

    return apply


def renormalize(scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Log probabilities of what is not forbidden; a row without any stays as it is."""
    some = scores.max(-1) > -np.inf
    scores = scores.copy()
    scores[some] = log_softmax(scores[some])
    return scores


def score_functions(
    settings: GenerationSettings, prompt_length: int, rules: Sequence[Rule] = ()
) -> list[ScoreFunction]:
    """The chain of penalties and forbidden tokens that the settings ask for, then the family's rules; may be empty."""
    chain: list[ScoreFunction] = []
    if settings.logit_bias:
        chain.append(bias(settings.logit_bias))
    if settings.presence_penalty or settings.frequency_penalty:
        chain.append(penalties(settings.presence_penalty, settings.frequency_penalty, prompt_length))
    if settings.repetition_penalty != 1.0:
        chain.append(repetition_penalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        chain.append(no_repeat_ngram(settings.no_repeat_ngram_size))
    if settings.min_new_tokens and settings.eos_token_ids:
        chain.append(forbid_end_before(prompt_length + settings.min_new_tokens, settings.eos_token_ids))
    if settings.suppress_tokens:
        chain.append(suppress(settings.suppress_tokens))
    if settings.begin_suppress_tokens:
        chain.append(suppress(settings.begin_suppress_tokens, at=prompt_length))
    chain += [rule(prompt_length) for rule in rules]
    if settings.renormalize_logits and settings.num_beams > 1 and chain:  # elsewhere it changes no token
        chain.append(renormalize)
    return chain


def draw_functions(settings: GenerationSettings) -> list[ScoreFunction]:
    """The chain that makes scores what is drawn from; empty for greedy decoding and beams, never for sampling."""
    if not settings.do_sample:
        return []
    chain: list[ScoreFunction] = [lambda scores, tokens: refuse_invalid(scores)]  # before they are made probabilities
    if settings.temperature != 1.0:
        chain.append(temperature(settings.temperature))
    if settings.top_k:
        chain.append(top_k(settings.top_k))
    if settings.top_p < 1.0:
        chain.append(top_p(settings.top_p))
    if settings.min_p:
        chain.append(min_p(settings.min_p))
    return chain


def process(chain: list[ScoreFunction], scores: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Scores (rows, vocab) after every function of the chain."""
    for function in chain:
        scores = function(scores, tokens)
    return scores


def refuse_invalid(scores: np.ndarray) -> np.ndarray:
    """The scores (rows, vocab); `ValueError` where one is NaN, or where a row forbids every token."""
    best = scores.max(-1)  # NaN where there is one in the row
    if np.isnan(best).any():
        raise ValueError(
            f"the model's scores of row {int(np.isnan(best).argmax())} are NaN: look for damaged weights, or load the "
            "model in float32 if it overflows in float16"
        )
    if (best == -np.inf).any():
        raise ValueError(
            f"every token of row {int((best == -np.inf).argmax())} is forbidden: suppress_tokens, "
            "begin_suppress_tokens, no_repeat_ngram_size, and min_new_tokens or min_length, which forbid the end "
            "tokens, leave none to choose: relax one of them"
        )
    return scores


def random_stream(seed: int | None, copy: int) -> np.random.Generator:
    """The random numbers of one sequence: of copy `copy` of a prompt, whatever is generated beside it.

    Without a seed they are different each time.
    """
    return np.random.default_rng(None if seed is None else [seed, copy])


def draw(scores: np.ndarray, stream: np.random.Generator) -> int:
    """A token with the probabilities softmax(scores), fp32 (vocab). Raises `ValueError` as `refuse_invalid` does."""
    cumulative = np.cumsum(softmax(refuse_invalid(scores[None])[0]))
    return int(np.searchsorted(cumulative, stream.random() * cumulative[-1], side="right"))


def greedy(scores: np.ndarray) -> np.ndarray:
    """The best token of each row, int32 (rows); the first of equals. Raises `ValueError` as `refuse_invalid` does."""
    return refuse_invalid(scores).argmax(-1).astype(np.int32)
