"""Beam search on the host, with the conventions of transformers' `generate(num_beams=...)`.

A beam ends when it takes an end token while among the best; finished beams are ranked by their log probability divided
by length ** length_penalty. Candidates beyond the beams are kept, so that beams remain when the best ones end.
"""

import numpy as np

from mindone_audio.generation.sampling import refuse_invalid
from mindone_audio.generation.settings import GenerationSettings

_EXCLUDED = np.float32(-1.0e9)  # the reference's value: part of the convention, since sums with it decide ties


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` best of each row, best first, earlier ones first among equals."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


class BeamSearch:
    """The running and the finished beams of a batch of prompts; only new tokens are kept here."""

    def __init__(self, batch: int, settings: GenerationSettings):
        self.settings, self.batch, self.beams = settings, batch, settings.num_beams
        shape = (batch, self.beams)
        self.running = np.zeros(shape + (0,), np.int32)
        self.running_scores = np.full(shape, _EXCLUDED, np.float32)
        self.running_scores[:, 0] = 0  # all beams are equal at first: only one may propose
        self.finished = np.zeros(shape + (0,), np.int32)
        self.finished_scores = np.full(shape, _EXCLUDED, np.float32)
        self.finished_lengths = np.zeros(shape, np.int32)
        self.is_finished = np.zeros(shape, bool)
        self.can_improve = np.ones((batch, 1), bool)
        self.done = False

    def step(self, log_probabilities: np.ndarray, ends) -> tuple[np.ndarray, np.ndarray]:
        """Choose from scores fp32 (batch * beams, vocab); `ends(tokens)` says which (rows, length) are complete.

        Returns, for the beams that go on: which row each came from and its new token, both int32 (batch * beams).
        """
        vocab = log_probabilities.shape[1]
        keep = max(2, 1 + len(self.settings.eos_token_ids)) * self.beams
        totals = log_probabilities.reshape(self.batch, self.beams, vocab) + self.running_scores[:, :, None]
        totals = totals.reshape(self.batch, self.beams * vocab)
        refuse_invalid(totals)
        chosen = _candidates(totals, keep)
        scores = np.take_along_axis(totals, chosen, 1)
        parents, tokens = chosen // vocab, (chosen % vocab).astype(np.int32)
        candidates = np.take_along_axis(self.running, parents[:, :, None], 1)
        candidates = np.concatenate([candidates, tokens[:, :, None]], 2)
        ended = ends(candidates.reshape(self.batch * keep, -1)).reshape(self.batch, keep)

        open_scores = scores + ended * _EXCLUDED
        order = _best(open_scores, self.beams)
        self.running = np.take_along_axis(candidates, order[:, :, None], 1)
        self.running_scores = np.take_along_axis(open_scores, order, 1)
        self._collect(candidates, scores, ended)
        self._check_done(ended)
        first_row = np.arange(self.batch)[:, None] * self.beams
        rows = (np.take_along_axis(parents, order, 1) + first_row).reshape(-1).astype(np.int32)
        return rows, self.running[:, :, -1].reshape(-1)

    def _collect(self, candidates: np.ndarray, scores: np.ndarray, ended: np.ndarray) -> None:
        """Let candidates that ended among the best compete with the finished ones."""
        length = candidates.shape[2]
        among_best = ended & (np.arange(ended.shape[1]) < self.beams)
        scores = scores / np.float32(length**self.settings.length_penalty)
        if self.settings.early_stopping is True:
            scores = scores + self.is_finished.all(1, keepdims=True) * _EXCLUDED
        scores = scores + ~self.can_improve * _EXCLUDED + ~among_best * _EXCLUDED
        old = np.full(self.finished.shape[:2] + (length,), self.settings.padding, np.int32)
        old[:, :, : self.finished.shape[2]] = self.finished
        merged = np.concatenate([old, candidates], 1)
        merged_scores = np.concatenate([self.finished_scores, scores], 1)
        order = _best(merged_scores, self.beams)
        self.finished = np.take_along_axis(merged, order[:, :, None], 1)
        self.finished_scores = np.take_along_axis(merged_scores, order, 1)
        self.is_finished = np.take_along_axis(np.concatenate([self.is_finished, among_best], 1), order, 1)
        lengths = np.concatenate([self.finished_lengths, np.full(ended.shape, length, np.int32)], 1)
        self.finished_lengths = np.take_along_axis(lengths, order, 1)

    def _check_done(self, ended: np.ndarray) -> None:
        settings = self.settings
        length = self.running.shape[2]
        if settings.early_stopping == "never" and settings.length_penalty > 0:
            length = settings.max_new_tokens
        reachable = self.running_scores[:, :1] / np.float32(length**settings.length_penalty)
        worst = np.where(self.is_finished, self.finished_scores.min(1, keepdims=True), _EXCLUDED)
        self.can_improve &= (reachable > worst).any(1, keepdims=True)
        full = self.is_finished.all() and settings.early_stopping is True
        self.done = bool(not self.can_improve.any() or full or ended.all())

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """The best sequences of new tokens, int32 (batch * num_return_sequences, length), padded after their end, and
        the mean log probability of the tokens of each."""
        count = self.settings.num_return_sequences
        kept, lengths = self.finished[:, :count], self.finished_lengths[:, :count]
        sums = self.finished_scores[:, :count] * lengths**self.settings.length_penalty
        return kept.reshape(-1, kept.shape[2])[:, : lengths.max()], (sums / lengths).reshape(-1)


def _candidates(totals: np.ndarray, keep: int) -> np.ndarray:
    """The `keep` best columns of each row, best first: a partition first, since a vocabulary is long to sort."""
    best = np.sort(np.argpartition(-totals, keep - 1, axis=1)[:, :keep], axis=1)
    return np.take_along_axis(best, _best(np.take_along_axis(totals, best, 1), keep), 1)
