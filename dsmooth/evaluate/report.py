"""report.html of a reproduction: one file, pictures inline, no script, no network.

`write_report` turns the numbers of results.json into sentences and tables, and puts them into the
page of report_page.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import write_atomically
from .figures import curve_png, figure, grid
from .likelihood import LEVEL_BITS
from .report_page import PAGE

# Pictures show an 8 x 8 grid at most, whatever was drawn.
SHOWN = 64
ROLE_TITLES = {"noisy": "Noisy model", "denoiser": "Denoiser", "plain": "Plain baseline"}
NOISE_NAMES = {"gaussian": "Gaussian", "laplace": "Laplace", "uniform": "uniform"}

# (key of `settings`, words); a dot leads into the model's own settings.
SETTINGS = (
    ("model.n_filters", "filters F"),
    ("model.n_resnet", "gated resnets per block R"),
    ("model.n_mix", "mixture components K"),
    ("model.dropout", "dropout"),
    ("model.conditioning", "conditioning"),
    ("model.likelihood", "likelihood"),
    ("smoothing", "smoothing noise"),
    ("scale", "its scale σ"),
    ("clean_noise", "noise on the target"),
    ("batch_size", "batch size"),
    ("learning_rate", "peak learning rate"),
    ("schedule", "learning-rate schedule"),
    ("warmup_images", "warm-up, images"),
    ("betas", "Adam's β"),
    ("clip_norm", "gradient clipped at"),
    ("ema", "largest EMA decay"),
    ("data_init", "data-dependent init"),
    ("precision", "precision"),
    ("seed", "seed"),
)


def write_report(
    path: Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, Tensor],
) -> None:
    """Write the report of `results` (the content of results.json) to `path`.

    histories: the log of each role's run. pictures: (N, C, H, W) images by name, as
    `dsmooth.reproduce.draw_all` returns them.
    """
    values = {
        "title": f"Distribution smoothing on {data_name(results)}",
        "lead": escape(bound_sentence(results)),
        "introduction": introduction(results),
        "samples": samples_section(results, pictures),
        "denoising": denoising_section(results, pictures),
        "bits": bits_section(results),
        "curves": curves_section(results, histories),
        "settings": settings_table(results),
        "making": "\n".join(f"<p>{escape(sentence)}</p>" for sentence in making(results)),
        "advice": "\n".join(f"<p>{code_words(sentence)}</p>" for sentence in advice(results)),
        "version": escape(results["dsmooth"]),
    }
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    page = PAGE.substitute(values).replace(" | ", "\u00a0|\u2060\u00a0")
    write_atomically(path, page.encode())


# --- sentences -------------------------------------------------------------------------------


def data_name(results: Mapping[str, Any]) -> str:
    """The data set's name as people write it."""
    names = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
    name = results["data"]["name"]
    return names.get(name, "CelebA" if name == "celeba" else "your images")


def plus_minus(score: Mapping[str, Any]) -> str:
    """A score with its standard error."""
    return f"{number(score['value'])} ± {number(score['standard_error'])}"


def bound_sentence(results: Mapping[str, Any]) -> str:
    """The pair's score in one sentence."""
    pair = results["bits_per_dim"]["pair"]
    where = f"on {pair['n_images']:,} held-out images (± is the standard error over images)"
    if pair["likelihood"] == "discretized":
        return f"The pair's discrete bound is {plus_minus(pair)} bits/dim {where}."
    return f"The pair's density bound, in [-1, 1] units, is {plus_minus(pair)} bits/dim {where}."


def making(results: Mapping[str, Any]) -> list[str]:
    """How the run was made."""
    data, machine, runs = results["data"], results["machine"], results["runs"]
    kind = "the subset that comes with dsmooth" if data["embedded_subset"] else "the files given"
    sentences = [
        f"Settings: {results['name']}. "
        f"Data: {data_name(results)}, {kind}: {data['train_images']:,} training and "
        f"{data['test_images']:,} test images of {' x '.join(map(str, data['image_size']))} pixels."
    ]
    for role, run in runs.items():
        rate = run["images"] / max(run["training_seconds"], 0.1)
        sentences.append(
            f"{ROLE_TITLES[role]}: {run['parameters']:,} parameters, {run['images']:,} images "
            f"({run['passes_over_training_set']:.1f} passes over the training set) in "
            f"{run['training_seconds'] / 60:.1f} minutes, {rate:.0f} images/s."
        )
    together = "; noisy model and denoiser were trained side by side, the baseline after them"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    sentences.append(
        f"Machine: {machine['processor']}, {machine['cpu_threads']} CPU threads{gpu}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"dsmooth {results['dsmooth']}{together if 'plain' in runs else ''}."
    )
    return sentences


def advice(results: Mapping[str, Any]) -> list[str]:
    """What this much training gives, and what more of it buys; commands stand in backquotes."""
    runs, data, budget = results["runs"], results["data"], results["budget_minutes"]
    fewest = min(runs["noisy"]["images"], runs["denoiser"]["images"])
    spent = f"In {budget:.3g} minutes" if budget else "In this run"
    sentences = [
        f"{spent} each model of the pair saw {fewest:,} images or more "
        f"({fewest / data['train_images']:.1f} passes over the training set). That is a first "
        "sketch."
    ]
    if data["name"] == "mnist":
        sentences.append(
            "As a guide: with the settings of mnist-quick, 42,000 images for the noisy model and "
            "34,000 for the denoiser (8 minutes on two CPU cores) gave a bound of 1.158 bits/dim, "
            "and about three cells in four read as a digit."
        )
    longer = max(60, round(8 * budget)) if budget else 60
    if data["embedded_subset"]:
        sentences.append(
            f"Quality is a matter of images seen. `dsmooth reproduce --budget {longer} "
            f"--out reproduction-{longer} --data-dir mnist --download` trains for {longer} minutes "
            "on all 60,000 images of MNIST, after fetching them; a long run on the embedded "
            f"{data['train_images']:,} alone would begin to learn them by heart."
        )
    else:
        sentences.append(
            f"Quality is a matter of images seen: `dsmooth reproduce --budget {longer} "
            f"--out reproduction-{longer}`, with the other options unchanged, trains for "
            f"{longer} minutes."
        )
    return sentences


def code_words(text: str) -> str:
    """Escape `text` and turn `backquotes` into <code>."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def introduction(results: Mapping[str, Any]) -> str:
    """What the two models do."""
    settings = results["runs"]["noisy"]["settings"]
    noise = f"{NOISE_NAMES[settings['smoothing']]} noise of scale {settings['scale']:g}"
    return (
        f"<p>Two autoregressive models share the work. The first, p(x̃), was trained on images with "
        f"{escape(noise)} (pixels lie in [−1, 1]); the second, p(x | x̃), takes the noise away. "
        "Sampling is two-step: draw x̃ from the first model, then x from the second.</p>"
    )


# --- pictures --------------------------------------------------------------------------------


def samples_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> str:
    """The paper's Figures 2 to 4: the same x̃ behind each method, and the plain baseline."""
    runs = results["runs"]
    captions = {
        "noisy": (
            "Noisy samples x̃ ~ p(x̃)",
            "What the first model draws. The grain belongs there: it is the noise the model was "
            "trained with. Look for the shapes beneath it.",
        ),
        "two-step": (
            "Two-step samples x ~ p(x | x̃)",
            "The denoiser's draw for the noisy sample in the same place. As it learns, the grain "
            "goes and edges become sharp; where x̃ is no clear shape, neither is x.",
        ),
        "single-step": (
            "Single-step samples E[x | x̃]",
            "The posterior mean x̃ + σ²∇log p(x̃) of the same noisy samples, from the first model "
            "alone. An average over all x that fit: grey and soft, with a rest of grain.",
        ),
        "plain": (
            "Plain PixelCNN++ x ~ p(x)",
            "The baseline without smoothing, pixel by pixel on clean images." + plain_remark(runs),
        ),
    }
    figures = []
    for name, (title, text) in captions.items():
        if name not in pictures:
            continue
        x = pictures[name][:SHOWN]
        bad = results["samples"]["diverged"][name]
        if bad:
            text += f" {bad} of {len(pictures[name])} diverged and are shown in plain grey."
        alt = f"Grid of {len(x)} images. {title}."
        figures.append(figure(grid(x, math.isqrt(len(x) - 1) + 1), alt, title, text))
    return "\n".join(figures)


def plain_remark(runs: Mapping[str, Any]) -> str:
    """How the baseline's training compares with the pair's."""
    if "plain" not in runs:
        return ""
    plain, noisy = runs["plain"]["images"], runs["noisy"]["images"]
    return f" It saw {plain:,} training images, the noisy model {noisy:,}."


def denoising_section(results: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> str:
    """Held-out images, noisy, and denoised: one row each."""
    names = [
        ("held-out", "held-out images x"),
        ("held-out-noisy", "x̃ = x + noise"),
        ("held-out-two-step", "a draw from p(x | x̃)"),
        ("held-out-single-step", "the mean E[x | x̃]"),
    ]
    rows = [(pictures[name], words) for name, words in names if name in pictures]
    words = "; ".join(words for _, words in rows)
    x = torch.cat([row for row, _ in rows])
    return figure(
        grid(x, len(rows[0][0])),
        f"Held-out images, their noisy versions and what denoising makes of them; rows: {words}.",
        "Denoising images the models have not seen",
        f"Rows from top to bottom: {words}. The draw need not be the original: it is one image "
        "that the noisy one could have come from.",
        kind="wide",
    )


def curves_section(
    results: Mapping[str, Any], histories: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """One figure of the loss per model."""
    figures = []
    for role, entries in histories.items():
        run = results["runs"][role]
        png, dark = (curve_png(entries, dark=dark) for dark in (False, True))
        last, loss = f"{run['held_out_bits_per_dim']:.3f}", run["loss"].replace("x~", "x̃")
        figures.append(
            figure(
                png,
                f"Training curve of the {role} run: {loss} against images seen, ending at "
                f"{last} on held-out images.",
                ROLE_TITLES[role],
                f"Loss: {loss}. Line: training, with dropout if any, smoothed; dots: the averaged "
                f"weights on {run['held_out_images']:,} held-out images, {last} at the end.",
                dark,
            )
        )
    return "\n".join(figures)


# --- tables ----------------------------------------------------------------------------------


def bits_section(results: Mapping[str, Any]) -> str:
    """The bound with its terms, the baseline, and what they may be compared with."""
    pair, plain = results["bits_per_dim"]["pair"], results["bits_per_dim"].get("plain")
    discrete = pair["likelihood"] == "discretized"
    kinds = {
        "discretized": "probability of the 256 levels",
        "continuous": "density in units of [−1, 1]",
    }
    total = "Discrete bound" if discrete else "Density bound"
    rows = [
        row("−log₂ p(x̃)", "noisy model, a density", number(pair["noisy"])),
        row("+log₂ q(x̃ | x)", "the smoothing noise, known exactly", number(pair["smoothing"])),
        row("−log₂ p(x | x̃)", f"denoiser, {kinds[pair['likelihood']]}", number(pair["denoiser"])),
        row(total, "sum of the three; −log₂ p(x) is at most this", plus_minus(pair), total=True),
    ]
    if not discrete:
        shifted = dict(pair, value=pair["value"] + LEVEL_BITS)
        rows.append(
            row("Per grey level", f"the same + log₂ 127.5 = {LEVEL_BITS:.3f}", plus_minus(shifted))
        )
    if plain:
        words = f"−log₂ p(x), exact, {kinds[plain['likelihood']]}"
        rows.append(row("Plain PixelCNN++", words, plus_minus(plain), total=True))
    draws = "one draw" if pair["n_noise"] == 1 else f"{pair['n_noise']} draws"
    averages = (
        f"Averages over the first {pair['n_images']:,} held-out images, {draws} of x̃ per image; ± "
        "is the standard error over images."
    )
    return (
        '<div class="scroll"><table><thead><tr><th scope="col">Term</th>'
        f'<th scope="col" class="number">bits/dim</th></tr></thead><tbody>{"".join(rows)}</tbody>'
        f"</table></div><p>{averages} {comparison(discrete)}</p>"
    )


def comparison(discrete: bool) -> str:
    """What the pair's number may be compared with."""
    if not discrete:
        return (
            "This denoiser gives a density, so the number bounds a log-density. It is not "
            "comparable with discrete bits/dim; a discretized denoiser gives those."
        )
    return (
        "The discrete bound may be compared with other discrete bits/dim of the same 8-bit images, "
        "and with the plain model's, which is exact; a uniform guess costs 8. Published numbers "
        "are over full test sets, by models trained on full training sets. Densities, such as "
        "those of a denoiser trained on x\u00a0+\u00a00.01\u00a0n, are not comparable with it."
    )


def row(term: str, words: str, value: str, *, total: bool = False) -> str:
    """One row of the table of bits/dim."""
    kind = ' class="total"' if total else ""
    return (
        f'<tr{kind}><th scope="row">{escape(term)}<br><small>{escape(words)}</small></th>'
        f'<td class="number">{value}</td></tr>'
    )


def number(value: float) -> str:
    """Three decimals, with a true minus sign."""
    return f"{value:.3f}".replace("-", "−")


def settings_table(results: Mapping[str, Any]) -> str:
    """Settings of the runs side by side."""
    runs = results["runs"]
    titles = "".join(f'<th scope="col">{role.capitalize()}</th>' for role in runs)
    lines = [f'<tr><th scope="col">Setting</th>{titles}</tr>']
    for key, words in SETTINGS:
        values = []
        for role, run in runs.items():
            value: Any = run["settings"]
            for part in key.split("."):
                value = value[part]
            absent = role == "plain" and key in ("smoothing", "scale", "clean_noise")
            values.append("–" if absent else setting_words(value))
        cells = "".join(f"<td>{escape(v)}</td>" for v in values)
        lines.append(f'<tr><th scope="row">{escape(words)}</th>{cells}</tr>')
    head, *body = lines
    return (
        f'<div class="scroll"><table class="settings"><thead>{head}</thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def setting_words(value: Any) -> str:
    """A setting's value as a person writes it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(setting_words, value))
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
