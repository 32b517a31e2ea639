"""`kt-ray distill` from file to registry: real Ray, real Optuna, real MLflow, small networks."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from kt_ray._io.checksum import file_digest
from kt_ray.cli import main
from kt_ray.config import DistillConfig, validate
from kt_ray.data import load_dataset
from kt_ray.distillation.distill import load_student
from kt_ray.errors import ConfigError, ResourceError, StudyError
from kt_ray.search.space_problems import problems
from kt_ray.search.storage import open_storage
from kt_ray.search.study import SearchStudy
from kt_ray.studies.conclusion import Conclusion, _file_of, read_conclusion
from kt_ray.studies.console import StudyConsole
from kt_ray.studies.distillation_study import DistillationStudy
from kt_ray.studies.runner import run_study, search_study
from kt_ray.studies.spaces import locate
from kt_ray.studies.study import open_study, resume
from kt_ray.studies.study_file import read_study, read_study_file, space_rows
from kt_ray.studies.study_task import Best
from kt_ray.studies.validation import validate_file
from kt_ray.studies.workspace import Workspace, open_tracker
from kt_ray.tracking.tracker import Tracker
from tests.studies.miniature import kt_ray

FIT = {"epochs": 2, "learning_rate": 0.05, "schedule": "cosine", "crop": 0, "batch_size": 64}


def resnet(width: int) -> dict[str, object]:
    return {"resnet": {"depth": 8, "width": width, "stem_stride": 2}}


CONTENT = {
    "dataset": {"name": "mnist5k", "train_images": 256, "selection_images": 64},
    "teacher": {"network": resnet(6), "training": FIT},
    "paraphraser": {"training": FIT | {"epochs": 1}},
    "student": resnet(4),
    "training": FIT,
}


def config(name: str, **changes: object) -> DistillConfig:
    return validate(DistillConfig, CONTENT | {"name": name} | changes)


def run(configuration: DistillConfig, root: Path) -> Conclusion:
    with StudyConsole(quiet=True) as console:
        made = run_study(configuration, Workspace.open(root), console)
    assert made is not None
    return made


def test_a_student_is_trained_once_and_registered(workspace: Path) -> None:
    made = run(config("one"), workspace)
    again = run(config("one"), workspace)
    assert again == made
    tracker = Tracker(Workspace.open(workspace).tracking_uri, "kt_ray")
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert len(runs) == 1
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.metrics["test_accuracy"] == made.evaluation.rows[-1].accuracy
    history = tracker.client.get_metric_history(runs[0].info.run_id, "teacher.loss")
    assert [metric.step for metric in history] == [1, 2]
    versions = tracker.client.search_model_versions("name = 'kt-student'")
    assert len(versions) == 1
    assert float(versions[0].tags["kt_ray.test_accuracy"]) == made.evaluation.rows[-1].accuracy
    assert float(versions[0].tags["kt_ray.selection_accuracy"]) == made.value
    fingerprint = versions[0].tags["kt_ray.dataset_fingerprint"]
    assert f"on dataset {fingerprint}, 64 selection images of mnist5k." in versions[0].description


@pytest.mark.slow
def test_a_search_over_students(workspace: Path, ray_session: None) -> None:
    space = {
        "method.name": {"categorical": ["ft", "kd"]},
        "method.ft.beta": {"float": [10.0, 500.0], "log": True, "when": {"method.name": "ft"}},
    }
    search = {"trials": 3, "concurrency": 1, "pruner": {"name": "none"}}
    configuration = config("searched", space=space, search=search)
    assert problems(configuration.space, configuration.trial) == []
    made = run(configuration, workspace)
    study = SearchStudy(configuration, open_storage(Workspace.open(workspace).study_storage))
    best = study.best()
    assert study.finished() == 3
    assert best is not None
    assert best.values == [made.value]
    assert load_student(Path(made.file)).config.method.name == best.params["method.name"]
    cached = Path(Workspace.open(workspace).checkpoints("distillation"))
    assert not list(cached.glob("*.partial*"))
    more = configuration.model_copy(update={"search": configuration.search.model_copy(update={"trials": 4})})
    run(more, workspace)
    assert study.finished() == 4


def test_faults_of_the_space_name_the_fields_of_a_distillation() -> None:
    wrong = config("wrong", space={"method.ft.betas": {"float": [1.0, 2.0]}})
    assert problems(wrong.space, wrong.trial) == [
        "space.method.ft.betas: unknown path; method.ft has beta, layers, p, translator_learning_rate; "
        "`kt-ray spaces explain method.ft` describes them"
    ]


def test_an_unknown_layer_stops_before_anything_is_trained(workspace: Path) -> None:
    with pytest.raises(ConfigError, match="no layer 'stage9'"):
        run(config("wrong", method={"name": "ft", "ft": {"layers": ["stage9"]}}), workspace)
    assert not list(workspace.rglob("*.safetensors"))


def test_a_search_is_resumed_with_more_students(workspace: Path, ray_session: None) -> None:
    space = {"method.kd.temperature": {"float": [1.0, 5.0]}}
    search = {"trials": 1, "concurrency": 1, "pruner": {"name": "none"}}
    begun = config("resumed", method={"name": "kd"}, space=space, search=search)
    with StudyConsole(quiet=True) as console:
        search_study(begun, Workspace.open(workspace), console)
    made = resume("resumed", workspace, add=1, progress=False)
    assert made.conclusion is not None
    assert made.conclusion.reported
    assert (Workspace(workspace).study_directory("resumed") / "report.html").is_file()
    resumed = config("resumed", method={"name": "kd"}, space=space, search=search | {"trials": 2})
    study = SearchStudy(resumed, open_storage(Workspace.open(workspace).study_storage))
    assert study.finished() == 2


def test_validation_tries_one_batch_and_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "distillation.yaml"
    path.write_text(yaml.safe_dump(CONTENT | {"name": "checked"}))
    validation = validate_file(path)
    assert (validation.name, validation.makes, validation.parameters) == ("checked", "student", 4934)
    assert validation.loss > 0
    valid, space, batch = validation.lines()
    assert (valid, space) == (f"{path}: valid", "no search")
    assert "student of 4,934 parameters" in batch
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("student.resnet.width=none", "student.resnet.width: input should be a valid integer"),
        ("search.sampler={name: tpe, options: {n_startup: 3}}", "n_startup"),
        ("paraphraser.rate=0.01", "paraphraser.rate=0.01 leaves no channel of the teacher's 24"),
        ("method.ft.layers=[stage9]", "the student has no layer 'stage9'; it has stem, stage1, stage2, stage3"),
        ("method.ft.layers=[linear]", "layer 'linear' of the student gives shape (1, 10), expected feature maps"),
        ("teacher.checkpoint=none.safetensors", "no such checkpoint: none.safetensors"),
        ("teacher.checkpoint=other.safetensors", "does not fit the network (stem, stage1, stage2, stage3, linear)"),
    ],
)
@pytest.mark.parametrize("command", ["validate", "distill"])
def test_faults_are_one_line_and_status_2(
    command: str,
    change: str,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KT_RAY_WORKSPACE", "workspace")
    Path("distillation.yaml").write_text(yaml.safe_dump(CONTENT | {"name": "wrong"}))
    save_file({"stem.0.weight": torch.zeros(5, 1, 3, 3)}, "other.safetensors")
    monkeypatch.setattr(sys, "argv", ["kt-ray", command, "distillation.yaml", "--set", change])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
    assert not list(Path("workspace").rglob("student.safetensors"))


def test_commands_for_translators_say_which_one_it_is_for() -> None:
    with pytest.raises(ConfigError, match="a distillation study, not a translation study; `kt-ray distill` runs it"):
        read_study(locate("factor_transfer"))
    shown = read_study_file(locate("factor_transfer"))
    assert {row["path"] for row in space_rows(shown)} == set(shown.space)


def test_another_student_of_the_name_takes_the_place_of_the_first(workspace: Path) -> None:
    first = run(config("one", method={"name": "none"}), workspace)
    second = run(config("one", method={"name": "none"}, seed=1), workspace)
    assert (first.version, second.version) == (1, 2)
    assert load_student(Path(second.file)).config.seed == 1


def test_a_study_of_an_earlier_release_is_read_and_concluded_anew(workspace: Path) -> None:
    made = run(config("old", method={"name": "none"}), workspace)
    directory = Workspace(workspace).study_directory("old")
    (directory / "conclusion.json").unlink()
    (directory / "study.json").rename(directory / "distill.json")
    content = made.evaluation.to_dict()
    (directory / "distillation.json").write_text(json.dumps(content))
    old = read_conclusion(Workspace(workspace), "old")
    assert old is not None
    assert (old.evaluation, old.reported) == (made.evaluation, False)
    again = resume("old", workspace, progress=False).conclusion
    assert again is not None
    assert (again.evaluation.rows[-1].accuracy, again.version) == (made.evaluation.rows[-1].accuracy, made.version)


def test_a_study_and_its_conclusion_print_themselves_on_a_screen(workspace: Path) -> None:
    made = run(config("shown", method={"name": "none"}), workspace)
    for shown in (made, open_study("shown", workspace)):
        assert 4 < len(repr(shown).splitlines()) < 40
        assert shown._repr_html_().startswith("<table>")
    assert str(made) == repr(made)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status"), [(Stopped, "FAILED"), (SystemExit, "KILLED"), (KeyboardInterrupt, "KILLED")]
)
def test_a_study_that_ends_early_ends_its_mlflow_run(
    error: type[BaseException], status: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("kt_ray.studies.distillation_study.distill", stop)
    with pytest.raises(error):
        run(config("stopped"), workspace)
    tracker = Tracker(Workspace.open(workspace).tracking_uri, "kt_ray")
    (found,) = tracker.client.search_runs([tracker.experiment_id])
    assert found.info.status == status


def test_a_best_model_whose_file_is_gone_is_taken_from_the_registry(workspace: Path) -> None:
    made = run(config("lost", method={"name": "none"}), workspace)
    place = Workspace.open(workspace)
    task = DistillationStudy(config("lost"), place)
    task.dataset = load_dataset(task.config.dataset)
    found = _file_of(task, open_tracker(task.config, place), Best(made.trial, None, {}, None, "", "", 1))
    assert file_digest(found) == file_digest(Path(made.file))
    with pytest.raises(StudyError, match="missing"):
        _file_of(task, open_tracker(task.config, place), Best(7, None, {}, None, "", "", 1))


ON_A_GPU = {
    "method": {"name": "kd"},
    "space": {"method.kd.temperature": {"float": [1.0, 5.0]}},
    "search": {"trials": 1, "resources": {"gpus": 1}},
}


def test_a_search_on_gpus_that_no_node_has_stops_before_anything_is_trained(workspace: Path, ray_session: None) -> None:
    with pytest.raises(ResourceError, match="no node has CPU=1, GPU=1; the cluster's nodes have: CPU=2"):
        run(config("gpu", **ON_A_GPU), workspace)
    assert not list(workspace.rglob("*.safetensors"))


@pytest.mark.slow  # a Ray session of its own; test_remote.py has what a worker asks of Ray and raises
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_the_teacher_is_trained_by_a_worker_that_has_a_gpu_of_ray(tmp_path: Path) -> None:
    """Ray counts one GPU here, so the task is placed; torch sees none, which the task says before it trains."""
    file = tmp_path / "gpu.yaml"
    file.write_text(yaml.safe_dump(CONTENT | ON_A_GPU | {"name": "gpu", "ray": {"cpus": 1, "gpus": 1}}))
    process = kt_ray("distill", str(file), workspace=tmp_path / "workspace")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    (line,) = [line for line in output.splitlines() if "error" in line.lower() or "GPU" in line]
    assert "Ray gave this worker 1 GPUs, but torch" in line
    assert "Traceback" not in output


def test_trials_ask_for_the_labels_of_the_file(tmp_path: Path) -> None:
    search = {"resources": {"label_selector": {"zone": "a"}}}
    labelled = config("labelled", space={"method.kd.temperature": {"float": [1.0, 5.0]}}, search=search)
    assert DistillationStudy(labelled, Workspace(tmp_path)).demands["trials"].labels == {"zone": "a"}
