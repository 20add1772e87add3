"""The contenders of `benchmark.py generate`: this package, transformers on PyTorch, and a plain copy of the weights.

Each is made in a process of its own, where nothing heavy is imported before its number of threads is chosen.
"""

import time
from collections.abc import Callable

from benchmark.checkpoint import FLOAT
from benchmark.processes import forget_peak, peak_memory, resident, use_threads

WARM = 2  # steps that are not counted after a cache has been filled
COPIES = 3  # of all weights at a time


class Clock:
    """A streamer for either `generate`: when the prompt and then each token came."""

    def __init__(self):
        self.start, self.times = time.perf_counter(), []

    def put(self, tokens) -> None:
        self.times.append(time.perf_counter() - self.start)

    def end(self) -> None:
        pass

    def figures(self) -> dict[str, float]:
        """Seconds to the first token, and for each later one; times[0] is the prompt's."""
        return {"prefill": self.times[1], "token": (self.times[-1] - self.times[1]) / (len(self.times) - 2)}


class Contender:
    """What both sides answer. `held`: bytes resident once all is imported; `needed`: of parameters and cache.

    Each side has `generate(clock)`, for each new token its id, or those of all rows of a batch; `step()`, seconds of a
    bare decode step: token in, best token out, on the host; and `filled_step(filled)`, seconds of such a step with so
    many tokens in the cache, batch 1: what they are does not matter for time.
    """

    held = needed = 0

    def first(self) -> dict:
        """Generate for the first time: seconds, tokens, and bytes: the most of the process, and what memory grew by."""
        loaded = peak_memory()
        forget_peak()
        clock = Clock()
        tokens = self.generate(clock)
        peak = peak_memory()
        memory = {"memory": max(loaded, peak), "grown": peak - self.held, "needed": self.needed}
        return {"total": clock.times[-1], "tokens": tokens, **memory}

    def answer(self, request: str | int) -> dict:
        """What was asked for: "first", "generate", "step", or a step at so many filled positions."""
        if request == "first":
            return self.first()
        if request == "step":
            return {"step": self.step()}
        if request != "generate":
            return {str(request): self.filled_step(request)}
        clock = Clock()
        self.generate(clock)
        return {**clock.figures(), "total": clock.times[-1]}


class Ours(Contender):
    """This package; `interpreted` runs the same cells without compiling them."""

    def __init__(self, folder: str, inputs: dict, new_tokens: int, interpreted: bool):
        import mindspore as ms

        from mindone_audio import AutoModelForAudioTextToText
        from mindone_audio.models import qwen2_audio  # noqa: F401  (loading would import it, which is no memory of it)

        self.held = resident()
        self.model = AutoModelForAudioTextToText.from_pretrained(folder, mindspore_dtype=ms.float32)
        self.take(inputs)
        self.new_tokens, self.compiled = new_tokens, not interpreted
        rows, length = inputs["input_ids"].shape
        cached = cache_elements(self.model.config.get_text_config(), rows, length + new_tokens)
        self.needed = FLOAT * cached + sum(parameter.nbytes for parameter in self.model.get_parameters())

    def take(self, inputs: dict) -> None:
        """Go on with these arrays."""
        from mindone_audio import to_mindspore

        self.inputs = to_mindspore(inputs)

    def generate(self, clock: Clock) -> list:
        settings = {"max_new_tokens": self.new_tokens}  # without an end token
        if len(self.inputs["input_ids"]) > 1:  # a streamer is for one prompt
            clock.put(None)
            columns = []
            for tokens in self.model.stream(**self.inputs, generation_config=settings, compile=self.compiled):
                clock.put(tokens)
                columns.append(tokens.tolist())
            return columns
        out = self.model.generate(**self.inputs, generation_config=settings, streamer=clock, compile=self.compiled)
        return out.asnumpy()[0, -self.new_tokens :].tolist()

    def step(self) -> float:
        import numpy as np

        from mindone_audio.generation.running_batch import RunningBatch

        running = RunningBatch(self.model.engine(self.compiled))
        requests = self.model.requests(**self.inputs, generation_config={"max_new_tokens": self.new_tokens})
        for _ in running.admit([request.rows() for request in requests]):
            pass
        tokens = np.array([0 if row is None else row.tokens[0] for row in running.rows], np.int32)
        return self._steps(running.sequences, tokens, self.new_tokens - 1)

    def filled_step(self, filled: int) -> float:
        import numpy as np

        from mindone_audio.generation.sequences import Sequences

        sequences = Sequences(self.model.engine(self.compiled), 1, filled + WARM + self.new_tokens)
        sequences.column, sequences.idle[0] = filled, False
        self._steps(sequences, np.zeros(1, np.int32), WARM)
        return self._steps(sequences, np.zeros(1, np.int32), self.new_tokens)

    @staticmethod
    def _steps(sequences, tokens, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            _, best = sequences.extend(tokens)
            tokens = best.asnumpy()
        return (time.perf_counter() - start) / count


class Torch(Contender):
    """transformers on PyTorch, with one of its attention implementations."""

    def __init__(self, folder: str, inputs: dict, new_tokens: int, attention: str, threads: int):
        import torch
        from transformers import GenerationConfig

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.held = resident()
        self.model = self.load(folder, attention).eval()
        self.language_model = getattr(self.model, "language_model", self.model)
        self.model.generation_config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        self.take(inputs)
        self.new_tokens = new_tokens
        rows, length = inputs["input_ids"].shape
        cached = cache_elements(self.model.config.get_text_config(), rows, length + new_tokens)
        self.needed = FLOAT * cached + sum(parameter.nbytes for parameter in self.model.parameters())

    @staticmethod
    def load(folder: str, attention: str):
        """The model, in fp32."""
        import torch
        from transformers import Qwen2AudioForConditionalGeneration

        return Qwen2AudioForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        )

    def take(self, inputs: dict) -> None:
        """Go on with these arrays."""
        import torch

        self.inputs = {name: torch.from_numpy(value) for name, value in inputs.items()}

    def generate(self, clock: Clock) -> list:
        new = self.model.generate(**self.inputs, streamer=clock)[:, -self.new_tokens :]
        return (new[0] if len(new) == 1 else new.T).tolist()

    def step(self) -> float:
        """An unpadded prompt goes without the attention mask, which it does not need: PyTorch's least work."""
        import torch

        mask, count = self.inputs["attention_mask"], self.new_tokens - 1
        padded = not mask.all()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        output = self.model(**self.inputs, position_ids=positions, use_cache=True)
        cache, tokens = output.past_key_values, output.logits[:, -1].argmax(-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), count)], 1)
        width = mask.shape[1] - count
        steps = []
        for i in range(1, count + 1):
            steps.append({"attention_mask": mask[:, : width + i], "position_ids": positions[:, -1:] + i})
        return self._steps(cache, tokens, steps if padded else [{}] * count)

    def filled_step(self, filled: int) -> float:
        import torch
        from transformers import DynamicCache

        config, cache = self.model.config.get_text_config(), DynamicCache()
        heads = config.num_key_value_heads
        for layer in range(config.num_hidden_layers):
            keys, values = torch.rand(2, 1, heads, filled, config.hidden_size // config.num_attention_heads)
            cache.update(keys, values, layer)
        tokens = torch.zeros(1, dtype=torch.int64)
        self._steps(cache, tokens, [{}] * WARM)
        return self._steps(cache, tokens, [{}] * self.new_tokens)

    def _steps(self, cache, tokens, steps: list[dict]) -> float:
        start = time.perf_counter()
        for inputs in steps:
            output = self.language_model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True, **inputs)
            tokens = output.logits[:, -1].argmax(-1)
        return (time.perf_counter() - start) / len(steps)


def contender(name: str, folder: str, inputs_file: str, new_tokens: int, threads: int) -> Callable:
    """Load a contender of this name: "ours", "ours, interpreted", "torch eager" or "torch sdpa"."""
    use_threads(threads)
    import numpy as np

    inputs, theirs = dict(np.load(inputs_file)), Torch
    if name.startswith("ours"):
        return Ours(folder, inputs, new_tokens, interpreted=name != "ours").answer
    if "audio_input_features" in inputs:
        from benchmark.phi4 import TorchPhi4 as theirs
    return theirs(folder, inputs, new_tokens, name.removeprefix("torch "), threads).answer


def plain_copy(elements: list[int], threads: int) -> Callable:
    """Copying fp32 arrays of `checkpoint.step_weights`, layer after layer: how fast memory can be read.

    A layer is copied to where the one before it was, so that this takes little more memory than the weights.
    """
    use_threads(threads)
    import torch

    torch.set_num_threads(threads)
    *layer, output = [torch.zeros(count) for count in elements[:7] + elements[-1:]]
    targets = layer * (len(elements) // 7) + [output]
    sources = [torch.ones(count) for count in elements]

    def answer(request: str) -> dict[str, float]:
        if request != "step":
            return {}
        start = time.perf_counter()
        for _ in range(COPIES):
            for target, source in zip(targets, sources):
                target.copy_(source)
        return {"step": (time.perf_counter() - start) / COPIES}

    return answer


def cache_elements(config, rows: int, positions: int) -> int:
    """Keys and values of so many positions in all layers of a text config."""
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = config.num_key_value_heads * head
    return 2 * config.num_hidden_layers * rows * positions * width
