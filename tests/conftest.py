"""Fixtures that need a real server or a real model folder; both are small, local and made on the spot."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import pytest

ACCESS_KEY = "m2maccess"
SECRET_KEY = "m2msecretkey"


@dataclass(frozen=True)
class S3Server:
    """An empty bucket on a real S3 server at 127.0.0.1, and a way to its objects that is not the project's own."""

    endpoint: str
    bucket: str
    client: Any
    """Of boto3."""

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    def write(self, key: str, content: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=key, Body=content)

    def read(self, key: str) -> bytes:
        return bytes(self.client.get_object(Bucket=self.bucket, Key=key)["Body"].read())

    def keys(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=self.bucket).get("Contents", [])]

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=key)


@pytest.fixture(scope="session", autouse=True)
def one_thread_of_torch() -> None:
    """As each worker has: another number changes last bits, and small networks only wait for a second thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A boto3 client of `rclone serve s3`, which runs as long as the test session."""
    import boto3

    root = tmp_path_factory.mktemp("s3")
    rclone = Path(sys.executable).with_name("rclone")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [
            *(str(rclone) if rclone.exists() else "rclone", "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}"),
            *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", "", "--quiet"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until_it_answers(endpoint, server)
        yield boto3.Session(ACCESS_KEY, SECRET_KEY, region_name="us-east-1").client("s3", endpoint_url=endpoint)
    finally:
        server.terminate()
        server.wait(timeout=10)


def _wait_until_it_answers(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urlopen(endpoint, timeout=1).close()
        except HTTPError as error:
            error.close()
            return  # it refuses the unsigned request: it is up
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"rclone serve s3 did not come up (exit status {server.poll()})")


@pytest.fixture
def s3_server(s3_client: Any, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """A fresh bucket on a running S3 server, with the AWS variables set to reach it."""
    server = S3Server(endpoint=s3_client.meta.endpoint_url, bucket=f"bucket-{token_hex(4)}", client=s3_client)
    server.client.create_bucket(Bucket=server.bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return server


@pytest.fixture(scope="session")
def tiny_stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `StableDiffusionPipeline` folder of random weights, configured like SD 2.1-base but tiny: 64-pixel pictures."""
    import torch
    from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("tiny") / "stable-diffusion"
    vocabulary = _character_vocabulary()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=4,
            sample_size=64,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(16, 32),
            attention_head_dim=(2, 4),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
            use_linear_projection=True,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                bos_token_id=vocabulary["<|startoftext|>"],
                eos_token_id=vocabulary["<|endoftext|>"],
                pad_token_id=vocabulary["<|endoftext|>"],
            )
        )
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77),
        scheduler=PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            set_alpha_to_one=False,
            skip_prk_steps=True,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def _character_vocabulary() -> dict[str, int]:
    """CLIP's byte-level alphabet, inside and at the end of a word, and its two special tokens."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokens = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}


@pytest.fixture(scope="session")
def tiny_dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `Dinov2Model` folder of random weights with its image processor: 56 pixels, 16 patch tokens of width 32."""
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("tiny") / "dino"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Dinov2Model(
            Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
        )
    model.save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 56},
        crop_size={"height": 56, "width": 56},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def make_pipeline(tiny_stable_diffusion: Path, tiny_dino: Path) -> Any:
    """Pipelines from the tiny Stable Diffusion; `trained`: their new weights are no longer where they started."""
    from m2m.models.unet import ImageSetUNet
    from m2m.params import Variant
    from m2m.pipeline import M2MPipeline
    from tests.drawing import leave_the_start, pipeline_around

    def make(variant: Variant, *, max_context: int = 8, trained: bool = True) -> M2MPipeline:
        dino = variant == "dino"
        unet = ImageSetUNet.from_stable_diffusion(
            tiny_stable_diffusion, variant=variant, max_context=max_context, context_dim=32 if dino else 0
        ).eval()
        if trained:
            leave_the_start(unet)
        return pipeline_around(unet, tiny_stable_diffusion, tiny_dino)

    return make


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Making MLflow's tables takes seconds: once is enough."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    from m2m.tracking import check_tracking

    check_tracking(f"sqlite:///{file}")
    return file


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    """The address of a database of its own."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


class MlflowServer:
    """An MLflow server that can be killed and brought back with what it knew."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder, self.database = folder, database
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)),
                *("--backend-store-uri", self.database, "--artifacts-destination", str(self.folder / "artifacts")),
                *("--workers", "1"),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urlopen(f"{self.uri}/health", timeout=2):
                    return
            except (URLError, OSError):
                assert self.process.poll() is None, "the server ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture
def mlflow_server(tmp_path: Path, database: str) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path, database)
    yield server
    server.kill()
