"""The program of the cached sampler: a PixelCNN++ as caches, operations and folded weights.

Every activation of the network is computed once per image. docs/sampler.md explains phases and
parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from ..nn.layers import GatedResnet, WeightNormConv
from ..nn.pixelcnnpp import Block, ContextEncoder, HeadHidden, PixelCNNpp
from .operations import (
    ADDENDS,
    NONE,
    Array,
    Cache,
    Op,
    Phase,
    Term,
    addends_of,
    as_numpy,
    feature_table,
    folded,
    widened,
)

NO_RAWS = (NONE, NONE)


class _Stream(NamedTuple):
    """A stream of the network, or the encoder: its phase and its caches.

    rows: rows of each cache, 0 for the whole image. reach: the rows that a kernel reads, relative
    to the current one. residual: for each resolution, the cache with the value of the last layer,
    to which the next layer adds.
    """

    phase: Phase
    rows: int
    reach: tuple[int, ...]
    residual: list[int]


class Program:
    """The whole network, with a copy of its weights; `image`, `context`, `params` are cache
    indices.

    features: (256, 2 octaves), the Fourier features of each byte. In the image's cache they follow
    the pixel and a one. image_again: whether the pixel and the one are repeated after them, for the
    head's hidden layer, which sees only the modelled image; in a prompt both are zeros. bf16:
    whether operands are bfloat16. A pixel is then the sum of two operands (image_addends), to keep
    the low bits of its noise. The head multiplies split operands and weights, since rounding would
    change a log-scale or a logit by more than it can learn. n_classes: classes of images,
    0 without any.
    """

    def __init__(self, model: PixelCNNpp, *, bf16: bool = False) -> None:
        config = model.config
        self.image_channels, self.n_mix = config.image_channels, config.n_mix
        self.likelihood, self.n_atoms = config.likelihood, config.n_atoms
        self.smoothing_scale = config.smoothing_scale
        self.conditioned = config.conditioning != "none"
        self.n_classes = config.n_classes
        self.image_addends = 2 if bf16 else 1
        self.features = feature_table(config.fourier_features)
        self.image_again = model.hidden is not None and config.conditioning == "stack"
        # Channels of a pixel (one or two addends) and a one, made even.
        self._pixel = (self.image_channels * self.image_addends + 2) // 2 * 2
        self.caches: list[Cache] = []
        self.ops: list[Op] = []
        self._model, self._f = model, config.n_filters
        # Row r of u needs rows r - 1 and r of its inputs. ul needs only one row: the row part has
        # read the row above before it is overwritten.
        self._u, self._ul = (
            _Stream(
                phase, rows, (-1, 0), [self._cache(i, self._f, operand=False) for i in range(3)]
            )
            for phase, rows in ((Phase.VERTICAL, 2), (Phase.HORIZONTAL, 1))
        )
        self.context = NONE
        e_u, e_ul = self._encoder(model.encoder) if model.encoder else (NONE, NONE)
        # The stem reads two rows above the current one.
        more = self.image_channels * self.features.shape[1] + self._pixel * self.image_again
        self.image = self._cache(0, self._pixel + more, 3)
        stack = [self._stem(e_u, e_ul)]
        for resolution in range(3):
            # The stride-2 convolutions read a block's last value without an activation.
            last = resolution == 2
            raws = NO_RAWS
            if not last:
                raws = self._cache(resolution, self._f, 2), self._cache(resolution, self._f)
            stack.extend(self._block(model.up[resolution], stack[-1], raws))
            if not last:
                u = self._downsize(self._u, model.downsize_u[resolution], raws[0])
                stack.append((u, self._downsize(self._ul, model.downsize_ul[resolution], raws[1])))

        acts = stack.pop()
        for resolution in (2, 1, 0):
            # The transposed convolutions read only the current row of a block's last value.
            raws = NO_RAWS
            if resolution:
                raws = self._cache(resolution, self._f), self._cache(resolution, self._f)
            split = bf16 and resolution == 0  # the head reads the last value
            *_, acts = self._block(model.down[2 - resolution], acts, raws, stack, split=split)
            if resolution:
                u = self._upsize(self._u, model.upsize_u[2 - resolution], raws[0])
                acts = u, self._upsize(self._ul, model.upsize_ul[2 - resolution], raws[1])
        self._head(acts[1])

    def _block(
        self,
        block: Block,
        acts: tuple[int, int],
        raws: tuple[int, int],
        stack: list[tuple[int, int]] | None = None,
        *,
        split: bool = False,
    ) -> Iterator[tuple[int, int]]:
        """The caches of u and ul after each layer of a block; the last layer also writes `raws`.

        stack: in the downward blocks, caches whose last pair are the skips of the next layer.
        split: whether the last ul is split.
        """
        layers = list(block)
        for i, (res_u, res_ul) in enumerate(layers, 1):
            last = i == len(layers)
            raw_u, raw_ul = raws if last else NO_RAWS
            skips = [[act] for act in stack.pop()] if stack is not None else [[], []]
            u = self._resnet(self._u, res_u, acts[0], skips[0], raw_u)
            skips_ul, is_split = [u, *skips[1]], split and last
            ul = self._resnet(self._ul, res_ul, acts[1], skips_ul, raw_ul, split=is_split)
            acts = u, ul
            yield acts

    def _cache(self, resolution: int, channels: int, rows: int = 1, *, operand: bool = True) -> int:
        """Add a cache, of an even number of operands, which come in pairs; return its index."""
        self.caches.append(Cache(resolution, channels + operand * channels % 2, rows, operand))
        return len(self.caches) - 1

    def _terms(
        self, stream: _Stream, cache: int, weight: Array, rows: tuple[int, ...] | None = None
    ) -> list[Term]:
        """The terms of a convolution (n, c, kh, kw) over `rows`, by default all rows it reads."""
        weight = widened(weight, self.caches[cache].channels)
        horizontal = stream.phase == Phase.HORIZONTAL
        return [
            Term(cache, row, -1, weight[:, :, i].swapaxes(1, 2), horizontal and row == -1)
            for i, row in enumerate(rows or stream.reach)
        ]

    def _point(self, cache: int, weight: Array) -> Term:
        """The term of a 1x1 convolution of the first channels of a cache."""
        even = weight.shape[1] + weight.shape[1] % 2
        return Term(cache, 0, 0, widened(weight, even)[:, None, :, 0, 0])

    def _on_image(self, weight: Array, *, skip_prompt: bool = False) -> Array:
        """Extend (n, c, kh, kw) on pixels, ones and features to the channels of an image's cache.

        skip_prompt: give weight 0 to the channels that a prompt also has.
        """
        colours, ones = weight[:, : self.image_channels], self.image_channels
        pixel = [*[colours] * self.image_addends, weight[:, ones : ones + 1]]
        on_pixel = widened(np.concatenate(pixel, axis=1), self._pixel)
        features = weight[:, ones + 1 :]
        if skip_prompt and self.image_again:
            return np.concatenate([0 * on_pixel, features, on_pixel], axis=1)
        return np.concatenate([on_pixel, features], axis=1)

    def _stem(self, e_u: int, e_ul: int) -> tuple[int, int]:
        """u0 and ul0. The channel of ones adds their biases, at a tap that is inside the image
        exactly where the shifted branch is not zero."""
        model, ones, zero = self._model, self.image_channels, np.zeros(self._f)
        weight, bias = folded(model.stem_u)
        weight[:, ones, 1, 1] += bias
        terms = self._terms(self._u, self.image, self._on_image(weight), (-2, -1))
        u, ul = (self._cache(0, 2 * self._f, stream.rows) for stream in (self._u, self._ul))
        residual, residual_ul = self._u.residual[0], self._ul.residual[0]
        self.ops.append(
            Op(Phase.VERTICAL, 0, zero, terms, add=e_u, residual_out=residual, act_out=u)
        )
        above, bias = folded(model.stem_ul_above)
        above[:, ones, 0, 1] += bias
        left, bias = folded(model.stem_ul_left)
        left[:, ones, 1, 0] += bias
        above[:, :, 0, 0] += left[:, :, 0, 0]
        terms = self._terms(self._ul, self.image, self._on_image(above), (-1,))
        terms += self._terms(self._ul, self.image, self._on_image(left[:, :, 1:]), (0,))
        op = Op(Phase.HORIZONTAL, 0, zero, terms, add=e_ul, residual_out=residual_ul, act_out=ul)
        self.ops.append(op)
        return u, ul

    def _resnet(
        self,
        stream: _Stream,
        layer: GatedResnet,
        x: int,
        skips: list[int],
        raw_out: int,
        caches: tuple[int, int] | None = None,
        *,
        split: bool = False,
    ) -> int:
        """Add a gated resnet. caches: those of h and of the result, by default new ones. split: of
        the result."""
        resolution = self.caches[x].resolution
        weight, bias = folded(layer.conv_in)
        terms = self._terms(stream, x, weight)
        if layer.nin_skip is not None:
            skip_weight, skip_bias = folded(layer.nin_skip)
            bias = bias + skip_bias
            # concat_elu([a, b]) has the channels a, b, -a, -b; each cache holds a, -a.
            skip_weight = skip_weight.reshape(self._f, 2, len(skips), self._f)
            for i, skip in enumerate(skips):
                weight = skip_weight[:, :, i].reshape(self._f, 1, 2 * self._f)
                # The first skip of ul is u, whose whole row is known.
                row_part = stream.phase == Phase.HORIZONTAL and i == 0
                terms.append(Term(skip, 0, 0, weight, row_part))
        h, act = caches or (
            self._cache(resolution, channels * self._f, stream.rows)
            for channels in (2, ADDENDS if split else 2)
        )
        self.ops.append(Op(stream.phase, resolution, bias, terms, act_out=h))
        weight, bias = folded(layer.conv_out)
        gate = Op(stream.phase, resolution, bias, self._terms(stream, h, weight), gate=True)
        gate.residual_in = gate.residual_out = stream.residual[resolution]
        gate.act_out, gate.raw_out, gate.split = act, raw_out, split
        if layer.condition_weight is not None:  # (2F, D)
            gate.projection = as_numpy(layer.condition_weight)
        self.ops.append(gate)
        return act

    def _downsize(self, stream: _Stream, layer: WeightNormConv, raw: int) -> int:
        resolution = self.caches[raw].resolution + 1
        weight, bias = folded(layer)
        op = Op(stream.phase, resolution, bias, self._terms(stream, raw, weight))
        op.residual_out = stream.residual[resolution]
        op.act_out = self._cache(resolution, 2 * self._f, stream.rows)
        self.ops.append(op)
        return op.act_out

    def _upsize(self, stream: _Stream, layer: WeightNormConv, raw: int) -> int:
        """One operation per parity of row and column, with the taps for that parity."""
        resolution = self.caches[raw].resolution - 1
        weight, bias = folded(layer)  # (c, n, 2, kw)
        weight = widened(weight.swapaxes(0, 1), self.caches[raw].channels)
        # y[2i + a, 2j + b - first] += w[a, b] x[i, j]: the taps of an output column of each parity,
        # in the order of j (for "down", first = 1: an odd column takes b = 2 of j, 0 of j + 1).
        columns = ([1], [2, 0]) if stream.phase == Phase.VERTICAL else ([0], [1])
        act = self._cache(resolution, 2 * self._f, stream.rows)
        residual = stream.residual[resolution]
        for row in (0, 1):
            for column, taps in enumerate(columns):
                terms = [Term(raw, 0, 0, weight[:, :, row, taps].swapaxes(1, 2))]
                op = Op(stream.phase, resolution, bias, terms, residual_out=residual, act_out=act)
                op.row_parity, op.column_parity = row, column
                self.ops.append(op)
        return act

    def _head(self, ul: int) -> None:
        weight, bias = folded(self._model.head)
        on_hidden, on_ul = np.split(weight, [weight.shape[1] - self._f], axis=1)
        weights = [on_ul]  # elu(ul) is the first half of concat_elu(ul)
        if self.image_addends == 2:
            # Addend i of a weight times addend j of elu(ul): for i + j > 2 it is below rounding.
            weights = [
                np.concatenate([addend] * (ADDENDS - i), axis=1)
                for i, addend in enumerate(addends_of(on_ul))
            ]
        terms = [self._point(ul, w) for w in weights]
        if self._model.hidden is not None:
            hidden = self._hidden(self._model.hidden, ul)
            # The hidden layer is in bfloat16: its operands have one addend, the weights have two.
            addends = addends_of(on_hidden)[:2] if self.image_addends == 2 else [on_hidden]
            terms = [*(self._point(hidden, addend) for addend in addends), *terms]
        self.params = self._cache(0, self._model.config.n_params, 1, operand=False)
        self.ops.append(Op(Phase.HEAD, 0, bias, terms, residual_out=self.params))

    def _hidden(self, layer: HeadHidden, ul: int) -> int:
        """The hidden layer of the head: like the stem of ul, with an additional term for
        elu(ul)."""
        ones = self.image_channels
        above, bias = folded(layer.above)
        above[:, ones, 0, 1] += bias
        left, bias = folded(layer.left)
        left[:, ones, 0, 0] += bias
        on_ul, bias = folded(layer.ul)
        terms = self._terms(self._ul, self.image, self._on_image(above, skip_prompt=True), (-1,))
        terms += self._terms(self._ul, self.image, self._on_image(left, skip_prompt=True), (0,))
        act = self._cache(0, 2 * len(bias), self._ul.rows)
        terms.append(self._point(ul, on_ul))
        self.ops.append(Op(Phase.HORIZONTAL, 0, bias, terms, act_out=act))
        return act

    def _encoder(self, encoder: ContextEncoder) -> tuple[int, int]:
        """The operations of the context's encoder; the caches of e_u and e_ul."""
        width = self._model.config.context_filters or self._f
        self.context = self._cache(0, self._pixel, 0)
        act, h = self._cache(0, 2 * width, 0), self._cache(0, 2 * width, 0)
        residual = self._cache(0, width, 0, operand=False)
        raw = self._cache(0, width, 0)
        stream = _Stream(Phase.ENCODER, 0, (-1, 0, 1), [residual])
        # Both 1x1 convolutions read the last value without an activation.
        raws = [NONE] * len(encoder.layers) + [raw]
        weight, bias = folded(encoder.stem)
        terms = self._terms(stream, self.context, self._on_image(weight))
        stem = Op(Phase.ENCODER, 0, bias, terms, residual_out=residual, act_out=act)
        stem.raw_out = raws[0]
        self.ops.append(stem)
        for layer, raw_out in zip(encoder.layers, raws[1:], strict=True):
            self._resnet(stream, layer, act, [], raw_out, (h, act))
        new = partial(self._cache, 0, self._f, 0, operand=False)
        outputs = new(), new()
        for output, nin in zip(outputs, (encoder.nin_u, encoder.nin_ul), strict=True):
            weight, bias = folded(nin)
            self.ops.append(
                Op(Phase.ENCODER, 0, bias, [self._point(raw, weight)], residual_out=output)
            )
        return outputs
