"""report.html of a reproduction: one file, pictures inline, no script, no network.

`write_report` turns the numbers of results.json into sentences and tables, and puts them into the
page of html.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_atomically
from ..pretrained import TITLE
from ..tables import decimals
from .growth import growth_section
from .html import PAGE, paragraph
from .sections import (
    TITLES,
    bits_section,
    curves_section,
    denoising_section,
    frechet_section,
    paper_section,
    probes_section,
    receptive_section,
    samples_section,
    settings_table,
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
    `dsmooth.reproduce.stages.Stages.draw` returns them.
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
        "Better samples": "\n".join(map(paragraph, advice(results))),
        "How this was made": "\n".join(map(paragraph, making(results))),
        "Settings": settings_table(results["runs"]).html("settings"),
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
    number = decimals(pair["value"], 3, pair["standard_error"])
    if pair["likelihood"] == "discretized":
        return f"The pair's discrete bound is {number} bits/dim {where}."
    return f"The pair's density bound, in [-1, 1] units, is {number} bits/dim {where}."


def making(results: Mapping[str, Any]) -> list[str]:
    """Sentences on data, runs and machine of the reproduction."""
    data, machine = results["data"], results["machine"]
    kind = "the subset that comes with dsmooth" if data["embedded_subset"] else "the files given"
    sentences = [
        f"Settings: {results['name']}. "
        f"Data: {data_name(results)}, {kind}: {data['train_images']:,} training and "
        f"{data['test_images']:,} test images of {' x '.join(map(str, data['image_size']))} pixels."
    ]
    for role, run in results["runs"].items():
        trained = "how it was trained is not recorded"
        if "images" in run:
            trained = f"trained on {run['images']:,} images, repeats counted"
        if "passes_over_training_set" in run:  # trained here
            rate = run["images"] / max(run["training_seconds"], 0.1)
            trained += (
                f" ({run['passes_over_training_set']:.1f} passes over the training set) in "
                f"{run['training_seconds'] / 60:.1f} minutes, {rate:.0f} images/s"
            )
        sentences.append(f"{TITLES[role]}: {run['parameters']:,} parameters, {trained}.")
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
            "with the numbers of all test images.",
            "`dsmooth reproduce --from-scratch --out from-scratch` trains a pair here.",
        ]
    sentences = []
    if budget:
        fewest = min(runs["noisy"]["images"], runs["denoiser"]["images"])
        sentences.append(
            f"In {budget:.3g} minutes each model of the pair saw {fewest:,} images or more "
            f"({fewest / data['train_images']:.1f} passes over the training set)."
        )
    longer = max(60, round(8 * budget)) if budget else 60
    command = f"`dsmooth reproduce --budget {longer} --out reproduction-{longer}"
    if data["embedded_subset"]:
        sentences.append(
            f"Quality is a matter of images seen. {command} --data-dir mnist --download` trains "
            f"for {longer} minutes on the full training set of MNIST, after fetching it; a long "
            f"run on the embedded {data['train_images']:,} images would learn them by heart."
        )
    else:
        sentences.append(
            f"Quality is a matter of images seen: {command}`, with the other options unchanged, "
            f"trains for {longer} minutes."
        )
    return sentences


def introduction(results: Mapping[str, Any]) -> str:
    """The task of each of the two models, as a paragraph."""
    settings = results["runs"]["noisy"]["settings"]
    noise = f"{NOISE_NAMES[settings['smoothing']]} noise of scale {settings['scale']:g}"
    return (
        f"<p>Two autoregressive models share the work. The first, p(x̃), was trained on images with "
        f"{escape(noise)} (pixels lie in [−1, 1]); the second, p(x | x̃), takes the noise away. "
        "Sampling is two-step: draw x̃ from the first model, then x from the second.</p>"
    )
