"""A decoder's weights in fewer and larger matrices, which a decode step on a CPU reads faster."""

from mindspore import ParameterTuple, Tensor, nn
from mindspore import ops as msops

from mindone_audio.backbone import ops
from mindone_audio.backbone.layers import Linear, has_rows, parts_of, share_rows

_MOST_OUTPUTS = 8192  # rows of an output layer up to which oneDNN does not copy them at each product, with AVX-512


class PackedOutputs(nn.Cell):
    """The output layer in parts, since oneDNN copies a matrix of many rows for each product.

    The model's own parameter, which has no memory yet, gets it from these parts, so nothing is in memory twice, and
    whoever writes a weight in place writes it here too. Only on a CPU.
    """

    def __init__(self, decoder: nn.Cell):
        super().__init__(auto_prefix=False)
        self.outputs = ParameterTuple(parts_of(decoder.output_weight, _MOST_OUTPUTS, "packed.outputs"))

    def logits(self, hidden: Tensor) -> Tensor:
        """What the decoder's `logits` gives for hidden states (rows, hidden_size)."""
        scores = ()
        for weight in self.outputs:
            scores += (ops.linear(hidden, weight),)
        return msops.concat(scores, -1)

    def is_current(self, decoder: nn.Cell) -> bool:
        """Whether these are still the decoder's weights: no adapters, nothing in 4 bits, nothing moved elsewhere."""
        if decoder.lm_head is not None and type(decoder.lm_head) is not Linear:
            return False
        return has_rows(decoder.output_weight, self.outputs)


class PackedWeights(PackedOutputs):
    """Also q_proj, k_proj and v_proj of a `Decoder` as one fp32 matrix a layer, gate_proj and up_proj as another.

    Two large products are faster than five.
    """

    def __init__(self, decoder: nn.Cell):
        super().__init__(decoder)
        groups = [_packed_together(layer) for layer in decoder.model.layers]
        heads, biases, feed_forward = (
            [share_rows(group, f"packed.{kind}.{i}") for i, group in enumerate(kinds) if group[0] is not None]
            for kind, kinds in enumerate(zip(*groups))
        )
        self.heads, self.feed_forward = ParameterTuple(heads), ParameterTuple(feed_forward)
        self.biases = ParameterTuple(biases) if biases else None

    def is_current(self, decoder: nn.Cell) -> bool:
        """Whether these are still the decoder's weights, as for `PackedOutputs`."""
        if not super().is_current(decoder):
            return False
        for i, layer in enumerate(decoder.model.layers):
            read = [*_heads_linears(layer), *_feed_forward_linears(layer), layer.mlp.down_proj]
            if any(type(linear) is not Linear for linear in read):
                return False
            wholes = self.heads[i], None if self.biases is None else self.biases[i], self.feed_forward[i]
            for whole, parts in zip(wholes, _packed_together(layer)):
                if whole is not None and not has_rows(whole, parts):
                    return False
        return True


def query_key_value(packed: PackedWeights, layer: int, x: Tensor) -> Tensor:
    """What q_proj, k_proj and v_proj of a layer make of x, one after the other."""
    return ops.linear(x, packed.heads[layer], None if packed.biases is None else packed.biases[layer])


def _heads_linears(layer: nn.Cell) -> list[nn.Cell]:
    return [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]


def _feed_forward_linears(layer: nn.Cell) -> list[nn.Cell]:
    return [layer.mlp.gate_proj, layer.mlp.up_proj]


def _packed_together(layer: nn.Cell) -> tuple[list, list, list]:
    """Weights and biases (or None) of a layer's heads, and weights of its feed-forward."""
    heads = _heads_linears(layer)
    weights = [linear.weight for linear in heads]
    return weights, [linear.bias for linear in heads], [linear.weight for linear in _feed_forward_linears(layer)]
