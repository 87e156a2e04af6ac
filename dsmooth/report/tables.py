"""Tables of a report: what was measured, beside what was published, and the settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..evaluate.likelihood import EQUATION_4_BITS, LEVEL_BITS

# The numbers of the reproduction paper of Meng et al. (ICLR 2021) for MNIST. Its equation (4) for
# bits/dim lacks an e, which makes its numbers 0.7213 too high, if its code did the same.
PAPER_BITS = 3.23
PAPER_PROBE = 98.5

SUBJECT_TITLES = {
    "noisy": "Noisy model",
    "denoiser": "Denoiser",
    "plain": "Plain baseline",
    "pixels": "Pixels",
    "untrained-noisy": "Untrained noisy model",
    "untrained-denoiser": "Untrained denoiser",
}

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


def bits_section(results: Mapping[str, Any]) -> str:
    """The bound with its terms, the baseline, and what they may be compared with."""
    if "bits_per_dim" not in results:
        return ""
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
    return table(("Term", "bits/dim"), rows) + f"<p>{averages} {comparison(discrete)}</p>"


def comparison(discrete: bool) -> str:
    """The numbers that the pair's may be compared with, as text."""
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


def frechet_section(results: Mapping[str, Any]) -> str:
    """Distances of the samples of each method to real images, and their floor."""
    frechet = results.get("frechet")
    if frechet is None:
        return ""
    if "skipped" in frechet:
        return f"<p>Not measured: {escape(frechet['skipped'])}.</p>"
    titles = {
        "two-step": ("Two-step samples", "draws from p(x | x̃)"),
        "single-step": ("Single-step samples", "means E[x | x̃]"),
        "plain": ("Plain PixelCNN++", "the baseline without smoothing"),
        "real": ("Test images", "the floor: other real images"),
    }
    rows, remarks = [], []
    for name, distance in frechet["distances"].items():
        title, words = titles[name]
        words = f"{words}; {distance['n_images']:,} images"
        rows.append(row(title, words, number(distance["value"]), total=name == "real"))
        remarks += [w for w in distance.get("warnings", ()) if w not in remarks]
        if distance.get("left_out"):
            remarks.append(f"{title}: {distance['left_out']:,} diverged and are left out")
    extractor = frechet["extractor"]
    text = (
        f"{frechet['name']} to the {frechet['reference']['n_images']:,} training images. "
        f"Extractor: {extractor['name']}, SHA-256 {extractor['sha256'][:16]}…, resize: "
        f"{extractor['resize']}. Values become bytes by rounding and clamping."
    )
    text = " ".join([text, *(f"{remark[0].upper()}{remark[1:]}." for remark in remarks)])
    return table(("Images", "distance"), rows) + f"<p>{escape(text)}</p>"


def paper_section(results: Mapping[str, Any]) -> str:
    """The measured numbers beside the reproduction paper's, and whether they compare."""
    rows = [*paper_bits(results), *paper_frechet(results), *paper_probes(results)]
    if not rows or results["data"]["name"] != "mnist":
        return ""
    head = ("Measure", "here", "paper")
    text = (
        "Paper: the reproduction of Meng et al. (ICLR 2021) on MNIST. Its equation (4) writes the "
        "entropy of the noise without its e, which makes bits/dim "
        f"{EQUATION_4_BITS:.4f} too high: its {PAPER_BITS} is "
        f"{PAPER_BITS - EQUATION_4_BITS:.2f} if its code did so too, and {PAPER_BITS} if that is "
        "a misprint. Nobody can tell from outside, so both are given."
    )
    return table(head, rows) + f"<p>{escape(text)}</p>"


def paper_bits(results: Mapping[str, Any]) -> list[str]:
    """Bits/dim in both conventions."""
    if "bits_per_dim" not in results:
        return []
    pair = results["bits_per_dim"]["pair"]
    if pair["likelihood"] == "discretized":
        why = (
            "not comparable: ours counts the probability of bytes, the paper's a density of "
            "x + 0.01 n"
        )
    else:
        why = "the same kind of number, a density, if the paper's is in units of [−1, 1]"
    corrected = f"{PAPER_BITS - EQUATION_4_BITS:.2f} or {PAPER_BITS}"
    rows = [row("Bits/dim, two-step", why, number(pair["value"]), corrected)]
    if results["runs"]["noisy"]["settings"]["smoothing"] == "gaussian":
        value = number(pair["value"] + EQUATION_4_BITS)
        words = "for orientation only: the entropy without its e"
        rows.append(row("The same by equation (4)", words, value, f"{PAPER_BITS}"))
    return rows


def paper_frechet(results: Mapping[str, Any]) -> list[str]:
    """Fréchet distance: no published number is on the same scale."""
    distances = results.get("frechet", {}).get("distances", {})
    if "two-step" not in distances:
        return []
    name = results["frechet"]["name"]
    why = "not comparable with an FID: that means features of the 2015 Inception network"
    if name == "FID":
        why = "comparable only with as many samples and the same real images"
    return [row(f"{name}, two-step", why, number(distances["two-step"]["value"]), "–")]


def paper_probes(results: Mapping[str, Any]) -> list[str]:
    """The best probe of each network."""
    probes = results.get("probes", {})
    rows = []
    for name, blocks in probes.get("accuracy", {}).items():
        if name not in ("noisy", "denoiser"):
            continue
        best = max(blocks, key=lambda block: blocks[block]["accuracy"])
        asked = probes["asked"]
        why = (
            f"after block {best}; trained on {asked['train_images']:,} images, the paper's on its "
            "own, larger network"
        )
        paper = f"{PAPER_PROBE} %" if name == "noisy" else "–"
        value = f"{100 * blocks[best]['accuracy']:.1f} %"
        rows.append(row(f"Best probe, {SUBJECT_TITLES[name].lower()}", why, value, paper))
    return rows


def settings_rows(runs: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(setting, its value in each run); a dash where a model has none, or none is recorded."""
    rows = []
    for key, words in SETTINGS:
        values = []
        for role, run in runs.items():
            value = run["settings"]
            for part in key.split("."):
                value = value.get(part, "–")
                if value == "–":
                    break
            absent = role == "plain" and key in ("smoothing", "scale", "clean_noise")
            values.append("–" if absent else setting_words(value))
        if set(values) != {"–"}:
            rows.append((words, values))
    return rows


def settings_section(results: Mapping[str, Any]) -> str:
    """Settings of the runs side by side."""
    runs = results["runs"]
    titles = "".join(f'<th scope="col">{role.capitalize()}</th>' for role in runs)
    lines = []
    for words, values in settings_rows(runs):
        cells = "".join(f"<td>{escape(v)}</td>" for v in values)
        lines.append(f'<tr><th scope="row">{escape(words)}</th>{cells}</tr>')
    return (
        '<div class="scroll"><table class="settings"><thead><tr><th scope="col">Setting</th>'
        f"{titles}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
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


def table(head: Sequence[str], rows: Sequence[str]) -> str:
    """A table whose columns after the first hold numbers."""
    first, *rest = head
    titles = f'<th scope="col">{escape(first)}</th>'
    titles += "".join(f'<th scope="col" class="number">{escape(title)}</th>' for title in rest)
    return (
        f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody>'
        "</table></div>"
    )


def row(term: str, words: str, *values: str, total: bool = False) -> str:
    """One row of a table: a term with an explanation in small print, and its numbers."""
    kind = ' class="total"' if total else ""
    cells = "".join(f'<td class="number">{value}</td>' for value in values)
    return (
        f'<tr{kind}><th scope="row">{escape(term)}<br><small>{escape(words)}</small></th>'
        f"{cells}</tr>"
    )


def plus_minus(score: Mapping[str, Any]) -> str:
    """A score with its standard error, if there is more than one image."""
    error = score["standard_error"]
    return number(score["value"]) + (f" ± {number(error)}" if error is not None else "")


def number(value: float) -> str:
    """Three decimals, with a true minus sign."""
    return f"{value:.3f}".replace("-", "−")
