"""What wraps encoded audio: tags before it, wrong sizes in a WAV, rubbish before an MP3, and a second file after it."""

import struct

MAX_RUBBISH = 2**20  # bytes searched for the first frame of an MP3
MAX_TAGS = 64  # one after another
FRAMES_IN_A_ROW = 3  # that tell an MP3 from bytes that look like one of its headers
SPARE_FRAMES = 4  # of an MP3 that are no audio: what the encoder adds, and the one that describes the file
UNKNOWN_SIZE = 0xFFFFFFFF
_WAVE_IDS = (b"RIFF", b"RF64", b"BW64")
# Kilobits a second by MPEG version 1 (else 2 and 2.5) and layer, and Hz of version 1, by the index in the header.
_BIT_RATES = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)


def without_tags(data: bytes) -> bytes:
    """The clip without the tags before and after it, ID3 and APE, which libsndfile takes for audio in some formats."""
    start, end_of_clip = 0, len(data)
    for _ in range(MAX_TAGS):
        head = data[start : start + 32]
        if head[:3] == b"ID3" and len(head) >= 10 and head[3] < 0xFF and max(head[6:10]) < 0x80:
            size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
            end = start + 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX" and len(head) == 32:
            end = start + 32 + struct.unpack_from("<I", head, 12)[0]
        else:
            break
        if end >= len(data):
            break
        start = end
    if data[start : start + 4] not in _WAVE_IDS:  # a WAV says where its samples end
        end_of_clip -= _tail_length(data)
    return data[start:end_of_clip] if start < end_of_clip else data


def repaired_wav(data: bytes) -> tuple[bytes, bool]:
    """A WAV whose sizes are those of its bytes, and whether another WAV follows, which is cut off.

    A program that writes to a pipe leaves 0 or the largest number as the size of the samples. Other data is returned
    as it is.
    """
    if data[:4] not in _WAVE_IDS or data[8:12] != b"WAVE":
        return data, False
    long_size = place = None
    size = 0
    for name, start, own_size in _chunks(data, 12):
        if name == b"ds64" and len(data) >= start + 16:
            long_size = struct.unpack_from("<Q", data, start + 8)[0]
        elif name == b"data":
            place, size = start, own_size
            break
    if place is None:
        return data, False
    if size == UNKNOWN_SIZE and long_size is not None:
        size = long_size
    rest = len(data) - place
    if (size == 0 and rest and not _ends_with_chunks(data, place)) or size > rest:
        rest -= _tail_length(data)
        if rest + place > UNKNOWN_SIZE:
            return data, False
        head = bytearray(data[:place])
        head[:4] = b"RIFF"
        struct.pack_into("<I", head, 4, place - 8 + rest)
        struct.pack_into("<I", head, place - 4, rest)
        return b"".join([head, memoryview(data)[place : place + rest]]), False
    for name, start, _ in _chunks(data, place + size + size % 2):
        if name in _WAVE_IDS and data[start : start + 4] == b"WAVE":
            return data[: start - 8], True
    return data, False


def mp3_start(data: bytes) -> int | None:
    """Where the frames of an MP3 begin, which fill at least half of what follows; None for no MP3."""
    place = data.find(b"\xff", 0, MAX_RUBBISH)
    while place >= 0:
        if _frames_in_a_row(data, place):
            return place if 2 * _mp3_extent(data, place)[1] >= len(data) - place else None
        place = data.find(b"\xff", place + 1, MAX_RUBBISH)
    return None


def starts_as_mp3(data: bytes) -> bool:
    """Whether the first bytes are frames of an MP3, which libsndfile tells only from the name of its file."""
    return _frames_in_a_row(data, 0)


def goes_on(data: bytes, frames: int) -> bool:
    """Whether a file goes on where libsndfile, which read `frames` samples a channel, takes it to end."""
    if data[:4] == b"OggS":
        return _is_chained_ogg(data)
    if data[:4] == b"fLaC":
        place = data.find(b"fLaC", 4)
        while place >= 0:
            if data[place + 4 : place + 8] in (b"\0\0\0\x22", b"\x80\0\0\x22"):
                return True
            place = data.find(b"fLaC", place + 4)
        return False
    start = mp3_start(data)
    if start is None:
        return False
    samples, _, longest = _mp3_extent(data, start)
    return samples - frames > SPARE_FRAMES * longest


def _chunks(data: bytes, place: int):
    """Name, first byte and size of each chunk of a RIFF file from `place` on."""
    while place + 8 <= len(data):
        size = struct.unpack_from("<I", data, place + 4)[0]
        yield data[place : place + 4], place + 8, size
        place += 8 + size + size % 2


def _ends_with_chunks(data: bytes, place: int) -> bool:
    """Whether only whole chunks follow: then a size of 0 is meant."""
    end = place
    for name, start, size in _chunks(data, place):
        if not all(32 <= byte < 127 for byte in name):
            return False
        end = start + size
    return len(data) - 1 <= end <= len(data) + 1 and end > place


def _tail_length(data: bytes) -> int:
    """Bytes of the ID3v1 and APE tags at the end."""
    end = len(data)
    if data[end - 128 : end - 125] == b"TAG":
        end -= 128
    if end >= 32 and data[end - 32 : end - 24] == b"APETAGEX":
        size, _, flags = struct.unpack_from("<III", data, end - 20)
        end -= size + (32 if flags & 0x80000000 else 0)
    return len(data) - max(end, 0)


def _is_chained_ogg(data: bytes) -> bool:
    """Whether a first page of a stream comes after pages of audio."""
    place, audio = 0, False
    while place >= 0 and place + 27 <= len(data):
        first = data[place + 5] & 2
        if first and audio:
            return True
        audio = audio or not first
        table = data[place + 27 : place + 27 + data[place + 26]]
        place = data.find(b"OggS", place + 27 + len(table) + sum(table))
    return False


def _mp3_frame(data: bytes, place: int) -> tuple[int, int, tuple] | None:
    """Bytes and samples of the frame with a header at `place`, and what all frames share; None for no header."""
    if place + 4 > len(data) or data[place] != 0xFF or data[place + 1] < 0xE0:
        return None
    second, third = data[place + 1], data[place + 2]
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)  # version 3: MPEG 1, 2: MPEG 2, 0: MPEG 2.5
    if version == 1 or layer == 4 or third >> 4 in (0, 15) or third >> 2 & 3 == 3:
        return None
    bits = 1000 * _BIT_RATES[version == 3, layer][(third >> 4) - 1]
    rate = _RATES[third >> 2 & 3] >> {3: 0, 2: 1, 0: 2}[version]
    padding = third >> 1 & 1
    if layer == 1:
        return (12 * bits // rate + padding) * 4, 384, (version, layer, rate)
    samples = 576 if layer == 3 and version != 3 else 1152
    return samples // 8 * bits // rate + padding, samples, (version, layer, rate)


def _frames_in_a_row(data: bytes, place: int) -> bool:
    """Whether some frames of one kind follow each other from `place` on, fewer only before the end of the data."""
    kind = None
    for number in range(FRAMES_IN_A_ROW):
        frame = _mp3_frame(data, place)
        if frame is None or frame[2] != (kind or frame[2]):
            return number > 0 and kind is not None and place >= len(data)
        kind, place = frame[2], place + frame[0]
    return True


def _mp3_extent(data: bytes, place: int) -> tuple[int, int, int]:
    """Samples and bytes of all frames from `place` on, rubbish between them left out, and the most samples of one."""
    samples = covered = longest = 0
    while 0 <= place < len(data):
        frame = _mp3_frame(data, place)
        if frame is None:
            place = data.find(b"\xff", place + 1)
            while place >= 0 and not _frames_in_a_row(data, place):
                place = data.find(b"\xff", place + 1)
            continue
        samples, covered, longest = samples + frame[1], covered + frame[0], max(longest, frame[1])
        place += frame[0]
    return samples, covered, longest
