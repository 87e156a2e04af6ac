"""The program of a PixelCNN++: which caches and operations its layers become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.layers import GatedResnet, WeightNormConv
from ..nn.pixelcnnpp import PixelCNNpp
from .program import NONE, Array, Cache, Op, Phase, Program, Term

NO_RAWS = (NONE, NONE)
SPLIT_PARTS = 3  # bfloat16 values that a float32 is the sum of


@dataclass(frozen=True)
class _Node:
    """A tensor of the network: its level and the cache of its concat_elu."""

    level: int
    act: int


def build_program(model: PixelCNNpp, *, bf16: bool = False) -> Program:
    """The program of `model`, with a copy of its weights.

    bf16: operands will be bfloat16. A pixel enters as two of them, or it would lose what the noise
    put into it. The head multiplies split operands and weights, or a log-scale or a logit would be
    off by more than it can learn.
    """
    builder = _Builder(model, bf16)
    builder.build()
    return builder.program


def _layers(block: nn.Module) -> list[tuple[GatedResnet, GatedResnet]]:
    """The layers of a block: for u and for ul."""
    u, ul = cast("list[GatedResnet]", block.u), cast("list[GatedResnet]", block.ul)
    return list(zip(u, ul, strict=True))


def _projection(layer: GatedResnet) -> Array | None:
    """Projection (2F, D) of the vector of an image; None for a layer without."""
    weight = layer.condition_weight
    return None if weight is None else as_numpy(weight).astype(np.float64)


class _Stream:
    """One of the two streams: which phase it runs in, how many rows its caches keep."""

    def __init__(self, program: Program, phase: Phase, rows: int, n_filters: int) -> None:
        self.phase = phase
        self.rows = rows
        # The value of the layer last computed at a position, which the next one adds to.
        self.residual = [program.cache(level, n_filters, 1, operand=False) for level in range(3)]


class _Builder:
    def __init__(self, model: PixelCNNpp, bf16: bool) -> None:
        self.model = model
        self.f = model.config.n_filters
        self.channels = model.config.image_channels
        self.bf16 = bf16
        self.program = Program(
            image_parts=2 if bf16 else 1, condition_size=model.config.condition_size
        )
        # Row r of u needs rows r - 1 and r of its inputs. ul needs one row only: the row part has
        # consumed the row above before the row itself is overwritten.
        self.u = _Stream(self.program, Phase.VERTICAL, 2, self.f)
        self.ul = _Stream(self.program, Phase.HORIZONTAL, 1, self.f)

    def build(self) -> None:
        program, model = self.program, self.model
        e_u, e_ul = self._encoder() if model.encoder is not None else (NONE, NONE)
        # The stem reads two rows above the current one.
        program.image = program.cache(0, self._image_channels(), 3)
        nodes = self._stem(e_u, e_ul)
        stack = [nodes]
        for level in range(3):
            # The stride-2 convolutions read a block's last value as it is.
            raws = (self._raw(self.u, level), self._raw(self.ul, level)) if level < 2 else NO_RAWS
            layers = _layers(model.up[level])
            for i, (res_u, res_ul) in enumerate(layers):
                outs = raws if i == len(layers) - 1 else NO_RAWS
                u = self._resnet(self.u, res_u, nodes[0], [], outs[0])
                nodes = (u, self._resnet(self.ul, res_ul, nodes[1], [u], outs[1]))
                stack.append(nodes)
            if level < 2:
                nodes = (
                    self._downsize(self.u, model.downsize_u[level], level, raws[0]),
                    self._downsize(self.ul, model.downsize_ul[level], level, raws[1]),
                )
                stack.append(nodes)

        nodes = stack.pop()
        for level in (2, 1, 0):
            # Only the current row of a block's end is read by the transposed convolutions.
            raws = (self._raw(self.u, level, 1), self._raw(self.ul, level)) if level else NO_RAWS
            layers = _layers(model.down[2 - level])
            for i, (res_u, res_ul) in enumerate(layers):
                outs = raws if i == len(layers) - 1 else NO_RAWS
                skip_u, skip_ul = stack.pop()
                u = self._resnet(self.u, res_u, nodes[0], [skip_u], outs[0])
                nodes = (u, self._resnet(self.ul, res_ul, nodes[1], [u, skip_ul], outs[1]))
            if level:
                nodes = (
                    self._upsize(self.u, model.upsize_u[2 - level], level, raws[0]),
                    self._upsize(self.ul, model.upsize_ul[2 - level], level, raws[1]),
                )
        self._head(nodes[1])

    def _image_channels(self) -> int:
        """Pixel (in one or two parts), one; an even number, for operands come in pairs."""
        n = self.channels * self.program.image_parts + 1
        return n + n % 2

    def _raw(self, stream: _Stream, level: int, rows: int | None = None) -> int:
        return self.program.cache(level, self.f + self.f % 2, rows or stream.rows)

    def _add(self, *arguments: Any, **outputs: Any) -> None:
        self.program.ops.append(Op(*arguments, **outputs))

    def _stem_taps(self, weight: Array) -> Array:
        """(n, C + 1, taps) on pixels and ones -> (n, taps, channels of the image cache)."""
        parts = [weight[:, :-1]] * self.program.image_parts + [weight[:, -1:]]
        missing = self._image_channels() - sum(p.shape[1] for p in parts)
        parts += [np.zeros((weight.shape[0], missing, weight.shape[2]))]
        return np.concatenate(parts, axis=1).swapaxes(1, 2)

    def _stem(self, e_u: int, e_ul: int) -> tuple[_Node, _Node]:
        """u0 and ul0. Their biases enter through the channel of ones at a tap that lies inside the
        image exactly where the shifted branch is not zero."""
        ones, image = self.channels, self.program.image
        model, zero = self.model, np.zeros(self.f)
        w, bias = folded(model.stem_u)
        w[:, ones, 1, 1] += bias
        act_u = self.program.cache(0, 2 * self.f, self.u.rows)
        terms = [
            Term(image, -2, -1, self._stem_taps(w[:, :, 0])),
            Term(image, -1, -1, self._stem_taps(w[:, :, 1])),
        ]
        self._add(
            Phase.VERTICAL, 0, zero, terms, add=e_u, residual_out=self.u.residual[0], act_out=act_u
        )
        above, bias = folded(model.stem_ul_above)
        above[:, ones, 0, 1] += bias
        left, bias = folded(model.stem_ul_left)
        left[:, ones, 1, 0] += bias
        above[:, :, 0, 0] += left[:, :, 0, 0]
        act_ul = self.program.cache(0, 2 * self.f, self.ul.rows)
        terms = [
            Term(image, -1, -1, self._stem_taps(above[:, :, 0]), row_part=True),
            Term(image, 0, -1, self._stem_taps(left[:, :, 1])),
        ]
        self._add(
            Phase.HORIZONTAL,
            0,
            zero,
            terms,
            add=e_ul,
            residual_out=self.ul.residual[0],
            act_out=act_ul,
        )
        return _Node(0, act_u), _Node(0, act_ul)

    def _taps(self, stream: _Stream, cache: int, weight: Array) -> list[Term]:
        """The terms of a convolution (n, c, 2, kw) over the row above and the current one."""
        down = stream.phase == Phase.VERTICAL
        channels = self.program.caches[cache].channels
        padded = widen(weight, channels)
        return [
            Term(
                cache,
                drow,
                -1,
                padded[:, :, drow + 1].swapaxes(1, 2),
                row_part=not down and drow < 0,
            )
            for drow in (-1, 0)
        ]

    def _resnet(
        self, stream: _Stream, layer: GatedResnet, x: _Node, skips: list[_Node], raw_out: int
    ) -> _Node:
        program, level = self.program, x.level
        weight, bias = folded(layer.conv_in)
        terms = self._taps(stream, x.act, weight)
        if layer.nin_skip is not None:
            skip_weight, skip_bias = folded(layer.nin_skip)
            bias = bias + skip_bias
            # concat_elu([a, b]) has the channels a, b, -a, -b; each cache holds a, -a.
            parts = skip_weight.reshape(self.f, 2, len(skips), self.f)
            for i, skip in enumerate(skips):
                own = parts[:, :, i].reshape(self.f, 1, 2 * self.f)
                # The first skip of ul is u, of which the whole row is known.
                row_part = stream.phase == Phase.HORIZONTAL and i == 0
                terms.append(Term(skip.act, 0, 0, own, row_part))
        h = program.cache(level, 2 * self.f, stream.rows)
        self._add(stream.phase, level, bias, terms, act_out=h)
        weight, bias = folded(layer.conv_out)
        out = program.cache(level, 2 * self.f, stream.rows)
        residual = stream.residual[level]
        self._add(
            stream.phase,
            level,
            bias,
            self._taps(stream, h, weight),
            gate=True,
            projection=_projection(layer),
            residual_in=residual,
            residual_out=residual,
            act_out=out,
            raw_out=raw_out,
        )
        return _Node(level, out)

    def _downsize(self, stream: _Stream, layer: nn.Module, level: int, raw: int) -> _Node:
        weight, bias = folded(layer)
        act = self.program.cache(level + 1, 2 * self.f, stream.rows)
        residual = stream.residual[level + 1]
        terms = self._taps(stream, raw, weight)
        self._add(stream.phase, level + 1, bias, terms, residual_out=residual, act_out=act)
        return _Node(level + 1, act)

    def _upsize(self, stream: _Stream, layer: nn.Module, level: int, raw: int) -> _Node:
        """One operation per parity of row and column, each with the taps that fall there."""
        weight, bias = folded(layer)  # (c, n, 2, kw)
        act = self.program.cache(level - 1, 2 * self.f, stream.rows)
        channels = self.program.caches[raw].channels
        weight = widen(weight.swapaxes(0, 1), channels)
        # y[2i + a, 2j + b - first] += w[a, b] x[i, j]: the taps of an output column of each parity,
        # in the order of j (for "down", first = 1: an odd column takes b = 2 of j, 0 of j + 1).
        columns = ([1], [2, 0]) if stream.phase == Phase.VERTICAL else ([0], [1])
        for row in (0, 1):
            for column, taps in enumerate(columns):
                term = Term(raw, 0, 0, weight[:, :, row, taps].swapaxes(1, 2))
                self._add(
                    stream.phase,
                    level - 1,
                    bias,
                    [term],
                    residual_out=stream.residual[level - 1],
                    act_out=act,
                    row_parity=row,
                    column_parity=column,
                )
        return _Node(level - 1, act)

    def _head(self, ul: _Node) -> None:
        program, f = self.program, self.f
        weight, bias = folded(self.model.head)
        program.params = program.cache(0, self.model.config.n_params, 1, operand=False)
        weights = [weight]  # elu(ul) is the first half of concat_elu(ul)
        if self.bf16:
            # Part i of a weight times part j of elu(ul): those of i + j > 2 are below rounding.
            last, channels = program.ops[-1], SPLIT_PARTS * f
            assert last.act_out == ul.act
            last.split = True
            program.caches[ul.act] = Cache(0, channels + channels % 2, self.ul.rows, operand=True)
            weights = [
                np.concatenate([part] * (SPLIT_PARTS - i), axis=1)
                for i, part in enumerate(split(weight))
            ]
        channels = program.caches[ul.act].channels
        terms = [Term(ul.act, 0, 0, widen(w, channels)[:, None, :, 0, 0]) for w in weights]
        self._add(Phase.HEAD, 0, bias, terms, residual_out=program.params)

    def _encoder(self) -> tuple[int, int]:
        """The operations of the context's encoder; the caches of e_u and e_ul."""
        program, encoder, f = self.program, self.model.encoder, self.f
        assert encoder is not None
        width = self.model.config.context_filters or f
        program.context = program.cache(0, self._image_channels(), 0)
        act, h = program.cache(0, 2 * width, 0), program.cache(0, 2 * width, 0)
        residual = program.cache(0, width, 0, operand=False)
        raw = program.cache(0, width + width % 2, 0)
        outputs = [program.cache(0, f, 0, operand=False) for _ in range(2)]

        def around(cache: int, weight: Array) -> list[Term]:
            return [
                Term(cache, drow, -1, weight[:, :, drow + 1].swapaxes(1, 2)) for drow in (-1, 0, 1)
            ]

        weight, bias = folded(encoder.stem)
        terms = [
            Term(program.context, drow, -1, self._stem_taps(weight[:, :, drow + 1]))
            for drow in (-1, 0, 1)
        ]
        # The last value also goes to the two nin as it is.
        raws = [NONE] * len(encoder.layers) + [raw]
        self._add(
            Phase.ENCODER, 0, bias, terms, residual_out=residual, act_out=act, raw_out=raws[0]
        )
        for layer, raw_out in zip(encoder.layers, raws[1:], strict=True):
            assert isinstance(layer, GatedResnet)
            weight, bias = folded(layer.conv_in)
            self._add(Phase.ENCODER, 0, bias, around(act, weight), act_out=h)
            weight, bias = folded(layer.conv_out)
            self._add(
                Phase.ENCODER,
                0,
                bias,
                around(h, weight),
                gate=True,
                projection=_projection(layer),
                residual_in=residual,
                residual_out=residual,
                act_out=act,
                raw_out=raw_out,
            )
        for output, nin in zip(outputs, (encoder.nin_u, encoder.nin_ul), strict=True):
            weight, bias = folded(nin)
            weight = widen(weight, width + width % 2)
            term = Term(raw, 0, 0, weight[:, None, :, 0, 0])
            self._add(Phase.ENCODER, 0, bias, [term], residual_out=output)
        return outputs[0], outputs[1]


def as_numpy(parameter: Tensor) -> Array:
    """A parameter in numpy: on a busy machine torch's threads would wait for one another."""
    values = parameter.detach()
    if values.dtype not in (torch.float32, torch.float64):
        values = values.float()
    return values.numpy(force=True)


def folded(layer: nn.Module) -> tuple[Array, Array]:
    """(weight, bias) with weight norm folded in float64."""
    assert isinstance(layer, WeightNormConv)
    v, g, bias = (
        as_numpy(p).astype(np.float64) for p in (layer.weight_v, layer.weight_g, layer.bias)
    )
    over = (0, 2, 3) if layer.transposed else (1, 2, 3)
    scale = g / np.sqrt(np.square(v).sum(over))
    return v * scale.reshape((1, -1, 1, 1) if layer.transposed else (-1, 1, 1, 1)), bias


def widen(weight: Array, channels: int) -> Array:
    """Zero weights for the channels that a cache has beyond those of (n, c, kh, kw)."""
    return np.pad(weight, ((0, 0), (0, channels - weight.shape[1]), (0, 0), (0, 0)))


def split(values: Array) -> list[Array]:
    """SPLIT_PARTS arrays of bfloat16 values whose sum is `values` to the rounding of float32."""
    parts = []
    for _ in range(SPLIT_PARTS):
        parts.append(torch.from_numpy(values).bfloat16().double().numpy())
        values = values - parts[-1]
    return parts
