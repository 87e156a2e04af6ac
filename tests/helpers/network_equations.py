"""A class-conditional PixelCNN++ in float64 from its equations alone (docs/math.md, section 1).

Nothing of the package is used, so that what it computes can be judged by this. As a script it
writes the golden values anew:
    python tests/helpers/network_equations.py tests/golden
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

CLASSES = 3


class Equations:
    """The network of a checkpoint of the older ports, whose gated resnets have a projection hw."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.state = {key.removeprefix("module."): t.double() for key, t in state.items()}

    def weights(self, name: str) -> tuple[Tensor, Tensor]:
        v, g, b = (self.state[f"{name}.{part}"] for part in ("weight_v", "weight_g", "bias"))
        norm = v.square().sum([i for i in range(v.ndim) if g.shape[i] == 1], keepdim=True).sqrt()
        return g * v / norm, b

    def conv(self, name: str, x: Tensor, stream: str, stride: int = 1) -> Tensor:
        """A convolution that sees rows above (u), or rows above and columns to the left (ul)."""
        weight, bias = self.weights(name)
        rows, cols = weight.shape[2:]
        sides = (cols // 2, cols // 2) if stream == "u" else (cols - 1, 0)
        return F.conv2d(F.pad(x, (*sides, rows - 1, 0)), weight, bias, stride)

    def deconv(self, name: str, x: Tensor, stream: str) -> Tensor:
        """y[2i + a, 2j + b - first] = sum of w[a, b] x[i, j], first = 1 for u and 0 for ul."""
        weight, bias = self.weights(name)
        first = 1 if stream == "u" else 0
        rows, cols = 2 * x.shape[2], 2 * x.shape[3]
        y = F.conv_transpose2d(x, weight, bias, stride=2)
        return y[:, :, :rows, first : first + cols]

    def nin(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.weights(name)
        return torch.einsum("bchw,dc->bdhw", x, weight) + bias[:, None, None]

    def gated(self, name: str, x: Tensor, skip: Tensor | None, vector: Tensor) -> Tensor:
        """x + A sigmoid(G), (A, G) = conv_out(concat_elu(h)) + vector hw at every pixel."""
        stream = name.split(".")[2].removesuffix("_stream")
        h = self.conv(f"{name}.conv_input.conv", concat_elu(x), stream)
        if skip is not None:
            h = h + self.nin(f"{name}.nin_skip.lin_a", concat_elu(skip))
        gates = self.conv(f"{name}.conv_out.conv", concat_elu(h), stream)
        gates = gates + (vector @ self.state[f"{name}.hw"])[:, :, None, None]
        half = gates.shape[1] // 2
        return x + gates[:, :half] / (1 + torch.exp(-gates[:, half:]))

    def count(self, block: str) -> int:
        return sum(f"{block}.u_stream.{i}.hw" in self.state for i in range(99))

    def params(self, x: Tensor, vector: Tensor) -> Tensor:
        """(B, P, H, W) for images x (B, C, H, W) and the vectors (B, D) of their classes."""
        x, vector = x.double(), vector.double()
        x = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        u = F.pad(self.conv("u_init.conv", x, "u"), (0, 0, 1, 0))[:, :, :-1]
        above = F.pad(self.conv("ul_init.0.conv", x, "u"), (0, 0, 1, 0))[:, :, :-1]
        ul = above + F.pad(self.conv("ul_init.1.conv", x, "ul"), (1, 0))[..., :-1]
        saved = [(u, ul)]
        for i in range(3):
            for j in range(self.count(f"up_layers.{i}")):
                u = self.gated(f"up_layers.{i}.u_stream.{j}", u, None, vector)
                ul = self.gated(f"up_layers.{i}.ul_stream.{j}", ul, u, vector)
                saved.append((u, ul))
            if i < 2:
                u = self.conv(f"downsize_u_stream.{i}.conv", u, "u", 2)
                ul = self.conv(f"downsize_ul_stream.{i}.conv", ul, "ul", 2)
                saved.append((u, ul))
        u, ul = saved.pop()
        for i in range(3):
            for j in range(self.count(f"down_layers.{i}")):
                skip_u, skip_ul = saved.pop()
                u = self.gated(f"down_layers.{i}.u_stream.{j}", u, skip_u, vector)
                both = torch.cat([u, skip_ul], 1)
                ul = self.gated(f"down_layers.{i}.ul_stream.{j}", ul, both, vector)
            if i < 2:
                u = self.deconv(f"upsize_u_stream.{i}.deconv", u, "u")
                ul = self.deconv(f"upsize_ul_stream.{i}.deconv", ul, "ul")
        return self.nin("nin_out.lin_a", torch.where(ul > 0, ul, torch.exp(ul) - 1))


def concat_elu(x: Tensor) -> Tensor:
    both = torch.cat([x, -x], 1)
    return torch.where(both > 0, both, torch.exp(both) - 1)


def with_classes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The checkpoint with a projection of `CLASSES` classes in every gated resnet."""
    generator = torch.Generator().manual_seed(7)
    bias = ".conv_out.conv.bias"
    projections = {
        key.replace(bias, ".hw"): 0.5 * torch.randn(CLASSES, len(value), generator=generator)
        for key, value in sorted(state.items())
        if key.endswith(bias)
    }
    return {**state, **projections}


def write_golden(folder: Path) -> None:
    """Values of soft and hard classes by the equations, beside those of the network without."""
    for channels in (1, 3):
        stem = folder / f"network_c{channels}_8x8_f4_r1_k2"
        state = with_classes(load_file(f"{stem}.safetensors"))
        x = load_file(f"{stem}.io.safetensors")["x"].repeat(CLASSES + 1, 1, 1, 1)
        vector = torch.cat([torch.eye(CLASSES), torch.full((1, CLASSES), 0.25)]).double()
        params = Equations(state).params(x, vector)
        save_file({"vector": vector, "y": params.contiguous()}, f"{stem}.classes.safetensors")


if __name__ == "__main__":
    write_golden(Path(sys.argv[1]))
