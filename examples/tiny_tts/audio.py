"""Samples and mel spectrograms: reading, writing, analysis, and Griffin-Lim synthesis."""

import functools
from pathlib import Path

import numpy as np
import torch

import wav

N_FFT = 1024  # samples
HOP = 256  # samples
N_MELS = 80
F_MAX = 8_000.0  # Hz
LOG_FLOOR = 1e-5
LOG_MEAN, LOG_DEVIATION = -0.5, 2.2  # of the log mel of the data set


def read_samples(path: Path) -> torch.Tensor:
    """Read a WAV file as samples in [-1, 1], shape [samples]."""
    pcm = np.frombuffer(wav.read_pcm(path), dtype="<i2")
    return torch.from_numpy(pcm.astype(np.float32) / 32_768)


def write_samples(path: Path, samples: torch.Tensor) -> None:
    """Write samples, shape [samples], to a WAV file with the peak at 0.9."""
    pcm = (samples / samples.abs().max() * 0.9 * 32_767).round()
    wav.write_pcm(path, pcm.numpy().astype("<i2").tobytes())


@functools.cache
def mel_filters() -> torch.Tensor:
    """Return triangular filters on the HTK mel scale, shape [N_MELS, N_FFT // 2 + 1]."""
    mel_max = 2595 * np.log10(1 + F_MAX / 700)
    edges = 700 * (10 ** (np.linspace(0, mel_max, N_MELS + 2) / 2595) - 1)
    frequencies = np.linspace(0, wav.SAMPLE_RATE / 2, N_FFT // 2 + 1)
    low, center, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (center - low)
    falling = (high - frequencies) / (high - center)
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))


def stft(samples: torch.Tensor) -> torch.Tensor:
    """Return the complex spectrum, shape [N_FFT // 2 + 1, frames], of samples [samples]."""
    window = torch.hann_window(N_FFT)
    return torch.stft(samples, N_FFT, HOP, window=window, return_complex=True)


def istft(spectrum: torch.Tensor) -> torch.Tensor:
    """Undo `stft`."""
    return torch.istft(spectrum, N_FFT, HOP, window=torch.hann_window(N_FFT))


def to_mel(samples: torch.Tensor) -> torch.Tensor:
    """Return the normalised log mel, shape [N_MELS, frames], of samples [samples]."""
    mel = mel_filters() @ stft(samples).abs()
    return (mel.clamp(min=LOG_FLOOR).log() - LOG_MEAN) / LOG_DEVIATION


def griffin_lim(mel: torch.Tensor, iterations: int = 60, momentum: float = 0.99) -> torch.Tensor:
    """Return samples, shape [samples], whose normalised log mel is close to [N_MELS, frames]."""
    target = (mel * LOG_DEVIATION + LOG_MEAN).exp()
    magnitude = (torch.linalg.pinv(mel_filters()) @ target).clamp(min=LOG_FLOOR)
    phase = torch.rand(magnitude.shape, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    spectrum = torch.polar(magnitude, phase)
    previous = torch.zeros_like(spectrum)
    for _ in range(iterations):
        consistent = stft(istft(spectrum))
        accelerated = consistent + momentum * (consistent - previous)
        spectrum = torch.polar(magnitude, accelerated.angle())
        previous = consistent
    return istft(spectrum)
