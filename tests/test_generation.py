"""generate: sampling, stopping, streaming, buckets, and what it refuses."""

import gc
import weakref

import numpy as np
import pytest
import torch
import transformers
from benchmark.start import Compilations
from helpers import VOCAB, batch, clips, prompt, relative_error, tiny_config, to_torch, torch_model
from mindone.transformers.generation.configuration_utils import GenerationConfig as MindoneGenerationConfig
from mindspore import Tensor, ops
from transformers import GenerationConfig, TextStreamer

from mindone_audio import AutoModelForAudioTextToText
from mindone_audio.adapters.lora import add_lora
from mindone_audio.backbone import ops as backbone_ops
from mindone_audio.backbone import packed_weights
from mindone_audio.generation import engine, running_batch, sampling
from mindone_audio.generation.beam import BeamSearch
from mindone_audio.generation.engine import CHUNK, FIRST, PACK, cache_bucket, pieces, power_of_two
from mindone_audio.generation.sequences import Sequences
from mindone_audio.generation.settings import GenerationSettings, settle

INPUTS = {**batch([prompt([3, "a40", 5])]), **clips([40])}
LENGTH = INPUTS["input_ids"].shape[1]
CHAIN = {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "min_p": 0.01}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch_model(tiny_config()).save_pretrained(folder)
    return AutoModelForAudioTextToText.from_pretrained(folder)


def new_tokens(model, inputs=INPUTS, **settings):
    return model.generate(**inputs, **settings).asnumpy()[:, inputs["input_ids"].shape[1] :]


def filtered_probabilities(scores: np.ndarray, settings: dict) -> np.ndarray:
    """What transformers' own filters leave of a row of scores."""
    row = torch.from_numpy(scores)[None]
    for filter_ in (
        transformers.TemperatureLogitsWarper(settings["temperature"]),
        transformers.TopKLogitsWarper(settings["top_k"]),
        transformers.TopPLogitsWarper(settings["top_p"]),
        transformers.MinPLogitsWarper(settings["min_p"]),
    ):
        row = filter_(None, row)
    return row.softmax(-1)[0].numpy()


def prefill(sequences: Sequences, ids: np.ndarray):
    """Scores and best next token of one prompt of text, in one piece."""
    work = sequences.prefill(ids, np.array([len(ids)]), None, np.full(len(ids), -1), [len(ids)])
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_sampling_follows_the_filtered_distribution(model):
    """Pearson's chi-square of 3200 first tokens: the statistic stays below the 99.9 % point for its freedom."""
    scores = model(**INPUTS).logits.asnumpy()[0, -1]
    expected = filtered_probabilities(scores, CHAIN)
    allowed = np.flatnonzero(expected)
    assert 5 < len(allowed) < 31
    draws = np.concatenate(
        [
            new_tokens(model, max_new_tokens=1, do_sample=True, num_return_sequences=64, seed=seed, **CHAIN)[:, 0]
            for seed in range(50)
        ]
    )
    counts = np.bincount(draws, minlength=VOCAB)
    assert counts.sum() == 3200
    assert set(np.flatnonzero(counts)) <= set(allowed)
    frequent = allowed[expected[allowed] * 3200 >= 5]
    statistic = (((counts - 3200 * expected) ** 2)[frequent] / (3200 * expected[frequent])).sum()
    freedom = len(frequent) - 1
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3  # Wilson-Hilferty


@pytest.mark.parametrize("name", CHAIN)
def test_each_filter_equals_transformers(name):
    scores = np.random.default_rng(1).normal(size=(4, 50)).astype(np.float32) * 3
    function = getattr(sampling, name)(CHAIN[name])
    warper = {
        "temperature": transformers.TemperatureLogitsWarper,
        "top_k": transformers.TopKLogitsWarper,
        "top_p": transformers.TopPLogitsWarper,
        "min_p": transformers.MinPLogitsWarper,
    }[name](CHAIN[name])
    expected = warper(None, torch.from_numpy(scores)).numpy()
    np.testing.assert_allclose(function(scores, None), expected, rtol=1e-6)


def test_one_seed_gives_one_text(model):
    def draw(seed):
        return new_tokens(model, max_new_tokens=12, do_sample=True, temperature=1.5, seed=seed).tolist()

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_a_sampled_row_of_a_batch_is_what_it_is_alone(model):
    both = {**batch([prompt([3, "a40", 5]), prompt([6], 2)]), **clips([40])}
    settings = {"max_new_tokens": 10, "do_sample": True, "seed": 5}
    assert new_tokens(model, both, **settings)[0].tolist() == new_tokens(model, **settings)[0].tolist()


def test_returned_sequences_of_one_prompt_differ(model):
    tokens = new_tokens(model, max_new_tokens=10, do_sample=True, seed=0, num_return_sequences=4)
    assert tokens.shape == (4, 10)
    assert len({tuple(row) for row in tokens.tolist()}) == 4


def test_top_k_one_is_greedy(model):
    greedy = new_tokens(model, max_new_tokens=10)
    assert new_tokens(model, max_new_tokens=10, do_sample=True, top_k=1, seed=3).tolist() == greedy.tolist()


def test_the_result_starts_with_the_prompt_and_is_int32(model):
    tokens = model.generate(**INPUTS, max_new_tokens=4)
    assert isinstance(tokens, Tensor)
    assert str(tokens.dtype) == "Int32"
    assert tokens.asnumpy()[:, :LENGTH].tolist() == INPUTS["input_ids"].tolist()


def test_the_checkpoints_generation_config_is_honoured(model):
    greedy = new_tokens(model, max_new_tokens=8)
    model.generation_config, kept = GenerationConfig(max_new_tokens=8, eos_token_id=int(greedy[0, 3])), None
    try:
        first = greedy[0].tolist().index(greedy[0, 3]) + 1
        assert new_tokens(model).tolist() == greedy[:, :first].tolist()
        assert new_tokens(model, eos_token_id=None).tolist() == greedy.tolist()
        assert new_tokens(model, max_new_tokens=2).shape == (1, 2)
    finally:
        model.generation_config = kept


@pytest.mark.parametrize("config", [GenerationConfig, MindoneGenerationConfig, dict])
def test_what_a_generation_config_leaves_unset_is_the_models(model, config):
    greedy = new_tokens(model, max_new_tokens=20)
    end = int(greedy[0, 3])
    expected = greedy[:, : greedy[0].tolist().index(end) + 1].tolist()
    model.generation_config, kept = GenerationConfig(max_new_tokens=8, eos_token_id=end, do_sample=True), None
    try:
        for given in (config(max_new_tokens=20, temperature=0.0), config(max_new_tokens=20, temperature=0)):
            assert new_tokens(model, generation_config=given).tolist() == expected
            steps = model.stream(**INPUTS, generation_config=given)
            assert [token for step in steps for token in step.tolist()] == expected[0]
        free = config(max_new_tokens=20, eos_token_id=int(greedy[0, 0]))
        settings = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}
        assert new_tokens(model, generation_config=free, do_sample=False).tolist() == greedy[:, :1].tolist()
        assert new_tokens(model, generation_config=free, **settings).tolist() == greedy[:, :5].tolist()
    finally:
        model.generation_config = kept


def test_settings_that_change_nothing(model):
    greedy = new_tokens(model, max_new_tokens=6).tolist()
    for settings in ({"do_sample": False, "temperature": 0.0}, {"use_cache": False, "synced_gpus": True}):
        assert new_tokens(model, max_new_tokens=6.0, **settings).tolist() == greedy


def test_stop_strings(model):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return "".join(f"[{i}]" for i in ids)

    greedy = new_tokens(model, max_new_tokens=12)[0].tolist()
    stop = f"{greedy[4]}][{greedy[5]}"  # neither starts nor ends where a token does
    text = Tokenizer().decode(greedy)
    length = text[: text.index(stop) + len(stop)].count("[")
    for stops in (stop, ["never", stop]):
        tokens = new_tokens(model, max_new_tokens=12, stop_strings=stops, tokenizer=Tokenizer())
        assert tokens[0].tolist() == greedy[:length]
    with pytest.raises(ValueError, match="stop_strings needs the tokenizer"):
        new_tokens(model, stop_strings="x")


def test_streamer(model):
    class Streamer:
        def __init__(self):
            self.received, self.ended = [], False

        def put(self, value):
            self.received.append(np.asarray(value).tolist())

        def end(self):
            self.ended = True

    streamer = Streamer()
    tokens = new_tokens(model, max_new_tokens=5, streamer=streamer)
    assert streamer.ended
    assert streamer.received[0] == INPUTS["input_ids"].tolist()
    assert [token for step in streamer.received[1:] for token in step] == tokens[0].tolist()
    for settings in ({"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
        with pytest.raises(ValueError, match="streamer takes one sequence"):
            new_tokens(model, streamer=streamer, **settings)


def test_text_streamer_of_transformers(model, capsys):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return " ".join(map(str, ids)) + " "

    tokens = new_tokens(model, max_new_tokens=6, streamer=TextStreamer(Tokenizer(), skip_prompt=True))
    assert capsys.readouterr().out.split() == [str(token) for token in tokens[0]]


def test_buckets_hold_what_they_are_asked_for():
    for length in range(1, 3000, 7):
        assert length <= sum(pieces(length, FIRST)) < length + CHUNK
        assert max(pieces(length, FIRST)[1:], default=CHUNK) == CHUNK
        assert length <= cache_bucket(length) <= max(512, 2 * length)
        assert length <= power_of_two(length) < 2 * length
    assert [cache_bucket(length) for length in (513, 2049, 3073, 4097, 8193)] == [1024, 3072, 4096, 6144, 12288]


def test_many_prompts_are_answered_as_each_alone(model):
    """17 prompts in a batch of 32, of which 15 are empty: 170 tokens with those of 2 to 16, and one token alone."""
    texts = [prompt([length], length) for length in (*range(1, 17), 170)]
    together = new_tokens(model, batch(texts), max_new_tokens=6)
    for row, text in enumerate(texts):
        assert together[row].tolist() == new_tokens(model, batch([text]), max_new_tokens=6)[0].tolist(), row


@pytest.mark.parametrize(
    ("lengths", "packs"),
    [
        ([3, 150, 480, 90, 481, 200, 40], [[4], [2], [5, 1, 3, 6], [0]]),
        ([160, 160, 160, 1], [[0, 1, 2], [3]]),
        ([5] * 18, [list(range(16)), [16, 17]]),
    ],
)
def test_prompts_are_prefilled_together(model, lengths, packs):
    """Each sees its own tokens only, wherever it lies: in one chunk, across two, or with others in all of a pack."""
    assert running_batch.packs(np.array(lengths), PACK) == packs
    texts = [prompt([length], row) for row, length in enumerate(lengths)]
    expected = [new_tokens(model, batch([text]), max_new_tokens=5)[0].tolist() for text in texts]
    assert new_tokens(model, batch(texts), max_new_tokens=5).tolist() == expected
    beams = new_tokens(model, batch(texts[:4]), max_new_tokens=5, num_beams=2).tolist()
    alone = [new_tokens(model, batch([text]), max_new_tokens=5, num_beams=2)[0].tolist() for text in texts[:4]]
    assert [row[: len(one)] for row, one in zip(beams, alone)] == alone
    if any(PACK - CHUNK < sum(lengths[row] for row in pack) <= PACK and len(pack) > 1 for pack in packs):
        assert (PACK, PACK) in model.engine().slots(1, 512, True).prefills


def test_a_long_prompt_reads_the_columns_that_are_filled(tmp_path, monkeypatch):
    """Pieces of it read a half of the cache, and then all, and the last ones a key head after the other; the tokens are
    PyTorch's."""
    monkeypatch.setattr(backbone_ops, "_SCORES", 6 << 20)
    assert [backbone_ops.heads_together(6, 2, 160, keys) for keys in (1536, 3072)] == [6, 3]
    reference = torch_model(tiny_config(text={"max_position_embeddings": 4096, "num_hidden_layers": 2}))
    reference.save_pretrained(tmp_path)
    own = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    inputs = batch([prompt([2100])])
    expected = reference.generate(**to_torch(inputs), max_new_tokens=4, do_sample=False)[:, 2100:]
    assert new_tokens(own, inputs, max_new_tokens=4).tolist() == expected.tolist()
    assert set(own.engine().slots(1, 2104, True).prefills) == {(640, 640), (160, 1536), (160, 3072)}


def test_twenty_prompts_of_different_lengths_compile_few_graphs(model):
    """One for the step, and one for each width of a first piece, counted where MindSpore compiles."""
    model._engines_of = None
    with Compilations() as compiled:
        for length in range(5, 405, 20):
            assert new_tokens(model, batch([prompt([length], length)]), max_new_tokens=8).shape == (1, 8)
    assert len(compiled.seconds) == 1 + len([width for width in FIRST if width <= 400])


def test_a_new_prompt_of_the_same_bucket_compiles_nothing(model, monkeypatch):
    new_tokens(model, max_new_tokens=3)
    monkeypatch.setattr(model._engines[True], "graph", lambda cell: pytest.fail("compiled again"))
    other = {**batch([prompt([9, "a33", 7], 4)]), **clips([33], 5)}
    assert new_tokens(model, other, max_new_tokens=20).shape == (1, 20)


def test_weights_version_changes_with_what_a_graph_does_not_see(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    layer = model.language_model.model.layers[0].self_attn.q_proj
    versions = [model.weights_version, model.weights_version]
    assert versions[0] == versions[1]
    ops.assign(layer.weight, Tensor(np.zeros(layer.weight.shape, np.float32)))
    assert model.weights_version == versions[0]
    adapted = add_lora(model)
    (lora,) = (
        cell for name, cell in model.cells_and_names() if name == "language_model.model.layers.0.self_attn.q_proj"
    )
    for change in (
        lambda: None,  # the adapter itself
        lambda: lora.merge(),
        lambda: lora.unmerge(),
        lambda: lora.enable_adapters(False),
        lambda: lora.scale_layer(2.0),
        lambda: adapted.unload(),
        lambda: layer.weight.set_data(layer.weight.value().copy()),
    ):
        change()
        assert model.weights_version not in versions
        versions.append(model.weights_version)


@pytest.mark.parametrize("change", ["new memory", "in place"])
def test_weights_that_change_between_two_calls(tmp_path, change):
    """A compiled graph reads a parameter where it was; a prefill the layers' own weights, a step the packed ones."""
    torch_model(tiny_config()).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    ids = np.array([prompt([CHUNK + 1])], np.int32)

    def scores() -> np.ndarray:
        sequences = Sequences(model.engine(), 1, CHUNK + 1, prefills=True)
        outputs = prefill(sequences, ids[0, :CHUNK]), sequences.extend(ids[:, CHUNK])
        return np.concatenate([scores.asnumpy() for scores, _ in outputs])

    for part in ("self_attn.k_proj.bias", "mlp.up_proj.weight"):
        before = scores()
        parameter = dict(model.parameters_and_names())[f"language_model.model.layers.1.{part}"]
        value = Tensor(np.random.default_rng(0).normal(size=parameter.shape).astype(np.float32))
        ops.assign(parameter, value) if change == "in place" else parameter.set_data(value)
        assert (model.engine().packed is None) == (change == "new memory")
        expected = model(input_ids=ids, attention_mask=np.ones_like(ids)).logits.asnumpy()[0, -2:]
        for old, new, right in zip(before, scores(), expected):
            assert relative_error(new, right) < 1e-5, part
            assert relative_error(old, right) > 1e-3, part


@pytest.mark.parametrize("change", ["new memory", "in place"])
@pytest.mark.parametrize("tied", [False, True])
def test_an_output_layer_in_parts_is_the_whole_one(tmp_path, monkeypatch, tied, change):
    monkeypatch.setattr(packed_weights, "_MOST_OUTPUTS", VOCAB // 3)
    torch_model(tiny_config(text={"tie_word_embeddings": tied})).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    assert (model.language_model.lm_head is None) == tied
    assert len(model.packed_weights.outputs) > 2
    ids = np.array([[5]], np.int32)
    for expected_packed in (True, change == "in place"):
        sequences = Sequences(model.engine(), 1, 1)
        assert (model.engine().packed is not None) == expected_packed
        sequences.slots.cache.clear()
        scores = sequences.extend(ids[0])[0].asnumpy()
        expected = model(input_ids=ids, attention_mask=np.ones_like(ids)).logits.asnumpy()[0]
        assert relative_error(scores, expected) < 1e-5
        parameter = model.language_model.output_weight
        value = Tensor(np.random.default_rng(0).normal(size=parameter.shape).astype(np.float32))
        ops.assign(parameter, value) if change == "in place" else parameter.set_data(value)


def test_packed_weights_stay_the_models_own(tmp_path):
    torch_model(tiny_config()).save_pretrained(tmp_path / "first")
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path / "first")
    new_tokens(model, max_new_tokens=1)
    packed = model.packed_weights
    assert model.engine().packed is packed
    layers = model.language_model.model.layers
    for layer, heads, biases, both in zip(layers, packed.heads, packed.biases, packed.feed_forward):
        attention, mlp = layer.self_attn, layer.mlp
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        for whole, parts in (
            (heads, [p.weight for p in projections]),
            (biases, [p.bias for p in projections]),
            (both, [mlp.gate_proj.weight, mlp.up_proj.weight]),
        ):
            ends = np.cumsum([part.nbytes for part in parts])
            assert [part.data_ptr() for part in parts] == [whole.data_ptr() + end for end in (0, *ends[:-1])]
            assert whole.nbytes == ends[-1]
    new_tokens(model, max_new_tokens=1, compile=False)
    model.save_pretrained(tmp_path / "second")
    again = AutoModelForAudioTextToText.from_pretrained(tmp_path / "second")
    for (name, saved), (_, own) in zip(again.parameters_and_names(), model.parameters_and_names()):
        np.testing.assert_array_equal(saved.asnumpy(), own.asnumpy(), name)


@pytest.mark.slow
@pytest.mark.long
def test_caches_are_dropped_only_where_they_are_too_large_together(model, monkeypatch, caplog):
    model._engines_of = None
    first = new_tokens(model, max_new_tokens=6, num_beams=2).tolist()
    slots = model._engines[True]._slots
    assert set(slots) == {(1, 512), (2, 512)}
    step = weakref.ref(slots[2, 512].step)
    monkeypatch.setattr(engine, "_LEAST_BYTES", slots[2, 512].cache.nbytes * 4)
    new_tokens(model, batch([prompt([4])] * 5), max_new_tokens=2)
    assert set(slots) == {(1, 512), (8, 512)}
    assert "the cache of 2 sequences of 512 tokens is dropped" in caplog.text
    gc.collect()
    assert step() is None
    assert new_tokens(model, max_new_tokens=6, num_beams=2).tolist() == first


@pytest.mark.slow
@pytest.mark.long
def test_many_graphs_are_not_more(tmp_path, monkeypatch):
    """Where there are many, a batch takes slots that it does not fill, also when it outgrows its own."""
    torch_model(tiny_config(text={"max_position_embeddings": 2048})).save_pretrained(tmp_path)
    model = AutoModelForAudioTextToText.from_pretrained(tmp_path)
    texts = [prompt([503 + row], row) for row in range(5)]
    expected = [new_tokens(model, batch([text]), max_new_tokens=12)[0].tolist() for text in texts]
    model._engines_of = None
    new_tokens(model, batch(texts), max_new_tokens=2)
    new_tokens(model, batch(texts[:2]), max_new_tokens=2)
    own = model._engines[True]
    assert set(own._slots) == {(1, 1024), (8, 512), (2, 512)}
    monkeypatch.setattr(engine, "_MANY_GRAPHS", own.graphs)
    assert new_tokens(model, batch(texts[:3]), max_new_tokens=2).tolist() == [row[:2] for row in expected[:3]]
    assert len(own._slots) == 3
    monkeypatch.setattr(running_batch, "EXPECTED_TOKENS", 1)
    with Compilations() as compiled:
        assert new_tokens(model, batch(texts[:2]), max_new_tokens=12).tolist() == expected[:2]
        assert new_tokens(model, batch(texts), max_new_tokens=12).tolist() == expected
    assert len(compiled.seconds) <= 1
    assert set(own._slots) == {(1, 1024), (8, 512), (2, 512), (8, 1024)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": 0.0, "do_sample": True}, "temperature must be greater than 0, not 0.0; .*do_sample=False"),
        ({"temperature": "hot"}, "temperature must be greater than 0, not 'hot'"),
        ({"top_p": 1.5}, "top_p must be between 0 and 1, not 1.5"),
        ({"top_k": -1}, "top_k must be at least 0"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"num_beams": 2, "do_sample": True}, "num_beams > 1 with do_sample=True is not supported"),
        ({"num_return_sequences": 2}, "num_return_sequences=2 is more than the 1"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences=3 is more than the 2"),
        ({"early_stopping": "soon"}, "early_stopping must be"),
        ({"max_length": 5}, f"max_length=5 leaves no room after the {LENGTH} tokens"),
        ({"penalty_alpha": 0.6}, "penalty_alpha=0.6 is not supported"),
        ({"logits_processor": []}, "logits_processor=.* is not supported. Supported: do_sample"),
        ({"eos_token_id": VOCAB}, f"eos_token_id has the token {VOCAB}, but the model has the tokens 0 to {VOCAB - 1}"),
        ({"pad_token_id": [1, VOCAB]}, f"pad_token_id has the token {VOCAB}"),
        ({"suppress_tokens": [10**6]}, "suppress_tokens has the token 1000000"),
        ({"begin_suppress_tokens": [VOCAB], "num_beams": 2}, f"begin_suppress_tokens has the token {VOCAB}"),
        ({"generation_config": 5}, "generation_config must be a GenerationConfig or a dict, not 5"),
        ({"maximum_tokens": 5}, "maximum_tokens=5 is not supported"),
        (
            {"generation_config": GenerationConfig(encoder_no_repeat_ngram_size=2)},
            "config encoder_no_repeat",
        ),
    ],
)
def test_refused_settings(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.generate(**INPUTS, **settings)


def test_sampling_settings_without_sampling_are_reported(model, caplog):
    new_tokens(model, max_new_tokens=1, temperature=0.5, top_p=0.5)
    assert "temperature, top_p has no effect without do_sample=True" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": INPUTS["input_ids"][0]}, r"input_ids must be \(batch, length\)"),
        ({"input_ids": None}, r"input_ids must be \(batch, length\)"),
        ({"attention_mask": np.ones((1, 3))}, r"attention_mask has shape \(1, 3\)"),
        ({"input_features": INPUTS["input_features"][:, :, :-2]}, r"\(1, 16, 38\).*takes \(clips, 16, 40\)"),
        ({"feature_attention_mask": np.ones((2, 40))}, r"feature_attention_mask has shape \(2, 40\)"),
        ({"input_features": None}, "hold 10 audio tokens, but the 0 given clips need 0"),
        ({**clips([40, 40])}, "hold 10 audio tokens, but the 2 given clips need 20"),
        ({**batch([prompt([4])])}, "hold 0 audio tokens, but the 1 given clips need 10"),
    ],
)
def test_inputs_that_do_not_fit(model, change, message):
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=message):
            call(**{**INPUTS, **change})


def test_prompts_and_answers_beyond_the_models_positions(model, caplog):
    with pytest.raises(ValueError, match="the prompt has 600 tokens.*the model has 512 positions"):
        model.generate(**batch([prompt([600])]))
    assert new_tokens(model, batch([prompt([505])]), max_new_tokens=100).shape == (1, 7)
    assert "max_new_tokens=100 is cut to 7" in caplog.text


def test_settings_merge():
    settings = settle(GenerationConfig(temperature=0.5, do_sample=True, eos_token_id=[3, 4]), {"top_p": 0.3})
    assert (settings.temperature, settings.top_p, settings.top_k, settings.eos_token_ids) == (0.5, 0.3, 50, [3, 4])
    assert settings.padding == 3
    assert settle({}, {"pad_token_id": 0, "eos_token_id": 7}).padding == 0
    assert settle(None, {}) == GenerationSettings()


def test_beams_of_a_tiny_vocabulary():
    """Fewer tokens than candidates wanted: every continuation is a candidate."""
    settings = GenerationSettings(num_beams=2, max_new_tokens=2, eos_token_id=[1])
    search = BeamSearch(1, settings)
    scores = np.log(np.array([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]], np.float32))
    for _ in range(2):
        search.step(scores, lambda tokens: (tokens[:, -1] == 1) | (tokens.shape[1] == 2))
    assert search.result()[0].tolist() in ([[0, 0]], [[1]])
