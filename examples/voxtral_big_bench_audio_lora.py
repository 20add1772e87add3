"""Fine-tune Voxtral by LoRA to answer Big Bench Audio's spoken questions, as transformers' guide does, on MindSpore.

    python examples/voxtral_big_bench_audio_lora.py
    python examples/voxtral_big_bench_audio_lora.py --model ./tiny-voxtral --dataset ./clips --max-steps 4

Without options: the published checkpoint and data set, and the hyper-parameters of the guide. Options put a small
checkpoint and data set in their places: a folder of parquet files or of clips with metadata.jsonl, with the columns
audio, category and official_answer. Then the adapter is loaded again and answers, is merged, and answers as a pipeline.

What was run: all steps on a CPU in float32 with a tiny checkpoint of random weights and a tiny data set. What was not:
the published weights and data set, an NPU, bfloat16.

What differs from the guide, and why:

- Its collator takes the first tokens of each prompt for those that are not padding, but Voxtral's processor pads on the
  left: where the prompts of a batch are not equally long, it keeps padding and loses the end of the question. Ours
  keeps the prompt. The labels are the guide's: the answer and the end token. Answers are not cut at 512 tokens.
- Clips are not written as base64; they are decoded and resampled when they are used, without PyTorch.
- The guide freezes the audio encoder, but PEFT then finds q_proj, k_proj and v_proj in it as well and trains adapters
  there. `LoraSettings` leaves the encoder alone, as the guide's text says; encoder=True gives what its code does. The
  projector, which its text recommends and its list lacks, would be "multi_modal_projector" in target_modules.
- task_type and bias="none" have nothing to decide here. bf16 is the checkpoint's dtype, on a CPU float32; adapters and
  the optimiser's state are float32 everywhere. Instead of 4 worker processes a thread prepares the next step.
- Checkpoints, evaluation and the log are also written after the last step. Uploading waits for --push-to-hub.
- Answers are greedy, and the pipeline gets the same question as the adapter, so that the two can be compared.
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a checkout, installed or not

import mindspore as ms  # noqa: E402
import numpy as np  # noqa: E402

from mindone_audio import VoxtralForConditionalGeneration, VoxtralProcessor, pipeline, to_mindspore  # noqa: E402
from mindone_audio.finetune import (  # noqa: E402
    BIG_BENCH_AUDIO_QUESTIONS,
    AnswerCollator,
    FinetuneError,
    FinetuneSettings,
    LoraSettings,
    Trainer,
    add_lora,
    load_adapter,
    load_examples,
)
from mindone_audio.machine.device import set_device  # noqa: E402
from mindone_audio.setting_fields import in_words, option  # noqa: E402

QUESTION = "Listen to the audio and answer the question."
GENERATION = {"max_new_tokens": 100, "do_sample": False}
LORA = LoraSettings(
    r=8,
    alpha=32,
    dropout=0.05,
    target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)


def training_settings(arguments: argparse.Namespace) -> FinetuneSettings:
    """The guide's training arguments."""
    return FinetuneSettings(
        output_dir=str(arguments.output),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=8,
        learning_rate=arguments.learning_rate,
        num_train_epochs=3,
        max_steps=arguments.max_steps,
        logging_steps=10,
        eval_steps=100,
        save_steps=100,
        warmup_ratio=0.1,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        gradient_checkpointing=True,
    )


def split(examples, held_out: int) -> tuple[list, list]:
    """What is learned and what is evaluated on; clips stay encoded, or files, until they are used."""
    if not 0 < held_out < len(examples):
        raise ValueError(f"--eval-examples {held_out} of {len(examples)} examples leaves none to learn or to evaluate")
    order = np.random.default_rng(42).permutation(len(examples))  # that of datasets' shuffle(seed=42)
    shuffled = [examples[int(place)] for place in order]
    return shuffled[:-held_out], shuffled[-held_out:]


def train(arguments: argparse.Namespace, dtype: ms.Type | None, examples) -> None:
    """Train adapters; the output folder gets them, the processor, checkpoints and log.csv."""
    train_examples, eval_examples = split(examples, arguments.eval_examples)
    print(f"{len(train_examples)} examples to learn, {len(eval_examples)} to evaluate on")
    processor = VoxtralProcessor.from_pretrained(arguments.model)
    model = VoxtralForConditionalGeneration.from_pretrained(arguments.model, mindspore_dtype=dtype)
    collator = AnswerCollator(processor, generation_config=model.generation_config)
    model = add_lora(model, LORA)
    model.print_trainable_parameters()
    trainer = Trainer(model, processor, collator, training_settings(arguments), train_examples, eval_examples)
    trainer.train(resume_from_checkpoint=arguments.resume)
    processor.save_pretrained(arguments.output)
    model.save_pretrained(arguments.output / "lora_adapter")
    if arguments.push_to_hub:
        model.push_to_hub(arguments.push_to_hub)
        processor.push_to_hub(arguments.push_to_hub)


def answer(model, processor, clip: np.ndarray, dtype: ms.Type) -> str:
    """What the model says about a clip."""
    content = [{"type": "audio", "audio": clip}, {"type": "text", "text": QUESTION}]
    conversation = [{"role": "user", "content": content}]
    inputs = processor.apply_chat_template(conversation, tokenize=True, return_dict=True, add_generation_prompt=True)
    outputs = model.generate(**to_mindspore(inputs, dtype=dtype), **GENERATION)
    # Only what is new.
    return processor.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def infer(arguments: argparse.Namespace, dtype: ms.Type | None, clip: np.ndarray) -> None:
    """Ask the adapter, then the merged model as a pipeline."""
    base = VoxtralForConditionalGeneration.from_pretrained(arguments.model, mindspore_dtype=dtype)
    processor = VoxtralProcessor.from_pretrained(arguments.output)
    model = load_adapter(base, arguments.output / "lora_adapter")
    print(f"the adapter answers: {answer(model, processor, clip, base.dtype)!r}")

    merged, folder = model.merge_and_unload(), arguments.output / "merged"
    merged.save_pretrained(folder)  # a checkpoint like any other
    processor.save_pretrained(folder)
    pipe = pipeline("audio-text-to-text", model=str(folder), mindspore_dtype=dtype)
    result = pipe(clip, text=QUESTION, generate_kwargs=GENERATION)
    print(f"the pipeline answers: {result['generated_text']!r}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mistralai/Voxtral-Mini-3B-2507", help="folder or Hugging Face id")
    parser.add_argument("--dataset", default="ArtificialAnalysis/big_bench_audio", help="folder or Hugging Face id")
    parser.add_argument("--output", type=Path, default=Path("voxtral-audio-reasoning-lora"), help="folder for results")
    parser.add_argument("--eval-examples", type=int, default=100, help="how many are not learned (default: 100)")
    parser.add_argument("--max-steps", type=int, default=0, help="of 16 examples (default: three epochs)")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
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
    examples = load_examples(
        arguments.dataset, split="train", audio="audio", answer="official_answer", prompt=BIG_BENCH_AUDIO_QUESTIONS
    )
    train(arguments, dtype, examples)
    infer(arguments, dtype, examples[0].samples())


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, FinetuneError) as error:
        sys.exit(f"error: {in_words(error, option)}")
