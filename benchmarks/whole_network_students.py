"""Students trained with all data on the predictions or factors of a zoo's network: peers of `whole_networks.py`.

Each is a fresh ResNet with narrower residual blocks, trained by what `kt-ray distill` runs, on all training images with
labels. The learning rate of a method is chosen for hidden width ½ by accuracy on images split off the training set.

    python benchmarks/whole_network_students.py DIRECTORY            # of the zoo; goes on where it stopped
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from resnet_zoo import DATASET, STEM_STRIDE, Kind, accuracy, dataset_named, member
from whole_network_table import SHARES
from whole_networks import logits

from kt_ray.config import DistillTrialConfig
from kt_ray.distillation.cache import Cache
from kt_ray.distillation.stages import Stages
from kt_ray.networks.cost import multiply_adds, parameter_count

METHODS = {"kd": "KD student", "ft": "factor-transfer student"}
RATES = (0.03, 0.1, 0.3)
EPOCHS, TUNING_EPOCHS, PARAPHRASER_EPOCHS = 6, 2, 2


def configuration(checkpoint: Path, kind: Kind, method: str, share: float, rate: float, epochs: int) -> dict[str, Any]:
    """Return what `kt-ray distill` reads for a student of the network in `checkpoint`."""
    options = {"depth": kind.depth, "width": kind.width, "stem_stride": STEM_STRIDE}
    training = {
        "learning_rate": rate,
        "epochs": epochs,
        "schedule": "cosine",
        "warmup": 0.1,
        "nesterov": True,
        "crop": 0,
    }
    return {
        "teacher": {"network": {"resnet": options}, "checkpoint": str(checkpoint)},
        "student": {"resnet": options | {"hidden": share}},
        "method": {"name": method},
        "paraphraser": {"training": training | {"epochs": PARAPHRASER_EPOCHS, "learning_rate": 0.1}},
        "training": training,
    }


def main() -> None:
    """Train the students of one network that were not yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, help="of the zoo; rows are kept there, too")
    parser.add_argument("--depth", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset, kind = dataset_named(DATASET), Kind(arguments.depth)
    path = arguments.directory / f"students-{kind}-0.json"
    done: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    checkpoint = arguments.directory / f"{kind}-0.safetensors"
    teacher = member(arguments.directory, kind, 0, dataset)
    stages = Stages(Cache(arguments.directory / "distillation"), dataset)
    selected = accuracy(teacher, dataset.selection.images, dataset.selection.labels)
    original = logits(teacher, dataset.test.images).argmax(1)
    common = {"depth": kind.depth, "first_width": kind.width, "network": 0}
    common |= {"original": float((original == dataset.test.labels).double().mean())}
    common |= {
        "original_multiply_adds": multiply_adds(teacher, dataset.image_shape),
        "original_parameters": parameter_count(teacher),
    }

    def train(method: str, width: str, rate: float, epochs: int) -> dict[str, Any]:
        """Return the row of a student, from the file if it is there; test images are used after full training alone."""
        key = {"method": METHODS[method], "width": width, "learning_rate": rate, "epochs": epochs}
        for row in done:
            if key.items() <= row.items():
                return row
        trial = configuration(checkpoint, kind, method, SHARES[width], rate, epochs)
        began = time.process_time()
        training = stages.student(DistillTrialConfig.model_validate(trial))
        prepared = time.process_time() - began
        curve = [training.run_epoch()["accuracy"] / selected for _ in range(epochs)]
        row = common | key | {"seed": 0, "preparation_seconds": prepared, "images_seen": training.images_seen}
        row |= {"seconds": time.process_time() - began, "selection_ratio_by_epoch": curve}
        if epochs == EPOCHS:
            student = training.student.eval()
            predicted = logits(student, dataset.test.images).argmax(1)
            row |= {"accuracy": float((predicted == dataset.test.labels).double().mean())}
            row |= {"ratio": row["accuracy"] / row["original"]}
            row |= {"agreement": float((predicted == original).double().mean())}
            row |= {
                "multiply_adds": multiply_adds(student, dataset.image_shape),
                "parameters": parameter_count(student),
            }
        done.append(row)
        path.write_text(json.dumps(done))
        print(kind, key, f"{curve[-1]:.4f} on selection images, {row['seconds']:.0f} s", flush=True)
        return row

    for method in METHODS:
        tried = {rate: train(method, "half", rate, TUNING_EPOCHS)["selection_ratio_by_epoch"][-1] for rate in RATES}
        rate = max(tried, key=lambda rate: tried[rate])
        for width in SHARES:
            train(method, width, rate, EPOCHS)


if __name__ == "__main__":
    main()
