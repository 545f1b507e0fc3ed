"""WAV files in the one format of this project: 22,050 Hz, mono, 16 bit, little-endian."""

import wave
from pathlib import Path

SAMPLE_RATE = 22_050  # Hz


def read_pcm(path: Path) -> bytes:
    """Return the samples of a file, and refuse any other format."""
    with wave.open(str(path), "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (SAMPLE_RATE, 1, 2):
            raise ValueError(f"{path} is not {SAMPLE_RATE} Hz, mono, 16 bit")
        return file.readframes(file.getnframes())


def write_pcm(path: Path, pcm: bytes) -> None:
    """Write samples to a file."""
    with wave.open(str(path), "wb") as file:
        file.setframerate(SAMPLE_RATE)
        file.setnchannels(1)
        file.setsampwidth(2)
        file.writeframes(pcm)
