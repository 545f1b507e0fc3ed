"""A stand-in for AllTalk's fine-tuning: the same names, files, signatures and ways to fail, and a model of 2 MB.

Each epoch moves the weights towards the loudness of the clips, in the same order, so that a training comes to the same
weights wherever it is cut short between two epochs. For tests: PAUSE_S seconds pass in each step; step HOLD_AT does
not end; from step WORSE_FROM on the evaluation is worse than before.
"""

import csv
import logging
import os
import shutil
import sys
import time
import types
import wave
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from trainer import TrainerConfig, TrainerModel
from trainer_alltalk.metrics_logger import MetricsLogger
from trainer_alltalk.trainer import Trainer, TrainerArgs

# PyTorch's compiler, which optimizers ask to leave them alone: to load it takes longer than all that is trained here.
sys.modules["torch._dynamo"] = types.SimpleNamespace(disable=lambda call, *_, **__: call, graph_break=lambda: None)

this_dir = Path(__file__).parent.resolve()
out_path = this_dir / "finetune" / "tmp-trn"
base_path = this_dir / "models" / "xtts"
REQUIRED = ["config.json", "model.pth", "mel_stats.pth", "speakers_xtts.pth", "vocab.json", "dvae.pth"]
SHORTEST_S, LONGEST_S = 6, 30


class DebugLevels:
    MODEL_OPS = True
    DATA_PROCESS = False


class Logger:
    """Prints to the terminal and into finetune.log, without what is not printable."""

    def __init__(self, terminal):
        self.terminal = terminal
        self.log = open("finetune.log", "a", encoding="utf-8")  # noqa: SIM115

    def write(self, text):
        text = "".join(letter for letter in text if letter.isprintable() or letter in "\n\r\t")
        self.terminal.write(text)
        self.log.write(text)
        self.flush()

    def flush(self):
        self.terminal.flush()
        self.log.flush()

    def isatty(self):
        return False


sys.stdout = sys.stderr = Logger(sys.stdout)
logging.basicConfig(level=logging.INFO, format="[FINETUNE] %(message)s", handlers=[logging.StreamHandler(sys.stdout)])
if not base_path.is_dir():
    print("[FINETUNE] ERROR: [GENERAL] No XTTS models folder found.")
    sys.exit(1)


def say(text):
    print(f"[FINETUNE] [MODEL] {text}")


@dataclass
class GPTTrainerConfig(TrainerConfig):
    num_loader_workers: int = 0
    optimizer: str = "AdamW"
    lr_scheduler_params: dict = field(default_factory=dict)
    max_wav_length: int = 0
    language: str = ""


class Weights(TrainerModel):
    def __init__(self, base):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.frombuffer(bytearray(base.read_bytes()), dtype=torch.float32))
        self.steps = 0

    def forward(self, batch):
        return (self.weights - batch["loudness"].mean()).square().mean()

    def train_step(self, batch, criterion):
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        self.steps += 1
        if self.steps == int(os.environ.get("HOLD_AT", "0")):
            say("holding")
            time.sleep(600)
        loss = self(batch)
        return {"model_outputs": loss}, {"loss": loss}

    def eval_step(self, batch, criterion):
        loss = self(batch)
        if self.steps >= int(os.environ.get("WORSE_FROM", "1000000")):
            loss = loss + 1
        return {"model_outputs": loss}, {"loss": loss}

    def get_criterion(self):
        return torch.nn.Identity()

    def get_data_loader(self, config, *, is_eval, samples, verbose):
        return DataLoader(samples, batch_size=config.batch_size, num_workers=config.num_loader_workers)


def load_samples(table):
    """Return the loudness of each clip that is there."""
    with open(table, encoding="utf-8") as lines:
        names = [Path(table).parent / row["audio_file"] for row in csv.DictReader(lines, delimiter="|")]
    return [{"loudness": loudness(name)} for name in names if name.exists()]


def loudness(name):
    with wave.open(str(name)) as file:
        samples = torch.frombuffer(bytearray(file.readframes(file.getnframes())), dtype=torch.int16)
    return samples.float().abs().mean().item() / 8000


def seconds(name):
    with wave.open(str(name)) as file:
        return file.getnframes() / file.getframerate()


def train_gpt(
    language,
    num_epochs,
    batch_size,
    grad_acumm,
    train_csv,
    eval_csv,
    learning_rate,
    model_to_train,
    continue_run,
    disable_shared_memory,
    learning_rate_scheduler,
    optimizer,
    num_workers,
    warm_up,
    max_audio_length=255995,
    progress=None,
):
    base = base_path / model_to_train
    if missing := [name for name in REQUIRED if not (base / name).exists()]:
        say(f"ERROR: missing required files in {model_to_train}: {', '.join(missing)}")
        return None
    if not train_csv or not eval_csv:
        say("ERROR: missing training or evaluation CSV files")
        return None
    say(f"sys.argv {sys.argv}, CONDA_PREFIX {os.environ.get('CONDA_PREFIX')}, python {shutil.which('python')}")
    say(f"language {language}, rate {learning_rate}, samples {max_audio_length}, threads {num_workers}, warm {warm_up}")
    progress(0, desc="Model is currently training. See console for more information")

    training = out_path / "training"
    training.mkdir(exist_ok=True)
    continue_path = None
    if continue_run and (folders := [entry for entry in training.iterdir() if entry.is_dir()]):
        newest = max(folders, key=lambda entry: entry.stat().st_mtime)
        if list(newest.glob("best_model_*.pth")):
            continue_path = f"{newest}{os.sep}"
    support = out_path / "chkptandnorm"
    support.mkdir(exist_ok=True)
    for name in ("dvae.pth", "mel_stats.pth", "speakers_xtts.pth"):
        shutil.copy2(base / name, support / name)

    schedules = {
        "CosineAnnealingWarmRestarts": {"T_0": num_epochs // 4, "T_mult": 1, "eta_min": 1e-6},
        "ExponentialLR": {"gamma": 0.5},
    }
    config = GPTTrainerConfig(
        epochs=num_epochs,
        output_path=str(training),
        run_name="XTTS_FT",
        dashboard_logger="tensorboard",
        batch_size=batch_size,
        eval_batch_size=batch_size,
        num_loader_workers=int(num_workers),
        print_step=50,
        save_step=1000,
        save_n_checkpoints=1,
        optimizer=optimizer,
        optimizer_params={},
        lr=learning_rate,
        lr_scheduler=None if learning_rate_scheduler == "None" else learning_rate_scheduler,
        lr_scheduler_params=schedules.get(learning_rate_scheduler, {}),
        max_wav_length=max_audio_length,
        language=language,
    )
    trainer = Trainer(
        TrainerArgs(continue_path=continue_path or "", grad_accum_steps=grad_acumm),
        config,
        output_path=str(training),
        model=Weights(base / "model.pth"),
        train_samples=load_samples(train_csv),
        eval_samples=load_samples(eval_csv),
        training_assets=None,
        c_logger=MetricsLogger(),
        warmup=warm_up,
    )
    trainer.model.steps = trainer.total_steps_done
    trainer.fit()
    say("Training completed successfully")
    checkpoint = None if continue_path else base / "model.pth"
    return str(base / "config.json"), checkpoint, str(base / "vocab.json"), str(trainer.output_path), "clip.wav"


def compact_custom_model(xtts_checkpoint_copy, folder_path, overwrite_existing):
    if not xtts_checkpoint_copy:
        return "No trained model was selected. Please click Refresh Dropdowns and try again."
    target = base_path / folder_path
    if overwrite_existing == "Do not overwrite existing files" and target.exists():
        return "The target folder already exists. Please change folder name or allow overwrites."
    source = Path(xtts_checkpoint_copy)
    checkpoint = torch.load(source, map_location="cpu", weights_only=False)
    del checkpoint["optimizer"]
    target.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, target / "model.pth")
    project = source.parent.parent.parent
    support = project / "chkptandnorm"
    for path in [source.parent / "vocab.json", source.parent / "config.json", *sorted(support.glob("*.pth"))]:
        if path.exists():
            shutil.copy2(path, target / path.name)
    for kind in ("too_short", "too_long", "suitable"):
        (target / "wavs" / kind).mkdir(parents=True, exist_ok=True)
    for path in (project / "wavs").glob("*.wav"):
        length = seconds(path)
        kind = "too_short" if length < SHORTEST_S else "too_long" if length > LONGEST_S else "suitable"
        shutil.copy2(path, target / "wavs" / kind / path.name)
    (target / "wavs" / "audio_report.txt").write_text("suitable: 1\n")
    return f"Model & WAV samples processed and copied to '/models/xtts/{folder_path}/'"
