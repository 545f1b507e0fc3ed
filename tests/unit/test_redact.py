"""What counts as a secret and is left out, and what does not and stays."""

from __future__ import annotations

import re
import shlex
import time
from typing import Any

import pytest

from ramtrain.redact import MARK, is_secret, redact, redact_arguments, redact_text

TOKEN = "hf_" + "Ab1" * 11
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P"
PEM = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk\n-----END OPENSSH PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "abc"),
        ("--hf-token", "abc"),
        ("hfToken", "abc"),
        ("token", "s3same81"),
        ("TOKEN_GITHUB", "abc"),
        ("MY_TOKEN", "Zq81-ab92"),
        ("token", "Zqabcdefghijklmnop"),
        ("token", "8121-9432-1123-55"),
        ("key", "8f14e45f-ceea-167a-5a36-dedd4bea2543"),
        ("DEPLOY_KEY", "c29tZXRoaW5nIHRoYXQgaXMgc2VjcmV0/+=="),
        ("OAuth2Token", "abc"),
        ("access_token", "letmein"),
        ("api_key", "letmein"),
        ("--api-key", "123"),
        ("WANDB_API_KEY", "0" * 40),
        ("OPENAI_KEY", "word"),
        ("apiKeys", "a,b"),
        ("LICENSE_KEY", "word"),
        ("key", "A83k-22b"),
        ("model.text_api_key", "abc"),
        ("password", "hunter"),
        ("password", 1234),
        ("DB_PASSWD", "x1"),
        ("client_secret", "abc"),
        ("AWS_SECRET_ACCESS_KEY", "abc/def"),
        ("googleCredentials", "abc"),
        ("PASSWORD", "[abc]"),
    ],
)
def test_secrets_by_their_names(name: str, value: object) -> None:
    assert is_secret(name, value)
    assert not is_secret(name, MARK)
    for stays in ("", True, None, "true", "$HF_TOKEN", "${HF_TOKEN}", "{hf_token}", "<your token>", "YOUR_TOKEN"):
        assert not is_secret(name, stays), stays


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", "bert-base-uncased"),
        ("--tokenizer", "/models/tok3n"),
        ("max_tokens", 512),
        ("max_token", 512),
        ("num_keys", 8),
        ("key_frames", "1,5,9"),
        ("--keep", "3"),
        ("keyboard", "a1"),
        ("monkey", "a1"),
        ("pad_token", "<pad>"),
        ("eos_token", "[EOS]"),
        ("mask_token_id", "50264x"),
        ("token", "[MASK]"),
        ("token", 5),
        ("token", "1e-4"),
        ("--key", "17"),
        ("text_key", "txt"),
        ("key", "speaker name"),
        ("image_key", "jpg2"),
        ("hf_token_file", "/run/secrets/hf1"),
        ("password_file", "/etc/pw1"),
        ("secret_name", "db1"),
        ("lr", "1e-4"),
        ("secretary", "x1"),
        ("use_password", True),
    ],
)
def test_names_that_are_none(name: str, value: object) -> None:
    assert not is_secret(name, value)


# Arguments of transformers, diffusers, peft, Lightning, Coqui, accelerate, wandb and others, with values as they have.
ARGUMENTS = """
    initializer_token toy | trigger_token sks | token_abstraction TOK | key C4 | placeholder_token <cat> |
    placeholder_token cat4you99 | modifier_token <new1> | identifier_token ohwx2024v | class_token photo1999a |
    instance_token a1b2c3d4e5 | token sks | token TOK | token zwx81 | TOKEN sks | token <|endoftext|> | token [MASK] |
    tokenizer_name bert-base-uncased | tokenizer_file /data/tok3nizer.json | use_fast_tokenizer true |
    tokenizer_revision 8f14e45fceea167a | pad_token <|pad_0|> | bos_token <s> | eos_token </s> |
    unk_token [UNK] | cls_token [CLS] | sep_token [SEP] | mask_token <mask> | boi_token <boi_1234> |
    image_token <image> | forced_bos_token de_DE | decoder_start_token_id 50258 | pad_token_id 0 | eos_token_id 128001 |
    additional_special_tokens <a>,<b> | max_new_tokens 256 | num_new_tokens_per_abstraction 2 | num_virtual_tokens 20 |
    token_dim 4096 | token_type_ids 0 | trainable_token_indices 1,2,3 | tokens_per_sample 512 | max_tokens_valid 4096 |
    include_tokens_per_second true | include_num_input_tokens_seen all | gpt_start_audio_token 8194 |
    gpt_num_audio_tokens 8194 | stop_token_weight 15.0 | num_key_value_heads 8 | key_dim 64 | key_bias false |
    query_key_norm rms_norm1 | keys_to_ignore_at_inference past_key_values | image_key jpg2 | text_key text_en_2024 |
    label_key label2024x | input_key context_messages | output_key response_v2 | prompt_key instruction2 |
    chosen_key chosen | rejected_key rejected | reward_key reward_model_v2 | dataset_key train_v2 | key val_top5_acc |
    key log_history.eval_loss | key SpeakerEmbedding | key speaker name | sort_key length | key_frames 1,5,9 |
    key 1.0000e-04 | cross_attention_key encoder | keypoints coco17points | hub_model_id me/model2024 |
    hub_strategy every_save | hub_private_repo true | use_auth_token true | push_to_hub yes | wandb_project tts2024x |
    wandb_run_id 3k2jd9x1 | entity team2024x | monitor val_loss | main_process_port 29500 | session lab2024x1 |
    d_vector_file speakers2024.pth | phoneme_cache_path ph0nemes2024 | caption_column text2024x | lr 1e-4
"""


@pytest.mark.parametrize("argument", [part.strip() for part in re.split(r" \|\s", ARGUMENTS)])
def test_what_trainers_are_given_is_no_secret(argument: str) -> None:
    name, value = argument.split(" ", 1)
    assert not is_secret(name, value)
    assert redact_arguments([f"--{name}", value]) == [f"--{name}", value]
    assert redact({name: value}) == {name: value}


def test_long_values_take_little_time() -> None:
    began = time.monotonic()
    for value in ("a" * 100_000 + "!", "aB" * 50_000 + "!", "ab_" * 30_000 + "!", "a1" * 50_000, "ab1_" * 30_000 + "!"):
        is_secret("token", value)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    "secret",
    [
        TOKEN,
        "ghp_" + "a1B2" * 9,
        "github_pat_" + "a1_" * 12,
        "sk-" + "a1B2" * 12,
        "sk-proj-" + "a1_B-" * 8,
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-1234567890-abcdef",
        "glpat-" + "a1B2" * 5,
        "AIza" + "a1B2c" * 7,
        JWT,
        PEM,
    ],
)
def test_secrets_by_their_looks(secret: str) -> None:
    assert redact_text(f"use {secret}, then") == f"use {MARK}, then"
    assert redact_arguments(["train.py", secret, f"--x={secret}"]) == ["train.py", MARK, f"--x={MARK}"]
    assert redact({"notes": ["a", {"b": secret}]}) == {"notes": ["a", {"b": MARK}]}


@pytest.mark.parametrize(
    "text",
    [
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "459fd1fa21b5d7b8f0a3d2b3e3c3f0a1b2c3d4e5",
        "runs/sk-learn-2024-a-long-name-of-an-experiment",
        "task-12345678901234567890123456789012345",
        "https://huggingface.co/coqui/XTTS-v2@main",
        "git@github.com:someone/project.git",
        "ssh://git@github.com/someone/project",
        "http://localhost:8080/x@y",
        "hf_hub_download",
        "eyJ.not.one",
        "lr=1e-4,seed=2",
    ],
)
def test_looks_that_are_none(text: str) -> None:
    assert redact_text(text) == redact_text(text, code=True) == text
    assert redact_arguments([text]) == [text]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train.py --hf-token abc1 --epochs 3", f"train.py --hf-token '{MARK}' --epochs 3"),
        ("train.py --api_key=QQ1 -token abcdef12", f"train.py '--api_key={MARK}' -token '{MARK}'"),
        ("train.py --password -1234", f"train.py --password '{MARK}'"),
        ("train.py --use-token --epochs 3", "train.py --use-token --epochs 3"),
        ("train.py +hub.token=abc1 model.dim=3", f"train.py '+hub.token={MARK}' model.dim=3"),
        ("env HF_TOKEN=abc1 CUDA=1 python x.py", f"env 'HF_TOKEN={MARK}' CUDA=1 python x.py"),
        ("train.py --hf-token {hf_token} --out {ram}", "train.py --hf-token {hf_token} --out {ram}"),
        ("train.py  --tokenizer 'a b' --max_tokens 5", "train.py  --tokenizer 'a b' --max_tokens 5"),
        ("git clone https://me:pw1@host/x", f"git clone 'https://me:{MARK}@host/x'"),
        ("curl 'https://h/x?a=1&api_key=zz1'", f"curl 'https://h/x?a=1&api_key={MARK}'"),
        ("curl -H 'Authorization: Bearer abc.def'", f"curl -H 'Authorization: Bearer {MARK}'"),
        ("bash -c 'HF_TOKEN=abc1 python x.py'", f"bash -c 'HF_TOKEN={MARK} python x.py'"),
        ("python -c 'print(f(key=lambda x: x[0]))'", "python -c 'print(f(key=lambda x: x[0]))'"),
    ],
)
def test_commands(command: str, expected: str) -> None:
    assert redact({"command": command}) == {"command": expected}
    assert redact_arguments(shlex.split(command)) == shlex.split(expected)
    assert redact({"command": shlex.split(command)}) == {"command": shlex.split(expected)}
    assert redact_arguments(shlex.split(expected)) == shlex.split(expected), "a second time changes nothing"


@pytest.mark.parametrize(
    ("text", "config", "code"),
    [
        ('api_key = "abc1"', f'api_key = "{MARK}"', f'api_key = "{MARK}"'),
        ("os.environ['HF_TOKEN'] = 'abc1'", f"os.environ['HF_TOKEN'] = '{MARK}'", f"os.environ['HF_TOKEN'] = '{MARK}'"),
        ('{"hf_token": "a b", "n": 1}', f'{{"hf_token": "{MARK}", "n": 1}}', f'{{"hf_token": "{MARK}", "n": 1}}'),
        ("export HF_TOKEN=abc1", f"export HF_TOKEN={MARK}", f"export HF_TOKEN={MARK}"),
        ("  password: my own (word  # mine", f"  password: {MARK}  # mine", None),
        ("token = tokenizer.next()", None, "token = tokenizer.next()"),
        ("for key, value in items:", "for key, value in items:", "for key, value in items:"),
        ("sorted(x, key=lambda y: y)", None, "sorted(x, key=lambda y: y)"),
        ("max_tokens: 512", "max_tokens: 512", "max_tokens: 512"),
        ("run x: program --hf-token abcdef1 failed", f"run x: program --hf-token {MARK} failed", None),
    ],
)
def test_texts(text: str, config: str | None, code: str | None) -> None:
    for is_code, expected in ((False, config), (True, code)):
        if expected is not None:
            assert redact_text(text, code=is_code) == expected
            assert redact_text(expected, code=is_code) == expected, "a second time changes nothing"


def test_a_config_keeps_its_form() -> None:
    config: dict[str, Any] = {
        "train": {"environment": {"HF_TOKEN": "abc1", "OMP": "1"}, "seed": 1},
        "credentials": {"user": "me", "more": ["a", 5], "on": True},
        "tokens": ["<s>", "</s>"],
        "api_keys": ["a1", "b2"],
        "runs": [{"run": "a", "hf_token": "abc1", "lr": 1e-4}],
        "none": None,
    }
    assert redact(config) == {
        "train": {"environment": {"HF_TOKEN": MARK, "OMP": "1"}, "seed": 1},
        "credentials": {"user": MARK, "more": [MARK, MARK], "on": True},
        "tokens": ["<s>", "</s>"],
        "api_keys": [MARK, MARK],
        "runs": [{"run": "a", "hf_token": MARK, "lr": 1e-4}],
        "none": None,
    }
    assert redact(redact(config)) == redact(config)


def test_a_command_with_numbers_is_one_of_arguments() -> None:
    command = ["python", "--lr", 0.1, "--password", "hunter2x", "--pin", -3, "--secret", 1234, "--amp", True, None]
    expected = [*command[:4], MARK, "--pin", -3, "--secret", MARK, "--amp", True, None]
    assert redact({"command": command, "sizes": [1, 2.5]}) == {"command": expected, "sizes": [1, 2.5]}
    assert redact({"secret": ["--lr", 5]}) == {"secret": [MARK, MARK]}


def test_names_of_metrics_hide_nothing() -> None:
    metrics = {
        "password_f1": {"final": 0.5, "best": None, "goal": "max", "source": f"use {TOKEN}: x"},
        "api_key_f1": {"file": "out/*.csv", "key": "val_4f1b2c3d9e8a7"},
    }
    clean = {**metrics, "password_f1": {**metrics["password_f1"], "source": f"use {MARK}: x"}}
    assert redact({"project": {"metrics": metrics}}) == {"project": {"metrics": clean}}
    assert redact({"secrets": {"metrics": {"a": "b1"}}}) == {"secrets": {"metrics": {"a": MARK}}}
