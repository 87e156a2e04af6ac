"""Read PixelCNN++ checkpoints of the older PyTorch ports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import LARGEST, Classes, Conditioning, ModelConfig
from ..fields import check_choices, check_number
from ..files import read_tensors
from ..functional.shifted_conv import fold_weight_norm
from ..nn import PixelCNNpp
from ..nn.layers import GatedResnet, WeightNormConv
from ..pixels import Likelihood

# Patterns in the names of modules, and what the ports have in their place.
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
_PICKLES = (".pth", ".pt", ".ckpt", ".pkl")


def load_pixelcnnpp(
    source: str | Path | Mapping[str, Tensor] | Sequence[object],
    dtype: torch.dtype = torch.float32,
    *,
    conditioning: Conditioning = "none",
    likelihood: Likelihood = "continuous",
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
    authors. likelihood: "continuous" or "discretized".

    Raises ValueError for a pickled file (naming the conversion to safetensors), for a file that is
    not safetensors, and for keys or shapes that are not this network's; FileNotFoundError for a
    missing file.
    """
    likelihoods = "continuous", "discretized"
    check_choices(
        conditioning=(conditioning, ("none", "stack")), likelihood=(likelihood, likelihoods)
    )
    state = _with_port_names(source)
    with torch.device("meta"):
        model = PixelCNNpp(_config_of(state, conditioning, likelihood))
    weights: dict[str, Tensor] = {}

    def take(key: str, shape: torch.Size) -> Tensor:
        tensor = state.pop(key, torch.empty(0))  # no shape that is asked for
        if tensor.ndim == 2 and len(shape) == 4:
            tensor = tensor[:, :, None, None]
        is_usable = tensor.is_floating_point() and tensor.shape == shape
        if not is_usable or not tensor.isfinite().all():
            words = f"finite floating-point numbers of shape {tuple(shape)}"
            raise ValueError(f"the checkpoint must have {key}: {words}")
        return tensor.double()

    for name, layer in model.named_modules():
        old = name
        for pattern, replacement in _RENAMES:
            old = re.sub(pattern, replacement, old)
        if isinstance(layer, WeightNormConv):
            v = take(f"{old}.weight_v", layer.weight_v.shape)
            g = take(f"{old}.weight_g", torch.Size([len(v), 1, 1, 1]))
            weight = fold_weight_norm(v, g)
            weights |= {f"{name}.weight_v": weight, f"{name}.weight_g": layer.norm(weight)}
            weights[f"{name}.bias"] = take(f"{old}.bias", layer.bias.shape)
        elif isinstance(layer, GatedResnet) and layer.condition_weight is not None:
            hw = take(f"{old}.hw", layer.condition_weight.mT.shape)
            weights[f"{name}.condition_weight"] = hw.mT
    if state:
        raise ValueError(f"the checkpoint has keys that are not PixelCNN++'s: {sorted(state)[:3]}")
    weights = {name: t.to("cpu", dtype, copy=True).contiguous() for name, t in weights.items()}
    model.to(dtype).load_state_dict(weights, assign=True)
    return model.eval()


def _with_port_names(
    source: str | Path | Mapping[str, Tensor] | Sequence[object],
) -> dict[str, Tensor]:
    """The state dict of a checkpoint with the ports' names: weights as `weight_g`, `weight_v`."""
    if isinstance(source, str | Path):
        path = Path(source)
        if path.is_file() and path.suffix in _PICKLES:
            raise ValueError(
                f"{path} is a pickle, which can run code; convert it once, where you trust it:\n"
                'python -c "import torch, safetensors.torch as s; '
                f"c = torch.load('{path}', map_location='cpu', weights_only=True); "
                "s.save_file(c if isinstance(c, dict) else c[0], "
                f"'{path.with_suffix('.safetensors')}')\""
            )
        source = read_tensors(path)[0]
    saved: Any = source if isinstance(source, Mapping) else next(iter(source))
    state: dict[str, Tensor] = {}
    for key, value in saved.items():
        name = re.sub(r"^((module|model)\.)+", "", key)
        name = name.replace(".parametrizations.weight.original0", ".weight_g")
        name = name.replace(".parametrizations.weight.original1", ".weight_v")
        if name.endswith(".weight") and value.ndim > 1:
            over = [*range(1, value.ndim)]
            norm = torch.linalg.vector_norm(value.double(), dim=over, keepdim=True)
            state[f"{name}_g"], name = norm, f"{name}_v"
        state[name] = value
    return state


def _config_of(
    state: Mapping[str, Tensor], conditioning: Conditioning, likelihood: Likelihood
) -> ModelConfig:
    layers = [re.match(r"up_layers\.0\.u_stream\.(\d{1,9})\.", key) for key in state]
    try:
        (n_filters, inputs, *_), (n_params,) = state[_STEM].shape, state[_HEAD].shape
        count, _ = state.get(_PROJECTION, torch.empty(0, 0)).shape
        n_mix = n_params // {2: 3, 4: 10}[inputs]
        n_resnet = 1 + max(int(m[1]) for m in layers if m)
    except (KeyError, ValueError):
        raise ValueError(
            f"not a PixelCNN++ checkpoint: it must have {_STEM!r} of 2 or 4 inputs, {_HEAD!r} of "
            f"3K or 10K outputs and, with classes, {_PROJECTION!r} of shape (classes, 2F)"
        ) from None
    check_number("classes", count, 0, LARGEST)
    return ModelConfig(
        image_channels=inputs - 1,
        n_filters=n_filters,
        n_resnet=n_resnet,
        n_mix=n_mix,
        dropout=0.0,
        classes=Classes(tuple(map(str, range(count)))) if count else None,
        conditioning=conditioning,
        likelihood=likelihood,
    )
