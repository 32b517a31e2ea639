"""One batch of a student's training before anything is made: what a distillation file asks for fits together."""

from __future__ import annotations

from dataclasses import replace

from kt_ray.config import DistillTrialConfig
from kt_ray.distillation.factors import Paraphraser
from kt_ray.distillation.features import feature_shapes
from kt_ray.distillation.methods import build_method, method_layers, paraphrased_layers
from kt_ray.distillation.stages import Stages
from kt_ray.distillation.teaching import LiveTeaching
from kt_ray.distillation.training import StudentTraining


def try_batch(stages: Stages, config: DistillTrialConfig) -> dict[str, float]:
    """Return the losses of one batch of the student of `config`, and its number of `parameters`.

    Teacher and paraphrasers are the untrained ones. Raises ConfigError or CheckpointError if `config` cannot be
    carried out.
    """
    stages.check(config)
    shape = stages.dataset.image_shape
    teacher = stages.network(config.teacher.network, config.teacher.seed).eval().requires_grad_(False)
    student = stages.network(config.student, config.seed)
    ours, theirs = method_layers(config.method)
    teacher_shapes = feature_shapes(teacher, ours, shape, "teacher")
    student_shapes = feature_shapes(student, theirs, shape, "student")
    rate = config.paraphraser.rate
    paraphrasers = {layer: Paraphraser(teacher_shapes[layer][0], rate) for layer in paraphrased_layers(config.method)}
    method = build_method(config.method, teacher_shapes, student_shapes, paraphrasers, config.seed)
    batch = stages.dataset.train.take(slice(config.training.batch_size))
    one = replace(stages.dataset, train=batch, selection=batch.take(slice(0)))
    return StudentTraining(student, method, LiveTeaching(teacher, method), config.training, one).run_epoch()
