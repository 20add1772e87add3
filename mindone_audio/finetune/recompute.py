"""Gradients layer by layer, each layer computed again for its own: memory for one layer, not for all.

All layers go through one graph, and the weights of a layer are copied in before it runs. MindSpore's own
`Cell.recompute()` saves no memory on a CPU, because a graph runs whatever is ready, all layers at once. A graph for
each layer saves none either, because each keeps its memory. `scripts/benchmark.py finetune` measures it.
"""

import copy
from collections.abc import Sequence

from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.adapters.dropout import Dropout
from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.decoder import causal_mask, for_all_heads, gate_of, in_mode, rotation_at
from mindone_audio.finetune.graphs import audio_embeddings, cross_entropy_sum, graph

_LAYER_STRIDE = 1_000_003  # between the dropout seeds of two layers


class Begin(nn.Cell):
    """What the first layer takes: token embeddings with audio in them."""

    def __init__(self, model: AudioLanguageModel, encodes: bool):
        super().__init__(auto_prefix=False)
        self.model, self.encodes = model, encodes

    def construct(self, input_ids, audio_index, audio=None, lengths=None) -> Tensor:
        audio = audio_embeddings(self.model, self.encodes, audio, lengths)
        return self.model.embeddings(input_ids, audio, audio_index)


class Layer(nn.Cell):
    """One decoder layer as the decoder calls it; a copy, which `become` makes any layer of the decoder."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        stack = model.language_model.model
        self.layer, self.heads = copy.deepcopy(stack.layers[0]), (stack.num_heads, stack.num_key_value_heads)
        self.rope_sets, self.adapts = model.language_model.rope_sets, model.language_model.adapts
        self.seeds = _dropout_seeds(self.layer)

    def become(self, layer: nn.Cell, number: int, seed: int) -> None:
        """Take over a layer's weights, and draw its dropout from the seed of the step and its number."""
        for own, other in zip(self.layer.get_parameters(), layer.get_parameters()):
            if own is not other:
                msops.assign(own, other)
        for parameter in self.seeds:
            msops.assign(parameter, Tensor([(seed + number * _LAYER_STRIDE) % (1 << 31)], parameter.dtype))

    def construct(self, x, positions, visible, tables, modes=None) -> Tensor:
        columns = ops.counting(x.shape[1])
        rotation = rotation_at([tables[0], tables[1]], in_mode(positions, modes, tables.shape[1] // self.rope_sets))
        rotation, mask = for_all_heads(rotation, causal_mask(columns, visible), *self.heads)
        gate = gate_of(modes, x.dtype).reshape((-1, 1)) if self.adapts else None
        return self.layer(x.reshape((-1, x.shape[-1])), rotation, mask, gates=(gate, gate)).reshape(x.shape)


class End(nn.Cell):
    """The summed loss of what the last layer gives."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, x, where, targets) -> Tensor:
        return cross_entropy_sum(self.model.language_model, self.model.language_model.model.norm(x), where, targets)


class Gradient(nn.Cell):
    """The gradients of a cell's first argument and of some of its parameters."""

    def __init__(self, cell: nn.Cell, parameters: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.cell, self.weights = cell, ParameterTuple(parameters)
        self.gradient = msops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)

    def construct(self, *arguments) -> tuple[Tensor, ...]:
        """The cell's arguments, and then the gradient of what it returns."""
        if not self.weights:
            return (self.gradient(self.cell)(*arguments)[0],)
        inputs, gradients = self.gradient(self.cell, self.weights)(*arguments)
        return (inputs[0], *gradients)


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

        def learned(*cells: nn.Cell | None) -> list[Parameter]:
            found = {id(p): p for cell in cells if cell is not None for p in cell.get_parameters()}
            return [parameter for key, parameter in found.items() if key in total_of]

        decoder = self._decoder = model.language_model
        stack = decoder.model
        self._decoder_layers = list(stack.layers)
        self._layer_sums = [[total_of[id(p)] for p in learned(layer)] for layer in self._decoder_layers]
        self._layer, begin, end = Layer(model), Begin(model, encodes), End(model)
        self._seeds = _dropout_seeds(stack)
        numbers = {id(p) for p in learned(stack.layers[0])}
        own = zip(stack.layers[0].get_parameters(), self._layer.layer.get_parameters())
        copies = [mine for original, mine in own if id(original) in numbers]
        # A tied output layer is the embedding: what it learns comes from both ends.
        at_end = learned(stack.norm, decoder.lm_head if decoder.lm_head is not None else stack.embed_tokens)
        at_begin = learned(stack.embed_tokens, model.audio_tower, model.multi_modal_projector)
        self._end_sums, self._begin_sums = ([total_of[id(p)] for p in found] for found in (at_end, at_begin))
        self._forward, self._backward = graph(self._layer, compiled), graph(Gradient(self._layer, copies), compiled)
        self._begin, self._end = graph(begin, compiled), graph(end, compiled)
        self._begin_gradient, self._end_gradient = (
            graph(Gradient(cell, found), compiled) for cell, found in ((begin, at_begin), (end, at_end))
        )

    def __call__(self, input_ids, positions, visible, audio_index, where, targets, tables, *audio) -> Tensor:
        seed = int(self._seeds[0].asnumpy()[0]) if self._seeds else 0
        modes = self._decoder.modes(audio_index, visible)
        tokens = (positions, visible, tables) if modes is None else (positions, visible, tables, modes)
        x = self._begin(input_ids, audio_index, *audio)
        inputs = []
        for number, layer in enumerate(self._decoder_layers):
            inputs.append(x)
            self._layer.become(layer, number, seed)
            x = self._forward(x, *tokens)
        loss = self._end(x, where, targets)
        change, *gradients = self._end_gradient(x, where, targets, msops.ones_like(loss))
        _add(self._end_sums, gradients)
        for number, layer in reversed(list(enumerate(self._decoder_layers))):
            self._layer.become(layer, number, seed)
            change, *gradients = self._backward(inputs.pop(), *tokens, change)
            _add(self._layer_sums[number], gradients)
        if self._begin_sums:
            _add(self._begin_sums, self._begin_gradient(input_ids, audio_index, *audio, change)[1:])
        return loss


def _add(sums: Sequence[Parameter], gradients: Sequence[Tensor]) -> None:
    for total, gradient in zip(sums, gradients):
        msops.assign_add(total, gradient.astype(total.dtype))


def _dropout_seeds(cell: nn.Cell) -> list[Parameter]:
    """The seeds of the dropout in a cell, each once."""
    found = {id(part.seed): part.seed for _, part in cell.cells_and_names() if isinstance(part, Dropout)}
    return list(found.values())
