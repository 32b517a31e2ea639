"""A translator learns; a continued training gives the same bits; what cannot be continued says so."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kt_ray.config import MemberCounts, TrialConfig, validate
from kt_ray.data import Dataset
from kt_ray.errors import CheckpointError, ConfigError, ZooError
from kt_ray.networks.state_file import read_written, write_state
from kt_ray.search.space import apply
from kt_ray.translation.optimizer import learning_rate
from kt_ray.translation.prepared import Prepared
from kt_ray.translation.training import TranslatorTraining
from kt_ray.translation.transplants import Transplants
from kt_ray.zoo.members import Zoo
from kt_ray.zoo.untrained import untrained_zoo
from tests.translation.everything import ALL_AUGMENTATIONS, ALL_LOSSES


def config(**fields: object) -> TrialConfig:
    content: dict[str, object] = {
        "translator": {"family": "mixer", "mixer": {"size": "tiny"}},
        "augmentation": {
            "channel_permutation": True,
            "hidden_permutation": True,
            "mask": {"probability": 0.1},
            "noise": {"std": 0.01, "sides": "both"},
        },
        "loss": {"weight_mse": 1, "block_output": 1, "images": 4},
        "training": {"epochs": 4, "batch_size": 4, "steps_per_epoch": 2, "ema": 0.9},
    }
    return validate(TrialConfig, content | fields)


def test_loss_falls(random_zoo: Zoo, dataset: Dataset) -> None:
    plain = config(
        augmentation={}, loss={}, training={"epochs": 3, "batch_size": 8, "steps_per_epoch": 40, "learning_rate": 3e-3}
    )
    training = TranslatorTraining(plain, random_zoo, dataset)
    losses = []
    while not training.finished:
        metrics = training.run_epoch()
        losses.append(metrics["loss"])
    assert losses[2] < 0.5 * losses[0]
    times = {"seconds", "translation_cost"}
    assert set(metrics) == {"loss", "accuracy_mean", "accuracy_min", "accuracy_max", "parameters"} | times
    assert 0 <= metrics["accuracy_min"] <= metrics["accuracy_mean"] <= metrics["accuracy_max"] <= 1


def test_continues_to_the_same_bits(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    """A checkpoint after two epochs and two more give the file that four at once give, whatever ran between."""
    whole = TranslatorTraining(config(), random_zoo, dataset)
    metrics = [whole.run_epoch() for _ in range(4)]
    whole.save(tmp_path / "whole")

    first = TranslatorTraining(config(), random_zoo, dataset)
    first.run_epoch()
    first.run_epoch()
    first.save(tmp_path / "half")
    torch.rand(7)
    second = TranslatorTraining(config(), random_zoo, dataset)
    second.load(tmp_path / "half")
    assert second.epoch == 2
    resumed = [second.run_epoch() for _ in range(2)]
    second.save(tmp_path / "resumed")
    for name in ("loss", "accuracy_mean"):
        assert [row[name] for row in resumed] == [row[name] for row in metrics[2:]]
    expected, actual = load_file(tmp_path / "whole"), load_file(tmp_path / "resumed")
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_leaves_the_global_generator_alone(random_zoo: Zoo, dataset: Dataset) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    TranslatorTraining(config(), random_zoo, dataset).run_epoch()
    assert torch.equal(torch.rand(3), expected)


def test_refuses_the_checkpoint_of_another_trial(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    TranslatorTraining(config(), random_zoo, dataset).save(tmp_path / "one")
    with pytest.raises(CheckpointError, match="belongs to another trial"):
        TranslatorTraining(config(seed=1), random_zoo, dataset).load(tmp_path / "one")


def test_refuses_a_torn_checkpoint(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "torn").write_bytes(b"\x00" * 20)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        TranslatorTraining(config(), random_zoo, dataset).load(tmp_path / "torn")


def test_needs_members(random_zoo: Zoo, dataset: Dataset) -> None:
    with pytest.raises(ZooError, match="no training member"):
        TranslatorTraining(config(), random_zoo.where("test"), dataset)


def test_learning_rate() -> None:
    settings = validate(TrialConfig, {"training": {"learning_rate": 1.0, "warmup": 0.1}}).training
    rates = [learning_rate(settings, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 0.001
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_everything_at_once(random_zoo: Zoo, dataset: Dataset) -> None:
    """All augmentations that leave some targets, all terms, refinement and EMA in one step leave finite numbers."""
    everything = config(
        translator={
            "family": "axial_transformer",
            "axial_transformer": {"width": 8, "depth": 1, "heads": 2},
            "context": "network",
            "refinement": {"steps": 2, "probes": 2, "width": 8},
        },
        loss=ALL_LOSSES | {"images": 4, "structure_until": 0.5, "outputs_from": 0.1, "logits_from": 0.2},
        augmentation=ALL_AUGMENTATIONS | {"flips": False, "transposes": False},  # networks that run are not flipped
    )
    training = TranslatorTraining(everything, random_zoo, dataset)
    while not training.finished:
        assert math.isfinite(training.run_epoch()["loss"])


def test_probes_are_drawn_like_training_images_by_the_trials_seed(random_zoo: Zoo, dataset: Dataset) -> None:
    def probes(seed: int, images: str) -> Tensor:
        refinement = {"steps": 1, "probes": 4, "probe_sets": 1, "width": 8, "images": images}
        training = TranslatorTraining(config(translator={"refinement": refinement}, seed=seed), random_zoo, dataset)
        return training.translator.refiner.probes

    drawn = probes(0, "mixture")
    assert torch.equal(drawn, probes(0, "mixture"))
    assert not torch.equal(drawn, probes(1, "mixture"))
    assert not torch.equal(drawn, probes(0, "strokes"))
    assert torch.equal(probes(0, "strokes"), probes(0, "strokes"))
    assert not torch.equal(probes(0, "strokes"), probes(1, "strokes"))


def test_probes_and_rates_that_are_not_learned_are_no_parameters(random_zoo: Zoo, dataset: Dataset) -> None:
    def parameters(steps: int, *, trained: bool) -> float:
        refinement = {"steps": steps, "probes": 4, "probe_sets": 2, "width": 8, "trained": trained}
        given = config(translator={"mixer": {"size": "tiny"}, "refinement": refinement})
        return TranslatorTraining(given, random_zoo, dataset).run_epoch()["parameters"]

    plain = parameters(0, trained=False)
    assert parameters(2, trained=False) == plain
    assert parameters(2, trained=True) > plain + 8 * 28 * 28


def test_flips_need_no_other_image(random_zoo: Zoo, dataset: Dataset) -> None:
    flipped = config(augmentation={"flips": True, "transposes": True}, loss={"weight_mse": 0, "kl": 1, "images": 4})
    assert math.isfinite(TranslatorTraining(flipped, random_zoo, dataset).run_epoch()["loss"])


def first_loss(zoo: Zoo, dataset: Dataset, seed: int = 0, **augmentation: object) -> float:
    """Of one step on all members, with a translator that writes the pruned source."""
    one = {"epochs": 1, "steps_per_epoch": 1, "batch_size": 8}
    training = TranslatorTraining(config(loss={}, augmentation=augmentation, training=one, seed=seed), zoo, dataset)
    torch.nn.init.zeros_(training.model.scale)
    return training.run_epoch()["loss"]


def test_turned_blocks_are_turned_back_for_the_loss(random_zoo: Zoo, dataset: Dataset) -> None:
    """A pruned block is turned as its source is, so turning there and back changes no loss; some seed turns."""
    for seed in range(4):
        turned = first_loss(random_zoo, dataset, seed, flips=True, transposes=True)
        assert turned == pytest.approx(first_loss(random_zoo, dataset, seed), rel=1e-6)


@pytest.mark.parametrize("corruption", [{"mask": {"probability": 0.5}}, {"noise": {"std": 0.1}}])
@pytest.mark.parametrize("sides", ["source", "target"])
def test_corruption_reaches_the_loss(
    random_zoo: Zoo, dataset: Dataset, corruption: dict[str, dict[str, object]], sides: str
) -> None:
    settings = {name: values | {"sides": sides} for name, values in corruption.items()}
    assert first_loss(random_zoo, dataset, **settings) != pytest.approx(first_loss(random_zoo, dataset), rel=1e-2)


def test_gradients_are_clipped(random_zoo: Zoo, dataset: Dataset) -> None:
    norms = {}
    for clip in (0.0, 1e-3):
        clipped = config(training={"epochs": 1, "steps_per_epoch": 1, "clip_norm": clip})
        training = TranslatorTraining(clipped, random_zoo, dataset)
        training.run_epoch()
        norms[clip] = float(torch.nn.utils.get_total_norm([value.grad for value in training.model.parameters()]))
    assert norms[0.0] > 2e-3
    assert norms[1e-3] == pytest.approx(1e-3, rel=1e-2)


def test_selection_is_kept_for_the_same_zoo_images_and_device_alone(random_zoo: Zoo, dataset: Dataset) -> None:
    zoo = untrained_zoo(random_zoo.architecture, MemberCounts(train=4, selection=3, test=1))
    images = replace(dataset, selection=dataset.selection.take(slice(0, 16)))

    def transplants(zoo: Zoo, dataset: Dataset, device: str = "cpu") -> Transplants:
        return TranslatorTraining(config(), zoo, dataset, device).sites[0].transplants

    assert transplants(random_zoo, dataset) is transplants(random_zoo, dataset)
    assert len(transplants(zoo, dataset).zoo) == 3
    assert len(transplants(random_zoo, dataset).zoo) == 2
    assert len(transplants(random_zoo, images).images) == 16
    assert len(transplants(random_zoo, dataset).images) == 128
    assert transplants(random_zoo, dataset, "cpu:0").device == "cpu:0"


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"refinement.steps must be 0"):
        config(translator={"refinement": {"steps": 1}}, augmentation={"flips": True})
    with pytest.raises(ConfigError, match="make source blocks that have no target"):
        config(loss={}, augmentation={"swap_units": 0.1})


VARIED = {"vary": 0.1}


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ({}, "make source blocks that have no target"),
        ({"weight_mse": 1, "head_input": 1}, "set them or vary to 0, got vary=0.1, weight_mse=1.0"),
        ({"normalised_mse": 1, "aligned_mse": 2, "kl": 1}, "got vary=0.1, normalised_mse=1.0, aligned_mse=2.0"),
        ({"head_input": 1, "outputs_from": 0.5}, "from the first step; .* to 0, got vary=0.1, outputs_from=0.5"),
        ({"head_input": 1, "outputs_from": 0.5, "kl": 1, "logits_from": 0.2}, "outputs_from=0.5, logits_from=0.2"),
    ],
)
def test_a_loss_that_varied_blocks_would_leave_out_is_refused(loss: dict[str, object], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as error:
        config(loss=loss, augmentation=VARIED)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize(
    "loss",
    [
        {"head_input": 1},  # weight_mse is 1 by default
        {"weight_mse": 0, "head_input": 1},
        {"weight_mse": 0, "head_input": 1, "outputs_from": 0.5, "kl": 1},
        {"head_input": 1, "kl": 1, "logits_from": 0.5},
    ],
)
def test_varied_blocks_have_a_loss_from_the_first_step(
    random_zoo: Zoo, dataset: Dataset, loss: dict[str, object]
) -> None:
    varied = config(loss=loss | {"images": 4}, augmentation=VARIED)
    assert validate(TrialConfig, varied.model_dump(mode="json")) == varied
    assert TranslatorTraining(varied, random_zoo, dataset).run_epoch()["loss"] > 0


def test_a_search_that_draws_vary_leaves_terms_on_weights_out() -> None:
    base = config(loss={"weight_mse": 0.1, "head_input": 1}, augmentation={})
    assert apply(base, {"augmentation.vary": 0.1}).loss.weight_mse == pytest.approx(0.1)
    with pytest.raises(ConfigError, match="from the first step"):
        apply(base, {"augmentation.vary": 0.1, "loss.outputs_from": 0.5})


def test_snapshots_are_samples_where_no_target_is_needed(random_zoo: Zoo, dataset: Dataset) -> None:
    has_target = pa.array([row % 2 == 0 for row in range(len(random_zoo))])
    column = random_zoo.index.column_names.index("has_target")
    zoo = replace(random_zoo, index=random_zoo.index.set_column(column, "has_target", has_target))

    def members(**fields: object) -> int:
        return len(TranslatorTraining(config(**fields), zoo, dataset).sites[0].members["head.linear.bias"])

    whole, half = len(zoo.where("train", with_target=False)), len(zoo.where("train"))
    assert members() == whole
    assert members(augmentation={"snapshots": False}) == half < whole
    assert members(loss={}, augmentation={}) == half


def test_averaged_weights_are_what_is_evaluated(random_zoo: Zoo, dataset: Dataset) -> None:
    training = TranslatorTraining(config(), random_zoo, dataset)
    before = {name: value.clone() for name, value in training.translator.state_dict().items()}
    training.run_epoch()
    for name, average in training.translator.named_parameters():
        now = dict(training.model.named_parameters())[name]
        if not torch.equal(now, before[name]):
            assert torch.linalg.norm(average - now) < torch.linalg.norm(before[name] - now)
            assert not torch.equal(average, now)


def test_patience_ends_a_trial_that_gets_no_better(random_zoo: Zoo, dataset: Dataset) -> None:
    stuck = config(training={"epochs": 9, "steps_per_epoch": 1, "batch_size": 2, "learning_rate": 1e-12, "patience": 2})
    training = TranslatorTraining(stuck, random_zoo, dataset)
    while not training.finished:
        training.run_epoch()
    assert training.epoch == 3


def test_patience_ends_with_the_best_report_and_its_translator(
    random_zoo: Zoo, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its second epoch is the best of four; a training continued after the third has that of the checkpoint."""
    accuracies = iter([0.1, 0.5, 0.2, 0.3, 0.3])
    monkeypatch.setattr(TranslatorTraining, "_selected", lambda self: (torch.full((2,), next(accuracies)), 1.0))
    settings = {"epochs": 9, "steps_per_epoch": 2, "batch_size": 4, "ema": 0.5, "patience": 2}
    training = TranslatorTraining(config(training=settings), random_zoo, dataset)
    reports = [training.run_epoch() for _ in range(2)]
    best = {name: value.clone() for name, value in training.translator.state_dict().items()}
    reports.append(training.run_epoch())
    training.save(tmp_path / "third")
    assert reports[2]["accuracy_mean"] == pytest.approx(0.2)
    continued = TranslatorTraining(config(training=settings), random_zoo, dataset)
    continued.load(tmp_path / "third")
    for ended in (training, continued):
        assert not ended.finished
        last = ended.run_epoch()
        assert ended.finished
        assert last | {"seconds": 0} == reports[1] | {"seconds": 0}
        assert all(torch.equal(value, best[name]) for name, value in ended.translator.state_dict().items())


def test_a_checkpoint_without_later_options_is_continued(random_zoo: Zoo, dataset: Dataset, tmp_path: Path) -> None:
    """A release that knew fewer options wrote it: they have their defaults."""
    path = tmp_path / "training"
    training = TranslatorTraining(config(), random_zoo, dataset)
    training.run_epoch()
    training.save(path)
    tensors, metadata = read_written(path)
    older = json.loads(metadata["config"])
    del older["translator"]["projection"]
    write_state(path, tensors, metadata | {"config": json.dumps(older)})
    again = TranslatorTraining(config(), random_zoo, dataset)
    again.load(path)
    assert again.epoch == 1


def test_a_training_uses_what_was_prepared_and_gives_the_same_numbers(
    random_zoo: Zoo, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = config(translator={"refinement": {"steps": 2, "probes": 4, "images": "mixture"}})
    own = TranslatorTraining(probed, random_zoo, dataset)
    prepared = Prepared.of(random_zoo, dataset, mixture=True, activations=True)
    monkeypatch.setattr("kt_ray.translation.probe_images.fitted", None)
    given = TranslatorTraining(probed, replace(random_zoo), dataset, prepared=prepared)
    assert prepared.activations is not None
    assert given.sites[0].transplants.kept is prepared.activations[0]
    ours, theirs = own.run_epoch(), given.run_epoch()
    assert [ours[name] for name in ("loss", "accuracy_mean")] == [theirs[name] for name in ("loss", "accuracy_mean")]
