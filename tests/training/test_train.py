"""Training: a run is a function of its settings and first weights, whatever interrupts it."""

from __future__ import annotations

import itertools
import math
import signal
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

import dsmooth
from dsmooth.config import Classes, ModelConfig, TrainConfig, settled
from dsmooth.data import load_dataset
from dsmooth.files import read_tensors
from dsmooth.philox import Stream, image_words
from dsmooth.presets import preset
from dsmooth.pretrained.log import End, HeldOut, Start, Step
from dsmooth.pretrained.runs import RunFolder
from dsmooth.training import Evaluation, loop, tensorboard, train
from dsmooth.training.evaluation import EVALUATION_REPEAT, evaluate
from dsmooth.training.log import run_header
from dsmooth.training.plan import initial_network
from dsmooth.training.step import TrainState, make_inputs, scheduled
from tests.helpers.command_runs import run as call
from tests.helpers.data_makers import random_bytes, random_dataset, refuses, write_images
from tests.helpers.tiny_runs import ROLES, assert_same_end, tiny, train_until

pytestmark = pytest.mark.usefixtures("small_runs")


@pytest.mark.quick
@pytest.mark.parametrize(("role", "optimizer"), [("noisy", "adam"), ("denoiser", "muon")])
def test_resumed_run_is_the_uninterrupted_run(tmp_path, role, optimizer) -> None:
    """And its folder has everything."""
    n_classes = 10 if role == "denoiser" else 0
    config = tiny(role, accumulate=2, n_classes=n_classes, optimizer=optimizer)
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    result = train(config, whole.path)
    assert (result.images_seen, result.interrupted) == (40, None)
    classes = Classes(tuple("0123456789"), (0.1,) * 10) if n_classes else None  # of the data
    named = replace(config, model=replace(config.model, classes=classes))
    assert whole.read_config() == (settled(named), (8, 8))
    weights, checkpoint = load_file(whole.weights), load_file(whole.checkpoint)
    assert weights.keys() == dsmooth.PixelCNNpp(config.model).state_dict().keys()
    assert all(torch.equal(value, checkpoint[f"ema.{key}"]) for key, value in weights.items())
    log = whole.read_log()
    assert [*map(type, log[:2]), *map(type, log[-2:])] == [Start, Step, HeldOut, End]
    assert log[-2].bits_per_dim == pytest.approx(result.bits_per_dim, abs=1e-5)
    assert 1 <= log[-2].components <= config.model.n_mix
    assert (whole.path / "samples-000000040.png").is_file()

    train_until(24, config, parts.path)
    torch.manual_seed(99)  # the state of torch's generator must not matter
    train(config, parts.path, resume=True)
    assert_same_end(whole.path, parts.path)


def made(role: str = "plain", **settings: object) -> TrainState:
    data = random_dataset(40, labels=torch.arange(40) % 10)
    return TrainState(tiny(role, **settings), data, torch.device("cpu"))


@pytest.mark.parametrize("role", ROLES)
def test_a_step_is_a_function_of_images_seen(role: str) -> None:
    """Noise, order and targets follow from (seed, images seen), for any batch size."""
    settings = {"clean_noise": 0.01 * (role == "denoiser"), "flip": True, "n_classes": 10}
    state, other = made(role, **settings), made(role, seed=1, **settings)
    small, whole = made(role, batch_size=4, **settings), state.inputs(16)
    assert not torch.equal(other.inputs(16).target, whole.target)
    assert not torch.equal(other.model.head.weight_v, state.model.head.weight_v)
    for both, *halves in zip(whole, small.inputs(16), small.inputs(20), strict=True):
        assert both is None or torch.equal(both, torch.cat(halves))


@pytest.mark.quick
def test_half_of_the_images_are_mirrored() -> None:
    plain, mirrored = (made(batch_size=100, flip=flip).inputs(0).target for flip in (False, True))
    same = (mirrored == plain).flatten(1).all(dim=1)
    assert torch.equal(mirrored[~same], plain[~same].flip(3))
    assert 30 < same.sum() < 70


def test_images_have_their_labels_but_for_a_fraction_of_them() -> None:
    state, hidden = (made(batch_size=400, n_classes=10, label_dropout=part) for part in (0.0, 0.25))
    (x, _, label), seen = state.inputs(400), hidden.inputs(400).label
    own = (x[:, None] == state.train_set.batch(torch.arange(40))).flatten(2).all(2)
    assert torch.equal(own.int().argmax(1) % 10, label)
    line = f"10 classes: {', '.join('0123456789')}"
    assert line in run_header(state, state.train_set)
    kept = seen >= 0
    assert torch.equal(seen[kept], label[kept])
    words = image_words(400, 1, seed=0, first_index=400, stream=Stream.LABEL)[:, 0, 0]
    assert torch.equal(kept, words >= 1 << 30)
    assert not torch.equal(kept, hidden.inputs(800).label >= 0)


def test_what_each_role_is_trained_on() -> None:
    """Held-out images have other noise."""
    x = torch.zeros(2, 1, 8, 8)
    assert make_inputs(x, tiny("plain"), first_index=0) == (x, None, None)
    noisy, *rest = make_inputs(x, tiny("noisy"), first_index=0)
    assert rest == [None, None]
    assert noisy.std() == pytest.approx(0.5, rel=0.2)
    target, context, *_ = make_inputs(x, tiny("denoiser"), first_index=0)
    assert torch.equal(target, x)
    assert torch.equal(context, noisy)
    held_out = make_inputs(x, tiny("noisy"), first_index=0, repeat=EVALUATION_REPEAT)
    assert not torch.equal(held_out.target, noisy)
    target, context, *_ = make_inputs(x, tiny("denoiser", clean_noise=0.01), first_index=0)
    assert target.std() == pytest.approx(0.01, rel=0.2)
    assert torch.corrcoef(torch.stack([target.flatten(), context.flatten()]))[0, 1].abs() < 0.4


def test_training_leaves_the_callers_generators_and_needs_no_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", None)
    with torch.inference_mode():
        train(tiny(), tmp_path / "within")
    assert torch.equal(torch.get_rng_state(), before)
    train(tiny(), tmp_path / "outside", device=torch.device("cpu"))
    assert_same_end(tmp_path / "within", tmp_path / "outside")


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_ends_a_run(first: signal.Signals) -> None:
    before = signal.getsignal(first)
    with loop.catch_signals() as received:
        assert received() is None
        for number in (first, signal.SIGTERM):
            signal.raise_signal(number)
        assert received() == first
    assert signal.getsignal(first) is before


def test_schedules() -> None:
    config = tiny(images=80, warmup_images=16)

    def rates_at(images_seen: Iterable[int]) -> list[float]:
        return [scheduled(1.0, config, n, steps=4) for n in images_seen]

    rates = rates_at(range(0, 81, 8))
    assert rates[0] == pytest.approx(0.5)
    assert max(rates[1:]) == rates[1] <= 1
    assert all(a > b for a, b in itertools.pairwise(rates[1:]))
    assert rates[-1] == pytest.approx(0)
    config = replace(config, schedule="cooldown")
    assert rates_at((16, 64, 68, 72, 76, 80)) == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])
    config = replace(config, schedule="exponential", learning_rate_decay=0.5)
    assert rates_at([32]) == pytest.approx([0.5**4])


def test_the_average_counts_updates() -> None:
    """Not images: the model has the weights 9/10, 9/11, .. in it, and at least 1 - ema."""
    config = tiny(learning_rate=0.1, ema=0.25)
    state = TrainState(config, random_dataset(20), torch.device("cpu"))
    average = state.average.values.clone()
    for n in range(4):
        state.step()
        average.lerp_(state.optimizer.flat.values, max(9 / (10 + n), 0.75))
        torch.testing.assert_close(state.average.values, average)
    assert not any(weight.requires_grad for weight in state.averaged.parameters())


@pytest.mark.parametrize("role", ROLES)
def test_held_out_images_have_the_noise_of_their_index_and_their_label(role: str) -> None:
    """As one by one, past the first 100, which are computed together, too."""
    config = tiny(role, evaluation_images=103, n_classes=3)
    data = random_dataset(103, labels=torch.arange(103) % 3)
    state = TrainState(config, data, torch.device("cpu"))
    for name, weight in state.averaged.named_parameters():
        if name.endswith("condition_weight"):
            weight.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    nats = 0.0
    for i in range(103):
        x, label = data.batch(torch.tensor([i])), data.labels[i : i + 1]
        given = make_inputs(x, config, label, first_index=i, repeat=EVALUATION_REPEAT)
        nats -= float(state.averaged.log_prob(*given))
    assert evaluate(state, data)[0] == pytest.approx(nats / (math.log(2) * 103 * 64), rel=1e-6)


def test_images_given_in_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`dsmooth.train` is public; one in ten images is held out."""
    pixels = torch.from_numpy(random_bytes((20, 3, 8, 12)))
    dataset = torch.utils.data.TensorDataset(pixels, torch.arange(20) % 2)
    assert "train" in dir(dsmooth)
    config = tiny(images=16)
    seen: list[Evaluation] = []
    options = {"dataset": dataset, "on_evaluation": seen.append}
    threads = torch.get_num_threads()
    result = dsmooth.train(config, tmp_path / "a", **options, progress=True, threads=threads + 1)
    assert torch.get_num_threads() == threads
    assert [evaluation[:2] for evaluation in seen] == [(16, result.bits_per_dim)]
    assert (len(seen[0].samples), seen[0].model.config.image_channels) == (2, 3)
    stored, size = RunFolder(tmp_path / "a").read_config()
    assert (stored.data, stored.model.image_channels, size) == ("own", 3, (8, 12))
    opening = "noisy: own: 18 images to train on and 2 held out, RGB, 8 x 12; from "
    assert capsys.readouterr().out.startswith(opening)
    words = r"`data` must .* \(dsmooth\.evaluate\), or write the images .* set `data=folder`$"
    refuses(words, load_dataset, "own", "test")


def test_tensorboard_gets_numbers_and_pictures(tmp_path, monkeypatch) -> None:
    module = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    evaluation = Evaluation(16, 2.5, torch.zeros(1, 1, 8, 8), dsmooth.PixelCNNpp(tiny().model))
    tensorboard(tmp_path / "events")(evaluation)
    module.SummaryWriter.assert_called_with(str(tmp_path / "events"))
    writer = module.SummaryWriter().__enter__()
    assert writer.add_scalar.call_args.args == ("bits_per_dim", 2.5, 16)
    name, picture, images_seen = writer.add_images.call_args.args
    assert (name, picture.shape, images_seen) == ("samples", (1, 1, 8, 8), 16)
    assert (picture == 0.5).all()


def test_paper_presets_are_the_papers() -> None:
    noisy, denoiser = preset("mnist-paper", "noisy"), preset("mnist-paper", "denoiser")
    assert (noisy.batch_size, denoiser.batch_size) == (80, 50)
    assert (noisy.learning_rate, noisy.learning_rate_decay) == (2e-4, 0.999995)
    assert (denoiser.model.conditioning, denoiser.clean_noise) == ("stack", 0.01)
    refuses("steps", preset, "mnist", "noisy", error=TypeError, steps=64)
    refuses("smoothing_scale", preset, "mnist", "noisy", error=TypeError, smoothing_scale=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "`seed` must be a whole number >= 0 and <= 18446744073709551615, got -1"),
        ({"ema": 1.0}, "`ema` must be a number >= 0 and < 1, got 1.0"),
        ({"scale": 1e400}, "`scale` must be finite, got inf"),
        ({"learning_rate": "1e-3"}, "`learning_rate` must be a number > 0, got"),  # as YAML has it
        ({"model": {"n_filters": 4}}, "`model` must be a ModelConfig, got {'n_filters': 4}"),
        ({"role": "denoiser"}, "does not go with conditioning"),
        ({"model": ModelConfig(likelihood="discretized")}, "one of continuous, gaussian, got"),
        ({"images": 0}, "`images` must be a whole number >= 1 or None, got 0"),
        ({"optimizer": "sgd"}, "`optimizer` must be one of adam, muon, got 'sgd'"),
        ({"optimizer": "adam", "kernel_rate": 0.02}, '`kernel_rate` needs optimizer "muon", got'),
    ],
)
def test_bad_settings_are_named(settings: dict[str, object], message: str) -> None:
    refuses(message, TrainConfig, **settings)


def test_a_run_begins_with_weights(tmp_path: Path) -> None:
    """The averaged ones of a run or a pair, a new optimiser, image 0."""
    for role in ("noisy", "denoiser"):
        train(tiny(role, images=16), tmp_path / role)
    pair = dsmooth.load(tmp_path / "noisy", tmp_path / "denoiser").pair
    pair.save_pretrained(tmp_path / "pair")
    for role, place in itertools.product(("noisy", "denoiser"), ("run", "pair", "runs")):
        source = {"run": tmp_path / role, "pair": tmp_path / "pair", "runs": tmp_path}[place]
        config = replace(tiny(role, seed=9), init=str(source))
        initial = initial_network(config)
        state = TrainState(config, load_dataset("mnist", "train"), torch.device("cpu"), initial)
        expected, _ = read_tensors(RunFolder(tmp_path / role).weights)
        for network in (state.model, state.averaged):
            state_dict = network.state_dict()
            assert all(torch.equal(state_dict[key], value) for key, value in expected.items())
        assert state.images_seen == 0
        assert not any(moment.any() for moment in state.optimizer.tensors().values())


def test_a_run_from_weights_resumes_without_them(tmp_path) -> None:
    train(tiny(images=16), tmp_path / "first")
    config = replace(tiny(images=24), init=str(tmp_path / "first"))
    train(config, tmp_path / "whole")
    train(replace(config, rate_factor=1e-9), tmp_path / "still")
    first, still = (load_file(RunFolder(tmp_path / name).weights) for name in ("first", "still"))
    torch.testing.assert_close(still, first)
    train_until(16, config, tmp_path / "parts")
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    train(config, tmp_path / "parts", resume=True)
    assert_same_end(tmp_path / "whole", tmp_path / "parts")


def test_the_command_takes_network_and_smoothing_of_the_weights(tmp_path, capsys) -> None:
    """Weights with classes begin a run without any."""
    config, labels = tiny(images=16, scale=0.3), torch.arange(8) % 2
    data = replace(random_dataset(8, labels=labels), class_names=("a", "b"))
    first, second = tmp_path / "first", tmp_path / "second"
    train(replace(config, classes=True, label_dropout=0.25), first, dataset=(data, data))
    options = "--images 16 --batch-size 8 --set evaluations=1 --set evaluation_images=4"
    begin = ["train", "noisy", "--init", str(first)]
    assert call(*begin, "--out", str(second), *options.split()) == 0
    stored, _ = RunFolder(second).read_config()
    assert (stored.model, stored.scale, stored.init) == (config.model, 0.3, str(first))
    assert call(*begin, "--out", str(tmp_path / "x"), "--n-filters", "6", "--images", "16") == 1
    assert "has n_filters 4, not 6: set --n-filters 4" in capsys.readouterr().err


def test_the_same_command_resumes_a_run_with_classes(tmp_path: Path) -> None:
    """And --config begins a run with other classes, or with none."""
    pixels = random_bytes((20, 8, 8))
    for folder, names in (("images", "ab"), ("others", "cd")):
        pictures = {f"{names[i % 2]}/{i}.png": x for i, x in enumerate(pixels)}
        write_images(tmp_path / folder, pictures)
    run, again, without = (str(tmp_path / name) for name in ("run", "again", "without"))
    words = "--n-filters 4 --set n_mix=2 --batch-size 8 --set evaluations=1 --images 16"
    same = ["train", "plain", str(tmp_path / "images"), "--classes", "--out", run, *words.split()]
    assert call(*same) == call(*same, "--resume") == 0
    assert RunFolder(run).read_config()[0].model.classes.names == ("a", "b")
    config = ["train", "plain", str(tmp_path / "others"), "--config", f"{run}/config.json"]
    assert call(*config, "--out", again) == 0
    assert RunFolder(again).read_config()[0].model.classes.names == ("c", "d")
    assert call(*config, "--out", without, "--set", "classes=false") == 0
    assert RunFolder(without).read_config()[0].model.classes is None


@pytest.mark.quick
def test_settings_that_the_network_does_not_use_fit_whatever_they_are(tmp_path: Path) -> None:
    for role in ("noisy", "denoiser"):
        config = tiny(role)
        other = replace(config, model=replace(config.model, context_layers=9, dropout=0.7))
        folder = tmp_path / role
        RunFolder(folder).write_model(dsmooth.PixelCNNpp(other.model), other, (8, 8))
        begun = replace(config, init=str(folder))
        if role == "noisy":
            assert initial_network(begun) is not None
        else:
            refuses("has context_layers 9, not 1: set `context_layers=9`", initial_network, begun)


@pytest.mark.parametrize(("share", "number"), [(0.5, 2.0), (1 - 1e-9, 1.0)])
def test_components_that_share_a_pixel_are_counted(share: float, number: float) -> None:
    config = replace(tiny(), model=replace(tiny().model, n_mix=2))
    data = random_dataset(20)
    state = TrainState(config, data, torch.device("cpu"))
    with torch.no_grad():
        state.averaged.head.weight_g.zero_()
        state.averaged.head.bias[:2] = torch.tensor([share, 1 - share], dtype=torch.float64).log()
    assert evaluate(state, data)[1] == pytest.approx(number, abs=1e-5)
