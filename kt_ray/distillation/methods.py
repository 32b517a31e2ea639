"""Losses of a student: on labels, and on a teacher's logits (KD), attention maps (AT) or factors (FT).

A method is a weight on cross-entropy and some terms. A term says which layers it reads, makes of the teacher's outputs
what it compares with (constant in training, so it can be kept), and compares.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from kt_ray.config import ATOptions, FTOptions, KDOptions, LayerOptions, MethodConfig
from kt_ray.distillation.factors import FactorTranslator, Paraphraser, attention, factor_distance, normalised
from kt_ray.distillation.features import Outputs, Shape, common_size, pooled

Targets = tuple[Tensor, ...]


class Term(nn.Module, ABC):
    """One comparison of student and teacher. Its parameters, if any, are trained beside the student's."""

    weight: float
    signature: str  # everything, the teacher apart, that decides `targets`

    @abstractmethod
    def targets(self, teacher: Outputs) -> Targets:
        """Return the part of the teacher's outputs for N images that is compared, each [N, …]."""

    @abstractmethod
    def forward(self, student: Outputs, targets: Targets) -> Tensor:
        """The mean loss, unweighted."""


class KnowledgeDistillation(Term):
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), mean over images (Hinton 2015)."""

    def __init__(self, options: KDOptions) -> None:
        super().__init__()
        self.weight, self.temperature = options.alpha, options.temperature
        self.signature = "logits"

    def targets(self, teacher: Outputs) -> Targets:
        return (teacher.logits,)

    def forward(self, student: Outputs, targets: Targets) -> Tensor:
        log_student = functional.log_softmax(student.logits / self.temperature, dim=1)
        log_teacher = functional.log_softmax(targets[0] / self.temperature, dim=1)
        divergence = functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return divergence * self.temperature**2


def matched(
    options: LayerOptions, teacher: Mapping[str, Shape], student: Mapping[str, Shape]
) -> list[tuple[str, str, tuple[int, int]]]:
    """Return teacher's and student's layer of each pair, and the height and width at which they are compared."""
    return [
        (ours, theirs, common_size(teacher[ours], student[theirs]))
        for ours, theirs in zip(options.teacher_layers, options.student_layers, strict=True)
    ]


class AttentionTransfer(Term):
    """Σ over layers of the mean squared difference of normalised attention maps (Zagoruyko 2017, authors' code)."""

    def __init__(self, options: ATOptions, teacher: Mapping[str, Shape], student: Mapping[str, Shape]) -> None:
        super().__init__()
        self.weight = options.beta
        self.pairs = matched(options, teacher, student)
        self.signature = json.dumps(["attention", [(layer, size) for layer, _, size in self.pairs]])

    def targets(self, teacher: Outputs) -> Targets:
        return tuple(self._map(teacher.features[layer], size) for layer, _, size in self.pairs)

    def forward(self, student: Outputs, targets: Targets) -> Tensor:
        maps = (self._map(student.features[layer], size) for _, layer, size in self.pairs)
        return torch.stack([(own - target).square().mean() for own, target in zip(maps, targets, strict=True)]).sum()

    @staticmethod
    def _map(features: Tensor, size: tuple[int, int]) -> Tensor:
        return normalised(pooled(attention(features).unsqueeze(1), size))


class FactorTransfer(Term):
    """Σ over layers of mean |F_student − F_teacher|^p (the paper's equation 4; authors: one layer, p = 1).

    `paraphrasers` by teacher layer are frozen; the translators are fresh, their start depends on `seed` alone.
    Factors of maps of different size are average-pooled to the smaller before they are normalised.
    """

    def __init__(
        self,
        options: FTOptions,
        teacher: Mapping[str, Shape],
        student: Mapping[str, Shape],
        paraphrasers: Mapping[str, Paraphraser],
        seed: int,
        paraphrased_by: str = "",
    ) -> None:
        super().__init__()
        self.weight, self.p = options.beta, options.p
        self.pairs = matched(options, teacher, student)
        self.signature = json.dumps(["factors", paraphrased_by, [(layer, size) for layer, _, size in self.pairs]])
        self.paraphrasers = [paraphrasers[layer].eval().requires_grad_(False) for layer, _, _ in self.pairs]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.translators = nn.ModuleList(
                FactorTranslator(student[layer][0], paraphraser.factors)
                for (_, layer, _), paraphraser in zip(self.pairs, self.paraphrasers, strict=True)
            )

    def targets(self, teacher: Outputs) -> Targets:
        return tuple(
            normalised(pooled(paraphraser.encode(teacher.features[layer]), size))
            for (layer, _, size), paraphraser in zip(self.pairs, self.paraphrasers, strict=True)
        )

    def forward(self, student: Outputs, targets: Targets) -> Tensor:
        distances = [
            factor_distance(normalised(pooled(translator(student.features[layer]), size)), target, self.p)
            for (_, layer, size), translator, target in zip(self.pairs, self.translators, targets, strict=True)
        ]
        return torch.stack(distances).sum()


class Method(nn.Module):
    """(1 − alpha) · cross-entropy + Σ weight · term; alpha is KD's, 0 without it."""

    def __init__(self, terms: Mapping[str, Term], teacher_layers: tuple[str, ...], student_layers: tuple[str, ...]):
        super().__init__()
        self.terms = nn.ModuleDict(terms)
        self.label_weight = 1 - terms["kd"].weight if "kd" in terms else 1.0
        self.teacher_layers, self.student_layers = teacher_layers, student_layers

    def items(self) -> list[tuple[str, Term]]:
        return [(name, term) for name, term in self.terms.items() if isinstance(term, Term)]

    def targets(self, teacher: Outputs) -> dict[str, Targets]:
        """Return the targets of each term, from the teacher's outputs."""
        return {name: term.targets(teacher) for name, term in self.items()}

    def forward(self, student: Outputs, labels: Tensor, targets: Mapping[str, Targets]) -> dict[str, Tensor]:
        """The unweighted terms by name, and `loss`, their weighted sum."""
        parts = {"cross_entropy": functional.cross_entropy(student.logits, labels)}
        loss = self.label_weight * parts["cross_entropy"]
        for name, term in self.items():
            parts[name] = term(student, targets[name])
            loss = loss + term.weight * parts[name]
        return parts | {"loss": loss}


def method_layers(config: MethodConfig) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The teacher's and the student's layers that the method reads, each once."""
    options = [{"at": config.at, "ft": config.ft}[name] for name in config.name.split("+") if name in ("at", "ft")]
    ours = dict.fromkeys(layer for option in options for layer in option.teacher_layers)
    theirs = dict.fromkeys(layer for option in options for layer in option.student_layers)
    return tuple(ours), tuple(theirs)


def paraphrased_layers(config: MethodConfig) -> tuple[str, ...]:
    """The teacher's layers that the method needs a paraphraser of, each once."""
    return tuple(dict.fromkeys(config.ft.teacher_layers)) if "ft" in config.name.split("+") else ()


def build_method(
    config: MethodConfig,
    teacher: Mapping[str, Shape],
    student: Mapping[str, Shape],
    paraphrasers: Mapping[str, Paraphraser],
    seed: int,
    paraphrased_by: str = "",
) -> Method:
    """The method that `config` names, between layers of the given shapes (`features.feature_shapes`).

    `paraphrased_by` says which paraphrasers these are, for `Term.signature`.
    """
    terms: dict[str, Term] = {}
    for name in config.name.split("+"):
        if name == "kd":
            terms[name] = KnowledgeDistillation(config.kd)
        elif name == "at":
            terms[name] = AttentionTransfer(config.at, teacher, student)
        elif name == "ft":
            terms[name] = FactorTransfer(config.ft, teacher, student, paraphrasers, seed, paraphrased_by)
    return Method(terms, *method_layers(config))
