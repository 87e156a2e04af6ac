"""Cached sampling in plain PyTorch: the strongest contender that a user could write in Python.

As in Fast PixelCNN++ (Ramachandran et al., 2017), stream u is computed row by row and ul pixel by
pixel, and activations that later rows and pixels read are kept. Products with the row above are
computed for a whole row. A convolution at a pixel is one product for all images. With `compiled`,
torch.compile fuses the operations of a row and of a pixel. Models with classes draw with a label of
zeros.

Rows are (W, B, C). Level l has the resolution 1 / 2**l.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dsmooth import PixelCNNpp, SmoothedPair
from dsmooth.functional.logistic_mixture import MIN_LOG_SCALE, snap_to_bytes
from dsmooth.nn.layers import GatedResnet, WeightNormConv
from dsmooth.philox import Stream, image_words, to_uniform

LEVELS = 3


class Product(NamedTuple):
    """A convolution: weights (D, K) of the row above and of this row, and the bias."""

    above: Tensor
    here: Tensor
    bias: Tensor


class Resnet(NamedTuple):
    """A gated resnet; skip: the weights of u in stream ul, of the skip (if any) in stream u."""

    conv_in: Product
    conv_out: Product
    skip: Tensor | None


def concat_elu(x: Tensor) -> Tensor:
    return F.elu(torch.cat([x, -x], -1))


def gated(x: Tensor, gates: Tensor) -> Tensor:
    a, g = gates.chunk(2, -1)
    return torch.addcmul(x, a, torch.sigmoid(g))


def columns(row: Tensor) -> Tensor:
    """(W, B, C) -> (W, B, 3C): columns c - 1, c and c + 1 of each column c."""
    padded = F.pad(row, (0, 0, 0, 0, 1, 1))
    return torch.cat([padded[:-2], padded[1:-1], padded[2:]], -1)


def product(conv: WeightNormConv) -> Product:
    """The convolution of a kernel (D, C, 1 or 2, kw)."""
    weight, bias = conv.affine()
    rows = [row.transpose(1, 2).flatten(1).contiguous() for row in weight.unbind(2)]
    return Product(rows[0], rows[-1], bias)


def resnet(layer: GatedResnet, *, in_rows: bool) -> Resnet:
    conv_in, conv_out, skip = product(layer.conv_in), product(layer.conv_out), None
    if layer.nin_skip is not None:
        nin = product(layer.nin_skip)
        conv_in, skip = conv_in._replace(bias=conv_in.bias + nin.bias), nin.here
        if not in_rows:  # u is the first skip: concat_elu has both signs of both
            signs = skip.unflatten(1, (2, -1, len(nin.bias)))
            skip = signs[:, :, 0].flatten(1).contiguous()
            conv_in = conv_in._replace(
                here=torch.cat([conv_in.here, signs[:, :, 1:].flatten(1)], 1)
            )
    return Resnet(conv_in, conv_out, skip)


class Weights:
    """The folded weights of a network; by level the layers of a block, each in u and in ul."""

    def __init__(self, model: PixelCNNpp) -> None:
        self.up, self.down = (
            [[(resnet(u, in_rows=True), resnet(ul, in_rows=False)) for u, ul in b] for b in blocks]
            for blocks in (model.up, [*model.down][::-1])
        )
        self.shrink_rows = [product(conv) for conv in model.downsize_u]
        self.shrink = [product(conv) for conv in model.downsize_ul]
        # From the next level to this one: weights (2 rows, taps, D, C).
        self.grow_rows, self.grow = (
            [(w.permute(2, 3, 1, 0).contiguous(), bias) for w, bias in (c.affine() for c in convs)]
            for convs in ([*model.upsize_u][::-1], [*model.upsize_ul][::-1])
        )
        self.stem_u, self.stem_above = product(model.stem_u), product(model.stem_ul_above)
        self.stem_left, self.head = product(model.stem_ul_left), product(model.head)
        hidden = model.hidden
        convs = (hidden.above, hidden.left, hidden.ul) if hidden else ()
        self.hidden = [product(conv) for conv in convs]


Blocks = list[list[Tensor]]  # tensors by level


def levels_at(index: int) -> int:
    """The number of levels that have a row, or a column, with this index."""
    return 1 if index % 2 else 2 if index % 4 else 3


def pairs(row: Tensor) -> Tensor:
    """(W + 1, B, C), its first column zero -> (W, B, 2C): columns c - 1 and c of each column c."""
    return torch.cat([row[:-1], row[1:]], -1)


class IncrementalSampler:
    """Draws grey images from a network without context, or with an encoded context."""

    def __init__(
        self, model: PixelCNNpp, compiled: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        config = model.config
        assert config.image_channels == 1
        assert config.conditioning != "stack"
        self.model, self.f, self.dtype = model, config.n_filters, dtype
        with torch.no_grad():
            self.weights = w = Weights(model)
            vars(w).update(tree_map_only(Tensor, lambda t: t.to(dtype), vars(w)))
        f, layers = self.f, [len(up) + len(down) for up, down in zip(w.up, w.down, strict=True)]
        # Channels that a pixel keeps at each level: ul before its stride, concat_elu of x and of h;
        # and that the row above gives it: the level's input, both sums of each gated resnet.
        self.kept = [[f, *[2 * f] * (2 * n)] for n in layers]
        self.given = [[f, *[f, 2 * f] * n] for n in layers]
        if config.head_filters:
            self.given[0].insert(1, config.head_filters)
        self.row: Callable[..., Any] = self._row
        self.pixel: Callable[..., Any] = self._pixel
        if compiled:
            self.row, self.pixel = (
                torch.compile(f, dynamic=False, fullgraph=True) for f in (self._row, self._pixel)
            )

    @torch.inference_mode()
    def sample(
        self,
        n: int,
        size: tuple[int, int],
        *,
        seed: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """The images of `sequential_sample`: (n, 1, H, W)."""
        (height, width), f = size, self.f
        x, zeros = torch.zeros(n, 1, height, width), partial(torch.zeros, dtype=self.dtype)
        streams = [zeros(height, width, n, f)] * 2
        if self.model.encoder is not None:
            encoded = self.model.encoder(context)
            streams = [e.permute(2, 3, 0, 1).contiguous().to(self.dtype) for e in encoded]
        component, noise = self._noise(n, size, seed)
        widths = [width >> level for level in range(LEVELS)]
        seen = zeros(2, width + 1, n, self.model.config.input_channels)  # a column before
        kept = [zeros(w + 1, n, sum(c)) for w, c in zip(widths, self.kept, strict=True)]
        rows = [
            [zeros(w, n, f), *(zeros(w, n, 6 * f) for _ in self.kept[level][1:])]
            for level, w in enumerate(widths)
        ]
        grown = [zeros(2, w, n, f) for w in widths[:-1]]
        grown_rows = [zeros(w, n, f) for w in widths[:-1]]
        for i in range(height):
            levels, e = levels_at(i), (streams[0][i], streams[1][i])
            started = torch.full((), float(i > 0))
            given, rows[:levels], grown_rows[: levels - 1] = self.row(
                levels, seen, started, e, rows[:levels], kept[:levels], grown_rows[:levels]
            )
            kept[:levels] = [torch.zeros_like(k) for k in kept[:levels]]
            seen = torch.stack([seen[1], torch.zeros_like(seen[1])])
            for j in range(width):
                at = [j >> level for level in range(min(levels, levels_at(j)))]
                top = len(at) - 1
                lower = grown[top][(i >> top) % 2, at[top]] if len(at) < LEVELS else None
                x[:, :, i, j], seen[1, j + 1], new, taps = self.pixel(
                    [given[level][c] for level, c in enumerate(at)],
                    [kept[level][c] for level, c in enumerate(at)],
                    lower,
                    seen[1, j],
                    component[i, j],
                    noise[i, j],
                )
                for level, c in enumerate(at):
                    kept[level][c + 1] = new[level]
                for level, values in enumerate(taps):
                    grown[level][:, at[level] : at[level] + 2] = values
        return x

    def _noise(self, n: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
        """The uniforms that choose components, and the noise: each (H, W, B, 1)."""
        config = self.model.config
        stream = Stream.SAMPLE if config.conditioning == "none" else Stream.SAMPLE_CONDITIONED
        words = image_words(n, size[0] * size[1], seed=seed, stream=stream)
        u = to_uniform(words).float().mT.unflatten(2, size).permute(1, 2, 3, 0)[..., None]
        to_noise = torch.special.ndtri if config.likelihood == "gaussian" else torch.logit
        return u[0].contiguous(), to_noise(u[1]).contiguous()

    def _row(
        self,
        levels: int,
        seen: Tensor,
        started: Tensor,
        encoded: tuple[Tensor, Tensor],
        rows: Blocks,
        kept: list[Tensor],
        grown: list[Tensor],
    ) -> tuple[list[Tensor], Blocks, list[Tensor]]:
        """The inputs that rows above give the pixels of a row, and the state for later rows."""
        w = self.weights
        above = [iter(k.split(s, -1)) for k, s in zip(kept, self.kept, strict=False)]
        raw = [pairs(next(parts)) for parts in above]
        given: Blocks = [[] for _ in range(levels)]
        new: Blocks = [[] for _ in range(levels)]
        old = [iter(row) for row in rows]
        raw_rows = [next(row) for row in old]

        def run(
            level: int, layer: Resnet, fed: Resnet, u: Tensor, skip: Tensor | None = None
        ) -> Tensor:
            """A layer of u, and the inputs that it gives the same layer of ul."""
            seen_u = columns(concat_elu(u))
            h = F.linear(next(old[level]), layer.conv_in.above, layer.conv_in.bias)
            h = h + F.linear(seen_u, layer.conv_in.here)
            if skip is not None and layer.skip is not None:
                h = h + F.linear(concat_elu(skip), layer.skip)
            seen_h = columns(concat_elu(h))
            gates = F.linear(next(old[level]), layer.conv_out.above, layer.conv_out.bias)
            u = gated(u, gates + F.linear(seen_h, layer.conv_out.here))
            new[level] += [seen_u, seen_h]
            conv_in, conv_out, from_u = fed
            assert from_u is not None
            given_in = F.linear(pairs(next(above[level])), conv_in.above, conv_in.bias)
            given[level].append(given_in + F.linear(concat_elu(u), from_u))
            given[level].append(F.linear(pairs(next(above[level])), conv_out.above, conv_out.bias))
            return u

        before, last = columns(seen[0, 1:]), columns(seen[1, 1:])
        u = F.linear(before, w.stem_u.above) + F.linear(last, w.stem_u.here)
        u = u + started * w.stem_u.bias + encoded[0]
        later = u.new_ones(len(u), 1, 1)  # columns that have one on their left
        later[0] = 0
        entry = F.linear(last, w.stem_above.here) + started * w.stem_above.bias + encoded[1]
        left = F.linear(seen[1, :-1], w.stem_left.above) + later * w.stem_left.bias
        given[0].append(entry + left)
        if w.hidden:
            over, left_weights, own = w.hidden
            hidden = F.linear(last, over.here, own.bias) + started * over.bias
            given[0].append(hidden + later * left_weights.bias)
        stacks: Blocks = []
        for level in range(levels):
            if level > 0:
                shrink, shrink_row = w.shrink[level - 1], w.shrink_rows[level - 1]
                given[level].append(F.linear(raw[level - 1][::2], shrink.above, shrink.bias))
                was, now = columns(raw_rows[level - 1])[::2], columns(u)[::2]
                u = F.linear(was, shrink_row.above, shrink_row.bias)
                u = u + F.linear(now, shrink_row.here)
            stacks.append([u])
            for layers in w.up[level]:
                u = run(level, *layers, u)
                stacks[level].append(u)
            new[level].insert(0, u)
        left_over: list[Tensor] = []
        for level in reversed(range(levels)):
            if level == LEVELS - 1:
                u = stacks[level].pop()
            elif level == levels - 1:
                u = grown[level]
            else:
                weight, bias = w.grow_rows[level]
                after = F.pad(u[1:], (0, 0, 0, 0, 0, 1))
                two = []
                for taps in weight:  # of an even and of an odd row
                    even = F.linear(u, taps[1], bias)
                    odd = F.linear(u, taps[2], bias) + F.linear(after, taps[0])
                    two.append(torch.stack([even, odd], 1).flatten(0, 1))
                u = two[0]
                left_over.insert(0, two[1])
            for layers in w.down[level]:
                u = run(level, *layers, u, stacks[level].pop())
        return [torch.cat(parts, -1) for parts in given], new, left_over

    def _pixel(
        self,
        given: list[Tensor],
        left: list[Tensor],
        lower: Tensor | None,
        seen: Tensor,
        component: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """The pixel, its channels as network input, its kept activations, and rows of lower levels.

        left: kept activations of the pixel on the left; seen: its channels as network input.
        """
        w, levels = self.weights, len(given)
        above = [iter(g.split(s, -1)) for g, s in zip(given, self.given, strict=False)]
        old = [iter(k.split(s, -1)) for k, s in zip(left, self.kept, strict=False)]
        raw = [next(parts) for parts in old]
        kept: Blocks = [[] for _ in range(levels)]

        def run(level: int, layer: Resnet, x: Tensor, *skips: Tensor) -> Tensor:
            a = concat_elu(x)
            here = torch.cat([next(old[level]), a, *map(concat_elu, skips)], -1)
            b = concat_elu(next(above[level]) + F.linear(here, layer.conv_in.here))
            here = torch.cat([next(old[level]), b], -1)
            kept[level] += [a, b]
            return gated(x, next(above[level]) + F.linear(here, layer.conv_out.here))

        ul = next(above[0]) + F.linear(seen, w.stem_left.here)
        given_hidden = next(above[0]) if w.hidden else None
        stacks: Blocks = []
        for level in range(levels):
            if level > 0:
                both = torch.cat([raw[level - 1], ul], -1)
                ul = next(above[level]) + F.linear(both, w.shrink[level - 1].here)
            stacks.append([ul])
            for _, layer in w.up[level]:
                ul = run(level, layer, ul)
                stacks[level].append(ul)
            kept[level].insert(0, ul)
        grown: list[Tensor] = []
        for level in reversed(range(levels)):
            if level == LEVELS - 1:
                ul = stacks[level].pop()
            elif level == levels - 1:
                assert lower is not None
                ul = lower
            else:
                weight, bias = w.grow[level]
                taps = F.linear(ul, weight.flatten(0, 2)).unflatten(-1, (2, 2, self.f)) + bias
                grown.insert(0, taps.permute(1, 2, 0, 3))
                ul = taps[:, 0, 0]
            for _, layer in w.down[level]:
                ul = run(level, layer, ul, stacks[level].pop())
        value = F.elu(ul)
        if given_hidden is not None:
            _, left_weights, own = w.hidden
            hidden = given_hidden + F.linear(seen, left_weights.here) + F.linear(value, own.here)
            value = torch.cat([concat_elu(hidden), value], -1)
        x = self._draw(F.linear(value, w.head.here, w.head.bias), component, noise)
        seen = self.model._seen(x[:, :, None, None]).flatten(1).to(self.dtype)
        return x, seen, [torch.cat(parts, -1) for parts in kept], grown

    def _draw(self, params: Tensor, component: Tensor, noise: Tensor) -> Tensor:
        """`logistic_mixture_sample` of a pixel of grey images: (B, 1)."""
        config, params = self.model.config, params.float()
        logits = params[:, : config.n_mix + config.n_atoms]
        means, log_scales = params[:, logits.shape[1] :].chunk(2, -1)
        chosen = (component >= logits.softmax(1).cumsum(1)[:, :-1]).sum(1, keepdim=True)
        index = chosen.clamp(max=config.n_mix - 1)
        scale = log_scales.gather(1, index).clamp(min=MIN_LOG_SCALE).exp()
        if config.likelihood == "gaussian":
            scale = torch.sqrt(scale**2 + config.smoothing_scale**2)
        x = means.gather(1, index) + scale * noise
        if config.likelihood == "discretized":
            x = snap_to_bytes(x)
        if config.n_atoms:
            x = torch.where(chosen < config.n_mix, x, (chosen - config.n_mix) / 127.5 - 1)
        return x


class IncrementalPair:
    """Draws from a pair in two steps, as `SmoothedPair.sample` does."""

    def __init__(
        self, pair: SmoothedPair, compiled: bool = False, dtype: torch.dtype = torch.float32
    ) -> None:
        self.size = pair.image_size
        self.noisy = IncrementalSampler(pair.noisy, compiled, dtype)
        self.denoiser = IncrementalSampler(pair.denoiser, compiled, dtype)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        x_tilde = self.noisy.sample(n, self.size, seed=seed)
        return self.denoiser.sample(n, self.size, seed=seed, context=x_tilde)
