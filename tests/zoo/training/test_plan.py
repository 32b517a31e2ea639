from __future__ import annotations

from pathlib import Path

import pytest

from kt_ray.config import NetworkChoice, PhaseConfig, RecipeConfig
from kt_ray.data import Dataset
from kt_ray.errors import ZooError
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.chosen import architecture_of
from kt_ray.zoo.training import plan
from kt_ray.zoo.training.members import Plan
from kt_ray.zoo.training.objectives import Candidate
from kt_ray.zoo.training.plan import ProbeMemory, candidates, choose, measure

ARCHITECTURE = PaperArchitecture("basic_to_simple")
RECIPE = RecipeConfig(source=PhaseConfig(batch_size=32), target=PhaseConfig(batch_size=32))


@pytest.mark.parametrize("phase", ["source", "target"])
def test_every_candidate_of_a_cpu_can_be_measured(dataset: Dataset, phase: str) -> None:
    images = dataset.train.take(slice(0, 64))
    for candidate in candidates(ARCHITECTURE, "cpu", phase, at_once=2):
        assert 0 < measure(candidate, phase, ARCHITECTURE, images, RECIPE) < 60


def test_only_what_covers_a_pair_is_a_candidate() -> None:
    def names(pair: str, phase: str) -> set[str]:
        return {found.implementation for found in candidates(PaperArchitecture(pair), "cpu", phase, 8)}  # type: ignore[arg-type]

    assert "fused" in names("basic_to_attention", "source")
    assert names("basic_to_attention", "target") == {"vmap", "loop"}
    assert "grouped" in names("basic_to_mlp", "target")
    assert "fused" not in names("basic_to_mlp", "target")


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_is_a_candidate_where_the_processor_computes_in_it(
    dataset: Dataset, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network of one's own then trains in it, both phases, if that is faster."""
    monkeypatch.setattr(plan, "native_bfloat16", lambda device: native)
    network = NetworkChoice(name="resnet", options={"depth": 8, "width": 4})
    resnet = architecture_of("halved", network, dataset.image_shape, dataset.classes)
    for phase in ("source", "target"):
        rounded = [found for found in candidates(resnet, "cpu", phase, at_once=4) if found.bfloat16]
        assert rounded == ([Candidate("loop", 1, bfloat16=True)] if native else [])
        for candidate in rounded:
            assert measure(candidate, phase, resnet, dataset.train.take(slice(0, 64)), RECIPE) > 0


def test_the_plan_is_run_as_it_was_measured() -> None:
    """Both phases train as many members at once, with the same options, as when they were timed."""
    fused, fused4, grouped4 = Candidate("fused", 1), Candidate("fused", 4), Candidate("grouped", 4)
    half = Candidate("grouped", 4, bfloat16=True)
    source = {fused: 1.0, fused4: 1.1, half: 0.2}
    assert choose({"source": source, "target": {fused: 0.5, grouped4: 0.1}}) == Plan("fused", "grouped", 4)
    assert choose({"source": source, "target": {fused: 0.1, grouped4: 0.1}}) == Plan("fused", "fused", 1)
    assert choose({"source": source, "target": {fused: 0.1, half: 0.1}}) == Plan("grouped", "grouped", 4, True)
    with pytest.raises(ZooError, match="no implementation of the target phase runs on this device"):
        choose({"source": source, "target": {}})
    with pytest.raises(ZooError, match="both phases at one number of members"):
        choose({"source": {fused: 1.0}, "target": {grouped4: 1.0}})


def test_plans_are_remembered_beside_the_zoos(tmp_path: Path) -> None:
    memory = ProbeMemory(str(tmp_path / "zoos" / "digits"))
    key = memory.key(ARCHITECTURE, RECIPE, 8, "some processor")
    assert memory.recall(key) is None
    memory.keep(key, Plan("grouped", "loop", 3))
    assert ProbeMemory(str(tmp_path / "zoos" / "other")).recall(key) == Plan("grouped", "loop", 3)
    (tmp_path / "zoos" / "probe.json").write_text("damaged")
    assert memory.recall(key) is None
    memory.keep(key, Plan())
    assert memory.recall(key) == Plan()


def test_options_of_a_uri_reach_the_memory() -> None:
    files = ProbeMemory("s3://bucket/zoos/digits?scheme=http&endpoint_override=127.0.0.1:9").files
    assert files.uri == "s3://bucket/zoos?scheme=http&endpoint_override=127.0.0.1:9"
    assert files.root == "bucket/zoos"


def test_a_plan_is_remembered_for_what_was_measured() -> None:
    """Images that move, and a target phase too short for cached activations, are other work."""
    short = RECIPE.model_copy(update={"target": RECIPE.target.model_copy(update={"epochs": 1})})
    recipes = (RECIPE, short, RECIPE.model_copy(update={"shift": (0, 2)}))
    assert len({ProbeMemory.key(ARCHITECTURE, recipe, 8, "some processor") for recipe in recipes}) == 3
