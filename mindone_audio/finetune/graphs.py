"""The graphs of fine-tuning: losses and gradients of a micro-batch, their sum over ranks, and the AdamW update.

Gradients are those of the summed loss and are divided by the number of learned tokens once all micro-batches of all
ranks are added up. So the loss is the mean over the tokens of the whole global batch, however it is divided.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.checkpoint_model import CheckpointModel
from mindone_audio.backbone.compiled import graphs
from mindone_audio.generation.engine import power_of_two

# In place of a loop, whose every round is a call within MindSpore's compiler: it allows 1,000, and 32 layers have more.
_each = msops.HyperMap()
_GROUP = 100  # tensors that are split off at once, for the same reason
_FEWEST_TARGETS = 16
_SHORTEST = 64  # tokens that prompts are padded to
_LONG = 512


def prompt_bucket(length: int, by_layer: bool = False) -> int:
    """The next of 64, 96, 128, 192, 256, 384, 512, and from there on of 576, 640, ..., 1024, 1152, ...

    A graph to compile for each: of short prompts at most a third is padding, and of long ones, such as those with a
    clip of 30 s, a ninth; `by_layer`, where a graph is that of one layer, a seventeenth.
    """
    if length <= _SHORTEST:
        return _SHORTEST
    below = power_of_two(length) // 2
    step = below // (2 if below < _LONG else 16 if by_layer else 8)
    return -(-length // step) * step


class MicroBatch:
    """The tensors of one micro-batch, in shapes that depend on the length of its prompts alone as far as they can, so
    that few graphs are compiled.

    tokens: input_ids and positions int32, visible bool, audio_index int32, (rows, length). features (clips, mel bins,
    frames) and lengths int32 (clips), or None. where and targets int32 (count): which place of the flattened rows is
    followed by which token; only there are scores computed. count: how many are real, the others have target -100.
    """

    def __init__(
        self, model: CheckpointModel, inputs: dict[str, Any], rows: int, whole_windows: bool, by_layer: bool = False
    ):
        """inputs: what the processor or a collator gives, with labels; rows: of every micro-batch, missing ones are
        padding; whole_windows: audio_index is for clips whose encoded rows are continued to those of a window;
        by_layer: for graphs of one layer, of which there may be more."""
        prompt, features, lengths = model.prompt(**inputs)
        rows, length = max(rows, len(prompt.input_ids)), prompt_bucket(prompt.input_ids.shape[1], by_layer)
        targets = prompt.targets
        row, column = np.nonzero(targets != -100)
        self.count = len(row)
        # Answers are mostly shorter than what they are about.
        shares = (16, 4, 1) if by_layer else (4, 1)
        widths = (rows * max(_FEWEST_TARGETS, length // share) for share in shares)
        width = next(width for width in widths if self.count <= width)
        self.where = Tensor(_padded(row * length + column, (width,), 0))
        self.targets = Tensor(_padded(targets[row, column], (width,), -100))
        audio_index = prompt.audio_index
        if features is not None and whole_windows:
            audio_index = model.in_whole_windows(audio_index, features.shape[-1])
        arrays = (prompt.input_ids, 0), (prompt.positions, 0), (prompt.mask, False), (audio_index, -1)
        self.tokens = tuple(Tensor(_padded(array, (rows, length), fill)) for array, fill in arrays)
        self.features, self.lengths, self.length = None, None, length
        if features is not None:
            # Each row has one clip where it is the context; else as many as it asks about.
            clips = rows if model.context_positions else power_of_two(max(rows, len(lengths)))
            places = np.minimum(np.arange(clips), len(lengths) - 1)
            self.features, self.lengths = model.features_tensor(features[places]), Tensor(lengths[places])


def _padded(array: np.ndarray, shape: tuple[int, ...], fill: int | bool) -> np.ndarray:
    """The array in the corner of a larger one; int32 where it is of integers."""
    padded = np.full(shape, fill, bool if array.dtype == bool else np.int32)
    padded[tuple(slice(size) for size in array.shape)] = array
    return padded


class SummedLoss(nn.Cell):
    """The cross-entropy of all targets of a micro-batch, added up; its arguments are those of `MicroBatch`.

    All are tensors by themselves: a graph takes those in a tuple for constants, and compiles for each new one.

    encodes: whether the audio encoder runs here, because something in it is learned; else `audio` is its output.
    """

    def __init__(self, model: CheckpointModel, encodes: bool):
        super().__init__(auto_prefix=False)
        self.model, self.encodes = model, encodes

    def construct(
        self, input_ids, positions, visible, audio_index, where, targets, tables, audio=None, lengths=None
    ) -> Tensor:
        """tables: what the language model's `stacked_tables` gives for the length."""
        decoder = self.model.language_model
        audio = audio_embeddings(self.model, self.encodes, audio, lengths)
        tables = decoder.unstacked(tables)
        hidden = self.model.hidden_states(input_ids, positions, visible, tables, audio, audio_index)
        return cross_entropy_sum(decoder, hidden, where, targets)


def audio_embeddings(model: CheckpointModel, encodes: bool, audio: Tensor | None, lengths: Tensor | None):
    """What the decoder takes of clips, or of what the encoder made of them; None for none."""
    if audio is None:
        return None
    return model.encode_audio(audio, lengths) if encodes else model.project(audio)


def cross_entropy_sum(decoder: nn.Cell, hidden: Tensor, where: Tensor, targets: Tensor) -> Tensor:
    """The loss of targets (count), added up, given hidden states (rows, length, width) at the flat places `where`."""
    scores = decoder.logits(msops.gather(hidden.reshape((-1, hidden.shape[-1])), where, 0))
    return msops.cross_entropy(scores, targets, ignore_index=-100, reduction="sum")


def _add(total: Parameter, gradient: Tensor) -> Tensor:
    return msops.assign_add(total, gradient.astype(ms.float32))


def _flat(total: Parameter) -> Tensor:
    return total.reshape((-1,))


def _put(total: Parameter, part: Tensor) -> Tensor:
    return msops.assign(total, part.reshape(total.shape))


class Accumulate(nn.Cell):
    """Adds the gradients of a micro-batch to `sums`, and returns its loss."""

    def __init__(self, loss: SummedLoss, parameters: Sequence[Parameter], sums: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.loss, self.sums = loss, ParameterTuple(sums)
        self.gradient = ms.value_and_grad(loss, None, weights=ParameterTuple(parameters))

    def construct(self, *batch) -> Tensor:
        loss, gradients = self.gradient(*batch)
        return msops.depend(loss, _each(_add, self.sums, gradients))


class Reduce(nn.Cell):
    """Divides `sums` by the number of tokens, over all ranks; returns the mean loss and the norm of the gradient."""

    def __init__(self, sums: Sequence[Parameter], ranks: int):
        super().__init__(auto_prefix=False)
        self.sums = ParameterTuple(sums)
        sizes = [total.size for total in sums]
        self.sizes = [tuple(sizes[first : first + _GROUP]) for first in range(0, len(sizes), _GROUP)]
        self.groups, self.parts = tuple(map(sum, self.sizes)), (1, 1, sum(sizes))
        self.all_reduce = msops.AllReduce() if ranks > 1 else None

    def construct(self, loss: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """loss and count fp32 (1): what the micro-batches of this rank sum up to."""
        flat = msops.concat((loss, count, *_each(_flat, self.sums)))
        if self.all_reduce is not None:
            flat = self.all_reduce(flat)
        loss, count, gradient = ops.split(flat, self.parts, 0)
        count = msops.maximum(count, Tensor(1.0, ms.float32))
        gradient = gradient / count
        norm = msops.sqrt(msops.ReduceSum()(msops.square(gradient)))
        parts = ()
        for group, sizes in zip(ops.split(gradient, self.groups, 0), self.sizes):
            parts += ops.split(group, sizes, 0)
        written = _each(_put, self.sums, parts)
        return (loss / count).reshape(()), msops.depend(norm, written)


class AdamW(nn.Cell):
    """Adam with decoupled weight decay (arXiv 1711.05101) as PyTorch computes it; leaves `sums` at zero.

    decays: for each parameter, whether weight decay is for it.
    """

    def __init__(self, parameters: Sequence[Parameter], sums: Sequence[Parameter], decays: Sequence[bool], settings):
        super().__init__(auto_prefix=False)
        self.learned, self.sums = ParameterTuple(parameters), ParameterTuple(sums)
        self.first, self.second = (
            ParameterTuple([zeros_like(parameter, f"{moment}.{parameter.name}") for parameter in parameters])
            for moment in ("first_moment", "second_moment")
        )
        self.decays = tuple(settings.weight_decay if decay else 0.0 for decay in decays)
        self.beta1, self.beta2 = settings.adam_beta1, settings.adam_beta2
        self.epsilon = settings.adam_epsilon

    def construct(self, rate: Tensor, scale: Tensor, correction1: Tensor, correction2: Tensor) -> Tensor:
        """All fp32 scalars: rate, the learning rate; scale, what clipping leaves of the gradient; correction1 and 2,
        1 - beta^step of both moments."""
        update = msops.Partial()(self.update, rate, scale, correction1, correction2)
        return msops.depend(rate, _each(update, self.learned, self.sums, self.first, self.second, self.decays))

    def update(self, rate, scale, correction1, correction2, parameter, total, moment1, moment2, decay) -> tuple:
        """One parameter's part; what a graph can wait for."""
        gradient = total * scale
        first = moment1 * self.beta1 + gradient * (1 - self.beta1)
        second = moment2 * self.beta2 + gradient * gradient * (1 - self.beta2)
        step = first / correction1 / (msops.sqrt(second / correction2) + self.epsilon)
        value = parameter.astype(ms.float32)
        value = value - rate * (step + decay * value)
        written = msops.assign(parameter, value.astype(parameter.dtype))
        nothing = msops.zeros_like(gradient)
        return written, msops.assign(moment1, first), msops.assign(moment2, second), msops.assign(total, nothing)


def zeros_like(parameter: Parameter, name: str) -> Parameter:
    """An fp32 parameter of the same shape that is not learned."""
    return Parameter(Tensor(np.zeros(parameter.shape, np.float32)), name=name, requires_grad=False)


def graph(cell: nn.Cell, compiled: bool) -> Callable:
    """The cell as a graph for each set of shapes, or as it is."""
    return graphs(cell, "a step of the training") if compiled else cell
