"""report.html of a reproduction: one file, pictures inline, no script, no network.

`write_report` turns the numbers of results.json into sentences, tables and figures of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..files import write_atomically
from ..tables import decimals
from .growth import growth_section
from .html import render_page
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
    commands: Sequence[str] = (),
) -> None:
    """Write the report of `results` (the content of results.json) to `path`.

    histories: the log of each role's run. pictures: (N, C, H, W) images by name, as
    `dsmooth.reproduce.stages.Stages.draw` returns them. commands: see `advice`.
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
        "Better samples": advice(results, commands),
        "How this was made": making(results),
        "Settings": [settings_table(results["runs"])],
    }
    page = render_page(
        sections,
        title=f"Distribution smoothing on {data_name(results)}",
        lead=bound_sentence(results),
        introduction=introduction(results),
        version=results["dsmooth"],
    )
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
    data, machine, card = results["data"], results["machine"], results.get("card")
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
        if card is not None:
            passes = run["images"] / card["train_images"]
            trained += f": {passes:.1f} passes over {card['train_images']:,} images"
        if "passes_over_training_set" in run:  # trained here
            rate = run["images"] / max(run["training_seconds"], 0.1)
            trained += (
                f" ({run['passes_over_training_set']:.1f} passes over the training set) in "
                f"{run['training_seconds'] / 60:.1f} minutes, {rate:.0f} images/s"
            )
        notes = "".join(f" {note[0].upper()}{note[1:]}." for note in run.get("notes", ()) if note)
        sentences.append(f"{TITLES[role]}: {run['parameters']:,} parameters, {trained}.{notes}")
    threads = f"{machine['cpu_threads']} CPU thread{'s' * (machine['cpu_threads'] != 1)}"
    if machine["processes"] > 1:
        threads = f"{machine['processes']} processes of {threads}"
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    sentences.append(
        f"Measured on: {machine['processor']}, {threads}{gpu}, "
        f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}, "
        f"dsmooth {results['dsmooth']}."
    )
    return sentences


def advice(results: Mapping[str, Any], commands: Sequence[str] = ()) -> list[str]:
    """Sentences on the training so far and on more of it; commands stand in backquotes.

    commands: those that train such models for longer.
    """
    runs, data, budget = results["runs"], results["data"], results["budget_minutes"]
    if "card" in results:
        return [
            "These models come with dsmooth. The README.md in their folder, pretrained/mnist in "
            "the package's (`dsmooth doctor` names it), is their card, with the numbers of all "
            "test images.",
            *(f"`{command}` trains a pair here." for command in commands),
        ]
    sentences = []
    if budget:
        fewest = min(runs["noisy"]["images"], runs["denoiser"]["images"])
        sentences.append(
            f"In {budget:.3g} minutes of training in all, each model of the pair saw {fewest:,} "
            f"images or more ({fewest / data['train_images']:.1f} passes over the training set)."
        )
    if commands:
        longer = " and ".join(f"`{command}`" for command in commands)
        trains = "trains" if len(commands) == 1 else "train"
        sentences.append(f"Quality is a matter of images seen: {longer} {trains} for longer.")
    if commands and budget and data["embedded_subset"]:
        sentences.append(
            "That fetches the full training set of MNIST: a long run on the embedded "
            f"{data['train_images']:,} images would learn them by heart."
        )
    return sentences


def introduction(results: Mapping[str, Any]) -> str:
    """The task of each of the two models, as a paragraph."""
    settings = results["runs"]["noisy"]["settings"]
    noise = f"{NOISE_NAMES[settings['smoothing']]} noise of scale {settings['scale']:g}"
    return (
        f"Two autoregressive models share the work. The first, p(x̃), was trained on images with "
        f"{noise} (pixels lie in [−1, 1]); the second, p(x | x̃), takes the noise away. "
        "Sampling is two-step: draw x̃ from the first model, then x from the second."
    )
