"""Fine-tune Audio Flamingo 3 by LoRA to caption AudioCaps, streamed, as transformers' guide does, on MindSpore.

    python examples/audio_flamingo3_audiocaps_lora.py
    python examples/audio_flamingo3_audiocaps_lora.py --model ./tiny-flamingo --dataset ./clips --max-steps 4 \
        --train-examples 8 --eval-examples 2

Without options: the published checkpoint and data set, and the hyper-parameters of the guide. Options put a small
checkpoint and data set in their places: a folder of parquet files, train-….parquet and test-….parquet, with the columns
audio and caption. Then the adapter is loaded again and captions a test clip, is merged, and captions it as a pipeline.

What was run: all steps on a CPU in float32 with a tiny checkpoint of random weights and a tiny data set. What was not:
the published weights and data set, an NPU, bfloat16.

What differs from the guide, and why:

- The labels are those of output_labels=True, which learn the whole conversation but for audio and padding, without the
  first token of a row: before it there is nothing but padding to tell it from. labels="answer" learns captions only.
- PEFT finds q_proj, k_proj and v_proj in the audio encoder as well, and trains adapters there. `LoraSettings` leaves
  the encoder alone, as the guide's text says; encoder=True gives what its code does.
- Clips are decoded and resampled when they are used, without PyTorch, whatever the column was cast to. Clips to
  evaluate on are streamed once and stay encoded in memory.
- Checkpoints have the optimiser's state, which save_only_model leaves out: of adapters it is small, and with it
  --resume goes on. Checkpoints, evaluation and the log are also written after the last step.
- task_type and bias="none" have nothing to decide here. bf16 is the checkpoint's dtype, on a CPU float32; adapters and
  the optimiser's state are float32 everywhere. Uploading waits for --push-to-hub.
- Answers are greedy, and the pipeline gets the same question as the adapter, so that the two can be compared.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402
from datasets import Audio, load_dataset  # noqa: E402

from mindone_audio import (  # noqa: E402
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    pipeline,
    to_mindspore,
)
from mindone_audio.finetune import (  # noqa: E402
    AnswerCollator,
    FinetuneError,
    FinetuneSettings,
    LoraSettings,
    Trainer,
    add_lora,
    dataset_examples,
    load_adapter,
)
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402

QUESTION = "Describe the audio."
GENERATION = {"max_new_tokens": 100, "do_sample": False}
LORA = LoraSettings(
    r=16,
    alpha=32,
    dropout=0.05,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)


def training_settings(arguments: argparse.Namespace) -> FinetuneSettings:
    """The guide's training arguments, and transformers' defaults: no warm-up, no weight decay, a linear schedule."""
    return FinetuneSettings(
        output_dir=str(arguments.output),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        gradient_accumulation_steps=4,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="linear",
        max_steps=arguments.max_steps,
        logging_steps=10,
        eval_steps=100,
        save_steps=250,
        save_total_limit=2,
        gradient_checkpointing=True,
    )


def stream(name: str, split: str):
    """A split of the data set, of which nothing is downloaded before it is needed."""
    return load_dataset(name, split=split, streaming=True).cast_column("audio", Audio(sampling_rate=16000))


def examples_of(rows):
    """The rows of a stream as examples."""
    return dataset_examples(rows, audio="audio", answer="caption", prompt=QUESTION)


def train(arguments: argparse.Namespace, dtype: ms.Type | None) -> None:
    """Train adapters; the output folder gets them, the processor, checkpoints and log.csv."""
    dataset = stream(arguments.dataset, "train")
    train_examples = examples_of(dataset.take(arguments.train_examples))
    eval_examples = list(examples_of(dataset.skip(arguments.train_examples).take(arguments.eval_examples)))
    processor = AudioFlamingo3Processor.from_pretrained(arguments.model)
    model = AudioFlamingo3ForConditionalGeneration.from_pretrained(arguments.model, mindspore_dtype=dtype)
    collator = AnswerCollator(processor, generation_config=model.generation_config, labels="all")
    model = add_lora(model, LORA)
    model.print_trainable_parameters()
    trainer = Trainer(model, processor, collator, training_settings(arguments), train_examples, eval_examples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    processor.save_pretrained(arguments.output)
    if arguments.push_to_hub:
        model.push_to_hub(arguments.push_to_hub)
        processor.push_to_hub(arguments.push_to_hub)


def answer(model, processor, clip: np.ndarray, dtype: ms.Type) -> str:
    """What the model says about a clip."""
    content = [{"type": "text", "text": QUESTION}, {"type": "audio", "audio": clip}]
    conversation = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
    outputs = model.generate(**to_mindspore(inputs, dtype=dtype), **GENERATION)
    # Only what is new.
    return processor.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def infer(arguments: argparse.Namespace, dtype: ms.Type | None, clip: np.ndarray) -> None:
    """Ask the adapter, then the merged model in a pipeline."""
    base = AudioFlamingo3ForConditionalGeneration.from_pretrained(arguments.model, mindspore_dtype=dtype)
    processor = AudioFlamingo3Processor.from_pretrained(arguments.output)
    model = load_adapter(base, arguments.output)
    print(f"the adapter answers: {answer(model, processor, clip, base.dtype)!r}")

    merged = model.merge_and_unload()
    pipe = pipeline("audio-text-to-text", model=merged, processor=processor)
    result = pipe(clip, text=QUESTION, generate_kwargs=GENERATION)
    print(f"the pipeline answers: {result[0]['generated_text']!r}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nvidia/audio-flamingo-3-hf", help="folder or Hugging Face id")
    parser.add_argument("--dataset", default="OpenSound/AudioCaps", help="folder of parquet files or Hugging Face id")
    parser.add_argument(
        "--output", type=Path, default=Path("audio-flamingo-3-hf-lora-finetuned"), help="folder for results"
    )
    parser.add_argument("--train-examples", type=int, default=1000, help="the first so many (default: 1000)")
    parser.add_argument("--eval-examples", type=int, default=100, help="so many after them (default: 100)")
    parser.add_argument("--max-steps", type=int, default=500, help="of 16 examples (default: 500)")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in the output folder")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="upload adapter and processor; log in before")
    parser.add_argument("--device", help="auto, cpu, ascend or ascend:1 (default: what MindSpore finds)")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], help="default: the checkpoint's")
    return parser.parse_args()


def main() -> None:
    """Train, then infer."""
    arguments = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("mindone_audio").setLevel(logging.INFO)  # losses
    if arguments.device:
        set_device(arguments.device)
    dtype = getattr(ms, arguments.dtype) if arguments.dtype else None
    train(arguments, dtype)
    sample = next(iter(examples_of(stream(arguments.dataset, "test"))))
    infer(arguments, dtype, sample.samples())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, FinetuneError) as error:
        sys.exit(f"error: {in_words(error, option)}")
