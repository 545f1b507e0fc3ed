"""A small non-autoregressive text-to-speech model: characters in, mel spectrogram out.

The encoder turns each character into a hidden vector and a first guess of its mel frame. Monotonic
alignment search (as in Glow-TTS) compares these guesses with the recorded mel and finds how many
frames each character lasts; a small predictor learns these durations from the text. The decoder
stretches the hidden vectors to frames and refines the guesses.

Shapes: B clips, C characters, T mel frames, H hidden channels, M mel bands.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from trainer import TrainerConfig, TrainerModel

import audio

SYMBOLS = "_ abcdefghijklmnopqrstuvwxyz.,?'"  # "_" pads
DIAGONAL_WIDTH = 0.1  # of the clip
DURATION_UNIT = 10.0  # frames, a long character


@dataclass
class TinyTTSConfig(TrainerConfig):
    """The sizes of the model and the defaults of its training."""

    encoder_channels: int = 384
    encoder_layers: int = 5
    decoder_channels: int = 192
    decoder_layers: int = 5
    kernel_size: int = 5
    encoder_dropout: float = 0.1
    num_loader_workers: int = 0

    run_name: str = "tiny_tts"
    run_description: str = "Characters to mel spectrogram."
    epochs: int = 12
    batch_size: int = 4
    eval_batch_size: int = 8
    lr: float = 1.5e-3
    optimizer: str = "Adam"
    lr_scheduler: str = "ExponentialLR"
    lr_scheduler_params: dict[str, Any] = field(default_factory=lambda: {"gamma": 0.87})
    grad_clip: float = 1.0
    print_step: int = 10
    plot_step: int = 10
    save_step: int = 50
    save_all_best: bool = True


@dataclass(frozen=True)
class Sample:
    """A clip of the data set: its normalised text and its samples, shape [samples]."""

    text: str
    waveform: torch.Tensor


def encode_text(text: str) -> torch.Tensor:
    """Return the indices in `SYMBOLS` of the characters of `text`, shape [C]."""
    return torch.tensor([SYMBOLS.index(character) for character in text.lower()])


class SpeechDataset(Dataset):
    """Pairs of characters [C] and mel [T, M], analysed once."""

    def __init__(self, samples: list[Sample]) -> None:
        self._items = [(encode_text(s.text), audio.to_mel(s.waveform).T) for s in samples]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self._items[index]


def collate(items: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Pad a batch: characters [B, C] and mel [B, M, T], with their lengths [B]."""
    characters, mels = zip(*items, strict=True)
    return {
        "characters": pad_sequence(characters, batch_first=True),
        "n_characters": torch.tensor([len(c) for c in characters]),
        "mel": pad_sequence(mels, batch_first=True).transpose(1, 2),
        "n_frames": torch.tensor([len(m) for m in mels]),
    }


def length_mask(lengths: torch.Tensor) -> torch.Tensor:
    """Return a mask [B, longest] that is true in the first `lengths` [B] places of each row."""
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def search_alignment(scores: np.ndarray, n_characters: np.ndarray, n_frames: np.ndarray) -> np.ndarray:
    """Return the durations [B, C], in frames, of the monotonic alignment with the best score.

    `scores` [B, C, T] says how well each frame fits each character; every character gets at
    least one frame. This is the Viterbi search: a frame either stays on a character or moves on
    to the next one.
    """
    n_clips, longest, total_frames = scores.shape
    best = np.full((n_clips, longest), -np.inf, dtype=scores.dtype)
    best[:, 0] = scores[:, 0, 0]
    moved = np.zeros(scores.shape, dtype=bool)
    for frame in range(1, total_frames):
        before = np.pad(best[:, :-1], ((0, 0), (1, 0)), constant_values=-np.inf)
        moved[:, :, frame] = before > best
        best = np.maximum(best, before) + scores[:, :, frame]

    durations = np.zeros((n_clips, longest), dtype=np.int64)
    clips = np.arange(n_clips)
    character = n_characters - 1
    for frame in reversed(range(total_frames)):
        inside = frame < n_frames
        durations[clips, character] += inside
        character = character - (inside & moved[clips, character, frame])
    return durations


def locate_frames(durations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for each frame the index of its character [B, T], and where in it it lies [B, 2, T].

    The latter is how much of the character is over (0 to 1), and how long the character lasts.
    """
    ends = durations.cumsum(1)
    frames = torch.arange(int(ends.max()), device=ends.device).repeat(len(ends), 1)
    character = torch.searchsorted(ends, frames, right=True).clamp(max=ends.shape[1] - 1)
    duration = durations.gather(1, character).clamp(min=1)
    elapsed = 1 - (ends.gather(1, character) - frames) / duration
    return character, torch.stack([elapsed, duration / DURATION_UNIT], dim=1)


class ConvBlock(nn.Module):
    """A residual convolution that leaves padding at zero; shape [B, H, C or T] in and out."""

    def __init__(self, channels: int, kernel_size: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Convolve x, whose real places the mask [B, C or T] marks."""
        y = self.norm(self.conv(x).transpose(1, 2)).transpose(1, 2)
        return (x + self.dropout(F.relu(y))) * mask[:, None]


class TinyTTSLoss(nn.Module):
    """The losses of the refined mel, of the first guess, and of the durations."""

    def forward(self, outputs: dict[str, torch.Tensor], batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return each loss and their sum, `loss`, over the places that are not padding."""
        frames = length_mask(batch["n_frames"])
        characters = length_mask(batch["n_characters"])
        mel = batch["mel"].transpose(1, 2)[frames]
        losses = {
            "loss_mel": F.l1_loss(outputs["model_outputs"].transpose(1, 2)[frames], mel),
            "loss_guess": F.mse_loss(outputs["guess"].transpose(1, 2)[frames], mel),
            "loss_duration": F.mse_loss(
                outputs["predicted_durations"][characters] / DURATION_UNIT,
                outputs["durations"][characters] / DURATION_UNIT,
            ),
        }
        return {"loss": sum(losses.values()), **losses}


class TinyTTS(TrainerModel):
    """The model, in the form the Coqui Trainer wants."""

    def __init__(self, config: TinyTTSConfig) -> None:
        super().__init__()
        encoder, decoder = config.encoder_channels, config.decoder_channels
        self.embedding = nn.Embedding(len(SYMBOLS), encoder, padding_idx=0)
        self.encoder = nn.ModuleList(
            ConvBlock(encoder, config.kernel_size, config.encoder_dropout) for _ in range(config.encoder_layers)
        )
        self.to_guess = nn.Conv1d(encoder, audio.N_MELS, 1)
        self.to_duration = nn.Conv1d(encoder, 1, 1)
        # Two more channels say where a frame lies in its character.
        self.to_decoder = nn.Conv1d(encoder + 2, decoder, 1)
        self.decoder = nn.ModuleList(ConvBlock(decoder, config.kernel_size) for _ in range(config.decoder_layers))
        self.to_refinement = nn.Conv1d(decoder, audio.N_MELS, 1)
        # Equal guesses make the first alignments follow the diagonal alone.
        nn.init.zeros_(self.to_guess.weight)

    def encode(
        self, characters: torch.Tensor, n_characters: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return hidden [B, H, C], guess of the mel [B, M, C] and durations [B, C]."""
        mask = length_mask(n_characters)
        hidden = self.embedding(characters).transpose(1, 2)
        for block in self.encoder:
            hidden = block(hidden, mask)
        durations = F.softplus(self.to_duration(hidden).squeeze(1)) * DURATION_UNIT
        return hidden, self.to_guess(hidden), durations

    @torch.no_grad()
    def align(self, guess: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the durations [B, C] that fit the guess [B, M, C] to the batch's mel best."""
        mel, n_characters, n_frames = batch["mel"], batch["n_characters"], batch["n_frames"]
        scores = -0.5 * torch.cdist(guess.transpose(1, 2), mel.transpose(1, 2)).square()
        character = torch.arange(guess.shape[2], device=mel.device)[:, None]
        frame = torch.arange(mel.shape[2], device=mel.device)
        off_diagonal = (character / n_characters[:, None, None] - frame / n_frames[:, None, None]) / DIAGONAL_WIDTH
        scores = scores - 0.5 * off_diagonal.square()
        durations = search_alignment(scores.cpu().numpy(), n_characters.cpu().numpy(), n_frames.cpu().numpy())
        return torch.from_numpy(durations).to(mel.device)

    def decode(
        self, hidden: torch.Tensor, guess: torch.Tensor, durations: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stretch hidden and guess by durations [B, C]; return mel and guess, both [B, M, T]."""
        character, places = locate_frames(durations)
        hidden, guess = (x.gather(2, character[:, None].expand(-1, x.shape[1], -1)) for x in (hidden, guess))
        mask = length_mask(durations.sum(1))
        x = self.to_decoder(torch.cat([hidden, places], dim=1)) * mask[:, None]
        for block in self.decoder:
            x = block(x, mask)
        return guess + self.to_refinement(x), guess

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Align a batch with its recordings and predict its mel [B, M, T] as `model_outputs`."""
        hidden, guess, predicted_durations = self.encode(batch["characters"], batch["n_characters"])
        durations = self.align(guess, batch)
        mel, guess = self.decode(hidden, guess, durations)
        return {
            "model_outputs": mel,
            "guess": guess,
            "durations": durations,
            "predicted_durations": predicted_durations,
        }

    @torch.inference_mode()
    def synthesize(self, text: str) -> torch.Tensor:
        """Return the mel [M, T] of `text`, with predicted durations."""
        characters = encode_text(text)[None]
        hidden, guess, predicted_durations = self.encode(characters, torch.tensor([len(text)]))
        durations = predicted_durations.round().long().clamp(min=1)
        return self.decode(hidden, guess, durations)[0][0]

    def train_step(
        self, batch: dict[str, torch.Tensor], criterion: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the outputs for a batch and its losses."""
        outputs = self(batch)
        return outputs, criterion(outputs, batch)

    @torch.inference_mode()
    def eval_step(
        self, batch: dict[str, torch.Tensor], criterion: nn.Module
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Do what `train_step` does, without gradients."""
        return self.train_step(batch, criterion)

    def get_criterion(self) -> nn.Module:
        """Return the losses to train with."""
        return TinyTTSLoss()

    def get_data_loader(
        self, config: TinyTTSConfig, *, is_eval: bool, samples: list[Sample], verbose: bool
    ) -> DataLoader:
        """Return the batches of an epoch: shuffled for training, in order for evaluation."""
        return DataLoader(
            SpeechDataset(samples),
            batch_size=config.eval_batch_size if is_eval else config.batch_size,
            shuffle=not is_eval,
            collate_fn=collate,
            num_workers=config.num_loader_workers,
        )
