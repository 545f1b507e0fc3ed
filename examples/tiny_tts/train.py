"""Train TinyTTS with the Coqui Trainer, then speak a sentence it was not trained on.

The Trainer's own options work besides those of this script: `--continue_path output/<run>`,
`--restore_path <file.pth>`, and `--coqpit.<field> <value>` for every field of `TinyTTSConfig`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from trainer import Trainer, TrainerArgs
from trainer.io import get_last_checkpoint

import audio
from make_dataset import DATA_DIR, make_dataset
from tiny_tts import Sample, TinyTTS, TinyTTSConfig

OUTPUT_DIR = Path(__file__).resolve().parent / "output"
OPTIONS = {
    "--epochs": "epochs",
    "--seed": "training_seed",
    "--lr": "lr",
    "--batch-size": "batch_size",
}
N_EVAL = 16
PICTURE_SCALE = 4


def translate_options() -> None:
    """Replace this script's options in `sys.argv` by the Trainer's `--coqpit.<field>`.

    In that form they also override the config that the Trainer loads for a continued run.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    default = TinyTTSConfig()
    for option, field in OPTIONS.items():
        value = getattr(default, field)
        parser.add_argument(option, dest=field, type=type(value), help=f"default: {value}")
    options, others = parser.parse_known_args()
    fields = [f"--coqpit.{k}={v}" for k, v in vars(options).items() if v is not None]
    sys.argv[1:] = others + fields


def load_samples() -> list[Sample]:
    """Read the data set, in the order of its metadata."""
    lines = (DATA_DIR / "metadata.csv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines]
    return [
        Sample(normalized, audio.read_samples(DATA_DIR / "wavs" / f"{clip_id}.wav")) for clip_id, _, normalized in rows
    ]


def save_mel_picture(path: Path, mels: list[torch.Tensor]) -> None:
    """Draw mels [M, T] one above the other, low bands at the bottom, bright where loud."""
    width = max(mel.shape[1] for mel in mels)
    rows = []
    for mel in mels:
        pixels = ((mel.flip(0) + 2) / 4).clamp(0, 1) * 255
        rows.append(np.pad(pixels.numpy().astype(np.uint8), ((0, 2), (0, width - mel.shape[1]))))
    picture = Image.fromarray(np.concatenate(rows))
    size = (picture.width * PICTURE_SCALE, picture.height * PICTURE_SCALE)
    picture.resize(size, Image.Resampling.NEAREST).save(path)


def write_sample(run_dir: Path, config: TinyTTSConfig, sample: Sample) -> None:
    """Speak the text of `sample` with the best model of the run, and picture both mels."""
    _, best_model = get_last_checkpoint(run_dir)
    model = TinyTTS(config)
    model.load_state_dict(torch.load(best_model, map_location="cpu")["model"])
    model.eval()
    mel = model.synthesize(sample.text)
    audio.write_samples(run_dir / "sample.wav", audio.griffin_lim(mel))
    save_mel_picture(run_dir / "sample_mel.png", [audio.to_mel(sample.waveform), mel])
    print(f'Spoke "{sample.text}" into {run_dir / "sample.wav"}')


def main() -> None:
    """Train from scratch, or as the command line says, and write the sample."""
    translate_options()
    make_dataset()
    config = TinyTTSConfig()
    config.parse_known_args(relaxed_parser=True)
    # The Trainer seeds only after the model is made.
    torch.manual_seed(config.training_seed)
    samples = load_samples()
    trainer = Trainer(
        TrainerArgs(),
        config,
        OUTPUT_DIR,
        model=TinyTTS(config),
        train_samples=samples[N_EVAL:],
        eval_samples=samples[:N_EVAL],
    )
    trainer.fit()
    write_sample(trainer.output_path, trainer.config, samples[0])


if __name__ == "__main__":
    main()
