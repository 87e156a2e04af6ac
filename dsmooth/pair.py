"""A noisy model and a denoiser: two-step sampling and the bound on log p(x)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import Method, Precision, Score
from .pair_networks import PairNetworks
from .pair_sampler import PairSampler
from .philox import Stream
from .pretrained import Origins, SavedNetwork, resolve
from .pretrained.hub import upload
from .pretrained.pairs import save_pair
from .sampling.draw import Draw, Label, chosen_seed
from .sampling.known import known_pixels
from .sampling.ladder import Step, seed_of_rung
from .smoothing import GaussianSmoothing, make_smoothing


class SmoothedPair(PairNetworks):
    """p(x~) and p(x | x~) with the smoothing q(x~ | x) that they were trained for.

    noisy: a model with conditioning "none" and likelihood "continuous", or "gaussian" with the
    smoothing's scale. denoiser: a model with conditioning "stack" or "concat". Either or both may
    have classes, as many. Both may have noise_levels, the same; smoothing is then that of the
    highest. image_size: (H, W), multiples of 4.
    Raises ValueError for models that do not fit together. Source: Meng et al. (ICLR 2021).
    """

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        label: Label = None,
        levels: Sequence[float] | None = None,
        seed: int | None = 0,
        first_index: int = 0,
        method: Method = "two-step",
        score: Score = "full",
        temperature: float = 1.0,
        threads: int | None = None,
        precision: Precision = "auto",
        known: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Draw n images, by default in two steps: x~ ~ p(x~), then x ~ p(x | x~).

        label: for a pair with classes: the class of all images, "each" for classes in turn, or a
        tensor of one for each image (see `Draw`). levels: for a pair of several noise levels, the
        scales of a ladder, falling: x~ of the first is drawn, then an image and x~ of the next, and
        so on, at last x (docs/math.md, section 7). By default the highest alone: two steps.

        They are images first_index .. first_index + n - 1 of the stream that `seed` names; None
        draws a seed and reports it on stderr. method: "two-step"; "single-step" replaces the second
        draw by the posterior mean x~ + scale**2 * grad log p(x~) (Gaussian smoothing only);
        "noisy" gives x~ itself. score: how "single-step" differentiates, see `single_step`.
        temperature: > 0, of every draw. threads: None for torch's setting. precision: of the cached
        sampler; "auto" is bfloat16 on a CUDA device, float32 on the CPU.

        known: (n or 1, C, H, W), images whose pixels where mask, (n or 1, H, W) bool, is True are
        kept; the rest is drawn. The known pixels of x~ are known plus the smoothing's noise, a
        function of (seed, image index); method "noisy" returns these. docs/math.md, section 4, says
        which distribution this draws from.

        Returns (n, C, H, W); x~ is not clamped, nor is x from a continuous denoiser.
        Raises ValueError or TypeError for arguments out of range or that do not fit.
        """
        draw = Draw(
            n,
            chosen_seed(seed),
            first_index,
            method,
            score,
            temperature,
            threads,
            precision=precision,
            known=known_pixels(known, mask, n),
            label=label,
            levels=None if levels is None else tuple(levels),
        )
        return PairSampler(self).draw(draw)

    @torch.no_grad()
    def denoise(
        self,
        x_tilde: Tensor,
        *,
        label: Label = None,
        levels: Sequence[float] | None = None,
        seed: int | None = 0,
        first_index: int = 0,
        method: Method = "two-step",
        score: Score = "full",
        temperature: float = 1.0,
        threads: int | None = None,
        precision: Precision = "auto",
        known: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The second half of `sample`, for noisy images (B, C, H, W) that are there already.

        Their noise is that of the first of levels.
        """
        draw = Draw(
            x_tilde.shape[0],
            chosen_seed(seed),
            first_index,
            method,
            score,
            temperature,
            threads,
            precision=precision,
            known=known_pixels(known, mask, x_tilde.shape[0]),
            label=label,
            levels=None if levels is None else tuple(levels),
        )
        return PairSampler(self).denoise(x_tilde, draw)

    @torch.no_grad()
    def elbo(
        self,
        x: Tensor,
        *,
        label: Tensor | None = None,
        levels: Sequence[float] | None = None,
        n_noise: int = 1,
        importance_weighted: bool = False,
        seed: int = 0,
        first_index: int = 0,
    ) -> Tensor:
        """A lower bound on log p(x) from `n_noise` draws of x~ per image: (B,), nats.

        Each draw gives a log-weight log p(x~) - log q(x~ | x) + log p(x | x~). Their mean estimates
        the evidence lower bound; with `importance_weighted` the log of the mean weight, which is
        tighter in expectation. With a discretized denoiser it bounds the log-probability of bytes;
        with a continuous one a log-density in units of [-1, 1].
        The noise of row b is a function of (seed, first_index + b, draw). label: for a pair with
        classes, as of `PixelCNNpp.forward`; the bound is then that of log p(x | label). levels: of
        a ladder, as of `sample`; log p(x~) is then a bound itself (docs/math.md, section 7).
        """
        if n_noise < 1:
            raise ValueError(f"n_noise must be at least 1, got {n_noise}")
        draws = [self.elbo_terms(x, seed, first_index, r, label, levels) for r in range(n_noise)]
        weights = torch.stack([torch.stack(list(terms.values())).sum(0) for terms in draws])
        if importance_weighted:
            return torch.logsumexp(weights, dim=0) - math.log(n_noise)
        return weights.mean(0)

    @torch.no_grad()
    def elbo_terms(
        self,
        x: Tensor,
        seed: int,
        first_index: int,
        repeat: int,
        label: Tensor | None = None,
        levels: Sequence[float] | None = None,
    ) -> dict[str, Tensor]:
        """The three terms of one draw's log-weight, each (B,), nats, summing to it.

        Keys "noisy" (log p(x~)), "smoothing" (-log q(x~ | x)) and "denoiser" (log p(x | x~)), x~ of
        the lowest level.
        """
        pairs = [self.at(scale) for scale in self.ladder(levels)]
        lowest = pairs[-1]
        where = {"seed": seed, "first_index": first_index, "repeat": repeat}
        x_tilde = lowest.smoothing.sample(x, **where)
        return {
            "noisy": log_prob_of_noisy(pairs, x_tilde, label, **where),
            "smoothing": -lowest.smoothing.log_prob(x_tilde, x),
            "denoiser": lowest.denoiser_log_prob(x, x_tilde, label),
        }

    def save_pretrained(
        self, folder: str | Path, *, scores: str | Path | None = None, name: str | None = None
    ) -> None:
        """Write config.json, noisy.safetensors, denoiser.safetensors and the card README.md.

        The card says what the pair is and, where it was made of run folders, how it was trained.
        scores: the file that `dsmooth evaluate bpd` wrote for it, whose table the card shows. name:
        by which the card's example reads the pair, by default the folder's. A README.md that
        dsmooth did not write stays.
        Raises ValueError for scores of another pair.
        """
        save_pair(
            Path(folder),
            self.noisy,
            self.denoiser,
            self.smoothing,
            self.image_size,
            self.origin,
            name=name or str(folder),
            scores=None if scores is None else Path(scores),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        scores: str | Path | None = None,
        commit_message: str = "Upload a smoothed pair",
    ) -> str:
        """Write what `save_pretrained` writes into the model `repo_id` of the Hugging Face Hub.

        repo_id: "owner/name", made if need be, for you alone if `private`. token: None for the one
        of `hf auth login`. scores: as of `save_pretrained`. Returns the commit's address.
        Raises ModuleNotFoundError without the extra "hub"; OSError, with the reason and what to do,
        if the Hub does not take it; ValueError for a repo_id or scores that do not fit.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, scores=scores, name=repo_id)
            return upload(
                Path(folder), repo_id, private=private, token=token, commit_message=commit_message
            )

    @classmethod
    def from_runs(cls, noisy: str | Path, denoiser: str | Path) -> SmoothedPair:
        """Make a pair of two run folders of `dsmooth train`.

        Raises FileNotFoundError or ValueError for folders that are not runs, have other roles, or
        were trained for different smoothing or image sizes.
        """
        return cls.of_networks([*resolve(noisy), *resolve(denoiser)])

    @classmethod
    def from_pretrained(cls, name: str | Path, *, revision: str | None = None) -> SmoothedPair:
        """Read a pair by its name or folder; both models in evaluation mode, on the CPU.

        name: "mnist", the pair that comes with the package; a folder that `save_pretrained` wrote;
        one with the runs `noisy` and `denoiser` in it, such as that of `dsmooth reproduce`; or, by
        the extra "hub", the "owner/name" of such a folder on the Hugging Face Hub. revision: of the
        Hub, a branch, tag or commit; None for the main branch.
        Raises FileNotFoundError or ValueError, naming the file, for anything else;
        ModuleNotFoundError without the extra, and OSError if the Hub does not give the pair.
        """
        return cls.of_networks(resolve(name, revision))

    @classmethod
    def of_networks(cls, saved: Sequence[SavedNetwork]) -> SmoothedPair:
        """Read a noisy model and its denoiser, in this order.

        Raises FileNotFoundError or ValueError for files that are damaged and for other networks.
        """
        found = ", ".join(f"{network.role} ({network.folder})" for network in saved)
        if [network.role for network in saved] != ["noisy", "denoiser"]:
            raise ValueError(
                f"a pair needs the run of a noisy model and the run of a denoiser, got {found}"
            )
        noisy, denoiser = saved
        one, two = (f"{n.smoothing} noise of scale {n.scale}" for n in saved)
        if one != two or noisy.image_size != denoiser.image_size:
            raise ValueError(
                f"the runs do not fit together: {one} at {noisy.image_size} and {two} at "
                f"{denoiser.image_size}"
            )
        networks = noisy.load(), denoiser.load()
        try:
            smoothing = make_smoothing(noisy.smoothing, noisy.scale)
            pair = cls(*networks, smoothing, noisy.image_size).eval()
        except ValueError as error:
            raise ValueError(f"{found} are no pair: {error}") from None
        pair.origin = Origins(saved)
        return pair


def log_prob_of_noisy(
    pairs: Sequence[SmoothedPair],
    x_tilde: Tensor,
    label: Tensor | None = None,
    *,
    seed: int = 0,
    first_index: int = 0,
    repeat: int = 0,
) -> Tensor:
    """log p(x~) of the lowest level of a ladder, or one draw of a lower bound on it: (B,), nats.

    pairs: of its levels, falling (`SmoothedPair.at`); with one level the number is exact. x~
    climbs by independent noise; each step down is bounded with an image from the lower denoiser
    (docs/math.md, section 7). Row b is that of image first_index + b.
    """
    total = x_tilde.new_zeros(x_tilde.shape[0])
    rising = [*reversed(pairs)]
    for rung, (low, high) in enumerate(pairwise(rising), 1):
        scales = low.smoothing.scale, high.smoothing.scale
        where: dict[str, Any] = {
            "seed": seed_of_rung(seed, rung, repeat),
            "first_index": first_index,
        }
        up = GaussianSmoothing(math.sqrt(scales[1] ** 2 - scales[0] ** 2), Stream.LADDER)
        x_high = up.sample(x_tilde, **where)
        x = low.denoise(x_tilde, label=low.label_for(low.denoiser, label), **where)
        total += high.denoiser_log_prob(x, x_high, label)
        total += Step(*scales).log_prob(x_tilde, x, x_high)
        total -= low.denoiser_log_prob(x, x_tilde, label) + up.log_prob(x_high, x_tilde)
        x_tilde = x_high
    return total + rising[-1].noisy_log_prob(x_tilde, label)
