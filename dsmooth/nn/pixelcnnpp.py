"""PixelCNN++, optionally conditioned on a second image or a class (docs/math.md, 1 and 2)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Classes, ModelConfig, Role
from ..fields import check_number, check_tensor
from ..functional import logistic_mixture_log_prob
from ..functional.dispatch import without_autocast
from ..functional.logistic_mixture import logistic_mixture_log_prob_inner
from ..functional.shifted_conv import concat_elu_inner, down_shift_inner, right_shift_inner
from ..philox import draw_seed
from .condition import ClassLabel, check_context, labels_of, one_hot
from .images import (
    check_images,
    check_scale,
    check_size,
    fourier_features,
    snap_half_precision,
)
from .layers import Conv1x1, GatedResnet, WeightNormConv, listed
from .pretrained import Pretrained

Streams = tuple[Tensor, Tensor]  # u (all rows above) and ul (above, and left in the row)


class Block(nn.Module):
    """The gated resnets of one block: a list for u and one for ul."""

    def __init__(self, config: ModelConfig, n_layers: int, *, down: bool) -> None:
        super().__init__()
        f = config.n_filters
        # Skip inputs: upward, u for ul; downward, a skip for u, and u and a skip for ul.
        u_skip, ul_skip = (f, 2 * f) if down else (0, f)
        size, layers = config.n_classes, range(n_layers)
        new = partial(GatedResnet, f, condition_size=size, dropout=config.dropout)
        self.u = listed(new((2, 3), shift="down", skip_channels=u_skip) for _ in layers)
        self.ul = listed(new((2, 2), shift="down_right", skip_channels=ul_skip) for _ in layers)

    def __iter__(self) -> Iterator[tuple[GatedResnet, GatedResnet]]:
        """The layers (u, ul) in execution order."""
        return iter(zip(self.u, self.ul, strict=True))


class ContextEncoder(nn.Module):
    """Unmasked, full-resolution encoder of the context for conditioning="concat"."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        f, width = config.n_filters, config.context_filters or config.n_filters
        self.stem = WeightNormConv(config.image_channels + 1, width, (3, 3))
        size, layers = config.n_classes, range(config.context_layers)
        new = partial(GatedResnet, width, condition_size=size, dropout=config.dropout)
        self.layers = listed(new((3, 3), shift="none") for _ in layers)
        self.nin_u = WeightNormConv(width, f, (1, 1))
        self.nin_ul = WeightNormConv(width, f, (1, 1))

    def forward(self, context: Tensor, **given: Any) -> Streams:
        """(B, C, H, W) -> e_u and e_ul, each (B, F, H, W). given: to each gated resnet."""
        e = self.stem(_with_ones(context))
        for layer in self.layers:
            e = layer(e, **given)
        return self.nin_u(e), self.nin_ul(e)


class HeadHidden(nn.Module):
    """The hidden layer of the head: a function of elu(ul), three pixels above and the left one."""

    def __init__(self, channels: int, n_filters: int, hidden: int) -> None:
        super().__init__()
        self.above = WeightNormConv(channels, hidden, (1, 3), shift="down")
        self.left = Conv1x1(channels, hidden, (1, 1))
        self.ul = Conv1x1(n_filters, hidden, (1, 1))

    def forward(self, seen: Tensor, elu_ul: Tensor) -> Tensor:
        """The input of the stem (B, C', H, W) and elu(ul) (B, F, H, W) -> (B, M, H, W)."""
        around = down_shift_inner(self.above(seen)) + right_shift_inner(self.left(seen))
        return around + self.ul(elu_ul)


class PixelCNNpp(Pretrained):
    """An autoregressive model of images, conditioned on a context image, a class, both or nothing.

    The distribution of a pixel is a mixture of K logistics. Its parameters are a function of the
    pixels before it in raster order, the whole context and the class. The class is a vector, which
    every gated resnet projects. Source: Salimans et al. (2017).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.role: Role | None = None  # the role that it was trained for, if known
        self.smoothing: Any = None  # the `Smoothing` that it was trained for, if known
        channels, f, r = config.input_channels, config.n_filters, config.n_resnet
        self.stem_u = WeightNormConv(channels, f, (2, 3), shift="down")
        self.stem_ul_above = WeightNormConv(channels, f, (1, 3), shift="down")
        self.stem_ul_left = WeightNormConv(channels, f, (2, 1), shift="down_right")
        self.up = listed(Block(config, r, down=False) for _ in range(3))
        self.down = listed(Block(config, r + (i > 0), down=True) for i in range(3))
        conv, two = partial(WeightNormConv, f, f), range(2)
        self.downsize_u = listed(conv((2, 3), shift="down", stride=2) for _ in two)
        self.downsize_ul = listed(conv((2, 2), shift="down_right", stride=2) for _ in two)
        self.upsize_u = listed(conv((2, 3), shift="down", transposed=True) for _ in two)
        self.upsize_ul = listed(conv((2, 2), shift="down_right", transposed=True) for _ in two)
        hidden = config.head_filters
        self.head = Conv1x1(f + 2 * hidden, config.n_params, (1, 1))
        self.hidden = HeadHidden(channels, f, hidden) if hidden else None
        self.encoder = ContextEncoder(config) if config.conditioning == "concat" else None
        # One seed per forward pass suffices for all dropout, since each gated resnet has its index.
        layers = [layer for block in (*self.up, *self.down) for pair in block for layer in pair]
        for number, layer in enumerate([*layers, *(self.encoder.layers if self.encoder else ())]):
            layer.index = number

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.head.bias.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.head.bias.dtype

    @property
    def classes(self) -> Classes | None:
        """The classes that it is conditioned on."""
        return self.config.classes

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        label: ClassLabel | None = None,
        *,
        seed: Tensor | None = None,
        first_image: int = 0,
    ) -> Tensor:
        """Mixture parameters of every pixel.

        x: (B, C, H, W) in [-1, 1] (noisy images may exceed it), H and W multiples of 4.
        context: (B, C, H, W), like x, only for a conditioned model. label: only for a model with
        classes: (B,) int64, -1 for an image without one, a list of such numbers or of names of
        classes, or one class of all images. seed: of dropout, an int64 scalar; drawn from torch's
        generator if None. first_image: index of the first image in a larger batch whose dropout is
        shared. Returns (B, P, H, W), for x without the context: logits, then means, log-scales and
        coefficients per colour, as in docs/math.md, section 1.

        Raises ValueError for a wrong shape and for a missing or unexpected context or label,
        TypeError for a wrong dtype.
        """
        labels = self._checked(x, context, label)
        if seed is not None:
            check_tensor("seed", seed, (), x.device, (torch.int64,))
        check_number("first_image", first_image, 0, 2**31 - 1)
        return self.given_vector(x, context, self.vectors(labels), seed, first_image)

    def given_vector(
        self,
        x: Tensor,
        context: Tensor | None,
        vector: Tensor | None,
        seed: Tensor | None = None,
        first_image: int = 0,
    ) -> Tensor:
        """`forward` of checked images, with a vector (B, n_classes) in place of each label.

        All that measures and tunes a network computes by this; a subclass overrides it, not
        `forward`, whose hooks act in calls of the network alone.
        """
        if seed is None and self.training and self.config.dropout > 0:
            seed = draw_seed(x.device)  # one seed for all gated resnets
        seen, dtype = self._seen(x), self.dtype
        given = {"condition": vector, "seed": seed, "first_image": first_image}
        _, ul = self._streams(seen, context, given)[-1]
        value = F.elu(ul[:, :, -x.shape[2] :].to(dtype))
        if self.hidden is not None:
            hidden = self.hidden(seen, value).to(dtype)
            value = torch.cat([concat_elu_inner(hidden), value], dim=1)
        # Rounding to bfloat16 would change a log-scale or a logit by more than it can learn.
        with without_autocast(value.device.type):
            return self.head(value)

    def log_prob(
        self, x: Tensor, context: Tensor | None = None, label: ClassLabel | None = None
    ) -> Tensor:
        """log p(x) given the condition of x, under the model's likelihood: (B,), nats.

        "continuous" gives a density in units of [-1, 1]; "discretized" the probability of bytes,
        and raises ValueError for other values. Other arguments and errors: see `forward`.
        """
        labels = self._checked(x, context, label)
        if self.config.likelihood == "discretized" and not torch.compiler.is_compiling():
            check_scale("x", x, as_bytes=True)
        return self.nats(x, context, self.vectors(labels))

    def nats(self, x: Tensor, context: Tensor | None, vector: Tensor | None) -> Tensor:
        """`log_prob` of checked images, with a vector (B, n_classes) in place of each label."""
        params, exact = self.given_vector(x, context, vector), self._exact(x)
        return logistic_mixture_log_prob_inner(exact, params, self.config.mixture).sum((1, 2))

    def log_prob_given(self, x: Tensor, params: Tensor) -> Tensor:
        """log p(x) given the mixture parameters (B, P, H, W) of its pixels: (B,), nats."""
        exact = self._exact(x)
        return logistic_mixture_log_prob(exact, params, **self.config.mixture).sum((1, 2))

    def features(
        self, x: Tensor, context: Tensor | None = None, label: ClassLabel | None = None
    ) -> dict[str, Streams]:
        """The streams (u, ul) after each block, for x only; arguments: see `forward`.

        Keys up0, up1, up2, down0, down1, down2; each stream (B, F, H/s, W/s) with s = 1, 2, 4, 4,
        2, 1; up_i is taken before its stride-2 convolution.
        """
        scales = {"up0": 1, "up1": 2, "up2": 4, "down0": 4, "down1": 2, "down2": 1}
        given = {"condition": self.vectors(self._checked(x, context, label))}
        streams = self._streams(self._seen(x), context, given)
        return {
            name: (u[:, :, -(x.shape[2] // scale) :], ul[:, :, -(x.shape[2] // scale) :])
            for (name, scale), (u, ul) in zip(scales.items(), streams, strict=True)
        }

    @torch.no_grad()
    def initialize(
        self, x: Tensor, context: Tensor | None = None, label: ClassLabel | None = None
    ) -> None:
        """Data-dependent init of g and b in every layer; arguments, of a batch: see `forward`.

        Each preactivation gets mean 0 and variance 1, layer by layer, given the already normalized
        input. For the second convolution of a gated resnet the standard deviation is 0.1.
        Source: Salimans & Kingma, Weight normalization (2016), section 3.
        """

        def before(layer: Any, inputs: tuple[Tensor, ...]) -> None:
            layer.initialize(*inputs)

        # A gated resnet initializes its own convolutions.
        inside = {c for m in self.modules() if isinstance(m, GatedResnet) for c in m.children()}
        kinds = (GatedResnet, WeightNormConv)
        layers = [m for m in self.modules() if isinstance(m, kinds) and m not in inside]
        was_training = self.training
        self.eval()
        handles = [layer.register_forward_pre_hook(before) for layer in layers]
        try:
            self(x, context, label)
        finally:
            for handle in handles:
                handle.remove()
            self.train(was_training)

    def summary(self) -> str:
        """The settings that matter most, in one line."""
        config = self.config
        return (
            f"{sum(p.numel() for p in self.parameters()):,} parameters, F {config.n_filters}, "
            f"R {config.n_resnet}, K {config.n_mix}, {config.conditioning}, {config.likelihood}, "
            f"{config.n_classes or 'no'} classes"
        )

    def _seen(self, x: Tensor) -> Tensor:
        """The input of the first layers: the colours of x, ones and Fourier features."""
        if octaves := self.config.fourier_features:
            return torch.cat([_with_ones(x), fourier_features(x, octaves)], dim=1)
        return _with_ones(x)

    def _streams(self, x: Tensor, context: Tensor | None, given: dict[str, Any]) -> list[Streams]:
        """The outputs of the six blocks for the result of `_seen`, below a stacked context.

        given: arguments of each gated resnet.
        """
        encoded: Streams | None = None
        if context is not None and self.encoder is not None:
            encoded = self.encoder(context, **given)
        elif context is not None:
            above = _with_ones(context)
            above = F.pad(above, (0, 0, 0, 0, 0, x.shape[1] - above.shape[1]))
            x = torch.cat([above, x], dim=2)
        u, above, left = self.stem_u(x), self.stem_ul_above(x), self.stem_ul_left(x)
        u, ul = down_shift_inner(u), down_shift_inner(above) + right_shift_inner(left)
        if encoded is not None:
            u, ul = u + encoded[0], ul + encoded[1]

        outputs: list[Streams] = []
        stack: list[Streams] = [(u, ul)]
        for i, block in enumerate(self.up):
            for res_u, res_ul in block:
                u = res_u(u, **given)
                ul = res_ul(ul, u, **given)
                stack.append((u, ul))
            outputs.append((u, ul))
            if i < 2:
                u, ul = self.downsize_u[i](u), self.downsize_ul[i](ul)
                stack.append((u, ul))

        u, ul = stack.pop()
        for i, block in enumerate(self.down):
            for res_u, res_ul in block:
                skip_u, skip_ul = stack.pop()
                u = res_u(u, skip_u, **given)
                ul = res_ul(ul, (u, skip_ul), **given)
            outputs.append((u, ul))
            if i < 2:
                u, ul = self.upsize_u[i](u), self.upsize_ul[i](ul)
        return outputs

    def vectors(self, labels: Tensor | None) -> Tensor | None:
        """The vectors (B, n_classes) of labels (B,) int64, zeros for no class."""
        return one_hot(labels, self.config.n_classes, self.head.bias)

    def _exact(self, x: Tensor) -> Tensor:
        """The images as the likelihood takes them: bytes are rounded to bytes."""
        return snap_half_precision(x) if self.config.likelihood == "discretized" else x

    def _checked(
        self, x: Tensor, context: Tensor | None, label: ClassLabel | None
    ) -> Tensor | None:
        """The labels (B,) int64, after a check of the input of `forward`."""
        shape, device = ("B", self.config.image_channels, "H", "W"), self.device
        dtypes = () if torch.is_autocast_enabled(device.type) else (self.dtype,)
        check_images("x", x, shape, device, dtypes)
        check_size(x.shape[2:], "H", "W")
        check_context(context, self.config.conditioning, x)
        return labels_of(label, self.config.classes, x.shape[0], x.device)


def _with_ones(x: Tensor) -> Tensor:
    """Append a channel of ones, which distinguishes the image from its zero padding."""
    return torch.cat([x, x.new_ones(x.shape[0], 1, *x.shape[2:])], dim=1)
