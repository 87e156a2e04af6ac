"""Read PixelCNN++ checkpoints of the older PyTorch ports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LARGEST, Conditioning, ModelConfig
from ..fields import check_one_of
from ..files import read_tensors
from ..functional.shifted_conv import fold_weight_norm
from ..likelihoods import Likelihood
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet, WeightNormConv
from ..nn.weights import outline

# Parts of our module names, and theirs.
_RENAMES = (
    (r"^stem_u$", "u_init.conv"),
    (r"^stem_ul_above$", "ul_init.0.conv"),
    (r"^stem_ul_left$", "ul_init.1.conv"),
    (r"^downsize_(u|ul)\.(\d)$", r"downsize_\1_stream.\2.conv"),
    (r"^upsize_(u|ul)\.(\d)$", r"upsize_\1_stream.\2.deconv"),
    (r"^(up|down)\.(\d)\.(u|ul)\.", r"\1_layers.\2.\3_stream."),
    (r"\.conv_in$", ".conv_input.conv"),
    (r"\.conv_out$", ".conv_out.conv"),
    (r"\.nin_skip$", ".nin_skip.lin_a"),
    (r"^head$", "nin_out.lin_a"),
)
_STEM, _HEAD = "u_init.conv.weight_v", "nin_out.lin_a.bias"
_PROJECTION = "up_layers.0.u_stream.0.hw"


def load_pixelcnnpp(
    source: str | Path | Mapping[str, Tensor] | Sequence[Any],
    dtype: torch.dtype = torch.float32,
    *,
    atoms: Sequence[int] = (),
    conditioning: Conditioning = "none",
    likelihood: Likelihood | None = None,
) -> PixelCNNpp:
    """Build a `PixelCNNpp` from a checkpoint of the older PyTorch ports.

    source: a .safetensors file, a state dict, or a list that begins with one. Keys may have the
    prefixes `module.` and `model.`. Weights are `weight_g` and `weight_v`, torch's
    `parametrizations.weight.original0` and `1`, or folded as `weight`. Sizes (C, F, R, K) are read
    from the tensors. So is the number of classes of a model with the original's projection `hw`
    (classes, 2F) in each gated resnet. The ports normalise a transposed convolution per input
    channel: every norm is folded in float64, re-split per output filter, then cast to `dtype`.
    Returns a model without dropout, in evaluation mode.

    A checkpoint does not state the rest. conditioning: "stack" for the denoiser of the smoothing
    authors. likelihood: "continuous" or "discretized"; by default discretized with `atoms`, else
    continuous.

    Raises ValueError for a pickled file (naming the conversion to safetensors), for a file that is
    not safetensors, and for keys or shapes that are not this network's; FileNotFoundError for a
    missing file.
    """
    check_one_of("conditioning", conditioning, ("none", "stack"))
    check_one_of("likelihood", likelihood, (None, "continuous", "discretized"))
    state = _unified(_read(Path(source)) if isinstance(source, (str, Path)) else source)
    kind = likelihood or ("discretized" if atoms else "continuous")
    config = _infer_config(state, tuple(atoms), conditioning, kind)
    model = outline(config, state, "the checkpoint")
    weights: dict[str, Tensor] = {}
    for name, layer in model.named_modules():
        old = name
        for ours, theirs in _RENAMES:
            old = re.sub(ours, theirs, old)
        if isinstance(layer, WeightNormConv):
            weight, bias = _take(state, old, layer)
            weights |= {f"{name}.weight_v": weight, f"{name}.weight_g": layer.norm(weight)}
            weights[f"{name}.bias"] = bias
        elif isinstance(layer, GatedResnet) and layer.condition_weight is not None:
            key, expected = f"{old}.hw", tuple(layer.condition_weight.mT.shape)
            hw = _pop(state, key)
            if hw.shape != expected or not hw.is_floating_point() or not hw.isfinite().all():
                got = tuple(hw.shape)
                raise ValueError(f"{key} must be finite of shape {expected}, got shape {got}")
            weights[f"{name}.condition_weight"] = hw.mT
    if state:
        raise ValueError(f"the checkpoint has keys that are not PixelCNN++'s: {sorted(state)[:3]}")
    weights = {name: t.to("cpu", dtype, copy=True).contiguous() for name, t in weights.items()}
    model.to(dtype).load_state_dict(weights, assign=True)
    return model.eval()


def _unified(source: Mapping[str, Tensor] | Sequence[Any]) -> dict[str, Tensor]:
    """The state dict of a checkpoint with the ports' names: weights as `weight_g`, `weight_v`."""
    if not isinstance(source, Mapping):
        source = next(iter(source), source)
    if not isinstance(source, Mapping) or not all(isinstance(t, Tensor) for t in source.values()):
        raise ValueError("source must be a state dict of tensors, or a list that begins with one")
    state: dict[str, Tensor] = {}
    for key, value in source.items():
        name = re.sub(r"^((module|model)\.)+", "", key)
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        name = name.replace(".parametrizations.weight.original1", ".weight_v")
        if name.endswith(".weight") and value.ndim > 1 and value.is_floating_point():
            over = [*range(1, value.ndim)]
            norm = torch.linalg.vector_norm(value.double(), dim=over, keepdim=True)
            state[f"{name}_g"], name = norm, f"{name}_v"
        state[name] = value
    return state


def _pop(state: dict[str, Tensor], key: str) -> Tensor:
    if key not in state:
        raise ValueError(f"the checkpoint lacks {key!r}")
    return state.pop(key)


def _take(state: dict[str, Tensor], old: str, layer: WeightNormConv) -> tuple[Tensor, Tensor]:
    """Remove the tensors of `old` from `state`; the folded weight and bias of `layer`, float64."""
    v, g, bias = (_pop(state, f"{old}.{part}") for part in ("weight_v", "weight_g", "bias"))
    if not all(tensor.is_floating_point() for tensor in (v, g, bias)):
        raise ValueError(f"{old} must hold floating-point numbers")
    if v.ndim == 2:
        v, g = v[:, :, None, None], g[..., None, None]
    if v.shape != layer.weight_v.shape or bias.shape != layer.bias.shape:
        raise ValueError(
            f"{old} must have weights of shape {tuple(layer.weight_v.shape)}, got {tuple(v.shape)}"
        )
    over = [i for i in range(v.ndim) if g.shape[i] == 1] if g.ndim == v.ndim else []
    if not over or any(g.shape[i] != v.shape[i] for i in range(v.ndim) if i not in over):
        raise ValueError(f"weight_g of shape {tuple(g.shape)} does not fit {tuple(v.shape)}")
    weight = fold_weight_norm(v.double(), g.double(), over)
    if not weight.isfinite().all() or not bias.isfinite().all():
        raise ValueError(f"{old} must be finite")
    return weight, bias.double()


def _read(path: Path) -> dict[str, Tensor]:
    if path.is_file() and path.suffix in (".pth", ".pt", ".ckpt", ".pkl"):
        target = path.with_suffix(".safetensors")
        raise ValueError(
            f"{path} is a pickle, which can run code; convert it once, where you trust it:\n"
            'python -c "import torch, safetensors.torch as s; '
            f"c = torch.load('{path}', map_location='cpu', weights_only=True); "
            f"s.save_file(c if isinstance(c, dict) else c[0], '{target}')\""
        )
    return read_tensors(path)[0]


def _infer_config(
    state: Mapping[str, Tensor],
    atoms: tuple[int, ...],
    conditioning: Conditioning,
    likelihood: Likelihood,
) -> ModelConfig:
    if "stem_u.weight_v" in state:
        raise ValueError("this is dsmooth's own: dsmooth.RunFolder(folder).load_model() reads it")
    for name, ndim in ((_STEM, 4), (_HEAD, 1)):
        if name not in state or state[name].ndim != ndim:
            raise ValueError(f"not a PixelCNN++ checkpoint: it lacks {name!r} of {ndim} dimensions")
    n_filters, inputs = state[_STEM].shape[:2]
    n_params = state[_HEAD].shape[0] - len(atoms)
    layers = [re.match(r"up_layers\.0\.u_stream\.(\d{1,9})\.", key) for key in state]
    n_resnet = 1 + max((int(m[1]) for m in layers if m), default=-1)
    channels = inputs - 1
    per_component = 3 if channels == 1 else 10
    if channels not in (1, 3) or n_resnet < 1 or n_params < 1 or n_params % per_component:
        raise ValueError(
            "not a PixelCNN++ checkpoint: expected 1 or 3 image channels and 3K or 10K outputs "
            f"beside {len(atoms)} atoms, got {channels} and {n_params}"
        )
    n_classes = 0
    if _PROJECTION in state:
        shape = tuple(state[_PROJECTION].shape)
        if len(shape) != 2 or not 0 < shape[0] <= LARGEST:
            raise ValueError(f"{_PROJECTION} must have shape (classes, 2F), got {shape}")
        n_classes = shape[0]
    return ModelConfig(
        image_channels=channels,
        n_filters=n_filters,
        n_resnet=n_resnet,
        n_mix=n_params // per_component,
        dropout=0.0,
        n_classes=n_classes,
        atoms=atoms,
        conditioning=conditioning,
        likelihood=likelihood,
    )
