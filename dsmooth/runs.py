"""The folder of a training run: its settings, its log, its weights and the record of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ._version import __version__
from .config import Role, TrainConfig
from .fields import structure
from .files import (
    lock_folder,
    read_json,
    read_tensors,
    replacing,
    tensor_bytes,
    write_json,
)
from .nn import PixelCNNpp
from .nn.weights import load_network
from .runlog import End, HeldOut, LogEntry, Start, read_entry

# Files of a run, and of a network or pair that `save_pretrained` wrote.
SIZE = "height_and_width"  # in the settings of a run
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class TrainingRecord:
    """The training of weights, for the model card. Fields are None if the run has no log.

    bits_per_dim: of held-out images at the last evaluation, whose meaning is `loss`.
    weights_sha256: `weights_digest` of the weights, None where it was not recorded.
    """

    data: str
    images: int | None
    seed: int
    seconds: float | None
    loss: str | None
    bits_per_dim: float | None
    weights_sha256: str | None = None


@dataclass(init=False, unsafe_hash=True)
class RunFolder:
    """The folder of a run, and the paths of its files, which need not exist."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / CONFIG_FILE  # the settings
        self.log = self.path / "log.jsonl"  # one JSON object a line
        # The newest checkpoint, from which a run is resumed, and the one before it.
        self.checkpoint = self.path / "checkpoint.safetensors"
        self.earlier_checkpoint = self.path / "checkpoint-earlier.safetensors"
        self.weights = self.path / WEIGHTS_FILE  # averaged, at the last evaluation

    def grid(self, images_seen: int) -> Path:
        """The samples after `images_seen` training images."""
        return self.path / f"samples-{images_seen:09d}.png"

    def checkpoints(self) -> tuple[Path, Path]:
        """The files that may hold a checkpoint, the newest first."""
        return self.checkpoint, self.earlier_checkpoint

    def can_resume(self) -> bool:
        """Whether the folder holds a run that can be resumed."""
        return self.config.exists() and any(map(Path.exists, self.checkpoints()))

    def is_finished(self) -> bool:
        """Whether the run came to its end, by its log."""
        if not self.log.is_file() or not self.weights.exists():
            return False
        entries = self.read_log()
        return bool(entries) and isinstance(entries[-1], End)

    def is_evaluated(self, images_seen: int) -> bool:
        """Whether the weights exist and are of `images_seen` training images, by the log."""
        seen = [entry.images for entry in self.read_log() if isinstance(entry, HeldOut)]
        return self.weights.exists() and seen[-1:] == [images_seen]

    def write_config(self, config: TrainConfig, image_size: tuple[int, int]) -> None:
        """Write the settings, the version of dsmooth and the image size."""
        write_json(self.config, {"dsmooth": __version__, SIZE: image_size, **asdict(config)})

    def write_model(
        self, model: PixelCNNpp, config: TrainConfig, image_size: tuple[int, int]
    ) -> None:
        """Make this the run folder of a model that another training loop made.

        Every command then takes the folder. config: says the model's role, smoothing and data.
        image_size: (H, W). Raises ValueError if the model is not the one that the config describes,
        and for a folder with the log or a checkpoint of a run, which would be of other weights.
        """
        if model.config != config.model:
            raise ValueError(f"config.model must be the model's own {model.config}")
        with lock_folder(self.path, "a training run"):
            if any(map(Path.exists, (self.log, *self.checkpoints()))):
                raise ValueError(f"{self.path} already holds a training run; choose another folder")
            # A kill on the way leaves no settings, rather than those of other weights.
            with replacing(self.weights, tensor_bytes(model.state_dict(), {})):
                self.config.unlink(missing_ok=True)
            self.write_config(config, image_size)

    def read_config(self) -> tuple[TrainConfig, tuple[int, int]]:
        """The settings and the image size.

        Raises FileNotFoundError or ValueError, naming the file and the field.
        """
        return run_config(read_json(self.config), self.config)

    def read_log(self) -> list[LogEntry]:
        """The entries of the log, in order, without lines that were cut by a crash or damaged."""
        lines = self.log.read_bytes().splitlines()
        return [entry for entry in map(read_entry, lines) if entry is not None]

    def history(self) -> list[LogEntry]:
        """The log without steps that a later start took back (those after the last checkpoint)."""
        kept: list[LogEntry] = []
        for entry in self.read_log():
            if isinstance(entry, Start):
                kept = [earlier for earlier in kept if earlier.images <= entry.images]
            kept.append(entry)
        return kept

    def record(self) -> TrainingRecord:
        """The training of the weights, by the settings and the log."""
        config, _ = self.read_config()
        entries = self.history() if self.log.is_file() else []
        bits = [entry.bits_per_dim for entry in entries if isinstance(entry, HeldOut)]
        losses = [entry.loss for entry in entries if isinstance(entry, Start)]
        total = last = 0.0
        for entry in entries:
            if isinstance(entry, Start):  # each counts its seconds from 0
                total, last = total + last, 0.0
            last = max(last, entry.seconds)
        return TrainingRecord(
            data=config.data,
            images=max((entry.images for entry in entries), default=config.images),
            seed=config.seed,
            seconds=round(total + last, 1) if entries else None,
            loss=losses[-1] if losses else None,
            bits_per_dim=bits[-1] if bits else None,
        )

    def load_model(self) -> tuple[PixelCNNpp, TrainConfig, tuple[int, int]]:
        """The trained model in evaluation mode, its settings and its image size.

        Raises FileNotFoundError or ValueError, naming the file, without finished weights.
        """
        config, image_size = self.read_config()
        network = load_network(config.model, read_tensors(self.weights)[0], self.weights)
        network.image_size, network.role = image_size, config.role
        return network, config, image_size


@dataclass(frozen=True)
class _ImageSize:
    height_and_width: tuple[int, int]


def default_folder(role: Role) -> Path:
    """Folder of a run if none is named."""
    return Path("runs") / role


def run_config(values: Mapping[str, object], path: Path) -> tuple[TrainConfig, tuple[int, int]]:
    """The settings and image size in `values`, the content of `path`."""
    missing = [key for key in ("role", "model", SIZE) if key not in values]
    if missing:
        keys = f"key{'s' * (len(missing) > 1)} {', '.join(missing)}"
        raise ValueError(f"{path} is not the {CONFIG_FILE} of a run: {keys} missing")
    settings = {key: value for key, value in values.items() if key not in ("dsmooth", SIZE)}
    try:
        size = structure({SIZE: values[SIZE]}, _ImageSize)
        return structure(settings, TrainConfig), size.height_and_width
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
