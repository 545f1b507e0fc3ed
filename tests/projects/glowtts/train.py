"""Trains a tiny GlowTTS of coqui-tts on tones, with the Coqui Trainer.

The Trainer reads the command line itself: `python train.py --coqpit.epochs 4`, `--continue_path output/FOLDER`.
"""

import wave
from pathlib import Path

import numpy as np
from trainer import Trainer, TrainerArgs
from TTS.tts.configs.glow_tts_config import GlowTTSConfig
from TTS.tts.configs.shared_configs import BaseDatasetConfig, CharactersConfig
from TTS.tts.datasets import load_tts_samples
from TTS.tts.models.glow_tts import GlowTTS

RATE, WORDS = 22050, ("one two", "three four", "five six", "seven eight", "nine ten", "none at all", "some more")
PROJECT = Path(__file__).resolve().parent


def make_dataset(folder: Path) -> None:
    """Write a tone of half a second for each text, in the layout of LJSpeech."""
    (folder / "wavs").mkdir(parents=True, exist_ok=True)
    for number, _ in enumerate(WORDS):
        tone = np.sin(np.arange(RATE // 2) * (200 + 50 * number) * 2 * np.pi / RATE)
        with wave.open(str(folder / f"wavs/{number}.wav"), "wb") as file:
            file.setparams((1, 2, RATE, 0, "NONE", ""))
            file.writeframes((tone * 20000).astype("<i2").tobytes())
    lines = (f"{number}|{text}|{text}\n" for number, text in enumerate(WORDS))
    (folder / "metadata.csv").write_text("".join(lines))


def main() -> None:
    """Train."""
    make_dataset(PROJECT / "data")
    data = BaseDatasetConfig(formatter="ljspeech", meta_file_train="metadata.csv", path=str(PROJECT / "data"))
    config = GlowTTSConfig(
        epochs=4,
        batch_size=2,
        eval_batch_size=2,
        eval_split_size=2,
        training_seed=1,
        save_step=2,
        print_step=1,
        run_eval=True,
        test_sentences=[],
        text_cleaner="basic_cleaners",
        characters=CharactersConfig(
            pad="_", eos="~", bos="^", blank="@", characters="abcdefghijklmnopqrstuvwxyz", punctuations=" "
        ),
        hidden_channels_enc=16,
        hidden_channels_dec=16,
        hidden_channels_dp=16,
        num_flow_blocks_dec=2,
        num_block_layers=1,
        encoder_params={"kernel_size": 3, "num_layers": 1, "num_heads": 2, "dropout_p": 0.1, "hidden_channels_ffn": 16},
        data_dep_init_steps=0,
        output_path=str(PROJECT / "output"),
        datasets=[data],
    )
    train, evaluation = load_tts_samples(config, eval_split=True, eval_split_max_size=2, eval_split_size=0.3)
    model = GlowTTS(config)
    Trainer(TrainerArgs(), config, config.output_path, model=model, train_samples=train, eval_samples=evaluation).fit()


if __name__ == "__main__":
    main()
