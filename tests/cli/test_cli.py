"""The command line: help is light and quick, faults are one line and status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kt_ray.config import ResNetOptions
from kt_ray.networks import PaperArchitecture
from kt_ray.networks.resnet import ResNet
from kt_ray.translation.checkpoint import save_translator
from kt_ray.translation.translator import build_translator

MINIATURE = Path(__file__).parents[1] / "miniature.yaml"
COMMANDS = {
    *("run", "search", "resume", "status", "trials", "best", "translate", "evaluate"),
    *("validate", "ui", "doctor", "zoo", "spaces"),
}


def kt_ray(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kt_ray", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    assert all(command in kt_ray("--help").stdout for command in COMMANDS)
    code = (
        "import sys; sys.argv = ['kt-ray', '--help']\n"
        "from kt_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'mlflow', 'optuna', 'numpy', 'pandas', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A study file of one's own to spoil."""
    path = tmp_path / "study.yaml"
    path.write_text(MINIATURE.read_text())
    return path


def refused(*arguments: str, **environment: str) -> str:
    """The one line on standard error of a command that ends with status 2."""
    result = kt_ray(*arguments, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("search.tirals=3", "search.tirals: unknown key"),
        ("search.trials=many", "search.trials: input should be a valid integer"),
        ("space={training.learning_rate: {float: [1, 0.1]}}", "`low` must not be above `high`, got low=1.0, high=0.1"),
        ("space={training.learning_rte: {float: [0.1, 1]}}", "training.learning_rte"),
        ("trial.translator.family=perceptron", "no family is called 'perceptron'"),
        ("trial.loss.weight_mse=0", "at least one loss weight must be above 0"),
        ("pair=basic_to_nothing", "no pair is called 'basic_to_nothing'"),
    ],
)
def test_a_bad_study_file(study: Path, tmp_path: Path, change: str, expected: str) -> None:
    assert expected in refused("run", str(study), "--set", change, "--workspace", str(tmp_path / "ws"))
    assert not (tmp_path / "ws").exists()


def test_all_faults_of_a_study_file_are_told(study: Path) -> None:
    result = kt_ray("validate", str(study), "--set", "search.tirals=3", "--set", "trial.seed=-1")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 2


def test_a_missing_study_file_and_study(tmp_path: Path) -> None:
    assert "no study file 'none.yaml'" in refused("run", "none.yaml")
    assert "no study 'none'" in refused("resume", "none", "--workspace", str(tmp_path))
    assert "no zoo 'none'" in refused("zoo", "info", "none", "--workspace", str(tmp_path))


def test_an_unwritable_workspace(study: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = refused("run", str(study), "--workspace", str(tmp_path / "file" / "ws"))
    assert "cannot be written" in message
    assert "--workspace" in message


def test_an_unreachable_ray_and_mlflow(study: Path, tmp_path: Path) -> None:
    place = ("--workspace", str(tmp_path / "ws"))
    assert "no Ray cluster answers at '127.0.0.1:9'" in refused(
        "run", str(study), "--set", "ray.address=127.0.0.1:9", *place
    )
    message = refused("run", str(study), "--set", "storage.tracking=http://127.0.0.1:9", *place)
    assert "127.0.0.1:9" in message


def test_a_zoo_of_another_pair(study: Path, tmp_path: Path) -> None:
    from kt_ray.config import Source, StudyConfig, validate_source
    from kt_ray.data import load_dataset
    from kt_ray.zoo.store import ZooStore

    config = validate_source(StudyConfig, Source(study))
    ZooStore(str(tmp_path / "ws" / "zoos" / "miniature")).create(
        config.zoo, "basic_to_mlp", load_dataset(config.dataset)
    )
    message = refused("run", str(study), "--workspace", str(tmp_path / "ws"))
    assert 'pair="basic_to_mlp"' in message
    assert "basic_to_simple" in message


def test_a_merge_stays_in_the_folder_of_zoos(tmp_path: Path) -> None:
    message = refused("zoo", "merge", "..", "pretrained:mnist5k", "--workspace", str(tmp_path / "ws"))
    assert "'..' is no name of a zoo" in message
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class TestTranslate:
    @pytest.fixture
    def translator(self, tmp_path: Path) -> Path:
        """A translator file, untrained."""
        from kt_ray.config import MixerOptions, TranslatorConfig

        config = TranslatorConfig(mixer=MixerOptions(size="tiny"))
        architecture = PaperArchitecture("basic_to_simple")
        path = tmp_path / "translator.safetensors"
        save_translator(path, build_translator(config, architecture), config, architecture, {})
        return path

    def test_a_checkpoint_of_other_shapes(self, translator: Path, tmp_path: Path) -> None:
        torch.save(PaperArchitecture("basic_to_simple").target_network().state_dict(), tmp_path / "network.pth")
        output = str(tmp_path / "out.safetensors")
        message = refused("translate", str(translator), str(tmp_path / "network.pth"), "-o", output)
        assert "block.bn1.weight is missing (expected 3)" in message
        assert not Path(output).exists()

    def test_a_pickle_with_code_in_it(self, translator: Path, tmp_path: Path) -> None:
        (tmp_path / "hostile.pth").write_bytes(b"cos\nsystem\n(S'touch made-by-code'\ntR.")
        message = refused(
            "translate", str(translator), str(tmp_path / "hostile.pth"), "-o", str(tmp_path / "out.safetensors")
        )
        assert "hostile.pth" in message
        assert not Path("made-by-code").exists()

    def test_an_output_that_cannot_be_written(self, translator: Path, tmp_path: Path) -> None:
        torch.save(PaperArchitecture("basic_to_simple").source_network().state_dict(), tmp_path / "network.pth")
        (tmp_path / "out.safetensors").mkdir()
        output = str(tmp_path / "out.safetensors")
        message = refused("translate", str(translator), str(tmp_path / "network.pth"), "-o", output)
        assert "out.safetensors cannot be written (Is a directory); check rights and space" in message

    def test_an_unknown_model(self, tmp_path: Path) -> None:
        arguments = ("none.pth", "-o", "out.safetensors", "--workspace", str(tmp_path))
        assert "no such file: none.safetensors" in refused("translate", "none.safetensors", *arguments)
        assert "`kt-ray run` makes one" in refused("translate", "models:/nobody@champion", *arguments)


@pytest.mark.parametrize("device", ["cuda:7", "gpu"])
@pytest.mark.parametrize(
    "command",
    [
        ("translate", "pretrained:basic_to_simple", "none.pth", "-o", "out.safetensors"),
        ("evaluate", "pretrained:basic_to_simple", "pretrained:mnist5k"),
    ],
)
def test_a_device_that_torch_does_not_see(command: tuple[str, ...], device: str) -> None:
    message = refused(*command, "--device", device)
    assert f"device '{device}' cannot be used here" in message


class TestWholeNetworks:
    """`kt-ray translate --network`: every residual block of a ResNet, from one command."""

    @pytest.fixture
    def checkpoint(self, tmp_path: Path) -> Path:
        options = ResNetOptions(depth=8, width=2)
        torch.save(ResNet(options, 1, 10).state_dict(), tmp_path / "resnet8.pth")
        return tmp_path / "resnet8.pth"

    def test_a_resnet_is_halved(self, checkpoint: Path, tmp_path: Path) -> None:
        output = str(tmp_path / "small.safetensors")
        options = ("--network", "resnet", "--set", "depth=8", "--set", "width=2", "--image-shape", "1x12x12")
        done = kt_ray(
            "translate", "shapes", str(checkpoint), "-o", output, *options, "--steps", "0", "--format", "json"
        )
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert [site["hidden_after"] for site in report["sites"]] == [1, 2, 4]
        assert Path(report["builder"]).is_file()

    @pytest.mark.parametrize(
        ("model", "options", "named"),
        [
            ("shapes", ("--network", "resnet"), "--image-shape"),
            ("shapes", ("--network", "resnet", "--image-shape", "12"), "--image-shape"),
            ("shapes", ("--network", "resnet", "--set", "depth=[", "--image-shape", "1x12x12"), "depth"),
            ("shapes", ("--network", "vgg", "--image-shape", "1x12x12"), "vgg"),
            ("shapes", ("--network", "torchvision:nothing", "--image-shape", "1x12x12"), "nothing"),
            ("shapes", ("--network", "resnet", "--set", "depth=7", "--image-shape", "1x12x12"), "depth"),
            ("photographs", ("--network", "resnet", "--set", "depth=8", "--image-shape", "1x12x12"), "photographs"),
            ("shapes", ("--network", "resnet", "--set", "depth=8", "--image-shape", "1x12x12"), "resnet8.pth"),
        ],
    )
    def test_what_does_not_fit_is_one_line(
        self, checkpoint: Path, tmp_path: Path, model: str, options: tuple[str, ...], named: str
    ) -> None:
        output = str(tmp_path / "small.safetensors")
        assert named in refused("translate", model, str(checkpoint), "-o", output, *options)
        assert not Path(output).exists()


def test_where_an_evaluation_goes_is_looked_at_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    output = str(tmp_path / "file" / "evaluation")
    message = refused("evaluate", "none.safetensors", "pretrained:mnist5k", "--fit-steps", "9999", "-o", output)
    assert "file/evaluation cannot be written: Not a directory; name another --output" in message


def test_doctor_says_what_works(tmp_path: Path) -> None:
    import json

    result = kt_ray("doctor", "--workspace", str(tmp_path), "--format", "json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert result.returncode == 0, result.stdout
    assert {"python", "torch", "cuda", "ray", "workspace", "study storage", "tracking"} <= checks.keys()
    assert checks["dataset mnist5k"]["verdict"] == "ok"
    assert str(tmp_path) in checks["tracking"]["detail"]


def test_validate_tries_a_batch(study: Path) -> None:
    result = kt_ray("validate", str(study))
    assert result.returncode == 0, result.stderr
    assert "one batch of the base trial: loss" in result.stdout
    assert "trials at once" in result.stdout
