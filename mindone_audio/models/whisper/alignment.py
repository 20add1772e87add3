"""When each token is said: what some heads of the decoder attend to, made a path through time.

The method is that of openai/whisper's `find_alignment` (`whisper/timing.py`) as transformers has it.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.decoder import causal_mask
from mindone_audio.generation.engine import Engine, returned
from mindone_audio.models.whisper.timestamps import FRAMES, SECONDS

_WIDTHS = (64, 128, 256, 512)  # of the graphs, in tokens


class Attention(nn.Cell):
    """`TextDecoder.attention_to` of tokens and a context."""

    def __init__(self, model, heads: tuple[tuple[int, int], ...], width: int):
        super().__init__(auto_prefix=False)
        self.language_model, self.heads = model.language_model, heads
        self.tables = model.language_model.position_tables(width, model.dtype)

    def construct(self, input_ids: Tensor, rows: Tensor) -> Tensor:
        """input_ids int32 (1, length), rows (source positions, hidden): fp32 (heads, length, source positions)."""
        columns = ops.counting(input_ids.shape[1])
        mask = causal_mask(columns, input_ids >= 0)
        at = self.language_model.positions_at(self.tables, columns.expand_dims(0))
        return self.language_model.attention_to(self.language_model.embed(input_ids), at, mask, rows, self.heads)


def warm_up(engine: Engine, heads) -> None:
    """Compile what `token_times` needs."""
    sizes = engine.model.language_model.config
    rows = msops.zeros((engine.model.context_positions, sizes.hidden_size), engine.model.dtype)
    longest = next((width for width in _WIDTHS if width >= sizes.max_positions), max(_WIDTHS))
    for width in (width for width in _WIDTHS if width <= longest):
        _graph(engine, heads, width)(Tensor(np.zeros((1, width), np.int32)), rows)


def _graph(engine: Engine, heads, width: int) -> Callable:
    heads = tuple(map(tuple, heads))
    what = f"the times of words, {width} tokens"
    return engine.other(("attention", width), lambda: Attention(engine.model, heads, width), what)


def token_times(engine: Engine, clip: tuple, prompt: list[int], tokens: list[int], heads, frames: int) -> np.ndarray:
    """Seconds from the beginning of a window at which each of its new tokens begins, float64 (tokens).

    clip: the window, as a request has it. prompt and tokens: what it was asked and what it answered, the last of which
    is the end token or takes the time of the one before it. heads: (layer, head) of those that follow the speech.
    frames: of audio in the window.
    """
    ids = [*prompt, *tokens[:-1]]
    if len(tokens) < 2:
        return np.zeros(len(tokens))
    width = next((width for width in _WIDTHS if width >= len(ids)), len(ids))
    graph = _graph(engine, heads, width)
    rows, _ = returned(engine.heard(clip))
    padded = np.zeros((1, width), np.int32)
    padded[0, : len(ids)] = ids
    weights = graph(Tensor(padded), rows).asnumpy()[:, len(prompt) : len(ids), : frames // FRAMES]
    starts = path(_smooth(weights, engine.model.config.median_filter_width).mean(0))
    return np.append(starts, starts[-1]) * SECONDS


def _smooth(weights: np.ndarray, width: int) -> np.ndarray:
    """Weights (heads, tokens, time), normalised over the tokens, each the median of `width` neighbours in time."""
    with np.errstate(invalid="ignore", divide="ignore"):  # of one token nothing is left, which changes no path
        weights = np.nan_to_num((weights - weights.mean(1, keepdims=True)) / weights.std(1, keepdims=True))
    half = width // 2
    if weights.shape[2] <= half:
        return weights
    padded = np.pad(weights, ((0, 0), (0, 0), (half, half)), mode="reflect")
    return np.stack([_medians(head, width) for head in padded])


def _medians(rows: np.ndarray, width: int) -> np.ndarray:
    """The median of each `width` neighbours, an odd number, in rows (tokens, time): (tokens, time - width + 1).

    Neighbours are sorted, all places at a time, until the middle one is in its place: NumPy's sort takes much
    longer, and the answers of other requests wait for it.
    """
    count = rows.shape[1] - width + 1
    found = [rows[:, first : first + count] for first in range(width)]
    for last in range(width - 1, width // 2 - 1, -1):
        for i in range(last):
            found[i], found[i + 1] = np.minimum(found[i], found[i + 1]), np.maximum(found[i], found[i + 1])
    return found[width // 2]


def path(weights: np.ndarray) -> np.ndarray:
    """Of weights (tokens, time) the time at which each token begins, int (tokens): dynamic time warping.

    The cheapest way from the first token and time to the last, where a weight is what a place gives; both only go on.
    """
    tokens, times = weights.shape
    cost = np.full((tokens + 1, times + 1), np.inf, np.float32)
    came = np.full((tokens + 1, times + 1), 2, np.int8)  # from: 0 both before, 1 the token before, 2 the time before
    cost[0, 0], came[:, 0], came[0] = 0, 1, 2
    for diagonal in range(2, tokens + times + 1):  # whose places need none of each other
        i = np.arange(max(1, diagonal - times), min(tokens, diagonal - 1) + 1)
        j = diagonal - i
        both, token, time = cost[i - 1, j - 1], cost[i - 1, j], cost[i, j - 1]
        way = np.where((both < token) & (both < time), 0, np.where((token < both) & (token < time), 1, 2))
        cost[i, j] = np.choose(way, (both, token, time)) - weights[i - 1, j - 1].astype(np.float64)
        came[i, j] = way
    starts = np.zeros(tokens, int)
    i, j = tokens, times
    while i > 0 or j > 0:
        if i > 0:
            starts[i - 1] = max(j - 1, 0)  # the last time that is written is the first of the token
        way = came[i, j]
        i, j = i - (way != 2), j - (way != 1)
    return starts
