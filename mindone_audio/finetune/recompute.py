"""Gradients layer by layer: memory for what is computed within one layer, not in all.

What the products of a layer take and give is kept until its gradients are computed, as far as the memory for that goes;
what is between them is computed again. Of layers beyond that all is.

All layers go through one graph, and the weights of a layer are copied in before it runs. MindSpore's own
`Cell.recompute()` saves no memory on a CPU, because a graph runs whatever is ready, all layers at once. A graph for
each layer saves none either, because each keeps its memory. `scripts/benchmark.py finetune` measures it.
"""

import copy
from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.adapters.dropout import Dropout
from mindone_audio.backbone import ops
from mindone_audio.backbone.audio_language_model import AudioLanguageModel
from mindone_audio.backbone.decoder import (
    both_tables,
    causal_mask,
    for_all_heads,
    gate_of,
    in_mode,
    project,
    rotation_at,
)
from mindone_audio.finetune.graphs import audio_embeddings, cross_entropy_sum, graph

_SHARE = 4  # what is kept takes at most so large a part of what all parameters take
_LAYER_STRIDE = 1_000_003  # between the dropout seeds of two layers


class Begin(nn.Cell):
    """What the first layer takes: token embeddings with audio in them."""

    def __init__(self, model: AudioLanguageModel, encodes: bool):
        super().__init__(auto_prefix=False)
        self.model, self.encodes = model, encodes

    def construct(self, input_ids, audio_index, audio=None, lengths=None) -> Tensor:
        audio = audio_embeddings(self.model, self.encodes, audio, lengths)
        return self.model.embeddings(input_ids, audio, audio_index)


class Part(nn.Cell):
    """A part of a decoder layer, of rows (batch * length, hidden_size).

    It ends with products of matrices, whose gradients need what goes in but not what comes out. So where all arguments
    of a part are kept, no product with a weight is computed again, but for the small ones of adapters. gate: of
    `project`, where there is one.
    """

    def __init__(self, layer: nn.Cell):
        super().__init__(auto_prefix=False)
        self.layer = layer


class Projected(Part):
    """Queries, keys and values."""

    def construct(self, x, *gate) -> Tensor:
        norm = self.layer.input_layernorm
        return self.layer.self_attn.projected(
            ops.rms_norm(x, norm.weight, norm.epsilon), None, gate[0] if gate else None
        )


class Attended(Part):
    """What attention makes of them."""

    def construct(self, projected, cos, sin, mask) -> Tensor:
        return self.layer.self_attn.attended(projected, (cos, sin), mask)


class Middle(Part):
    """x after attention."""

    def construct(self, x, attended, *gate) -> Tensor:
        return x + project(self.layer.self_attn.o_proj, attended, gate[0] if gate else None)


class GateUp(Part):
    """Both of what the feed-forward multiplies."""

    def construct(self, middle, *gate) -> tuple[Tensor, Tensor]:
        norm = self.layer.post_attention_layernorm
        return self.layer.mlp.gate_up(ops.rms_norm(middle, norm.weight, norm.epsilon), gate[0] if gate else None)


class Down(Part):
    """x after the layer."""

    def construct(self, middle, gated, up, *gate) -> Tensor:
        return middle + self.layer.mlp.down(gated, up, gate[0] if gate else None)


def cells_of_parts(layer: nn.Cell) -> list[tuple[nn.Cell | None, ...]]:
    """The cells whose parameters each part of a decoder layer reads."""
    attention, mlp = layer.self_attn, layer.mlp
    if attention.fused:
        heads, gates = (attention.qkv_proj,), (mlp.gate_up_proj,)
    else:
        heads, gates = (attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj)
    norms = layer.input_layernorm, layer.post_attention_layernorm
    normed_heads = attention.q_norm, attention.k_norm
    return [(norms[0], *heads), normed_heads, (attention.o_proj,), (norms[1], *gates), (mlp.down_proj,)]


class Layer(nn.Cell):
    """One decoder layer as the decoder calls it; a copy, which `become` makes any layer of the decoder."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        stack = model.language_model.model
        self.layer, self.heads = copy.deepcopy(stack.layers[0]), (stack.num_heads, stack.num_key_value_heads)
        self.rope_sets, self.adapts = model.language_model.rope_sets, model.language_model.adapts
        self.seeds = _dropout_seeds(self.layer)
        self.projected, self.attended, self.middle = Projected(self.layer), Attended(self.layer), Middle(self.layer)
        self.gate_up, self.down = GateUp(self.layer), Down(self.layer)

    def become(self, layer: nn.Cell, number: int, seed: int) -> None:
        """Take over a layer's weights, and draw its dropout from the seed of the step and its number."""
        for own, other in zip(self.layer.get_parameters(), layer.get_parameters()):
            if own is not other:
                msops.assign(own, other)
        for parameter in self.seeds:
            msops.assign(parameter, Tensor([(seed + number * _LAYER_STRIDE) % (1 << 31)], parameter.dtype))

    def given(self, positions, visible, tables, modes) -> tuple[tuple, tuple]:
        """What is the same for all layers: cos, sin and mask of attention; the gate of all rows, where there is one."""
        rotation = rotation_at(both_tables(tables), in_mode(positions, modes, tables.shape[1] // self.rope_sets))
        rotation, mask = for_all_heads(rotation, causal_mask(ops.counting(visible.shape[1]), visible), *self.heads)
        return (*rotation, mask), (gate_of(modes, tables.dtype).reshape((-1, 1)),) if self.adapts else ()

    def construct(self, x, positions, visible, tables, modes=None) -> tuple[Tensor, ...]:
        """x (batch, length, hidden_size) after the layer, and then what `LayerGradient` takes of it besides x."""
        attention, gate = self.given(positions, visible, tables, modes)
        rows = x.reshape((-1, x.shape[-1]))
        projected = self.projected(rows, *gate)
        attended = self.attended(projected, *attention)
        middle = self.middle(rows, attended, *gate)
        gated, up = self.gate_up(middle, *gate)
        return self.down(middle, gated, up, *gate).reshape(x.shape), projected, attended, middle, gated, up


class End(nn.Cell):
    """The summed loss of what the last layer gives."""

    def __init__(self, model: AudioLanguageModel):
        super().__init__(auto_prefix=False)
        self.model = model

    def construct(self, x, where, targets) -> Tensor:
        return cross_entropy_sum(self.model.language_model, self.model.language_model.model.norm(x), where, targets)


class EndGradient(nn.Cell):
    """What `End` returns, and the gradients of its first argument and of some of its parameters."""

    def __init__(self, end: End, parameters: Sequence[Parameter]):
        super().__init__(auto_prefix=False)
        self.learns = bool(parameters)
        self.gradient = ms.value_and_grad(end, 0, ParameterTuple(parameters) if parameters else None)

    def construct(self, *arguments) -> tuple[Tensor, ...]:
        loss, gradients = self.gradient(*arguments)
        return (loss, gradients[0], *gradients[1]) if self.learns else (loss, gradients)


class Gradient(nn.Cell):
    """The gradients of a cell's first `count` arguments and of some of its parameters."""

    def __init__(self, cell: nn.Cell, parameters: Sequence[Parameter], count: int = 1):
        super().__init__(auto_prefix=False)
        self.cell, self.weights, self.count = cell, ParameterTuple(parameters), count
        self.gradient = msops.GradOperation(get_all=True, get_by_list=bool(parameters), sens_param=True)

    def construct(self, *arguments) -> tuple[Tensor, ...]:
        """The cell's arguments, and then the gradient of what it returns."""
        if not self.weights:
            return self.gradient(self.cell)(*arguments)[: self.count]
        inputs, gradients = self.gradient(self.cell, self.weights)(*arguments)
        return (*inputs[: self.count], *gradients)


class LayerGradient(nn.Cell):
    """The gradients of the first argument of a `Layer`, and of parameters of each of its parts, in their order."""

    def __init__(self, layer: Layer, parameters: Sequence[Sequence[Parameter]]):
        super().__init__(auto_prefix=False)
        self.layer = layer
        projected, attended, middle, gate_up, down = parameters
        self.projected, self.attended = Gradient(layer.projected, projected), Gradient(layer.attended, attended)
        self.middle, self.gate_up = Gradient(layer.middle, middle, count=2), Gradient(layer.gate_up, gate_up)
        self.down = Gradient(layer.down, down, count=3)

    def construct(self, x, projected, attended, middle, gated, up, positions, visible, tables, *rest) -> tuple:
        """What the layer took and returned, but for its result; rest: modes, if any, and the result's gradient."""
        modes, change = rest[0] if len(rest) == 2 else None, rest[-1]
        attention, gate = self.layer.given(positions, visible, tables, modes)
        rows = x.reshape((-1, x.shape[-1]))
        below, gated, up, *of_down = self.down(middle, gated, up, *gate, change.reshape(rows.shape))
        change, *of_gate_up = self.gate_up(middle, *gate, (gated, up))
        below, attended, *of_middle = self.middle(rows, attended, *gate, below + change)
        projected, *of_attended = self.attended(projected, *attention, attended)
        change, *of_projected = self.projected(rows, *gate, projected)
        change = (below + change).reshape(x.shape)
        return (change, *of_projected, *of_attended, *of_middle, *of_gate_up, *of_down)


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
        self._layer_sums = [
            [total_of[id(p)] for cells in cells_of_parts(layer) for p in learned(*cells)]
            for layer in self._decoder_layers
        ]
        self._layer, begin, end = Layer(model), Begin(model, encodes), End(model)
        self._seeds = _dropout_seeds(stack)
        own = zip(stack.layers[0].get_parameters(), self._layer.layer.get_parameters())
        copy_of = {id(original): mine for original, mine in own}
        copies = [[copy_of[id(p)] for p in learned(*cells)] for cells in cells_of_parts(stack.layers[0])]
        # A tied output layer is the embedding: what it learns comes from both ends.
        at_end = learned(stack.norm, decoder.lm_head if decoder.lm_head is not None else stack.embed_tokens)
        at_begin = learned(stack.embed_tokens, model.audio_tower, model.multi_modal_projector)
        self._end_sums, self._begin_sums = ([total_of[id(p)] for p in found] for found in (at_end, at_begin))
        self._budget = sum(parameter.nbytes for parameter in model.get_parameters()) // _SHARE
        self._forward = graph(self._layer, compiled)
        self._backward = graph(LayerGradient(self._layer, copies), compiled)
        self._begin, self._begin_gradient = graph(begin, compiled), graph(Gradient(begin, at_begin), compiled)
        self._end_gradient = graph(EndGradient(end, at_end), compiled)

    def __call__(self, input_ids, positions, visible, audio_index, where, targets, tables, *audio) -> Tensor:
        seed = int(self._seeds[0].asnumpy()[0]) if self._seeds else 0
        modes = self._decoder.modes(audio_index, visible)
        tokens = (positions, visible, tables) if modes is None else (positions, visible, tables, modes)
        x = self._begin(input_ids, audio_index, *audio)
        inputs, left = [], self._budget
        for number, layer in enumerate(self._decoder_layers):
            self._layer.become(layer, number, seed)
            after, *kept = self._forward(x, *tokens)
            left -= sum(tensor.nbytes for tensor in kept)
            inputs.append((x, kept if left >= 0 else None))
            x = after
        loss, change, *gradients = self._end_gradient(x, where, targets)
        _add(self._end_sums, gradients)
        for number, layer in reversed(list(enumerate(self._decoder_layers))):
            self._layer.become(layer, number, seed)
            x, kept = inputs.pop()
            if kept is None:
                _, *kept = self._forward(x, *tokens)
            change, *gradients = self._backward(x, *kept, *tokens, change)
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
