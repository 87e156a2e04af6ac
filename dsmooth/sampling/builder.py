"""The program of a PixelCNN++: which caches and operations its layers become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..nn.layers import GatedResnet, WeightNormConv
from ..nn.pixelcnnpp import PixelCNNpp
from .program import NONE, Array, Cache, Op, Phase, Program, Term

NO_RAWS = (NONE, NONE)
SPLIT_PARTS = 3  # bfloat16 values that a float32 is the sum of


class _Node(NamedTuple):
    """A tensor of the network: its level and the cache of its concat_elu."""

    level: int
    act: int


Nodes = tuple[_Node, _Node]  # of u and ul


@dataclass(frozen=True)
class _Stream:
    """A stream of the network, or the encoder: when it runs, and the caches that it has.

    rows: of each cache, 0 for the whole image. reach: the rows that a kernel sees, from the current
    one; row_part: those seen before the row begins. residual: at each level, the value of the layer
    last computed at a position, which the next one adds to.
    """

    phase: Phase
    rows: int
    reach: tuple[int, ...]
    row_part: tuple[int, ...]
    residual: list[int]


def build_program(model: PixelCNNpp, *, bf16: bool = False) -> Program:
    """The program of `model`, with a copy of its weights.

    bf16: operands will be bfloat16. A pixel enters as two of them, or it would lose the low bits of
    its noise. The head multiplies split operands and weights, or a log-scale or a logit would be
    off by more than it can learn.
    """
    builder = _Builder(model, bf16)
    builder.build()
    return builder.program


class _Builder:
    def __init__(self, model: PixelCNNpp, bf16: bool) -> None:
        config = model.config
        self.model = model
        self.f = config.n_filters
        self.bf16 = bf16
        self.program = Program(
            image_channels=config.image_channels,
            image_parts=2 if bf16 else 1,
            n_mix=config.n_mix,
            **config.mixture,
            conditioned=config.conditioning != "none",
            condition_size=config.condition_size,
        )

        def residuals() -> list[int]:
            return [self.program.cache(level, self.f, 1, operand=False) for level in range(3)]

        # Row r of u needs rows r - 1 and r of its inputs. ul needs one row only: the row part has
        # consumed the row above before the row itself is overwritten.
        self.u = _Stream(Phase.VERTICAL, 2, (-1, 0), (), residuals())
        self.ul = _Stream(Phase.HORIZONTAL, 1, (-1, 0), (-1,), residuals())

    def build(self) -> None:
        program, model = self.program, self.model
        e_u, e_ul = self._encoder() if model.encoder is not None else (NONE, NONE)
        # The stem reads two rows above the current one.
        program.image = program.cache(0, self._image_width(), 3)
        stack = [self._stem(e_u, e_ul)]
        for level in range(3):
            # The stride-2 convolutions read a block's last value as it is.
            raws = (self._raw(self.u, level), self._raw(self.ul, level)) if level < 2 else NO_RAWS
            stack.extend(self._block(model.up[level], stack[-1], raws))
            if level < 2:
                u = self._downsize(self.u, model.downsize_u[level], level, raws[0])
                stack.append((u, self._downsize(self.ul, model.downsize_ul[level], level, raws[1])))

        nodes = stack.pop()
        for level in (2, 1, 0):
            # Only the current row of a block's end is read by the transposed convolutions.
            raws = (self._raw(self.u, level, 1), self._raw(self.ul, level)) if level else NO_RAWS
            *_, nodes = self._block(model.down[2 - level], nodes, raws, stack)
            if level:
                u = self._upsize(self.u, model.upsize_u[2 - level], level, raws[0])
                nodes = u, self._upsize(self.ul, model.upsize_ul[2 - level], level, raws[1])
        self._head(nodes[1])

    def _block(
        self,
        block: nn.Module,
        nodes: Nodes,
        raws: tuple[int, int],
        stack: list[Nodes] | None = None,
    ) -> Iterator[Nodes]:
        """The nodes behind each layer of a block, of which the last one writes `raws`, too.

        stack: on the way down, the nodes whose last is the skip of the next layer.
        """
        layers = list(zip(block.u, block.ul, strict=True))  # type: ignore[arg-type]
        for i, (res_u, res_ul) in enumerate(layers):
            raw_u, raw_ul = raws if i == len(layers) - 1 else NO_RAWS
            skips = [[node] for node in stack.pop()] if stack is not None else [[], []]
            u = self._resnet(self.u, res_u, nodes[0], skips[0], raw_u)
            nodes = u, self._resnet(self.ul, res_ul, nodes[1], [u, *skips[1]], raw_ul)
            yield nodes

    def _image_width(self) -> int:
        """Pixel (in one or two parts), one; an even number, for operands come in pairs."""
        n = self.program.image_channels * self.program.image_parts + 1
        return n + n % 2

    def _raw(self, stream: _Stream, level: int, rows: int | None = None) -> int:
        return self.program.cache(level, self.f + self.f % 2, rows or stream.rows)

    def _act(self, stream: _Stream, level: int) -> int:
        return self.program.cache(level, 2 * self.f, stream.rows)

    def _add(
        self, stream: _Stream, level: int, bias: Array, terms: list[Term], **outputs: Any
    ) -> None:
        self.program.ops.append(Op(stream.phase, level, bias, terms, **outputs))

    def _terms(
        self, stream: _Stream, cache: int, weight: Array, rows: tuple[int, ...] | None = None
    ) -> list[Term]:
        """The terms of a convolution (n, c, kh, kw) over `rows`, by default all that it sees."""
        weight = widen(weight, self.program.caches[cache].channels)
        return [
            Term(cache, row, -1, weight[:, :, i].swapaxes(1, 2), row in stream.row_part)
            for i, row in enumerate(rows or stream.reach)
        ]

    def _on_image(self, weight: Array) -> Array:
        """(n, C + 1, kh, kw) on pixels and ones, for the channels of an image's cache."""
        pixels = [weight[:, :-1]] * self.program.image_parts
        return np.concatenate([*pixels, weight[:, -1:]], axis=1)

    def _stem(self, e_u: int, e_ul: int) -> Nodes:
        """u0 and ul0. Their biases enter through the channel of ones at a tap that lies inside the
        image exactly where the shifted branch is not zero."""
        program, model, zero = self.program, self.model, np.zeros(self.f)
        image, ones = program.image, program.image_channels
        weight, bias = folded(model.stem_u)
        weight[:, ones, 1, 1] += bias
        terms = self._terms(self.u, image, self._on_image(weight), (-2, -1))
        u, residual = self._act(self.u, 0), self.u.residual[0]
        self._add(self.u, 0, zero, terms, add=e_u, residual_out=residual, act_out=u)
        above, bias = folded(model.stem_ul_above)
        above[:, ones, 0, 1] += bias
        left, bias = folded(model.stem_ul_left)
        left[:, ones, 1, 0] += bias
        above[:, :, 0, 0] += left[:, :, 0, 0]
        terms = self._terms(self.ul, image, self._on_image(above), (-1,))
        terms += self._terms(self.ul, image, self._on_image(left[:, :, 1:]), (0,))
        ul, residual = self._act(self.ul, 0), self.ul.residual[0]
        self._add(self.ul, 0, zero, terms, add=e_ul, residual_out=residual, act_out=ul)
        return _Node(0, u), _Node(0, ul)

    def _resnet(
        self,
        stream: _Stream,
        layer: GatedResnet,
        x: _Node,
        skips: list[_Node],
        raw_out: int,
        caches: tuple[int, int] | None = None,
    ) -> _Node:
        """caches: of h and of the result, by default new ones."""
        h, out = caches or (self._act(stream, x.level), self._act(stream, x.level))
        weight, bias = folded(layer.conv_in)
        terms = self._terms(stream, x.act, weight)
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
        self._add(stream, x.level, bias, terms, act_out=h)
        weight, bias = folded(layer.conv_out)
        projection = layer.condition_weight  # (2F, D)
        residual = stream.residual[x.level]
        self._add(
            stream,
            x.level,
            bias,
            self._terms(stream, h, weight),
            gate=True,
            projection=None if projection is None else as_numpy(projection).astype(np.float64),
            residual_in=residual,
            residual_out=residual,
            act_out=out,
            raw_out=raw_out,
        )
        return _Node(x.level, out)

    def _downsize(self, stream: _Stream, layer: nn.Module, level: int, raw: int) -> _Node:
        weight, bias = folded(layer)
        act, residual = self._act(stream, level + 1), stream.residual[level + 1]
        terms = self._terms(stream, raw, weight)
        self._add(stream, level + 1, bias, terms, residual_out=residual, act_out=act)
        return _Node(level + 1, act)

    def _upsize(self, stream: _Stream, layer: nn.Module, level: int, raw: int) -> _Node:
        """One operation per parity of row and column, each with the taps that fall there."""
        weight, bias = folded(layer)  # (c, n, 2, kw)
        act, residual = self._act(stream, level - 1), stream.residual[level - 1]
        weight = widen(weight.swapaxes(0, 1), self.program.caches[raw].channels)
        # y[2i + a, 2j + b - first] += w[a, b] x[i, j]: the taps of an output column of each parity,
        # in the order of j (for "down", first = 1: an odd column takes b = 2 of j, 0 of j + 1).
        columns = ([1], [2, 0]) if stream.phase == Phase.VERTICAL else ([0], [1])
        for row in (0, 1):
            for column, taps in enumerate(columns):
                terms = [Term(raw, 0, 0, weight[:, :, row, taps].swapaxes(1, 2))]
                parity = {"row_parity": row, "column_parity": column}
                to = {"residual_out": residual, "act_out": act}
                self._add(stream, level - 1, bias, terms, **to, **parity)
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
        terms = [self._point(ul.act, w) for w in weights]
        program.ops.append(Op(Phase.HEAD, 0, bias, terms, residual_out=program.params))

    def _point(self, cache: int, weight: Array) -> Term:
        """The term of a 1x1 convolution."""
        return Term(
            cache, 0, 0, widen(weight, self.program.caches[cache].channels)[:, None, :, 0, 0]
        )

    def _encoder(self) -> tuple[int, int]:
        """The operations of the context's encoder; the caches of e_u and e_ul."""
        program, encoder, f = self.program, self.model.encoder, self.f
        assert encoder is not None
        width = self.model.config.context_filters or f
        program.context = program.cache(0, self._image_width(), 0)
        act, h = program.cache(0, 2 * width, 0), program.cache(0, 2 * width, 0)
        residual = program.cache(0, width, 0, operand=False)
        raw = program.cache(0, width + width % 2, 0)
        stream = _Stream(Phase.ENCODER, 0, (-1, 0, 1), (), [residual])
        # The last value also goes to the two nin as it is.
        raws = [NONE] * len(encoder.layers) + [raw]
        weight, bias = folded(encoder.stem)
        terms = self._terms(stream, program.context, self._on_image(weight))
        self._add(stream, 0, bias, terms, residual_out=residual, act_out=act, raw_out=raws[0])
        for layer, raw_out in zip(encoder.layers, raws[1:], strict=True):
            assert isinstance(layer, GatedResnet)
            self._resnet(stream, layer, _Node(0, act), [], raw_out, (h, act))
        outputs = program.cache(0, f, 0, operand=False), program.cache(0, f, 0, operand=False)
        for output, nin in zip(outputs, (encoder.nin_u, encoder.nin_ul), strict=True):
            weight, bias = folded(nin)
            self._add(stream, 0, bias, [self._point(raw, weight)], residual_out=output)
        return outputs


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
