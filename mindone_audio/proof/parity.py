"""Replay what `scripts/record_parity.py` recorded on PyTorch, and say where the port first computes something else."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mindone_audio.backbone.checkpoint_model import CheckpointModel, audio_frames, to_numpy
from mindone_audio.generation.generate import columns
from mindone_audio.generation.row import GenerationRequest
from mindone_audio.generation.settings import GenerationSettings

FORMAT = "mindone_audio.parity/1"

# Relative error that is rounding and not a mistake. float32: the tests' contract with PyTorch. Half precision: what
# scripts/benchmark/measure_rounding.py finds between correct implementations of a model with 32 + 32 layers, times 2
# to 4 for other sizes and devices.
TOLERANCES = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


class RecordingError(ValueError):
    """A recording that cannot be replayed; the message says why."""


@dataclass(frozen=True)
class Recording:
    """Arrays by name, and the facts about how they were computed (dtype, versions, model_type, prompt)."""

    arrays: dict[str, np.ndarray]
    facts: dict

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        """The model's inputs by their names."""
        prefix = "input."
        return {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}


@dataclass(frozen=True)
class Comparison:
    """One row of the table: relative error |ours - theirs| / |theirs| over all values, and the cosine between them."""

    stage: str
    relative_error: float
    cosine: float
    within: bool


@dataclass(frozen=True)
class Report:
    """What a replay found. tokens_equal counts equal greedy tokens from the first on, of tokens_total."""

    rows: list[Comparison]
    tokens_equal: int
    tokens_total: int
    margin: float | None  # of the reference between its best two logits where tokens first differ, per rms of logits
    tolerance: float

    @property
    def first_outside(self) -> str | None:
        """The first stage that leaves tolerance."""
        return next((row.stage for row in self.rows if not row.within), None)

    @property
    def passed(self) -> bool:
        """All stages within tolerance, and all tokens equal or first different where the reference nearly ties."""
        near_tie = self.margin is not None and self.margin < 2 * self.tolerance
        return self.first_outside is None and (self.tokens_equal == self.tokens_total or near_tie)

    def as_json(self) -> dict:
        """Everything as plain values."""
        return asdict(self) | {"first_outside": self.first_outside, "passed": self.passed}


def read_recording(file: Path) -> Recording:
    """Read a recording; `RecordingError` for a file that is missing, damaged or not one."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise RecordingError(f"no recording {file}: make one with scripts/record_parity.py")
    try:
        with safe_open(file, framework="np") as stream:
            metadata = stream.metadata() or {}
            arrays = {name: stream.get_tensor(name) for name in stream.keys()}
        if metadata.get("format") != FORMAT:
            raise RecordingError(f"{file} is no recording: its format is {metadata.get('format')!r}, not {FORMAT!r}")
        return Recording(arrays, json.loads(metadata["facts"]))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        if isinstance(error, RecordingError):
            raise
        raise RecordingError(f"{file} cannot be read as a recording: {error}") from error


def replay(model: CheckpointModel, recording: Recording) -> Report:
    """Run the recorded inputs through `model` and compare every recorded stage.

    The hidden states come from the interpreted model, the tokens from its compiled `generate`. Raises `RecordingError`
    where the recording is of another kind of model.
    """
    kind = recording.facts.get("model_type")
    if kind != model.config.model_type:
        raise RecordingError(f"the recording is of a {kind!r} model and this is a {model.config.model_type!r}")
    if ("decoder_input_ids" in recording.inputs) != bool(model.context_positions):
        raise RecordingError(f"{type(model).__name__} does not write what was recorded: give the recorded checkpoint")
    tolerance = max(TOLERANCES[dtype] for dtype in (str(model.dtype).lower(), recording.facts.get("dtype", "float32")))
    ours = activations(model, recording)
    rows = []
    for stage in _stages(recording):
        theirs = recording.arrays[stage].astype(np.float64)
        mine = ours[stage].astype(np.float64)
        if mine.shape != theirs.shape:
            raise RecordingError(f"{stage} is {theirs.shape} in the recording and {mine.shape} here: another model")
        rows.append(_compare(stage, mine, theirs, tolerance))
    tokens = recording.arrays["tokens"]
    made = _tokens(model, recording.inputs, tokens.shape[1])
    width = min(made.shape[1], tokens.shape[1])
    different = np.flatnonzero((made[:, :width] != tokens[:, :width]).any(0))
    equal = int(different[0]) if len(different) else width
    margin = None
    if equal < tokens.shape[1]:
        scale = np.sqrt(np.square(recording.arrays["logits"], dtype=np.float64).mean())
        margin = float(recording.arrays["margins"][:, equal].min() / scale)
    return Report(rows, equal, tokens.shape[1], margin, tolerance)


def _tokens(model: CheckpointModel, inputs: dict[str, np.ndarray], count: int) -> np.ndarray:
    """The greedy tokens int32 (batch, count or fewer) that compiled graphs make of the inputs."""
    if not model.context_positions:
        made = model.generate(**inputs, max_new_tokens=count, do_sample=False).asnumpy()
        return made[:, inputs["input_ids"].shape[1] :]
    settings = GenerationSettings(max_new_tokens=count)
    requests = [
        GenerationRequest(
            ids.astype(np.int32),
            np.full(len(ids), -1, np.int32),
            source,
            settings,
            lambda new_tokens: np.zeros(len(new_tokens), bool),
        )
        for ids, source in zip(inputs["decoder_input_ids"], model.sources(**_source(inputs)))
    ]
    return np.stack(list(columns(model.engine(), requests)), 1)


def _source(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What an encoder-decoder model's encoder is given."""
    return {name: value for name, value in inputs.items() if not name.startswith("decoder_")}


def _stages(recording: Recording) -> list[str]:
    layers = sorted((n for n in recording.arrays if n.startswith("layer.")), key=lambda n: int(n.split(".")[1]))
    return [n for n in ("encoder", "projector") if n in recording.arrays] + layers + ["logits"]


def activations(model: CheckpointModel, recording: Recording) -> dict[str, np.ndarray]:
    """The stages of the recording as this model computes them; rows of padding are those of the reference."""
    values: dict[str, np.ndarray] = {}
    inputs = recording.inputs
    prompts = len(inputs["decoder_input_ids" if model.context_positions else "input_ids"])
    positions = recording.arrays["logits"].shape[1]
    cells = {"encoder": model.encoder_of(inputs), "projector": model.multi_modal_projector}
    cells = {stage: cell for stage, cell in cells.items() if cell is not None}
    layers = model.language_model.model.layers
    for stage in _stages(recording):
        number = int(stage.split(".")[1]) if stage.startswith("layer.") else 0
        if number > len(layers):
            raise RecordingError(f"the recording has {stage} and this model {len(layers)} layers: another model")
        if number:
            cells[stage] = layers[number - 1]

    def keep(stage: str):
        def hook(cell, inputs, output):
            value = to_numpy(output)
            if stage.startswith("layer."):  # which gives rows of all prompts
                value = value.reshape((prompts, -1, value.shape[-1]))[:, -positions:]
            values[stage] = value

        return hook

    handles = [cell.register_forward_hook(keep(stage)) for stage, cell in cells.items()]
    try:
        logits = model(**inputs).logits
    finally:
        for handle in handles:
            handle.remove()
    values["logits"] = to_numpy(logits)[:, -positions:]
    for stage, counts in _rows_that_count(model, inputs).items():
        if stage in values and stage in recording.arrays:
            ours, theirs = values[stage], recording.arrays[stage]
            if theirs.ndim == 2:  # the rows of all clips, one after another
                values[stage] = np.concatenate([clip[:count] for clip, count in zip(ours, counts)])
                continue
            if ours.shape[::2] != theirs.shape[::2]:
                continue  # other clips or another width, which the comparison tells
            values[stage] = theirs.astype(ours.dtype)  # padding, of which there may be another amount here
            for clip, count in enumerate(counts):
                valid = min(count, theirs.shape[1], ours.shape[1])
                values[stage][clip, :valid] = ours[clip, :valid]
    return values


def _rows_that_count(model: CheckpointModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """How many rows of each clip, or text, are no padding, by the stage; a stage without padding is left out."""
    encoder = model.encoder_of(inputs)
    if model.context_positions:
        lengths = np.concatenate([length for _, length in model.sources(**_source(inputs))])
        counts = model.heard(lengths) if encoder is model.audio_tower else lengths
        return {} if counts is None else {"encoder": counts}
    if encoder is None:
        return {}
    frames = audio_frames(model.prompt(**inputs)[2])
    return {"encoder": encoder.output_lengths(frames), "projector": model.audio_tokens(frames)}


def _compare(stage: str, mine: np.ndarray, theirs: np.ndarray, tolerance: float) -> Comparison:
    size = np.linalg.norm(theirs)
    error = float(np.linalg.norm(mine - theirs) / max(size, 1e-30))
    cosine = float((mine * theirs).sum() / max(np.linalg.norm(mine) * size, 1e-30))
    return Comparison(stage, error, cosine, bool(error <= tolerance))


def format_report(report: Report, recording: Recording) -> str:
    """The table for people."""
    facts = recording.facts
    lines = [
        f"recorded in {facts.get('dtype')} with transformers {facts.get('transformers')}, torch {facts.get('torch')}; "
        f"tolerance {report.tolerance:g}",
        f"{'stage':<12}{'relative error':>16}{'cosine':>14}",
    ]
    for row in report.rows:
        mark = "" if row.within else "  outside" + (" (first)" if row.stage == report.first_outside else "")
        lines.append(f"{row.stage:<12}{row.relative_error:>16.2e}{row.cosine:>14.9f}{mark}")
    line = f"tokens      {report.tokens_equal} of {report.tokens_total} equal"
    if report.margin is not None:
        line += f"; there the reference's best two logits are {report.margin:.3g} apart (of their rms)"
    lines.append(line)
    lines.append("passed" if report.passed else f"failed: {_advice(report)}")
    return "\n".join(lines)


def _advice(report: Report) -> str:
    if report.first_outside is None:
        return "every stage agrees and the tokens do not: look at the cache and the step graph"
    return f"{report.first_outside} is the first stage outside tolerance: look at what it adds to the one before"
