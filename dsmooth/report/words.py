"""Words that the report, the command and the cards share, as functions of results."""

from __future__ import annotations

from collections.abc import Mapping

from ..evaluate.probe import PIXELS, best_probe
from ..fields import Setting
from ..results import Bits, BlockScores, Difference
from ..tables import Table
from ..text import decimals, percent, sentence
from .contents import ModelSummary, Report

TITLES = {
    "noisy": "Noisy model",
    "denoiser": "Denoiser",
    "plain": "Plain baseline",
    "two-step": "Two-step samples",
    "single-step": "Single-step samples",
    "guided": "Guided samples",
    "test images": "Test images",
    "real": "Held-out training images",
}
# Accuracy of the reproduction paper's linear probes.
PAPER_PROBE = "98.5 %"
SINGLE_STEP = (
    "Single-step samples are averages of images, so fewer of their pixels are exactly black. The "
    "distance does not notice that."
)
# Settings of a run by their dotted names.
SETTINGS = {
    "model.n_filters": "filters F",
    "model.n_resnet": "gated resnets per block R",
    "model.n_mix": "mixture components K",
    "model.dropout": "dropout",
    "model.conditioning": "conditioning",
    "model.likelihood": "likelihood",
    "smoothing": "smoothing noise",
    "scale": "its scale σ",
    "clean_noise": "noise on the target",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "kernel_rate": "Muon's peak angle",
    "learning_rate": "Adam's peak learning rate",
    "schedule": "learning-rate schedule",
    "warmup_images": "warm-up, images",
    "betas": "Adam's β",
    "clip_norm": "gradient clipped at",
    "ema": "largest EMA decay",
    "data_init": "data-dependent init",
    "precision": "precision",
    "seed": "seed",
}
# Those that a plain model does not have.
OF_PAIRS = ("smoothing", "scale", "clean_noise")


def settings_table(models: Mapping[str, ModelSummary]) -> Table:
    """Settings of the models; a dash where one is not recorded, or a plain model has none."""
    rows = []
    for name, title in SETTINGS.items():
        words = [
            setting_words(model.settings[name])
            if name in model.settings and (role != "plain" or name not in OF_PAIRS)
            else "–"
            for role, model in models.items()
        ]
        if {*words} != {"–"}:
            rows.append([title, *words])
    return Table(["Setting", *models], rows)


def setting_words(value: Setting) -> str:
    """A setting's value as a person writes it."""
    if isinstance(value, list):
        return ", ".join(map(setting_words, value))
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else value


def difference_sentence(difference: Difference) -> str:
    """The pair's bound against the plain model, paired over images."""
    value = decimals(difference.value, error=difference.error)
    return (
        f"The pair's bound minus the plain model's bits/dim is {value}, paired over the same "
        f"{difference.n_images:,} images."
    )


def terms_sentence(pair: Bits) -> str:
    """The terms of the pair's bound."""
    terms = pair.terms
    return (
        f"The bound is the sum of {decimals(terms.noisy)} (noisy model), "
        f"{decimals(terms.smoothing)} (the noise, over the same draws) and "
        f"{decimals(pair.image_term)} (denoiser)."
    )


def below_controls(accuracy: Mapping[str, BlockScores], name: str) -> str:
    """A sentence if a control of network `name` has a better probe than the network itself."""
    best = {name: scores[best_probe(scores)].accuracy for name, scores in accuracy.items()}
    controls = {
        f"untrained-{name}": "the same network untrained",
        PIXELS: "the pixels that it sees",
    }
    better = [
        f"{words} ({percent(best[control])})"
        for control, words in controls.items()
        if best.get(control, 0.0) > best[name]
    ]
    if not better:
        return ""
    return (
        f"{TITLES[name]}: its best probe ({percent(best[name])}) is below that of "
        f"{' and '.join(better)}."
    )


def bound_sentence(report: Report) -> str:
    """The pair's bits/dim."""
    pair = report.bits.pair if report.bits else None
    if pair is None:
        return "Bits/dim were not measured yet."
    density = "density bound, in [-1, 1] units,"
    bound = "discrete bound" if pair.likelihood == "discretized" else density
    return (
        f"The pair's {bound} is {decimals(pair.value, 3, pair.error)} bits/dim on "
        f"{pair.n_images:,} held-out images (± is the standard error over images)."
    )


def advice(report: Report, command: str) -> list[str]:
    """Sentences on the training so far and on the command that trains for longer."""
    if report.origin == "packaged":
        card = (
            "These models come with dsmooth. The README.md in their folder, pretrained/mnist in "
            "the package's (`dsmooth doctor` prints it), is their card, with the numbers of all "
            "test images."
        )
        return [card, f"`{command}` trains a pair here."]
    budget, data = report.budget_minutes, report.data
    if budget is None:
        return []
    training = [report.models[role].training for role in ("noisy", "denoiser")]
    fewest = min(summary.images for summary in training if summary is not None)
    sentences = [
        f"In {budget:.3g} minutes of training in all, each model of the pair saw {fewest:,} "
        f"images or more ({fewest / data.train_images:.1f} passes over the training set).",
        f"Quality depends on images seen: `{command}` trains for longer.",
    ]
    if data.embedded:
        sentences.append(
            "That fetches the full training set of MNIST: a long run on the embedded "
            f"{data.train_images:,} images would memorize them."
        )
    return sentences


def how_it_was_made(report: Report, name: str) -> list[str]:
    """Data, whose name is given, models and machine."""
    data, machine = report.data, report.machine
    source = "the subset that comes with dsmooth" if data.embedded else "the files given"
    size = " x ".join(map(str, data.image_size))
    processes = f"{machine.processes} processes of " if machine.processes > 1 else ""
    gpu = f", {machine.gpu}" if machine.gpu else ""
    return [
        f"Settings: {report.name}. Data: {name}, {source}: {data.train_images:,} training and "
        f"{data.test_images:,} test images of {size} pixels.",
        *(model_sentence(report, role, model) for role, model in report.models.items()),
        f"Measured on: {machine.processor}, {processes}{machine.cpu_threads} CPU "
        f"thread{'s' * (machine.cpu_threads != 1)}{gpu}, {machine.system}, Python "
        f"{machine.python}, torch {machine.torch}, dsmooth {machine.dsmooth}.",
    ]


def model_sentence(report: Report, role: str, model: ModelSummary) -> str:
    """A model's size and training."""
    training, text, notes = model.training, "how it was trained is not recorded", ""
    if training is not None:
        text = f"trained on {training.images:,} images, repeats counted"
        notes = "".join(f" {sentence(note)}" for note in training.notes if note)
        if training.passes is not None:
            text += f": {training.passes:.1f} passes over {training.training_images:,} images"
        if report.origin == "trained":
            rate = training.images / max(training.seconds, 0.1)
            text += f" in {training.seconds / 60:.1f} minutes, {rate:.0f} images/s"
    return f"{TITLES[role]}: {model.parameters:,} parameters, {text}.{notes}"
