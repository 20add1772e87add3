"""LoRA on models that write down what is said: PyTorch's losses and gradients, PEFT's files, and what they are for."""

import json
import re
from pathlib import Path

import helpers_peft
import helpers_seamless as seamless
import helpers_speecht5 as speecht5
import helpers_whisper as whisper
import httpx
import mindspore as ms
import numpy as np
import peft
import pytest
import soundfile
import torch
from ascend_branch import as_on_ascend
from fake_service import serving
from helpers import relative_error
from safetensors.numpy import load_file

from mindone_audio import AutoModelForAudioTextToText, AutoProcessor, cli, pipeline
from mindone_audio.adapters.files import name_on_disk
from mindone_audio.adapters.lora import LoraSettings, add_lora, load_adapter
from mindone_audio.finetune import DataError, Example, FinetuneSettings, Trainer, TranscriptCollator
from mindone_audio.finetune.graphs import Accumulate, MicroBatch, SummedLoss, graph, zeros_like
from mindone_audio.inputs.audio import AudioError
from mindone_audio.server.options import ServerOptions
from mindone_audio.setting_fields import option

TOLERANCE = 1e-4
ALL = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
TEXTS = ("abc", "Hello", "dogs!")
FEW_LAYERS = {"encoder_layers": 1, "decoder_layers": 2}  # the gradients of more take longer to compile


def tone(place: int) -> np.ndarray:
    """Clips of unequal length and pitch."""
    return (0.1 * np.sin(np.arange(4000 + 800 * place) * (0.1 + 0.2 * place))).astype(np.float32)


def example(place: int = 0, text: str = TEXTS[0], prompt: str = "", **spoken) -> Example:
    return Example(tone(place), prompt, text, f"row {place}", **spoken)


# Of unequal clips and answers, one in another language and one that is translated.
EXAMPLES = [
    example(0, TEXTS[0]),
    example(1, TEXTS[1], language="german"),
    example(2, TEXTS[2], task="translate"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("whisper")
    whisper.save_checkpoint(made, **FEW_LAYERS)
    whisper.generation_config(alignment_heads=[[1, 0]]).save_pretrained(made)
    return made


def torch_model():
    """What `folder` has."""
    return whisper.torch_whisper(whisper.tiny_config(**FEW_LAYERS))


@pytest.fixture(scope="module")
def english(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("english")
    whisper.save_checkpoint(made, multilingual=False)
    return made


@pytest.fixture(scope="module")
def collate(folder) -> TranscriptCollator:
    return collator(folder)


def collator(folder: Path, **settings) -> TranscriptCollator:
    model, processor = AutoModelForAudioTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    return TranscriptCollator(processor, model, **{"language": "en", **settings})


def to_torch(batch: dict) -> dict:
    return {name: torch.from_numpy(np.asarray(value)) for name, value in batch.items()}


def summed(model, batch: dict, compiled: bool = False, rows: int = 4) -> tuple[float, dict[str, np.ndarray]]:
    """The mean loss of a micro-batch, and the gradients of adapters by the names on disk, as the trainer has them."""
    base, learned = model.get_base_model(), model.trainable_params()
    encodes = any(parameter.name.startswith("audio_tower.") for parameter in learned)
    sums = [zeros_like(parameter, f"sum.{parameter.name}") for parameter in learned]
    micro = MicroBatch(base, batch, rows, not encodes)
    arguments = *micro.tokens, micro.where, micro.targets, base.language_model.stacked_tables(micro.length, base.dtype)
    audio = (micro.features, micro.lengths)
    if not encodes:
        audio = (base.audio_tower(*audio),)
    loss = graph(Accumulate(SummedLoss(base, encodes), learned, sums), compiled)(*arguments, *audio)
    names = [name_on_disk(base, parameter.name) for parameter in learned]
    return float(loss) / micro.count, {name: total.asnumpy() / micro.count for name, total in zip(names, sums)}


def torch_gradients(model) -> dict[str, np.ndarray]:
    prefix = "base_model.model."
    learned = [(name.removeprefix(prefix), p) for name, p in model.named_parameters() if p.requires_grad]
    found = {name: p.grad.numpy().copy() for name, p in learned}
    model.zero_grad()
    return found


def worst(ours: dict, theirs: dict) -> float:
    """The largest relative error of any gradient."""
    assert ours.keys() == theirs.keys()
    return max(relative_error(ours[name], theirs[name]) for name in theirs)


# --- the numbers


@pytest.fixture(scope="module")
def adapted(folder, tmp_path_factory):
    """PEFT's adapters of all linear layers on PyTorch's model, the folder that PEFT wrote, and ours with them."""
    theirs = helpers_peft.torch_adapter(torch_model(), target_modules=ALL)
    saved = tmp_path_factory.mktemp("adapter")
    theirs.save_pretrained(saved)
    ours = load_adapter(AutoModelForAudioTextToText.from_pretrained(folder), saved, trainable=True)
    return theirs, saved, ours


def test_loss_and_gradients_are_pytorchs(adapted, collate):
    """With the encoder's layers, compiled; and a model of which one weight is another one is seen."""
    theirs, _, ours = adapted
    batch = collate(EXAMPLES)
    output = theirs(**to_torch({name: value for name, value in batch.items() if name != "decoder_attention_mask"}))
    output.loss.backward()
    expected = torch_gradients(theirs)
    assert len(expected) == 2 * (1 * 6 + 2 * 10) and any(".encoder.layers." in name for name in expected)
    made = ours(**batch)
    assert abs(float(made.loss) - output.loss.item()) < TOLERANCE * output.loss.item()
    for compiled in (True, False):
        loss, gradients = summed(ours, batch, compiled)
        assert abs(loss - output.loss.item()) < TOLERANCE * output.loss.item()
        assert worst(gradients, expected) < TOLERANCE
    weight = ours.get_base_model().language_model.model.layers[1].encoder_attn_layer_norm.weight
    kept = weight.asnumpy().copy()
    ms.ops.assign(weight, ms.Tensor(kept * 1.02))
    assert worst(summed(ours, batch)[1], expected) > 10 * TOLERANCE
    ms.ops.assign(weight, ms.Tensor(kept))


def test_gradients_on_an_npus_branch(folder, adapted, collate):
    _, saved, ours = adapted
    batch = collate(EXAMPLES)
    with as_on_ascend():
        model = load_adapter(AutoModelForAudioTextToText.from_pretrained(folder), saved, trainable=True)
        loss, gradients = summed(model, batch)
    expected, others = summed(ours, batch)
    assert loss == pytest.approx(expected, rel=TOLERANCE) and worst(gradients, others) < TOLERANCE


def test_graphs_may_have_more_places_than_the_model_has_positions(tmp_path):
    whisper.torch_whisper(whisper.tiny_config(max_target_positions=9)).save_pretrained(tmp_path)
    whisper.generation_config().save_pretrained(tmp_path)
    model = add_lora(AutoModelForAudioTextToText.from_pretrained(tmp_path), LoraSettings(r=2))
    read = np.array([[91, 92, 96, 100, *range(5)]])
    batch = {"input_features": whisper.features(1), "decoder_input_ids": read, "labels": read}
    assert summed(model, batch)[0] == pytest.approx(float(model(**batch).loss), rel=1e-5)


def test_a_batch_is_each_example_alone(adapted, collate):
    _, _, ours = adapted
    together, gradients = summed(ours, collate(EXAMPLES))
    counts = [int((collate([one])["labels"] != -100).sum()) for one in EXAMPLES]
    alone = [summed(ours, collate([one]), rows=1) for one in EXAMPLES]
    assert together == pytest.approx(np.average([loss for loss, _ in alone], weights=counts), rel=1e-5)
    expected = {name: np.average([own[name] for _, own in alone], axis=0, weights=counts) for name in gradients}
    assert worst(gradients, expected) < TOLERANCE


def test_all_labels_are_those_of_hugging_faces_guide(folder, adapted):
    """Which are the tokenizer's with all that an answer begins with, but the first one."""
    theirs, _, ours = adapted
    processor = AutoProcessor.from_pretrained(folder)
    processor.tokenizer.set_prefix_tokens(language="en", task="transcribe", predict_timestamps=False)
    one = [example(place, text) for place, text in enumerate(TEXTS)]
    expected = processor([each.audio for each in one], text=list(TEXTS))["labels"]
    assert (expected[:, 0] == whisper.START).all()
    batch = collator(folder, labels="all")(one)
    np.testing.assert_array_equal(batch["labels"], expected[:, 1:])
    loss = theirs(torch.from_numpy(batch["input_features"]), labels=torch.from_numpy(expected[:, 1:])).loss
    assert summed(ours, batch)[0] == pytest.approx(loss.item(), rel=TOLERANCE)


def test_pefts_file_comes_back(folder, adapted, tmp_path):
    theirs, saved, ours = adapted
    ours.save_pretrained(tmp_path)
    mine, original = load_file(tmp_path / "adapter_model.safetensors"), load_file(saved / "adapter_model.safetensors")
    assert mine.keys() == original.keys()
    assert "base_model.model.model.decoder.layers.0.self_attn.q_proj.lora_A.weight" in mine
    for name, value in original.items():
        np.testing.assert_array_equal(mine[name], value)
    again = peft.PeftModel.from_pretrained(torch_model(), tmp_path).eval()
    features, ids = torch.from_numpy(whisper.features(2)), torch.tensor([[91, 92, 96], [91, 93, 96]])
    with torch.no_grad():
        expected, made = (model(features, decoder_input_ids=ids).logits.numpy() for model in (theirs, again))
    assert relative_error(made, expected) < 1e-6
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "WhisperForConditionalGeneration"
    config |= {"task_type": "SEQ_2_SEQ_LM", "auto_mapping": None}  # as some guides write it
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    ours = load_adapter(AutoModelForAudioTextToText.from_pretrained(folder), tmp_path)
    ours = ours(input_features=features.numpy(), decoder_input_ids=ids.numpy()).logits.asnumpy()
    assert relative_error(ours, expected) < TOLERANCE


@pytest.mark.parametrize("encoder", [False, True])
def test_the_layers_that_are_adapted(folder, tmp_path, encoder):
    """Those of PEFT's guide, the encoder's too only if they are asked for; the base model stays the same."""
    model = add_lora(AutoModelForAudioTextToText.from_pretrained(folder), LoraSettings(r=2, encoder=encoder))
    model.save_pretrained(tmp_path)
    theirs = peft.PeftModel.from_pretrained(torch_model(), tmp_path)
    names = {name for name, module in theirs.base_model.model.named_modules() if hasattr(module, "lora_A")}
    assert {name.split(".")[-1] for name in names} == {"q_proj", "v_proj"}
    assert len(names) == 2 * 2 * 2 + (2 if encoder else 0)
    assert {name.split(".")[1] for name in names} == ({"encoder", "decoder"} if encoder else {"decoder"})
    with pytest.raises(ValueError, match="'o_proj' matches no linear layer.*did you mean .*out_proj"):
        add_lora(AutoModelForAudioTextToText.from_pretrained(folder), LoraSettings(target_modules=("o_proj",)))


def test_speecht5_is_taught_by_the_same_code(tmp_path):
    """Each clip of PyTorch's alone, since there padding is heard; its encoder is not in the graph, and then is."""
    theirs = speecht5.speech_to_text()
    theirs.save_pretrained(tmp_path)
    speecht5.save_processor(tmp_path)
    clips, texts = speecht5.clips(1200, 700, 900), ("abc", "hello", "dg a")
    examples = [Example(clip, "", text, "a row") for clip, text in zip(clips, texts)]
    for targets in (["v_proj", "intermediate_dense"], r".*wrapped_decoder.*(v_proj|output_dense)"):
        adapted = helpers_peft.torch_adapter(speecht5.speech_to_text(), target_modules=targets)
        adapted.save_pretrained(tmp_path / "adapter")
        ours = load_adapter(AutoModelForAudioTextToText.from_pretrained(tmp_path), tmp_path / "adapter", trainable=True)
        collate = TranscriptCollator(AutoProcessor.from_pretrained(tmp_path), ours.get_base_model())
        total = count = 0
        for one in examples:
            batch = collate([one])
            learned = int((batch["labels"] != -100).sum())
            loss = adapted(**to_torch({**batch, "attention_mask": batch["attention_mask"].astype(np.int64)})).loss
            (loss * learned).backward()
            total, count = total + loss.item() * learned, count + learned
        loss, gradients = summed(ours, collate(examples))
        assert loss == pytest.approx(total / count, rel=TOLERANCE)
        expected = {name: value / count for name, value in torch_gradients(adapted).items()}
        assert worst(gradients, expected) < TOLERANCE
    with pytest.raises(DataError, match="row 4: language 'de': a speecht5 model is told none: leave it out"):
        collate([Example(clips[0], "", "abc", "row 4", language="de")])
    with pytest.raises(AudioError, match="row 5: clip 0 has 9000 samples, this model takes"):
        collate([Example(speecht5.clips(9000)[0], "", "abc", "row 5")])


# --- examples to rows


def ids(*names: str) -> list[int]:
    special = {f"<|{name}|>": token for name, token in (*whisper.TASKS.items(), ("start", whisper.START))}
    special |= {**whisper.LANGUAGES, "<|end|>": whisper.END, "<|no times|>": whisper.NO_TIMESTAMPS}
    return [special[f"<|{name}|>"] if f"<|{name}|>" in special else ord(name) - 33 for name in names]


def test_what_is_read_and_what_is_learned(folder):
    batch = collator(folder, pad_to_multiple_of=16)(EXAMPLES)
    assert batch["decoder_input_ids"].shape == (3, 16) and batch["input_features"].shape == (3, 16, 40)
    rows = zip(("en", "de", "en"), ("transcribe", "transcribe", "translate"), TEXTS)
    for row, (language, task, text) in enumerate(rows):
        read = ids("start", language, task, "no times", *text)
        assert batch["decoder_attention_mask"][row].sum() == len(read)
        assert batch["decoder_input_ids"][row, : len(read)].tolist() == read
        learned = [-100] * 3 + ids(*text, "end")
        assert batch["labels"][row].tolist() == learned + [-100] * (16 - len(learned))


def test_an_english_only_model(english):
    for settings in ({"language": None}, {"language": "English"}, {"language": "<|en|>", "task": "transcribe"}):
        batch = collator(english, **settings)([example(text="ab")])
        assert batch["decoder_input_ids"].tolist() == [ids("start", "no times", "a", "b")]
        assert batch["labels"].tolist() == [[-100, *ids("a", "b", "end")]]
    with pytest.raises(ValueError, match="language 'de' is given to an English-only model"):
        collator(english, language="de")
    with pytest.raises(DataError, match="row 0: task 'translate' is given to an English-only model"):
        collator(english)([example(task="translate")])


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"language": None}, {}, "row 0: this model has several languages: say which one is spoken with --language"),
        ({}, {"language": "klingon"}, "row 0: --language 'klingon' is none of this model's: it has de, en, fr"),
        ({}, {"language": 3}, "row 0: --language 3 is none of this model's"),
        ({}, {"task": "sing"}, "row 0: --task 'sing' is unknown: it may be transcribe or translate"),
        ({}, {"prompt": "What?"}, "row 0: there is a question, 'What?', and this model writes down what is said"),
        ({}, {"text": "a<|0.10|>"}, "row 0: the answer has the word <|0.10|>, which means something to the model"),
        ({}, {"text": "a<|endoftext|>b"}, "row 0: the answer has the word <|endoftext|>"),
        ({}, {"text": "x" * 61}, "row 0: 66 tokens are more than the 65 that this model can say of a clip"),
        ({"max_length": 7}, {}, "row 0: 8 tokens are more than --max-length 7: raise it, or cut the clip"),
        ({}, {"place": 4}, "row 4: the clip is 0.45 s long and the model hears 0.4 s: cut the clip, leave the example"),
    ],
)
def test_examples_that_cannot_be(folder, settings, given, message):
    with pytest.raises(ValueError) as caught:
        collator(folder, **settings)([example(**given)])
    assert message in caught.value.worded(option)
    if re.search("tokens are more|s long", message):
        skipping = collator(folder, on_bad_clip="skip", **settings)
        assert skipping([example(**given)]) is None and len(skipping.skipped) == 1


# --- the command


def write(folder: Path, *more: dict, **rows) -> str:
    """A JSONL file with clips beside it."""
    lines = []
    for place, text in enumerate(TEXTS):
        soundfile.write(folder / f"{place}.wav", tone(place), 16000)
        lines.append({"audio": f"{place}.wav", rows.get("answer", "answer"): text})
    lines[1]["language"] = "de"
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (*lines, *more)))
    return str(path)


def finetuned(*arguments) -> int:
    return cli.main(["finetune", *map(str, arguments)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt", "What?"), "--prompt 'What?': this model writes down what is said"),
        (("--chat",), "--chat has no effect: a whisper model writes down what is said: leave it out"),
        (("--eos-token-id", "3"), "--eos-token-id has no effect: a whisper model"),
        (("--language", "xx"), "--language 'xx' is none of this model's: it has de, en, fr"),
        (("--language", "en", "--gradient-checkpointing"), "--gradient-checkpointing is not there for whisper models"),
        ((), "train.jsonl line 1: this model has several languages: say which one is spoken with --language"),
        (("--language", "en", "--train", "{asked}"), "asked.jsonl line 1: there is a question, 'Why?'"),
        (("--answer-column", "text"), "has no column 'text'"),
    ],
)
def test_what_is_refused_is_one_line(folder, tmp_path, capsys, options, message):
    train = write(tmp_path)
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"audio": "0.wav", "prompt": "Why?", "answer": "a"}) + "\n")
    options = [part.format(asked=asked) for part in options]
    command = ["--model", folder, "--train", train, "--output-dir", tmp_path / "out", "--no-compile", "--no-shuffle"]
    assert finetuned(*command, "--max-steps", 1, "--device", "cpu", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and "Traceback" not in error


def test_a_chat_model_is_told_no_language(tmp_path, capsys):
    command = ["--train", write(tmp_path, answer="answer"), "--prompt", "What?", "--output-dir", tmp_path / "out"]
    assert finetuned(*command, "--language", "en", "--max-steps", 1) == 2
    assert "--language has no effect: a qwen2_audio model is asked questions: leave it out" in capsys.readouterr().err


def test_a_text_may_be_the_answer(folder, tmp_path):
    """As most data sets of speech have it; it is no question then."""
    command = ["--model", folder, "--train", write(tmp_path, answer="text"), "--answer-column", "text"]
    command += ["--output-dir", tmp_path / "out", "--language", "en", "--no-compile", "--max-steps", 1]
    assert finetuned(*command, "--device", "cpu", "--lora-dropout", 0.1) == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()


def test_the_command_teaches_speecht5(tmp_path, capsys):
    folder, out, train = tmp_path / "speecht5", tmp_path / "out", tmp_path / "train.jsonl"
    theirs = speecht5.speech_to_text()
    theirs.save_pretrained(folder)
    speecht5.save_processor(folder)
    for place, clip in enumerate(speecht5.clips(1200, 700)):
        soundfile.write(tmp_path / f"{place}.wav", 0.1 * clip, 16000)
    train.write_text("".join(json.dumps({"audio": f"{n}.wav", "answer": "abc", "prompt": ""}) + "\n" for n in (0, 1)))
    command = ["--model", folder, "--train", train, "--output-dir", out, "--no-compile", "--device", "cpu"]
    command += ["--evaluation", train, "--max-steps", 6, "--learning-rate", 3e-2, "--logging-steps", 1]
    assert finetuned(*command, "--metrics", "wer", "--max-new-tokens", 12) == 0
    header, *lines = (line.split(",") for line in (out / "log.csv").read_text().splitlines())
    losses = [float(line[header.index("loss")]) for line in lines if line[header.index("loss")]]
    assert losses[-1] < 0.8 * losses[0] and float(lines[-1][header.index("eval_loss")]) < losses[0]
    adapted = peft.PeftModel.from_pretrained(speecht5.speech_to_text(), out).eval()
    ours = load_adapter(AutoModelForAudioTextToText.from_pretrained(folder), out).get_base_model()
    (clip,), ids = speecht5.clips(900), np.array([[2, 4, 5]])
    with torch.no_grad():
        expected = adapted(torch.from_numpy(clip[None]), decoder_input_ids=torch.from_numpy(ids)).logits.numpy()
    assert relative_error(ours(clip[None], decoder_input_ids=ids).logits.asnumpy(), expected) < TOLERANCE


@pytest.mark.parametrize("name, save", [("seamless", seamless.save_checkpoint), ("speaker", speecht5.save_all)])
def test_models_that_are_not_taught(tmp_path, capsys, name, save):
    save(tmp_path / "seamless" if name == "seamless" else tmp_path)
    write(tmp_path)
    command = ["--model", tmp_path / name, "--train", tmp_path / "train.jsonl", "--output-dir", tmp_path / "out"]
    assert finetuned(*command, "--device", "cpu") == 2
    assert re.search("^error: --model .* is not taught here: take another model$", capsys.readouterr().err, re.M)


@pytest.mark.slow
@pytest.mark.long
def test_from_examples_to_another_text(folder, tmp_path, capsys):
    """The command teaches, evaluates and merges; pipeline, transcribe and serve say what was taught, and only with the
    adapter."""
    train, out, merged = write(tmp_path), tmp_path / "out", tmp_path / "merged"
    command = ["--model", folder, "--train", train, "--output-dir", out, "--merge", merged, "--language", "en"]
    command += ["--max-steps", 60, "--learning-rate", 3e-2, "--per-device-train-batch-size", 3, "--lora-r", 8]
    command += ["--evaluation", train, "--metrics", "wer", "--max-new-tokens", 12, "--logging-steps", 1]
    assert finetuned(*command, "--device", "cpu") == 0
    told = capsys.readouterr().out
    assert f"try it: mindone-audio transcribe --model {merged} --language en CLIP" in told
    header, *lines = (line.split(",") for line in (out / "log.csv").read_text().splitlines())
    losses = [float(line[header.index("loss")]) for line in lines if line[header.index("loss")]]
    assert losses[-1] < 0.1 < 5 < losses[0]
    assert float(lines[-1][header.index("eval_wer")]) == 0
    spoken = {"language": "en", "temperature": 0, "return_timestamps": False, "max_new_tokens": 12}
    clips = [tone(0), tone(2)]
    before, after, alone = (
        [answer["text"] for answer in pipeline(**place)(clips, task="transcribe", **spoken)]
        for place in ({"model": folder}, {"model": folder, "adapter": out}, {"model": merged})
    )
    assert after == alone == [TEXTS[0], TEXTS[2]] != before
    for adapter in ([], ["--adapter", str(out)]):
        arguments = ["--model", str(folder), *adapter, "--language", "en", "--max-new-tokens", "12"]
        assert cli.main(["transcribe", *arguments, str(tmp_path / "0.wav")]) == 0
        assert (capsys.readouterr().out == f"{TEXTS[0]}\n") == bool(adapter)
    theirs = peft.PeftModel.from_pretrained(torch_model(), out).eval()
    own = whisper.TorchWhisper.from_pretrained(merged, attn_implementation="eager").eval()
    features, start = torch.from_numpy(whisper.features(2)), torch.tensor([[91, 92, 96, 100]] * 2)
    with torch.no_grad():
        expected, made = (model(features, decoder_input_ids=start).logits.numpy() for model in (theirs, own))
    assert relative_error(made, expected) < TOLERANCE
    served(folder, out, tmp_path / "0.wav")


def served(folder: Path, adapter: Path, clip: Path) -> None:
    """The base model and the adapter behind one server, asked in turn."""
    options = ServerOptions(
        model=folder, served_model_name="base", adapter=(f"taught={adapter}",), port=0, max_batch=2, max_model_len=64
    )
    with serving(options) as (url, _):

        def ask(model: str) -> str:
            data = {"model": model, "language": "en", "temperature": 0.0, "response_format": "json"}
            files = {"file": ("a.wav", clip.read_bytes())}
            return httpx.post(f"{url}/v1/audio/transcriptions", files=files, data=data, timeout=300).json()["text"]

        said = [ask(model) for model in ("base", "taught", "base", "taught")]
    assert said[1] == said[3] == TEXTS[0] != said[0]


def test_a_run_that_goes_on_takes_the_steps_of_one_that_was_never_interrupted(folder, tmp_path):
    def trainer(name: str) -> Trainer:
        model = add_lora(AutoModelForAudioTextToText.from_pretrained(folder), LoraSettings(r=4, dropout=0.2))
        settings = FinetuneSettings(
            str(tmp_path / name), max_steps=4, learning_rate=1e-2, logging_steps=1, save_steps=2, compile=False
        )
        return Trainer(model, None, collator(folder), settings, EXAMPLES)

    one = trainer("one").train(progress=False)
    first = trainer("two")
    stopped = first.train(should_stop=lambda: first.step == 3, progress=False)
    rest = trainer("two").train(resume_from_checkpoint=True, progress=False)
    assert stopped.losses + rest.losses == one.losses and one.losses[-1] < one.losses[0]
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("two", "one"))
    assert all((ours[name] == theirs[name]).all() for name in theirs)
