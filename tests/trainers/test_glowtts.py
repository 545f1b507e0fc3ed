"""GlowTTS of coqui-tts, with the Coqui Trainer.

Equal after a resume: the number of epochs. Not the steps, since the epoch of a checkpoint is trained again from its
beginning; nor the weights, since the Trainer keeps no random state.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec

import pytest
from trained import Trained

EPOCHS = 4


def needs_glowtts() -> None:
    """Skip the test, and say why, where coqui-tts cannot be imported: it needs a torchaudio that fits its torch."""
    if find_spec("TTS") is None:
        pytest.skip("needs coqui-tts 0.28")
    done = subprocess.run(
        [sys.executable, "-c", "import TTS.tts.models.glow_tts"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"coqui-tts cannot be imported: {done.stderr.strip()[-300:]}")


def test_it_is_killed_goes_on_and_comes_home(trained: Callable[..., Trained]) -> None:
    needs_glowtts()
    place = trained("glowtts")
    place.start()
    place.wait_for("overlay/upper/output/*/checkpoint_4.pth")  # best_model.pth is there by then
    place.process("train.py").kill()
    assert place.wait() != 0
    place.start()
    place.wait_for_another_checkpoint()
    assert "which is still in RAM" in place.said()
    place.snakemake.send_signal(signal.SIGKILL)
    place.reboot()

    assert "from the durable checkpoint" in place.go_on()
    assert zipfile.is_zipfile(place.model / "best_model.pth")
    record = json.loads((place.results / "record.json").read_text())
    assert record["progress"]["epoch"] == f"{EPOCHS - 1}/{EPOCHS - 1}"
    said = (place.results / "train.log").read_text()
    assert len(set(re.findall(r"BEST MODEL : (.*)/", said))) == 1, "it goes on in the same folder"
