"""The backbone's operations against NumPy, and the pieces that no other test reaches."""

import math

import mindspore as ms
import numpy as np
import pytest
import torch
import transformers
from mindspore import Tensor, grad, jit
from mindspore.ops import GradOperation
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mindone_audio.backbone import conv_ops, ops
from mindone_audio.backbone.cache import KVCache, update
from mindone_audio.backbone.decoder import DecoderConfig, rotation_at
from mindone_audio.backbone.encoder import AudioEncoder, EncoderConfig, sinusoids
from mindone_audio.backbone.rotary import inverse_frequencies, rotation_tables
from mindone_audio.machine import device

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def check(actual: Tensor, expected: np.ndarray, tolerance: float = 2e-6):
    assert actual.shape == expected.shape
    assert np.abs(actual.asnumpy() - expected).max() < tolerance * max(1, np.abs(expected).max())


def test_norms():
    x, weight, bias = normal(2, 3, 8) * 3, normal(8), normal(8)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias
    check(ops.layer_norm(Tensor(x), Tensor(weight), Tensor(bias)), expected, 1e-5)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * weight
    check(ops.rms_norm(Tensor(x), Tensor(weight), 0.1), expected)


@pytest.mark.parametrize(("queries", "rows"), [(1, 1), (3, 3), (3, 1)])
@pytest.mark.parametrize("key_value_heads", [1, 2, 6])
def test_attention(key_value_heads, queries, rows):
    """rows: of the mask, one for all queries or one for each."""
    query, key, value = normal(2, 6, queries, 4), normal(2, key_value_heads, 5, 4), normal(2, key_value_heads, 5, 4)
    mask = np.where(RNG.random((2, 1, rows, 5)) < 0.3, ops.MASKED, 0).astype(np.float32)
    wide = [np.repeat(x, 6 // key_value_heads, 1) for x in (key, value)]
    scores = query @ wide[0].swapaxes(2, 3) + mask
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = weights / weights.sum(-1, keepdims=True) @ wide[1]
    check(ops.attention(Tensor(query), Tensor(key), Tensor(value), Tensor(mask)), expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("heads", "together"), [(6, 3), (6, 2), (12, 4)])
def test_attention_of_some_heads_after_others(heads, together, transposed):
    query, key, value = normal(2, heads, 3, 4), normal(2, 6, 5, 4), normal(2, 6, 5, 4)
    mask = np.where(RNG.random((2, 1, 3, 5)) < 0.3, ops.MASKED, 0).astype(np.float32)
    keys = Tensor(key.swapaxes(2, 3).copy() if transposed else key)
    whole, parts = (
        ops.attention(Tensor(query), keys, Tensor(value), ops.for_heads(Tensor(mask), count), transposed)
        for count in (heads, together)
    )
    check(parts, whole.asnumpy(), 1e-7)


def test_gradients_of_attention_of_some_heads_after_others():
    """Fine-tuning with a long prompt has them, in a graph."""
    inputs = tuple(Tensor(normal(1, heads, 3, 4)) for heads in (6, 2, 2))
    mask = Tensor(np.triu(np.full((1, 1, 3, 3), ops.MASKED, np.float32), 1))

    def gradients(together):
        def squares(query, key, value):
            return (ops.attention(query, key, value, ops.for_heads(mask, together)) ** 2).sum()

        return jit(grad(squares, (0, 1, 2)))(*inputs)

    for whole, parts in zip(gradients(6), gradients(3)):
        check(parts, whole.asnumpy(), 1e-6)


@pytest.mark.parametrize(
    ("heads", "key_value_heads", "queries", "keys", "together"),
    [
        (32, 8, 160, 4096, 32),  # Voxtral-Mini, 5 minutes
        (32, 8, 160, 12288, 16),
        (32, 8, 160, 24576, 8),
        (28, 4, 160, 16384, 7),  # Audio Flamingo 3, 10 minutes
        (32, 32, 160, 8192, 16),
        (32, 1, 160, 24576, 32),  # one key head cannot be divided
        (4, 4, 1 << 20, 1 << 20, 2),  # one head has more than the limit
        (2, 2, 1 << 20, 1 << 20, 2),
        (1, 1, 1 << 20, 1 << 20, 1),
    ],
)
def test_as_many_heads_together_as_memory_is_for(heads, key_value_heads, queries, keys, together):
    assert ops.heads_together(heads, key_value_heads, queries, keys) == together


@pytest.mark.parametrize(("length", "read"), [(5, [5]), (6, [3, 6]), (7, [2, 4, 7]), (9, [3, 6, 9])])
def test_causal_attention_leaves_out_what_is_hidden(length, read, monkeypatch):
    monkeypatch.setattr(ops, "_BLOCK", 3)
    query, key, value = (Tensor(normal(2, heads, length, 4)) for heads in (6, 2, 2))
    later = np.arange(length) > np.arange(length)[:, None]
    mask = np.where(later | (RNG.random((2, 6, length, length)) < 0.2), ops.MASKED, 0).astype(np.float32)
    mask[..., 0] = 0  # each query sees something
    whole, keys = ops.attention, []
    expected = whole(query, key, value, Tensor(mask)).asnumpy()

    def attention(query, key, *rest):
        keys.append(key.shape[2])
        return whole(query, key, *rest)

    monkeypatch.setattr(ops, "attention", attention)
    check(ops.causal_attention(query, key, value, Tensor(mask)), expected)
    assert keys == read


def torch_conv1d(x, weight, bias, stride, padding, dilation, groups):
    x = torch.nn.functional.pad(torch.from_numpy(x.swapaxes(1, 2)), padding)
    weight, bias = torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias)
    return torch.nn.functional.conv1d(x, weight, bias, stride, 0, dilation, groups).numpy().swapaxes(1, 2)


@pytest.mark.parametrize(
    ("time", "weight", "stride", "padding", "dilation", "groups"),
    [
        (6, (4, 3, 3), 1, (1, 1), 1, 1),
        (6, (4, 3, 3), 2, (1, 1), 1, 1),
        (7, (4, 3, 3), 2, (1, 1), 1, 1),
        (7, (4, 3, 3), 3, (1, 1), 1, 1),
        (7, (4, 3, 3), 1, (2, 0), 1, 1),
        (9, (4, 3, 1), 1, (0, 0), 1, 1),
        (9, (4, 3, 1), 2, (1, 0), 1, 1),
        (50, (5, 1, 10), 5, (0, 0), 1, 1),
        (20, (4, 3, 7), 1, (9, 9), 3, 1),
        (16, (8, 8, 8), 8, (4, 4), 1, 1),
        (9, (6, 2, 4), 1, (2, 1), 1, 3),
        (20, (6, 2, 5), 2, (2, 2), 2, 3),
        (1, (6, 1, 31), 1, (30, 0), 1, 6),
        (16, (6, 1, 31), 1, (30, 0), 1, 6),
        (17, (6, 1, 17), 1, (8, 8), 1, 6),
        (40, (6, 1, 3), 1, (0, 0), 1, 6),
        (40, (6, 1, 1), 1, (0, 0), 1, 6),
        (40, (12, 1, 3), 2, (1, 1), 2, 6),
    ],
)
def test_conv1d_is_pytorchs(time, weight, stride, padding, dilation, groups):
    x, weight = normal(2, time, weight[1] * groups), normal(*weight)
    for bias in (normal(len(weight)), None):
        expected = torch_conv1d(x, weight, bias, stride, padding, dilation, groups)
        given = None if bias is None else Tensor(bias)
        check(conv_ops.conv1d(Tensor(x), Tensor(weight), given, stride, padding, dilation, groups), expected)


@pytest.mark.parametrize(("kernel", "stride"), [(8, 4), (7, 3), (3, 3), (4, 1), (11, 5), (2, 3), (5, 2)])
@pytest.mark.parametrize("time", [1, 6])
def test_transposed_conv1d_is_pytorchs(time, kernel, stride):
    x, weight, bias = normal(2, time, 3), normal(3, 4, kernel), normal(4)
    for padding in {0, max(0, kernel - stride) // 2}:
        expected = torch.nn.functional.conv_transpose1d(
            torch.from_numpy(x.swapaxes(1, 2)), torch.from_numpy(weight), torch.from_numpy(bias), stride, padding
        )
        actual = conv_ops.transposed_conv1d(Tensor(x), Tensor(weight), Tensor(bias), stride, padding)
        check(actual, expected.numpy().swapaxes(1, 2))


def test_norm_over_time_is_pytorchs_group_norm():
    """Of the valid times alone, which are those of PyTorch without padding."""
    x, weight, bias = normal(3, 11, 4) * 3 + 1, normal(4), normal(4)
    counts = [11, 5, 2]
    actual = conv_ops.norm_over_time(Tensor(x), Tensor(weight), Tensor(bias), Tensor(counts, ms.int32)).asnumpy()
    for ours, sample, count in zip(actual, x, counts):
        single = torch.from_numpy(sample[None, :count].swapaxes(1, 2))
        expected = torch.nn.functional.group_norm(single, 4, torch.from_numpy(weight), torch.from_numpy(bias))
        check(Tensor(ours[:count]), expected[0].numpy().T, 1e-5)


def test_activations_are_pytorchs():
    x = normal(3, 5, 8) * 2
    tensor = torch.from_numpy(x)
    check(ops.relu(Tensor(x)), tensor.relu().numpy())
    check(ops.leaky_relu(Tensor(x), 0.1), torch.nn.functional.leaky_relu(tensor, 0.1).numpy())
    check(ops.tanh(Tensor(x)), tensor.tanh().numpy())
    check(ops.glu(Tensor(x)), torch.nn.functional.glu(tensor).numpy())


@pytest.mark.parametrize("of_key", [True, False])
def test_relative_positions(of_key):
    """A row for each distance, those beyond the table's ends at its ends."""
    query, table, biases = normal(2, 3, 9, 4), normal(6, 4), normal(6, 3)
    index = ops.distances(9, 2, 3, of_key)
    rows = np.zeros((9, 9), int)
    for i in range(9):
        for j in range(9):
            rows[i, j] = min(3, max(-2, j - i if of_key else i - j)) + 2
    np.testing.assert_array_equal(index.asnumpy(), rows)
    expected = np.einsum("bhin,ijn->bhij", query, table[rows])
    check(ops.relative_scores(Tensor(query), Tensor(table), index), expected)
    check(ops.relative_scores(None, Tensor(biases), index), biases[rows].transpose(2, 0, 1)[None])


def test_half_precision_norm_is_computed_in_float32():
    x, weight = (normal(3, 64) * 100).astype(np.float16), normal(64).astype(np.float16)
    wide = x.astype(np.float32)
    expected = weight * (wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6)).astype(np.float16)
    check(ops.rms_norm(Tensor(x), Tensor(weight), 1e-6), expected, 2e-3)


@pytest.mark.parametrize("length", [1, 3])
def test_heads_and_rotation(length):
    x, positions = normal(2, length, 12), np.arange(2 * length).reshape(2, length)
    heads = x.reshape(2, length, 3, 4).swapaxes(1, 2)
    check(ops.split_heads(Tensor(x.reshape(-1, 12)), 2, 3), heads)
    check(ops.merge_heads(Tensor(heads)), x.reshape(-1, 12))
    frequencies = inverse_frequencies(4, 100.0)
    angles = positions[:, None, :, None] * frequencies
    first, second = heads[..., :2], heads[..., 2:]
    expected = np.concatenate(
        [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], -1
    )
    tables = rotation_at(
        [Tensor(table) for table in rotation_tables(9, frequencies)], Tensor(positions.astype(np.int32))
    )
    for kind, rotated in enumerate((expected / 2, expected, heads)):  # queries, keys, values
        cos, sin = [ops.choose_heads(table, Tensor([kind] * 3, ms.int32)) for table in tables]
        check(ops.rotate(Tensor(heads), cos, sin), rotated)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("transposes", [False, True])
def test_heads_move_and_so_do_gradients(monkeypatch, transposes, compiled):
    """By a gather as on a CPU, or a transpose as on Ascend."""
    monkeypatch.setattr(device, "is_ascend", lambda: transposes)
    x, change = normal(10, 12), normal(2, 3, 5, 4)

    def split(x):
        return ops.split_heads(x, 2, 3)

    def gradient(x, change):
        return GradOperation(sens_param=True)(split)(x, change)

    run = ms.jit if compiled else lambda function: function
    check(run(split)(Tensor(x)), x.reshape(2, 5, 3, 4).swapaxes(1, 2))
    check(run(gradient)(Tensor(x), Tensor(change)), change.swapaxes(1, 2).reshape(10, 12))


def stored(cache: KVCache) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of its second layer, (batch, heads, positions, n)."""
    keys, values = cache.keys[1].asnumpy(), cache.values[1].asnumpy()
    return (keys if cache.flat else keys.swapaxes(2, 3)).reshape(cache.shape), values.reshape(cache.shape)


@pytest.mark.parametrize("flat", [False, True])
def test_cache_writes_at_positions_and_copies_sequences(flat):
    sizes = {"layers": 2, "key_value_heads": 3, "head_dim": 4, "dtype": ms.float32, "flat": flat}
    cache = KVCache(batch=2, positions=5, **sizes)
    for table in (*cache.keys, *cache.values):
        table[...] = float("nan")  # what an overflow leaves in half precision would get through a mask
    key, value = normal(2, 3, 2, 4), normal(2, 3, 2, 4)
    places = cache.write_indices(Tensor([1, 2], ms.int32))
    for _ in range(2):  # what is written again is overwritten, once the cache is cleared
        cache.clear()
        keys, values = update(cache, 1, places, Tensor(key), Tensor(value))
    np.testing.assert_array_equal(keys.asnumpy().reshape(cache.keys[1].shape), cache.keys[1].asnumpy())
    np.testing.assert_array_equal(values.asnumpy().reshape(cache.values[1].shape), cache.values[1].asnumpy())
    assert not cache.keys[0].asnumpy().any()
    for columns, left in ((2, [2]), (3, [])):  # of the first ones alone
        cleared = KVCache(batch=2, positions=5, **sizes)
        update(cleared, 1, places, Tensor(key), Tensor(value))
        cleared.clear(columns)
        for kind, table in enumerate(stored(cleared)):
            assert np.flatnonzero(table.any((0, 1, 3))).tolist() == left, kind
    larger, wider = KVCache(batch=2, positions=8, **sizes), KVCache(batch=4, positions=8, **sizes)
    # Columns 1 and 2 of a ring that ends before column 3 become 0 and 1; two sequences change places, two are left out.
    columns, order = np.array([1, 2, 0, 0, 0, 0, 0, 0]), np.array([1, 0])
    kept = np.arange(8) < np.array([[2], [2], [0], [0]])
    larger.take(cache, order, columns, kept[:2])
    wider.take(cache, np.array([1, 0, 0, 0]), columns, kept)
    for kind, written in enumerate((key, value)):
        expected = np.zeros((2, 3, 8, 4), np.float32)
        expected[:, :, 1:3] = written
        np.testing.assert_array_equal(stored(cache)[kind], expected[:, :, :5])
        expected = np.roll(expected, -1, 2)[order]
        np.testing.assert_array_equal(stored(larger)[kind], expected)
        np.testing.assert_array_equal(stored(wider)[kind], np.concatenate([expected, 0 * expected]))
        larger.reorder(np.array([1, 0]))
        np.testing.assert_array_equal(stored(larger)[kind], expected[[1, 0]])
        larger.reorder(np.array([1, 1]))
        np.testing.assert_array_equal(stored(larger)[kind], expected[[0, 0]])
        larger.take(cache, order, columns, kept[:2])


@pytest.mark.parametrize("flat", [False, True])
def test_a_sequence_is_inserted_whole(flat):
    """Into a slot that a NaN was left in: all its columns are the other's, and empty ones zero; its neighbours stay."""
    sizes = {"layers": 2, "key_value_heads": 3, "head_dim": 4, "dtype": ms.float32, "flat": flat}
    one, target = KVCache(batch=1, positions=5, **sizes), KVCache(batch=3, positions=7, **sizes)
    key, value = normal(1, 3, 3, 4), normal(1, 3, 3, 4)
    update(one, 1, one.write_indices(Tensor([1, 2, 3], ms.int32)), Tensor(key), Tensor(value))
    for table in (*target.keys, *target.values):
        table[...] = float("nan")
    target.insert(1, one, np.array([4, 4, 2, 3, 4, 4, 4]))
    for kind, written in enumerate((key, value)):
        inserted = stored(target)[kind]
        np.testing.assert_array_equal(inserted[1, :, 2:4], written[0, :, 1:])
        assert not inserted[1][:, [0, 1, 4, 5, 6]].any()
        assert np.isnan(inserted[[0, 2]]).all()


def test_sinusoids_are_whispers():
    log_step = math.log(10000) / (12 - 1)
    angles = torch.arange(30)[:, None] * torch.exp(-log_step * torch.arange(12))[None]
    expected = torch.cat([angles.sin(), angles.cos()], 1).numpy()
    np.testing.assert_allclose(sinusoids(30, 24), expected, atol=1e-5)


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "default"},
        {"type": "linear", "factor": 4.0},
        {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    ],
)
def test_rotary_frequencies_are_those_of_transformers(scaling):
    config = transformers.LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, rope_theta=5e5, rope_scaling=scaling and dict(scaling)
    )
    kind = (scaling or {}).get("rope_type", (scaling or {}).get("type", "default"))
    if kind == "default":
        expected = 1.0 / 5e5 ** (np.arange(0, 128, 2) / 128)
    else:
        expected = ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].numpy()
    np.testing.assert_allclose(inverse_frequencies(128, 5e5, scaling), expected, rtol=2e-6)


def test_refused_sizes():
    with pytest.raises(ValueError, match="rope_type 'yarn'.*default, linear, llama3"):
        inverse_frequencies(64, 1e4, {"rope_type": "yarn", "factor": 2.0})
    with pytest.raises(ValueError, match="7 attention heads cannot share 2 key-value heads"):
        DecoderConfig(8, 8, 8, 1, 7, 2, 4, 8, 1e4, None, 1e-6, True, False, False)
    with pytest.raises(ValueError, match="width 8 is not a multiple of its 3 heads"):
        EncoderConfig(8, 8, 8, 1, 3, 8, True, True)


def test_an_encoder_without_mask_or_pooling():
    """The fields of families that pool nothing and hear padding: a full window is the same with and without a mask."""
    sizes = dict(num_mel_bins=8, hidden_size=12, intermediate_size=16, num_layers=2, num_heads=3, max_positions=6)
    masked = AudioEncoder(EncoderConfig(**sizes, pool_pairs=False, mask_padding=True))
    plain = AudioEncoder(EncoderConfig(**sizes, pool_pairs=False, mask_padding=False))
    for ours, theirs in zip(plain.get_parameters(), masked.get_parameters()):
        ours.set_data(theirs.value())
    features, full, half = Tensor(normal(1, 8, 12)), Tensor([12], ms.int32), Tensor([6], ms.int32)
    expected = masked(features, full).asnumpy()
    assert expected.shape == (1, 6, 12)
    check(plain(features, full), expected, 1e-5)
    check(plain(features, half), expected, 1e-5)
    assert np.abs(masked(features, half).asnumpy() - expected).max() > 1e-3


def test_gelu_is_the_exact_one():
    x = np.concatenate([np.linspace(-40, 40, 400_001), [0.0, 1e-30, -1e-30, 1e4, -1e4, 1e9, -1e9, 1e30, -1e30]]).astype(
        np.float32
    )
    exact = np.array([value * 0.5 * math.erfc(-value * 0.5**0.5) for value in x.astype(np.float64)])
    error = np.abs(ops.gelu(Tensor(x)).asnumpy() - exact) / np.maximum(1, np.abs(exact))
    assert error.max() < 8e-7  # PyTorch's was 2.6e-7 on one machine and 1e-6 on another
