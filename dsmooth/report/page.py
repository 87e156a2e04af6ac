"""report.html of a reproduction: one file, pictures inline, no script, no network.

`write_report` turns the numbers of results.json into sentences and tables, and puts them into the
page of template.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_atomically
from ..pretrained import TITLE
from .growth import growth_section
from .sections import (
    curves_section,
    denoising_section,
    probes_section,
    receptive_section,
    samples_section,
)
from .tables import (
    SUBJECT_TITLES,
    bits_section,
    frechet_section,
    paper_section,
    plus_minus,
    settings_section,
)
from .template import PAGE

GUIDE = (
    "As a guide: with the settings of mnist-quick, 64,000 images for the noisy model and 53,000 "
    "for the denoiser (8 minutes on two CPU cores) gave a bound of 1.056 bits/dim, and about five "
    "cells in six read as a digit."
)
NOISE_NAMES = {"gaussian": "Gaussian", "laplace": "Laplace", "uniform": "uniform"}


def write_report(
    path: Path,
    results: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Mapping[str, Tensor],
) -> None:
    """Write the report of `results` (the content of results.json) to `path`.

    histories: the log of each role's run. pictures: (N, C, H, W) images by name, as
    `dsmooth.reproduce.stages.draw_all` returns them.
    """
    sections = {
        "Samples": samples_section(results, pictures),
        "Denoising": denoising_section(results, pictures),
        "Bits per dimension": bits_section(results),
        "Fréchet distance": frechet_section(results),
        "Linear probes": probes_section(results),
        "Receptive fields": receptive_section(results),
        "Beside the paper": paper_section(results),
        "Training curves": curves_section(results, histories),
        "What more training buys": growth_section(results, histories),
        "Better samples": paragraphs(advice(results)),
        "How this was made": paragraphs(making(results)),
        "Settings": settings_section(results),
    }
    values = {
        "title": f"Distribution smoothing on {data_name(results)}",
        "lead": escape(bound_sentence(results)),
        "introduction": introduction(results),
        "sections": "\n".join(
            f"<section>\n<h2>{title}</h2>\n{content}\n</section>"
            for title, content in sections.items()
            if content
        ),
        "version": escape(results["dsmooth"]),
    }
    # p(x | x~) must not break at the bar: after one, only a word joiner forbids it.
    page = PAGE.substitute(values).replace(" | ", "\u00a0|\u2060\u00a0")
    write_atomically(path, page.encode())


def data_name(results: Mapping[str, Any]) -> str:
    """The data set's name as people write it."""
    names = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
    name = results["data"]["name"]
    return names.get(name, "CelebA" if name == "celeba" else "your images")


def bound_sentence(results: Mapping[str, Any]) -> str:
    """The pair's score in one sentence."""
    if "bits_per_dim" not in results:
        return "Bits/dim were not measured yet."
    pair = results["bits_per_dim"]["pair"]
    where = f"on {pair['n_images']:,} held-out images (± is the standard error over images)"
    if pair["likelihood"] == "discretized":
        return f"The pair's discrete bound is {plus_minus(pair)} bits/dim {where}."
    return f"The pair's density bound, in [-1, 1] units, is {plus_minus(pair)} bits/dim {where}."


def making(results: Mapping[str, Any]) -> list[str]:
    """Sentences on data, runs and machine of the reproduction."""
    data, machine, runs = results["data"], results["machine"], results["runs"]
    kind = "the subset that comes with dsmooth" if data["embedded_subset"] else "the files given"
    sentences = [
        f"Settings: {results['name']}. "
        f"Data: {data_name(results)}, {kind}: {data['train_images']:,} training and "
        f"{data['test_images']:,} test images of {' x '.join(map(str, data['image_size']))} pixels."
    ]
    for role, run in runs.items():
        trained = "how it was trained is not recorded"
        if "images" in run:
            rate = run["images"] / max(run["training_seconds"], 0.1)
            trained = (
                f"{run['images']:,} images ({run['passes_over_training_set']:.1f} passes over the "
                f"training set) in {run['training_seconds'] / 60:.1f} minutes, {rate:.0f} images/s"
            )
        sentences.append(f"{SUBJECT_TITLES[role]}: {run['parameters']:,} parameters, {trained}.")
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    sentences.append(
        f"Machine: {machine['processor']}, {machine['cpu_threads']} CPU threads{gpu}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"dsmooth {results['dsmooth']}."
    )
    return sentences


def advice(results: Mapping[str, Any]) -> list[str]:
    """Sentences on the training so far and on more of it; commands stand in backquotes."""
    runs, data, budget = results["runs"], results["data"], results["budget_minutes"]
    if results["name"] == TITLE:
        return [
            "These models come with dsmooth. `dsmooth/pretrained/mnist/README.md` is their card, "
            "with the numbers of all 10,000 test images.",
            f"`dsmooth reproduce --from-scratch --out from-scratch` trains a pair here. {GUIDE}",
        ]
    sentences = []
    if budget:
        fewest = min(runs["noisy"]["images"], runs["denoiser"]["images"])
        sentences.append(
            f"In {budget:.3g} minutes each model of the pair saw {fewest:,} images or more "
            f"({fewest / data['train_images']:.1f} passes over the training set). That is a first "
            "sketch."
        )
    if data["name"] == "mnist":
        sentences.append(GUIDE)
    longer = max(60, round(8 * budget)) if budget else 60
    command = f"`dsmooth reproduce --budget {longer} --out reproduction-{longer}"
    if data["embedded_subset"]:
        sentences.append(
            f"Quality is a matter of images seen. {command} --data-dir mnist --download` trains "
            f"for {longer} minutes on all 60,000 images of MNIST, after fetching them; a long run "
            f"on the embedded {data['train_images']:,} alone would begin to learn them by heart."
        )
    else:
        sentences.append(
            f"Quality is a matter of images seen: {command}`, with the other options unchanged, "
            f"trains for {longer} minutes."
        )
    return sentences


def code_words(text: str) -> str:
    """Escape `text` and turn `backquotes` into <code>."""
    parts = escape(text).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))


def paragraphs(sentences: Sequence[str]) -> str:
    """Each as a paragraph, with `backquotes` as code."""
    return "\n".join(f"<p>{code_words(sentence)}</p>" for sentence in sentences)


def introduction(results: Mapping[str, Any]) -> str:
    """The task of each of the two models, as a paragraph."""
    settings = results["runs"]["noisy"]["settings"]
    noise = f"{NOISE_NAMES[settings['smoothing']]} noise of scale {settings['scale']:g}"
    return (
        f"<p>Two autoregressive models share the work. The first, p(x̃), was trained on images with "
        f"{escape(noise)} (pixels lie in [−1, 1]); the second, p(x | x̃), takes the noise away. "
        "Sampling is two-step: draw x̃ from the first model, then x from the second.</p>"
    )
