"""Classification as a LightningModule: linear probe, fine-tuning, or one after the other."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

from src.classification.augment import SpecAugment, augment
from src.classification.batches import logits_of
from src.classification.lora import has_adapters
from src.config.settings import AugmentConfig, ClassifyConfig, OptimizerConfig
from src.data.labelled.datamodule import LabelledDataModule
from src.encoders.low_rank import merge
from src.models.classifier import AudioClassifier
from src.models.initialize import initialize
from src.models.sizes import build_encoder
from src.training.module import TrainingModule
from src.training.optimizer import NO_DECAY


class AudioClassification(TrainingModule):
    """
    Args:
        model: the network, or the arguments of `build_classifier`.
        config: method, augmentation, balancing.
        optimizer: settings of AdamW and the schedule.
        class_counts: (C,) training clips per class, for balanced weights; None means equal counts.
        seed: of augmentation and drop-path.

    Attributes:
        predictions: after a test: index in the split -> (probabilities, targets), each (C,), or (N, C) at frame level.
    """

    model: AudioClassifier

    def __init__(
        self,
        model: AudioClassifier | dict[str, Any],
        config: ClassifyConfig | dict[str, Any] | None = None,
        optimizer: OptimizerConfig | dict[str, Any] | None = None,
        class_counts: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        model = build_classifier(**model) if isinstance(model, dict) else model
        config = classify_config(config)
        optimizer = OptimizerConfig(**optimizer) if isinstance(optimizer, dict) else optimizer or OptimizerConfig()
        super().__init__(model, optimizer)
        counts = torch.tensor([1.0] * len(model.class_names) if class_counts is None else list(class_counts))
        self.save_hyperparameters(
            {
                "model": {"encoder": model.encoder.architecture, "classifier": model.settings},
                "config": asdict(config),
                "optimizer": asdict(optimizer),
                "class_counts": counts.tolist(),
                "seed": seed,
            }
        )
        self.config, self.seed = config, seed
        self.frames = model.pooling is None
        weights = counts.sum() / counts.clamp(min=1) / len(counts)
        self.class_weights: Tensor
        self.register_buffer(
            "class_weights", weights if config.balanced == "weights" else torch.ones_like(weights), persistent=False
        )
        self._set_up_learning()
        self.metrics = make_metrics(model.multi, len(counts))
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})
        self.predictions: dict[int, tuple[Tensor, Tensor]] = {}

    def _set_up_learning(self) -> None:
        """Freeze the encoder of a linear probe, or add SpecAugment."""
        if self.config.method == "linear":
            self.model.encoder.requires_grad_(False)
            return
        augmented = self.config.augment
        if augmented.mask_bands or augmented.mask_frames:
            masks = self.masks = SpecAugment(augmented.mask_bands, augmented.mask_frames)
            self.model.encoder.init_bn.register_forward_pre_hook(
                lambda norm, inputs: (masks(inputs[0], norm.running_mean), *inputs[1:])
            )

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        return layer_groups(self.model, lr, self.optimizer_config.weight_decay, self.config.layer_decay)

    def on_train_epoch_start(self) -> None:
        if self.config.method == "linear":
            self.model.encoder.eval()
        self.model.encoder.init_bn.eval()  # keep its statistics from pretraining; small batches would degrade them

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step, so that it is a pure function of (weights, seed, epoch, batch, rank)."""
        super().on_train_batch_start(batch, batch_idx)
        if isinstance(data := getattr(self.trainer, "datamodule", None), LabelledDataModule):
            data.progress = (self.current_epoch, batch_idx + 1)
        position = self.current_epoch * 2**32 + batch_idx * 2**16 + self.global_rank
        torch.manual_seed((self.seed * 2**44 + position) % 2**63)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        target, valid = self._targets(batch)
        if "embedding" in batch:
            logits = self.model.head(batch["embedding"])
        else:
            config = replace(self.config.augment, shift_seconds=0.0) if self.frames else self.config.augment
            waveform, length, target = augment(batch["waveform"], batch["length"], target, config)
            logits = self.model(waveform, length)
            if valid is not None:
                valid = _valid_tokens(logits, self.model.encoder.num_tokens(length))
        loss = self.loss(logits, target, valid)
        self.log("train/loss", loss.detach())
        return loss

    def loss(self, logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
        """Cross-entropy with class probabilities; binary cross-entropy per class for a multi-label model.

        In training, label smoothing moves targets toward 1 / C, or toward 0.5 per class for a multi-label model. A
        label keeps the weight of its own class: the share that is smoothed away to a rare class is not multiplied by
        that class's weight.

        Args:
            logits, target: (B, C), or (B, N, C) with valid (B, N), True for real tokens.
        """
        if valid is not None:
            logits, target = logits[valid], target[valid]
        smoothing = self.config.label_smoothing if self.training else 0.0
        if self.model.multi:
            present, absent = target * self.class_weights, 1 - target
            weight = present + absent
            smooth = (1 - smoothing) * present + smoothing * weight / 2
            return binary_cross_entropy_with_logits(logits, smooth / weight, weight)
        target = target * self.class_weights
        target = (1 - smoothing) * target + smoothing * target.mean(1, keepdim=True)
        return cross_entropy(logits, target)

    def _targets(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Targets (B, C) and None; at frame level (B, N, C) and valid (B, N), True for real tokens."""
        if not self.frames:
            return batch["target"], None
        encoder = self.model.encoder
        num_tokens = batch["num_tokens"] if "num_tokens" in batch else encoder.num_tokens(batch["length"])
        times = encoder.token_times(int(num_tokens.max())).to(num_tokens.device)
        target = frame_targets(batch["events"], times, batch["target"].shape[1])
        return target, _valid_tokens(target, num_tokens)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        probability, target, valid = self._measure("test", batch)
        for row, index in enumerate(batch["index"].tolist()):
            real = slice(None) if valid is None else valid[row]
            self.predictions[index] = probability[row][real].float().cpu(), target[row][real].cpu()

    def _measure(self, stage: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Update loss and metrics; returns probabilities, targets and valid."""
        if "embedding" in batch:
            logits = self.model.head(batch["embedding"])
        else:
            logits = logits_of(self.model, batch["waveform"], batch["length"])
        target, valid = self._targets(batch)
        count = len(logits) if valid is None else int(valid.sum())  # clips, or tokens
        self.losses[stage].update(self.loss(logits, target, valid), weight=count)  # type: ignore[operator]
        probability = self.model.probabilities(logits)
        scored, labels = (probability, target) if valid is None else (probability[valid], target[valid])
        self.metrics.update(scored, labels.long() if self.model.multi else labels.argmax(1))
        return probability, target, valid

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")
        if dist.is_available() and dist.is_initialized():
            gathered: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, self.predictions)
            self.predictions = {index: row for each in gathered for index, row in each.items()}

    def _log_metrics(self, stage: str) -> None:
        self.log(f"{stage}/loss", self.losses[stage].compute())  # type: ignore[operator]
        self.losses[stage].reset()  # type: ignore[operator]
        self.log_dict({f"{stage}/{name}": value for name, value in self.metrics.compute().items()})
        self.metrics.reset()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A network without adapters (`load_from_checkpoint`) takes those of the checkpoint merged into its weights."""
        if not has_adapters(self.model):
            checkpoint["state_dict"] = merge(checkpoint["state_dict"])


def classify_config(config: ClassifyConfig | dict[str, Any] | None) -> ClassifyConfig:
    """The settings from a dataclass, from a checkpoint's nested dict, or the defaults."""
    if not isinstance(config, dict):
        return config or ClassifyConfig()
    return ClassifyConfig(**{**config, "augment": AugmentConfig(**config["augment"])})


def build_classifier(encoder: dict[str, Any], classifier: dict[str, Any]) -> AudioClassifier:
    """A classifier with initial weights from `AudioViT.architecture` and `AudioClassifier.settings`."""
    network = build_encoder(encoder).to_empty(device="cpu")
    initialize(network, 0, "encoder")
    return AudioClassifier(network, **classifier)


def frame_targets(events: Tensor, times: Tensor, num_classes: int) -> Tensor:
    """Classes active at each time.

    Args:
        events: (B, E, 3): onset and offset in seconds, class index; padded with rows of -1.
        times: (N,) seconds.

    Returns:
        (B, N, C) of 0 and 1.
    """
    onset, offset, label = events.unbind(-1)
    active = (onset[..., None] <= times) & (times < offset[..., None])  # (B, E, N)
    classes = torch.arange(num_classes, device=events.device) == label[..., None]  # (B, E, C)
    return torch.einsum("ben,bec->bnc", active.float(), classes.float()).clamp(max=1.0)


def _valid_tokens(tokens: Tensor, num_tokens: Tensor) -> Tensor:
    """Mask (B, N), True for the real tokens of (B, N, ...)."""
    return torch.arange(tokens.shape[1], device=num_tokens.device) < num_tokens[:, None]


def make_metrics(multi: bool, num_classes: int) -> MetricCollection:
    """Accuracy and macro F1; for multi-label, mean average precision and macro F1."""
    if multi:
        precision = MultilabelAveragePrecision(num_classes, average="macro")
        return MetricCollection({"map": precision, "f1": MultilabelF1Score(num_classes, average="macro")})
    accuracy = MulticlassAccuracy(num_classes, average="micro")
    return MetricCollection({"accuracy": accuracy, "f1": MulticlassF1Score(num_classes, average="macro")})


def layer_groups(model: AudioClassifier, learning_rate: float, weight_decay: float, decay: float) -> list[dict]:
    """Parameter groups with layer-wise decay: `learning_rate` for the head, times `decay` per block below.

    Norms, biases and positions have no weight decay.
    """
    depth = model.encoder.depth
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head."):
            level = depth + 1
        elif ".blocks." in name:
            level = int(name.split(".")[2]) + 1
        else:  # positions, patch embedding, batch norm; the final norm belongs to the last block
            level = depth if name.startswith("encoder.norm.") else 0
        no_decay = name.endswith(NO_DECAY) or parameter.ndim == 1
        group = groups.setdefault(
            (level, no_decay),
            {
                "params": [],
                "lr": learning_rate * decay ** (depth + 1 - level),
                "weight_decay": 0.0 if no_decay else weight_decay,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
