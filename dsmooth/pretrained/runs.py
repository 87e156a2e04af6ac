"""The folder of a training run: its settings, and its weights with what they say of themselves.

What `dsmooth.save` writes is such a folder without the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from .._extension import __version__
from ..config import (
    ModelConfig,
    PositiveFloat,
    Role,
    SmoothingKind,
    TrainConfig,
    TrainingRecord,
    settled,
)
from ..files import (
    json_text,
    lock_folder,
    parse_json,
    read_json,
    read_metadata,
    read_tensors,
    remove_half_written,
    structured,
    write_json,
    write_tensors,
)
from ..nn import PixelCNNpp
from ..nn.weights import load_network, weights_digest
from ..smoothing import SMOOTHINGS, Smoothing
from .log import End, HeldOut, LogEntry, history, read_log, seconds_of

SIZE = "height_and_width"  # in the settings of a run
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
SETTINGS_KEY = "config"  # of the metadata of weights


@dataclass(frozen=True)
class WeightsSettings:
    """What a file of weights says about its networks, in its metadata.

    smoothing, scale: that they were trained for; None for a network that does not know it.
    image_size: likewise. training: the records that are known.
    """

    smoothing: SmoothingKind | None
    scale: PositiveFloat | None
    image_size: tuple[int, int] | None
    networks: dict[Role, ModelConfig]
    training: dict[Role, TrainingRecord] = field(default_factory=dict)

    @property
    def noise(self) -> Smoothing | None:
        """The smoothing with its scale."""
        if self.smoothing is None or self.scale is None:
            return None
        return SMOOTHINGS[self.smoothing](self.scale)

    @classmethod
    def of_run(
        cls, config: TrainConfig, image_size: tuple[int, int], **record: Any
    ) -> WeightsSettings:
        """Those of a run. record: what its settings do not say of a `TrainingRecord`."""
        record |= {"data": config.data, "seed": config.seed, "clean_noise": config.clean_noise}
        training, networks = TrainingRecord(**record), {config.role: config.model}
        return cls(config.smoothing, config.scale, image_size, networks, {config.role: training})


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

    def is_finished(self) -> bool:
        """Whether the run came to its end, by its log."""
        return self.weights.exists() and isinstance([None, *self.read_log()][-1], End)

    def is_evaluated(self, images_seen: int) -> bool:
        """Whether the weights exist and are of `images_seen` training images, by the log."""
        seen = [entry.images for entry in self.read_log() if isinstance(entry, HeldOut)]
        return self.weights.exists() and seen[-1:] == [images_seen]

    def write_config(self, config: TrainConfig, image_size: tuple[int, int]) -> None:
        """Write the settings, the version of dsmooth and the image size."""
        write_json(self.config, {"dsmooth": __version__, SIZE: image_size, **asdict(config)})

    def write_weights(self, networks: Mapping[Role, PixelCNNpp], settings: WeightsSettings) -> None:
        """Write networks and their settings as one file, by one rename.

        Of several networks the names of tensors begin with the role.
        """
        by_role = nn.ModuleDict({str(role): network for role, network in networks.items()})
        tensors = (by_role if len(networks) > 1 else next(iter(networks.values()))).state_dict()
        text = json_text({"dsmooth": __version__, **asdict(settings)})
        write_tensors(self.weights, tensors, {SETTINGS_KEY: text})

    def read_weights(
        self, kind: type[PixelCNNpp] = PixelCNNpp
    ) -> tuple[dict[Role, PixelCNNpp], WeightsSettings]:
        """The networks, in evaluation mode on the CPU, and their settings.

        Raises FileNotFoundError or ValueError, naming the file.
        """
        tensors, metadata = read_tensors(self.weights)
        settings = self._stated(metadata)
        networks: dict[Role, PixelCNNpp] = {}
        for role, config in settings.networks.items():
            head = f"{role}." if len(settings.networks) > 1 else ""
            own = {n.removeprefix(head): t for n, t in tensors.items() if n.startswith(head)}
            network = networks[role] = load_network(config, own, self.weights, kind)
            network.role, network.image_size = role, settings.image_size
            network.record, network.smoothing = settings.training.get(role), settings.noise
        return networks, settings

    def read_settings(self) -> WeightsSettings:
        """What the weights say of themselves. Raises as `read_weights` does."""
        return self._stated(read_metadata(self.weights))

    def _stated(self, metadata: Mapping[str, str]) -> WeightsSettings:
        # Other programs write none: then its fields are missing.
        stated = parse_json(metadata.get(SETTINGS_KEY, "{}"), self.weights)
        stated.pop("dsmooth", None)
        return structured(stated, WeightsSettings, self.weights)

    def write_model(
        self, model: PixelCNNpp, config: TrainConfig, image_size: tuple[int, int]
    ) -> None:
        """Make this the run folder of a model that another training loop made.

        Every command then takes the folder. config: says the model's role, smoothing and data.
        image_size: (H, W). Raises ValueError if the model is not the one that the config describes,
        and for a folder with the log or a checkpoint of a run, which would be of other weights.
        """
        config = settled(config)
        if model.config != config.model:
            raise ValueError(f"config.model must be the model's own {model.config}")
        with lock_folder(self.path, "a training run"):
            is_saved = self.weights.exists() and not self.config.exists()
            if is_saved or any(
                map(Path.exists, (self.log, self.checkpoint, self.earlier_checkpoint))
            ):
                raise ValueError(f"{self.path} already holds weights; choose another folder")
            digest = weights_digest(model)
            settings = WeightsSettings.of_run(config, image_size, weights_sha256=digest)
            remove_half_written(self.path)
            self.write_weights({config.role: model}, settings)
            self.write_config(config, image_size)

    def read_config(self) -> tuple[TrainConfig, tuple[int, int]]:
        """The settings and the image size.

        Raises FileNotFoundError or ValueError, naming the file and the field.
        """
        values = read_json(self.config)
        config = run_config(values, self.config)
        return config, structured(values.get(SIZE), tuple[int, int], f"{self.config}: {SIZE}")

    def read_log(self) -> list[LogEntry]:
        """The entries of the log; see `pretrained.log`."""
        return read_log(self.log)

    def history(self) -> list[LogEntry]:
        """The entries of the log that no later start took back."""
        return history(self.read_log())

    def seconds(self) -> float | None:
        """Seconds of training by the log; None without one."""
        return seconds_of(self.history()) if self.log.is_file() else None


def run_config(values: Mapping[str, object], path: Path) -> TrainConfig:
    """The settings in `values`, the content of `path`, with an image size or without."""
    settings = {key: value for key, value in values.items() if key not in ("dsmooth", SIZE)}
    return structured(settings, TrainConfig, path)
