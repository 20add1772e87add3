"""Gradients layer by layer, each layer computed again for its own: memory for one layer, not for all.

MindSpore's `Cell.recompute()` computes again too, but on CPU that took more time and no less memory (measured by
scripts/benchmark.py finetune): a graph runs what is ready, all layers at once. So the layers are graphs of their own.
"""

from collections.abc import Sequence

from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel, merge_audio
from mindone_audio.backbone.decoder import causal_mask, look_up
from mindone_audio.finetune.graphs import cross_entropy_sum, graph


class Begin(nn.Cell):
    """What the first layer takes: token embeddings with audio in them."""

    def __init__(self, model: AudioLanguageModel, encodes: bool):
        super().__init__(auto_prefix=False)
        self.model, self.encodes = model, encodes

    def construct(self, input_ids, audio_index, audio=None, lengths=None) -> Tensor:
        embeddings = self.model.language_model.embed(input_ids)
        if audio is not None:
            if self.encodes:
                audio = self.model.audio_tower(audio, lengths)
            audio = self.model.multi_modal_projector(audio)
            embeddings = merge_audio(embeddings, audio.reshape((-1, audio.shape[-1])), audio_index)
        return embeddings


class Layer(nn.Cell):
    """One decoder layer as the decoder calls it."""

    def __init__(self, model: AudioLanguageModel, number: int):
        super().__init__(auto_prefix=False)
        stack = model.language_model.model
        self.layer, self.heads = stack.layers[number], (stack.num_heads, stack.num_key_value_heads)

    def construct(self, x, positions, visible, tables) -> Tensor:
        columns = msops.arange(x.shape[1], dtype=positions.dtype)
        mask = ops.for_heads(causal_mask(columns, columns, visible), self.heads[0])
        rows = look_up([tables[0], tables[1], tables[2], tables[3]], positions)
        rotation = (
            ops.for_heads(rows[0], self.heads[0]),
            ops.for_heads(rows[1], self.heads[0]),
            ops.for_heads(rows[2], self.heads[1]),
            ops.for_heads(rows[3], self.heads[1]),
        )
        return self.layer(x, rotation, mask, None, None)


class End(nn.Cell):
    """The summed loss of what the last layer gives."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, x, where, targets) -> Tensor:
        return cross_entropy_sum(self.model.language_model, self.model.language_model.model.norm(x), where, targets)


class Gradient(nn.Cell):
    """Adds the gradients of a cell's parameters to `sums`; returns that of its first argument."""

    def __init__(self, cell: nn.Cell, parameters: Sequence[Parameter], sums: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.cell, self.weights, self.sums = cell, ParameterTuple(parameters), ParameterTuple(sums)
        self.gradient = msops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)

    def construct(self, *arguments) -> Tensor:
        """The cell's arguments, and then the gradient of what it returns."""
        if not self.sums:
            return self.gradient(self.cell)(*arguments)[0]
        inputs, gradients = self.gradient(self.cell, self.weights)(*arguments)
        first = inputs[0]
        for total, gradient in zip(self.sums, gradients):
            first = msops.depend(first, msops.assign_add(total, gradient.astype(total.dtype)))
        return first


class AccumulateByLayer:
    """What `graphs.Accumulate` does, with the arguments of `MicroBatch`."""

    def __init__(
        self,
        model: AudioLanguageModel,
        encodes: bool,
        parameters: Sequence[Parameter],
        sums: Sequence[Parameter],
        compiled: bool,
    ):
        total_of = {id(parameter): total for parameter, total in zip(parameters, sums)}

        def gradient(cell: nn.Cell, inside: nn.Cell | Sequence[nn.Cell]):
            cells = [inside] if isinstance(inside, nn.Cell) else inside
            own = [p for part in cells for p in part.get_parameters() if id(p) in total_of]
            return graph(Gradient(cell, own, [total_of.pop(id(p)) for p in own]), compiled), bool(own)

        decoder = model.language_model
        layers = [Layer(model, number) for number in range(len(decoder.model.layers))]
        begin, end = Begin(model, encodes), End(model)
        self._layers = [graph(layer, compiled) for layer in layers]
        self._gradients = [gradient(layer, layer.layer)[0] for layer in layers]
        self._begin, self._end = graph(begin, compiled), graph(end, compiled)
        self._end_gradient, _ = gradient(end, [decoder.model.norm, *([decoder.lm_head] if decoder.lm_head else [])])
        parts = [part for part in (model.audio_tower, model.multi_modal_projector) if part is not None]
        self._begin_gradient, self._begins = gradient(begin, [decoder.model.embed_tokens, *parts])

    def __call__(self, input_ids, positions, visible, audio_index, where, targets, tables, *audio) -> Tensor:
        x = self._begin(input_ids, audio_index, *audio)
        inputs = []
        for layer in self._layers:
            inputs.append(x)
            x = layer(x, positions, visible, tables)
        loss = self._end(x, where, targets)
        change = self._end_gradient(x, where, targets, msops.ones_like(loss))
        for gradient in reversed(self._gradients):
            change = gradient(inputs.pop(), positions, visible, tables, change)
        if self._begins:
            self._begin_gradient(input_ids, audio_index, *audio, change)
        return loss
