"""Teacher → paraphraser → student: what a student needs is made once and kept under a hash of what decides it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from kt_ray.config import ClassifierConfig, DistillTrialConfig, FitConfig, ParaphraserConfig, TeacherConfig
from kt_ray.data import Dataset
from kt_ray.distillation.cache import Cache, Made, fingerprint
from kt_ray.distillation.factors import Paraphraser, factor_channels
from kt_ray.distillation.features import Shape, feature_shapes
from kt_ray.distillation.fitting import Fit, load_part
from kt_ray.distillation.methods import Method, build_method, method_layers, paraphrased_layers
from kt_ray.distillation.networks import build_network
from kt_ray.distillation.paraphrasing import ParaphraserTraining
from kt_ray.distillation.teaching import KeptTeaching, LiveTeaching, answers, as_state, bytes_kept, from_state
from kt_ray.distillation.training import StudentTraining, Teaching, accuracy, no_teaching
from kt_ray.networks.checkpoint import Checkpoint, find_network, network_state

KEPT_BYTES = 4 << 30  # answers of a teacher that would take more are computed batch by batch


@dataclass(frozen=True)
class Progress:
    """One epoch of `stage` done: "teacher", "paraphraser of LAYER" or "student"."""

    stage: str
    epoch: int
    epochs: int
    metrics: dict[str, float]


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Trained:
    """A frozen network, the hash of what decided it, and facts of its training: `accuracy` or `loss`, `seconds`,
    `images_seen`."""

    module: nn.Module
    key: str
    facts: dict[str, Any]


def run_resumed(training: Fit, epochs: int, checkpoint: Path, stage: str, report: Report | None) -> dict[str, Any]:
    """Run `training` to its end, from `checkpoint` if there is one, writing it after each epoch. Facts of it."""
    loss = float("nan")
    if checkpoint.exists():
        training.load(checkpoint)
    while not training.finished:
        metrics = training.run_epoch()
        loss = metrics["loss"]
        training.save(checkpoint)
        if report:
            report(Progress(stage, training.epoch, epochs, metrics))
    return {"seconds": training.seconds, "images_seen": training.images_seen, "loss": loss}


@dataclass(frozen=True)
class Stages:
    """Makes teachers, paraphrasers, teachers' answers and students' trainings for `dataset` on `device`.

    Teachers' checkpoints are those `given` by their names in the configuration; a further one is read from its file.
    """

    cache: Cache
    dataset: Dataset
    device: str = "cpu"
    report: Report | None = field(default=None, compare=False)
    given: Mapping[str, Checkpoint] = field(default_factory=dict)

    def network(self, config: ClassifierConfig, seed: int) -> nn.Module:
        return build_network(config, self.dataset.image_shape, self.dataset.classes, seed)

    def teacher(self, config: TeacherConfig) -> Trained:
        """The teacher, frozen: from the file `config.checkpoint`, from the cache, or trained on labels.

        Raises CheckpointError if the file is missing or of another network.
        """
        network = self.network(config.network, config.seed)
        if config.checkpoint is not None:
            return self._given(network, config.checkpoint)
        key = fingerprint("teacher", config.model_dump(mode="json"), self.dataset.fingerprint)

        def train(progress: Path) -> Made:
            training = StudentTraining(
                network, Method({}, (), ()), no_teaching, config.training, self.dataset, config.seed, self.device
            )
            facts = run_resumed(training, config.training.epochs, progress, "teacher", self.report)
            return network.state_dict(), facts | self.selected(network)

        return self._frozen(network, key, self.cache.get(key, train))

    def _given(self, network: nn.Module, name: str) -> Trained:
        state = network_state(self.checkpoint(name, network), network)
        network.load_state_dict(state, strict=False)  # only BN's step counters may be missing
        digest = hashlib.sha256()
        for name in sorted(state):
            digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
        network.to(self.device).eval().requires_grad_(False)
        return Trained(network, fingerprint("given teacher", digest.hexdigest()), self.selected(network))

    def checkpoint(self, name: str, network: nn.Module) -> Checkpoint:
        """Return the checkpoint `name` of a teacher. Raises CheckpointError if it is a file that cannot be read."""
        return self.given.get(name) or find_network(Path(name), network.state_dict().keys())

    def selected(self, network: nn.Module) -> dict[str, float]:
        """Return the accuracy of `network` on the selection images, if there are any."""
        selection = self.dataset.selection.to(self.device)
        return {"accuracy": accuracy(network, selection)} if len(selection) else {}

    def _frozen(self, network: nn.Module, key: str, made: Made) -> Trained:
        state, facts = made
        load_part(network, {"state": state}, "state", self.cache.directory / f"{key}.safetensors")
        return Trained(network.to(self.device).eval().requires_grad_(False), key, facts)

    def paraphraser(self, teacher: Trained, layer: str, config: ParaphraserConfig) -> Trained:
        """The paraphraser of `layer` of `teacher`, frozen: from the cache, or trained.

        The number of factor channels decides it, not the rate: two rates that round to one number share it.
        """
        channels = feature_shapes(teacher.module, [layer], self.dataset.image_shape)[layer][0]
        recipe = config.model_dump(mode="json") | {"rate": factor_channels(channels, config.rate)}
        key = fingerprint("paraphraser", teacher.key, layer, recipe, self.dataset.fingerprint)

        def train(progress: Path) -> Made:
            training = ParaphraserTraining(teacher.module, layer, config, self.dataset, self.device)
            stage = f"paraphraser of {layer}"
            facts = run_resumed(training, config.training.epochs, progress, stage, self.report)
            return training.paraphraser.state_dict(), facts

        return self._frozen(Paraphraser(channels, config.rate), key, self.cache.get(key, train))

    def paraphrasers(self, teacher: Trained, config: DistillTrialConfig) -> dict[str, Trained]:
        """Return the paraphrasers that the method needs, by the teacher's layer."""
        layers = paraphrased_layers(config.method)
        return {layer: self.paraphraser(teacher, layer, config.paraphraser) for layer in layers}

    def method(self, config: DistillTrialConfig, teacher: Trained, student: nn.Module) -> Method:
        """The method between `teacher` and `student`. Raises ConfigError if their features cannot be compared."""
        shapes = self._shapes(config, teacher.module, student)
        made = self.paraphrasers(teacher, config)
        modules = {layer: one.module for layer, one in made.items() if isinstance(one.module, Paraphraser)}
        names = "+".join(one.key for one in made.values())
        return build_method(config.method, *shapes, modules, config.seed, names)

    def _shapes(
        self, config: DistillTrialConfig, teacher: nn.Module, student: nn.Module
    ) -> tuple[dict[str, Shape], dict[str, Shape]]:
        """Return the shapes of the teacher's and of the student's layers that the method reads."""
        ours, theirs = method_layers(config.method)
        student_shapes = feature_shapes(student, theirs, self.dataset.image_shape, "student")
        return feature_shapes(teacher, ours, self.dataset.image_shape, "teacher"), student_shapes

    def teaching(self, teacher: Trained, method: Method, config: FitConfig) -> Teaching:
        """Return the targets of `method`: kept in the cache if an image has few views, else computed in training."""
        images = self.dataset.train
        if config.crop or bytes_kept(teacher.module, method, images, config) > KEPT_BYTES:
            return LiveTeaching(teacher.module, method)
        kept = {}
        for name, term in method.items():
            key = fingerprint("answers", teacher.key, term.signature, config.flip, self.dataset.fingerprint)
            answer = partial(answers, teacher.module, term, method.teacher_layers, images, config)
            state, _ = self.cache.get(key, lambda _, answer=answer: (as_state(answer()), {}))  # type: ignore[misc]
            kept[name] = from_state(state, self.device)
        return KeptTeaching(kept)

    def check(self, config: DistillTrialConfig) -> None:
        """Raise ConfigError or CheckpointError, before anything is trained, if `config` cannot be carried out."""
        if config.method.name == "none":
            return
        teacher, student = self.network(config.teacher.network, 0), self.network(config.student, 0)
        if config.teacher.checkpoint is not None:
            network_state(self.checkpoint(config.teacher.checkpoint, teacher), teacher)
        shapes, _ = self._shapes(config, teacher, student)
        for layer in paraphrased_layers(config.method):
            factor_channels(shapes[layer][0], config.paraphraser.rate)

    def try_batch(self, config: DistillTrialConfig) -> dict[str, float]:
        """Return the losses of one batch of the student of `config`, and its number of `parameters`.

        Teacher and paraphrasers are untrained. Raises as `check` does.
        """
        self.check(config)
        teacher = self.network(config.teacher.network, config.teacher.seed).eval().requires_grad_(False)
        student = self.network(config.student, config.seed)
        shapes, rate = self._shapes(config, teacher, student), config.paraphraser.rate
        paraphrasers = {layer: Paraphraser(shapes[0][layer][0], rate) for layer in paraphrased_layers(config.method)}
        method = build_method(config.method, *shapes, paraphrasers, config.seed)
        batch = self.dataset.train.take(slice(config.training.batch_size))
        one = replace(self.dataset, train=batch, selection=batch.take(slice(0)))
        return StudentTraining(student, method, LiveTeaching(teacher, method), config.training, one).run_epoch()

    def student(self, config: DistillTrialConfig) -> StudentTraining:
        """The training of the student, with teacher, paraphrasers and answers made where they are missing."""
        self.check(config)
        student = self.network(config.student, config.seed)
        method = Method({}, (), ())
        teaching: Teaching = no_teaching
        if config.method.name != "none":
            teacher = self.teacher(config.teacher)
            method = self.method(config, teacher, student)
            teaching = self.teaching(teacher, method, config.training)
        rate = config.method.ft.translator_learning_rate
        return StudentTraining(student, method, teaching, config.training, self.dataset, config.seed, self.device, rate)
