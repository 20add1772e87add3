"""From scores to the next token, in NumPy on the host: a chain of score functions and a draw.

A score function takes scores fp32 (rows, vocab) and the tokens so far int (rows, length) and returns new scores; -inf
forbids a token. The order is that of transformers: penalties, then temperature, top_k, top_p, min_p.
"""

from collections.abc import Callable

import numpy as np

from mindone_audio.generation.settings import GenerationSettings

ScoreFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
        seen = np.take_along_axis(scores, tokens, 1)
        scores = scores.copy()
        np.put_along_axis(scores, tokens, np.where(seen < 0, seen * penalty, seen / penalty), 1)
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


def score_functions(settings: GenerationSettings, prompt_length: int) -> list[ScoreFunction]:
    """The chain that the settings ask for; empty for plain greedy decoding."""
    chain: list[ScoreFunction] = []
    if settings.repetition_penalty != 1.0:
        chain.append(repetition_penalty(settings.repetition_penalty))
    if settings.min_new_tokens and settings.eos_token_ids:
        chain.append(forbid_end_before(prompt_length + settings.min_new_tokens, settings.eos_token_ids))
    if settings.do_sample:
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


class Sampler:
    """Draws tokens; each row has its own random stream, so that a row of a batch draws what it would draw alone."""

    def __init__(self, rows: int, seed: int | None):
        entropy = np.random.SeedSequence(seed).entropy
        self.streams = [np.random.default_rng([entropy, row]) for row in range(rows)]

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """One token of each row, int32 (rows), with the probabilities softmax(scores)."""
        cumulative = np.cumsum(softmax(scores), -1)
        drawn = [np.searchsorted(c, s.random() * c[-1], side="right") for c, s in zip(cumulative, self.streams)]
        return np.array(drawn, np.int32)


def greedy(scores: np.ndarray) -> np.ndarray:
    """The best token of each row, int32 (rows); the first of equals."""
    return scores.argmax(-1).astype(np.int32)
