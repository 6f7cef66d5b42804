"""The table of loss terms; docs/extending/loss.md shows how to add one.

The training step computes every term that applies, weights it, adds it to the loss and logs its
mean as `loss_<name>`.

Shape letters: B items, K points, M side of the mask map.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mal.data.batch import CropBatch, box_mask_from_unit_box
from mal.errors import MalError, SpecError
from mal.model.losses import dice_loss, mil_loss, point_loss
from mal.spec.experiment import TrainSpec
from mal.training.optimizer import warmup_factor, window_factor


class LossInputs:
    """What a loss term may read.

    Attributes:
        batch: The crops; its `point_BK3` is None without labelled points.
        logits_BMM: The student's mask, float32.
        prob_BMM: Its sigmoid.
    """

    def __init__(
        self, batch: CropBatch, logits_BMM: Tensor, make_pseudo_label: Callable[..., Tensor]
    ) -> None:
        self.batch = batch
        self.logits_BMM = logits_BMM.float()
        self.prob_BMM = self.logits_BMM.sigmoid()
        self._make_pseudo_label = make_pseudo_label

    @functools.cached_property
    def box_mask(self) -> Tensor:
        """Boxes as masks: 1 inside, 0 outside, (B, M, M)."""
        return box_mask_from_unit_box(self.batch.unit_box_B4, self.prob_BMM.shape[-1])

    @functools.cached_property
    def pseudo_label(self) -> Tensor:
        """The pseudo label, 0 or 1, (B, M, M); the teacher and the mean field run once a step."""
        return self._make_pseudo_label(self.prob_BMM, self.box_mask)


@dataclass(frozen=True)
class LossTerm:
    """One row of the table.

    Attributes:
        name: Logged as `loss_<name>`.
        weight: A key of the spec's `train` section, or a fixed weight.
        compute: Returns one value an item, shape (B,).
        schedule: Returns the part of the weight that counts, 0 to 1, in step `step` of `num_steps`.
        needs_points: Whether it applies only where annotations have labelled points.
        needs_pseudo_label: Whether it reads the pseudo label. At weight 0 it is then skipped, and
            with it the teacher's forward pass.
        is_for_boxes: Whether it applies only with `train.supervision=box`.
    """

    name: str
    weight: str | float
    compute: Callable[[LossInputs], Tensor]
    schedule: Callable[[TrainSpec, int, int], float] = lambda _train, _step, _num_steps: 1.0
    needs_points: bool = False
    needs_pseudo_label: bool = False
    is_for_boxes: bool = True

    def weight_at(self, train: TrainSpec, step: int, num_steps: int) -> float:
        """Return the weight of the term in a step."""
        weight = getattr(train, self.weight) if isinstance(self.weight, str) else self.weight
        return float(weight) * self.schedule(train, step, num_steps)

    def applies_to(self, batch: CropBatch, train: TrainSpec, weight: float) -> bool:
        """Whether a step with this batch and weight computes the term."""
        if self.needs_points and batch.point_BK3 is None:
            return False
        if self.is_for_boxes and train.supervision != "box":
            return False
        return weight > 0 or not self.needs_pseudo_label

    def mean_of(self, inputs: LossInputs) -> Tensor:
        """Compute the term and return its mean over the items.

        Raises:
            MalError: It does not return one value an item, or on a CPU no finite one. (On a GPU
                that check would make the host wait; there the epoch's end finds it.)
        """
        value = self.compute(inputs)
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        if shape != (len(inputs.batch),):
            raise MalError(
                f"The loss term {self.name} returned {shape} instead of one value per item, shape "
                f"({len(inputs.batch)},). Do not reduce over the batch in its function: the "
                "training step takes the mean."
            )
        mean = value.mean()
        if mean.device.type == "cpu" and not mean.isfinite():
            raise diverged(f"loss_{self.name}", float(mean))
        return mean


def diverged(name: str, value: float) -> MalError:
    """Return the error of a training that learns nothing any more."""
    return MalError(
        f"The training diverged: {name} is {value}. Lower train.lr, or set "
        "train.clip_grad_norm=1.0 or train.precision=fp32. The last checkpoint is from before."
    )


LOSS_TERMS: list[LossTerm] = []


def register_loss_term(term: LossTerm) -> None:
    """Add a loss term to the table.

    Raises:
        SpecError: Its name is taken, or its weight is no number of the spec's `train` section.
    """
    if any(known.name == term.name for known in LOSS_TERMS):
        raise SpecError(
            f"name of a loss term must be new, got {term.name}, which the table has. Choose "
            "another name."
        )
    weights = [f.name for f in dataclasses.fields(TrainSpec) if isinstance(f.default, float)]
    if isinstance(term.weight, str) and term.weight not in weights:
        raise SpecError(
            f"weight of the loss term {term.name} must be a number or a number's key of the "
            f"spec's train section, got {term.weight}. Add the key to TrainSpec in "
            "mal/spec/experiment.py, or give a fixed weight."
        )
    LOSS_TERMS.append(term)


def _crf_factor(train: TrainSpec, step: int, num_steps: int) -> float:
    if train.loss_crf_window:
        return window_factor(step, num_steps, train.loss_crf_window)
    return warmup_factor(step, train.loss_crf_step)


def _point_loss(inputs: LossInputs) -> Tensor:
    assert inputs.batch.point_BK3 is not None
    return point_loss(inputs.logits_BMM, inputs.batch.point_BK3)


register_loss_term(
    LossTerm(
        "mil",
        weight="loss_mil_weight",
        compute=lambda inputs: mil_loss(inputs.prob_BMM, inputs.box_mask),
        schedule=lambda train, step, _num_steps: warmup_factor(step, train.loss_mil_step),
    )
)
register_loss_term(
    LossTerm(
        "crf",
        weight="loss_crf_weight",
        compute=lambda inputs: dice_loss(inputs.prob_BMM, inputs.pseudo_label),
        schedule=_crf_factor,
        needs_pseudo_label=True,
    )
)
register_loss_term(
    LossTerm(
        "point",
        weight="loss_point_weight",
        compute=_point_loss,
        needs_points=True,
        is_for_boxes=False,
    )
)
