"""Real speech by some forty actors, with the words that Whisper hears: the dialogue of two games that Debian packages.

`apt-get download flight-of-the-amazon-queen beneath-a-steel-sky` and `dpkg-deb -x FILE.deb FOLDER` of each give the
files (their licence: distribute, modify, keep the notices). The formats are those that ScummVM documents and reads.
Nobody wrote the lines down as they are spoken, so Whisper tiny.en does; what it is not sure of is left out.

    python scripts/demo_checkpoint/games.py --files FOLDER --whisper tiny.en --labels games.json
"""

import argparse
import io
import json
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the folder of the package that this file is in

from demo_checkpoint.sounds import SAMPLE_RATE  # noqa: E402
from demo_checkpoint.texts import spoken_form  # noqa: E402

RATE = 11_025  # of both games
HELD_OUT = 10  # one line in so many is for measuring
MIN_SECONDS, MAX_SECONDS = 0.5, 14.0
# Of Whisper's own tokens: the mean log probability that a line must have, and the words a second that people speak.
SURE, SLOWEST, FASTEST = -0.3, 0.7, 5.5
BATCH_SIZE, MOST_TOKENS = 16, 60
# Seconds that Whisper hears of a line of at least so many: its own are 30, which takes longer. With hardly any silence
# behind a line it repeats itself.
WINDOWS = {2: 11, 5: 15, 8: 20, 0: 11}


def amazon_queen(file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The speech of Flight of the Amazon Queen (queen.1c): the name of each line and its samples at 11,025 Hz."""
    data = file.read_bytes()
    if data[:9] != b"QTBLCEM10":
        raise ValueError(f"{file} is no queen.1c of the English version with speech")
    for place in range(15, 15 + 21 * struct.unpack(">H", data[13:15])[0], 21):
        name = data[place : place + 12].rstrip(b"\0").decode("ascii")
        start, size = struct.unpack(">II", data[place + 13 : place + 21])
        if name.endswith(".SB"):
            yield f"queen/{name.removesuffix('.SB')}", soundfile.read(io.BytesIO(data[start : start + size]))[0]


def steel_sky(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The speech of Beneath a Steel Sky (sky.dnr, sky.dsk): the number of each line and its samples at 11,025 Hz."""
    table, data = (folder / "sky.dnr").read_bytes(), (folder / "sky.dsk").read_bytes()
    for place in range(4, len(table) - 7, 8):
        entry = table[place : place + 8]
        number, start, size = (int.from_bytes(part, "little") for part in (entry[:2], entry[2:5], entry[5:]))
        start = (start & 0x7FFFFF) << (4 if start >> 23 else 0)
        if 50_000 <= number < 60_000:
            packed = data[start : start + (size & 0x3FFFFF)]
            speech = unpacked(packed[22:]) if packed[22:26] == b"RNC\x01" else packed[22:]
            yield f"sky/{number}", (np.frombuffer(speech, np.uint8).astype(np.float64) - 128) / 128


class _Bits:
    """The bits of a packed file, the lowest of each 16-bit word first; literal bytes stand between the words."""

    def __init__(self, data: bytes):
        self.data, self.place, self.value, self.count = data + b"\0\0\0\0", 18, 0, 16
        self.value = self._word()

    def _word(self) -> int:
        return self.data[self.place] | self.data[self.place + 1] << 8

    def read(self, count: int) -> int:
        found = self.value & ((1 << count) - 1)
        self.value >>= count
        self.count -= count
        if self.count < 16:
            self.place += 2
            self.value |= self._word() << self.count
            self.count += 16
        return found

    def literal(self, count: int) -> bytes:
        found = self.data[self.place : self.place + count]
        self.place += count
        self.count -= 16
        self.value = (self.value & ((1 << self.count) - 1)) | self._word() << self.count
        self.count += 16
        return found

    def table(self) -> list[tuple[int, int, int]]:
        """(code, its bits, value) of a Huffman code whose lengths are stored."""
        lengths = [self.read(4) for _ in range(self.read(5))]
        codes, code = [], 0
        for size in range(1, max(lengths, default=0) + 1):
            for value, own in enumerate(lengths):
                if own == size:
                    codes.append((int(f"{code:0{size}b}"[::-1], 2), size, value))
                    code += 1
            code <<= 1
        return codes

    def number(self, table: list[tuple[int, int, int]]) -> int:
        code, size, value = next(entry for entry in table if self.value & ((1 << entry[1]) - 1) == entry[0])
        self.read(size)
        return value if value < 2 else 1 << (value - 1) | self.read(value - 1)


def unpacked(data: bytes) -> bytes:
    """What Rob Northen's ProPack (method 1) has packed."""
    size, made, bits = int.from_bytes(data[4:8], "big"), bytearray(), _Bits(data)
    bits.read(2)
    while len(made) < size:
        literals, distances, lengths = (bits.table() for _ in range(3))
        for left in range(bits.read(16), 0, -1):
            if count := bits.number(literals):
                made += bits.literal(count)
            if left > 1:
                distance, count = bits.number(distances) + 1, bits.number(lengths) + 2
                for _ in range(count):
                    made.append(made[-distance])
    return bytes(made[:size])


def lines(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """All lines of both games below a folder, at 16 kHz, by their names."""
    (queen,), (sky,) = folder.rglob("queen.1c"), folder.rglob("sky.dnr")
    for source in (amazon_queen(queen), steel_sky(sky.parent)):
        for name, wave in source:
            if MIN_SECONDS < len(wave) / RATE < MAX_SECONDS and np.abs(wave).max() > 0.02:
                yield name, soxr.resample(wave, RATE, SAMPLE_RATE)


def labels(folder: Path, whisper: Path, rank: int, processes: int, kept: Path | None = None) -> dict[str, str]:
    """What is said in each line of this process's share, by its name, without what Whisper is not sure of.

    kept: a file for what was found until now.
    """
    import torch
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    torch.set_num_threads(1)
    processor = WhisperProcessor.from_pretrained(whisper)
    model = WhisperForConditionalGeneration.from_pretrained(whisper).eval()
    own = [line for number, line in enumerate(lines(folder)) if number % processes == rank]
    found, done = {}, 0
    for shortest, window in WINDOWS.items():
        longest = min([least for least in WINDOWS if least > shortest], default=window) * SAMPLE_RATE
        some = [line for line in own if shortest * SAMPLE_RATE <= len(line[1]) < longest]
        for start in range(0, len(some), BATCH_SIZE):
            part = some[start : start + BATCH_SIZE]
            heard = transcribed(model, [np.pad(wave, (0, window * SAMPLE_RATE - len(wave))) for _, wave in part])
            for (name, wave), (tokens, sure) in zip(part, heard):
                text = spoken_form(processor.decode(tokens, skip_special_tokens=True)) or ""
                pace = text.count(" ") + 1 if text else 0
                if sure > SURE and SLOWEST < pace / (len(wave) / SAMPLE_RATE) < FASTEST:
                    found[name] = text
            done += len(part)
            print(f"process {rank}: {done} of {len(own)} lines, {len(found)} with words", flush=True)
            if kept:
                kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def transcribed(model, waves: list[np.ndarray]) -> list[tuple[list[int], float]]:
    """Whisper's greedy tokens of clips of one length, and their mean log probability; the window ends with them."""
    import torch

    from demo_checkpoint.batches import log_mel

    mel, _ = log_mel(waves)
    encoder, settings = model.model.encoder, model.generation_config
    with torch.no_grad():
        x = torch.nn.functional.gelu(encoder.conv1(mel))
        x = torch.nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            x = layer(x, None, None)[0]
        x = encoder.layer_norm(x)
        tokens = torch.tensor([[settings.decoder_start_token_id, settings.no_timestamps_token_id]] * len(waves))
        made, sums, ended, cache = [[] for _ in waves], [0.0] * len(waves), [False] * len(waves), None
        for _ in range(MOST_TOKENS):
            output = model.model.decoder(tokens, encoder_hidden_states=x, past_key_values=cache, use_cache=True)
            logs = model.proj_out(output.last_hidden_state[:, -1])
            logs[:, settings.suppress_tokens] = -torch.inf
            best = logs.log_softmax(-1).max(-1)
            cache, tokens = output.past_key_values, best.indices[:, None]
            for row, (value, token) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
                if not ended[row]:
                    sums[row] += value
                    ended[row] = token == settings.eos_token_id
                    made[row] += [] if ended[row] else [token]
            if all(ended):
                break
    return [(row, total / (len(row) + 1) if done else -np.inf) for row, total, done in zip(made, sums, ended)]


def is_held_out(name: str) -> bool:
    """Whether a line is for measuring."""
    return zlib.crc32(name.encode()) % HELD_OUT == 0


def build_games(bank: Path, files: Path, stored: Path, held_out: bool = False) -> None:
    """Cache the lines that have a label in `bank`, as `speech.build_bank` does (nothing if they are there)."""
    if (bank / "index.json").exists():
        return
    bank.mkdir(parents=True, exist_ok=True)
    said, waves, entries, start = json.loads(stored.read_text(encoding="utf-8")), [], [], 0
    for name, wave in lines(files):
        if name in said and is_held_out(name) == held_out:
            waves.append((np.clip(wave, -1, 1) * 32767).astype(np.int16))
            # Of the Amazon Queen's lines those of Joe, its hero, are named so; who speaks the others no name tells.
            sex = "male" if re.fullmatch(r"queen/\w+J\d", name) else ""
            entry = {"kind": "speech", "text": said[name], "sex": sex, "voice": name.split("/")[0]}
            entries.append(entry | {"start": start, "end": start + len(wave)})
            start += len(wave)
    np.save(bank / "samples.npy", np.concatenate(waves))
    (bank / "index.json").write_text(json.dumps(entries))


def main() -> None:
    """Write the labels of all lines."""
    from multiprocessing import Pool

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=Path, required=True, help="folder with both unpacked packages")
    parser.add_argument("--whisper", type=Path, required=True, help="folder of Whisper tiny.en, see train.py")
    parser.add_argument("--labels", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    kept = [args.labels.with_suffix(f".{rank}.json") for rank in range(args.processes)]
    shares = [(args.files, args.whisper, rank, args.processes, kept[rank]) for rank in range(args.processes)]
    with Pool(args.processes) as pool:
        found = {name: text for share in pool.starmap(labels, shares) for name, text in share.items()}
    args.labels.write_text(json.dumps(dict(sorted(found.items())), indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
