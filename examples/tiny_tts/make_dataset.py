"""Make a small single-speaker speech data set in the LJSpeech layout, spoken by eSpeak NG.

    data/metadata.csv     one line per clip: id|text|normalized text
    data/wavs/<id>.wav    22,050 Hz, mono, 16 bit

The sentences come from a seeded grammar and the voice is deterministic, so every run makes the
same bytes. Run `python make_dataset.py`, or let `train.py` do it.
"""

import ctypes
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import espeakng_loader

import wav

DATA_DIR = Path(__file__).resolve().parent / "data"
N_SENTENCES = 144
SEED = 1
VOICE = b"en-us"

# Values of the C enums in eSpeak NG's speak_lib.h.
AUDIO_OUTPUT_SYNCHRONOUS = 2
INITIALIZE_DONT_EXIT = 0x8000
POS_CHARACTER = 1
CHARS_UTF8 = 1

TEMPLATES = (
    "The {mood} {person} {verb} the {thing}.",
    "The {person} {verb} a {adjective} {thing}.",
    "{name} {verb} {number} {thing}s {place}.",
    "{time} the {person} {verb} my {thing}.",
    "{name} and the {person} {went} {place}.",
    "The {adjective} {thing} is {place}.",
    "We {verb} {number} {adjective} {thing}s.",
    "Where is the {adjective} {thing}, {name}?",
)
WORDS = {
    "adjective": "small, green, broken, heavy, yellow, quiet, famous, shiny, cheap, wooden",
    "mood": "tall, happy, clever, hungry, gentle, old",
    "person": "captain, teacher, doctor, farmer, painter, queen, boy, judge, neighbor",
    "verb": "found, watched, carried, opened, liked, sold, measured, fixed, touched",
    "thing": "key, boat, window, picture, letter, garden, basket, horse, violin, jacket",
    "name": "Anna, Peter, Julia, Thomas, Zoe, Victor",
    "place": "near the river, under the bridge, in the garden, behind the house, by the sea",
    "time": "Yesterday, This morning, After lunch, Last week, Then",
    "went": "walked, were waiting, sat, danced, ran",
}
NUMBERS = {"2": "two", "3": "three", "5": "five", "6": "six", "8": "eight", "9": "nine"}


@dataclass(frozen=True)
class Sentence:
    """A sentence as written, and with its numbers spelled out."""

    text: str
    normalized: str


def make_sentence(rng: random.Random) -> Sentence:
    """Fill a random template with random words."""
    words = {kind: rng.choice(choices.split(", ")) for kind, choices in WORDS.items()}
    digit, number = rng.choice(list(NUMBERS.items()))
    template = rng.choice(TEMPLATES)
    return Sentence(template.format(**words, number=digit), template.format(**words, number=number))


def make_sentences(count: int, seed: int) -> list[Sentence]:
    """Return `count` different sentences."""
    rng = random.Random(seed)
    sentences: dict[Sentence, None] = {}
    while len(sentences) < count:
        sentences[make_sentence(rng)] = None
    return list(sentences)


class Speaker:
    """The eSpeak NG library, which speaks text into 16-bit samples."""

    def __init__(self, voice: bytes) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._pcm = bytearray()
        data_path = espeakng_loader.get_data_path().encode()
        sample_rate = self._library.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data_path, INITIALIZE_DONT_EXIT)
        if sample_rate != wav.SAMPLE_RATE:
            raise RuntimeError(f"eSpeak NG gives {sample_rate} Hz with the data in {data_path!r}")
        if self._library.espeak_SetVoiceByName(voice) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice!r}")

        prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
        # The library keeps only a pointer, so the callback has to live as long as the speaker.
        self._callback = prototype(self._collect)
        self._library.espeak_SetSynthCallback(self._callback)

    def _collect(self, samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            self._pcm += ctypes.string_at(samples, 2 * count)
        return 0

    def speak(self, text: str) -> bytes:
        """Return `text` as mono 16-bit samples at `wav.SAMPLE_RATE`."""
        self._pcm.clear()
        encoded = text.encode()
        size = ctypes.c_size_t(len(encoded) + 1)
        if self._library.espeak_Synth(encoded, size, 0, POS_CHARACTER, 0, CHARS_UTF8, None, None):
            raise RuntimeError(f"eSpeak NG cannot speak: {text}")
        return bytes(self._pcm)


def write_clips(folder: Path, sentences: list[Sentence]) -> Iterator[str]:
    """Write a clip for each sentence and yield its line of the metadata."""
    speaker = Speaker(VOICE)
    for number, sentence in enumerate(sentences, start=1):
        clip_id = f"TT{number:03}"
        wav.write_pcm(folder / f"{clip_id}.wav", speaker.speak(sentence.text))
        yield f"{clip_id}|{sentence.text}|{sentence.normalized}\n"


def make_dataset(data_dir: Path = DATA_DIR) -> None:
    """Make the data set unless it is there. `data_dir` appears only once it is complete."""
    if (data_dir / "metadata.csv").exists():
        print(f"The data set is there already: {data_dir}")
        return
    part = data_dir.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "wavs").mkdir(parents=True)
    lines = write_clips(part / "wavs", make_sentences(N_SENTENCES, SEED))
    (part / "metadata.csv").write_text("".join(lines), encoding="utf-8")
    part.rename(data_dir)
    print(f"Made {N_SENTENCES} clips in {data_dir}")


if __name__ == "__main__":
    make_dataset()
