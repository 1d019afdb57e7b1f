"""k-NN and linear probes on a small labeled set during pretraining, compared with baselines measured before it."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning.pytorch as L
import numpy as np

from src.data.labelled.probe_clips import ProbeClips
from src.evaluation.embeddings import calibrate_norm, embed_clips, mel_statistics
from src.evaluation.probes import ProbeScores, majority_accuracy, probe
from src.models.vit import Layer, Pooling
from src.pretraining.module import MAEPretraining
from src.training.callbacks.steps import Periodic


class LearningCheck(Periodic):
    """Probes the encoder every `every_n_batches` and at the end.

    All processes compute embeddings, since a sharded encoder needs them all.

    Args:
        train, test: labeled clips to fit the probes on and to score them on.
        layer, pooling: as `AudioViT.embed`.
        pretrained: the run starts from the weights of `model.init_from`. They are a floor then, "init_from"; there is
            no untrained encoder to measure.

    Attributes:
        floors: accuracies of the baselines. scores: of the last check.
    """

    def __init__(
        self,
        train: ProbeClips,
        test: ProbeClips,
        every_n_batches: int | None,
        layer: Layer | Sequence[Layer],
        pooling: Pooling,
        pretrained: bool = False,
    ) -> None:
        super().__init__(every_n_batches)
        self.train, self.test, self.layer, self.pooling = train, test, layer, pooling
        self.pretrained = pretrained
        self.floors: dict[str, dict[str, float]] = {}
        self.scores: ProbeScores | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"floors": self.floors, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.floors, self.seconds = state_dict["floors"], state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.floors:  # a resumed run
            return
        majority = majority_accuracy(self.train.labels, self.test.labels)
        mel = self._probe(mel_statistics(self.train.waveforms), mel_statistics(self.test.waveforms))
        start = self.measure(pl_module) if self.pretrained else self._measure_untrained(pl_module)
        self.floors = {
            "majority": {"knn": majority, "linear": majority},
            "mel": {"knn": mel.knn, "linear": mel.linear},
            "init_from" if self.pretrained else "untrained": {"knn": start.knn, "linear": start.linear},
        }
        self._log(trainer, {f"floor/{name}_{key}": v for name, row in self.floors.items() for key, v in row.items()})

    def _measure_untrained(self, pl_module: L.LightningModule) -> ProbeScores:
        """With batch-norm statistics of the labeled clips; without them the input is raw dB and the floor too low."""
        assert isinstance(pl_module, MAEPretraining)
        model = pl_module.model
        statistics = list(model.encoder.init_bn.buffers())
        before = [value.clone() for value in statistics]
        model.run(calibrate_norm, model.encoder, self.train.waveforms)
        scores = self.measure(pl_module)
        for value, original in zip(statistics, before, strict=True):
            value.copy_(original)
        return scores

    def measure(self, pl_module: L.LightningModule) -> ProbeScores:
        """Scores of the module's current encoder."""
        assert isinstance(pl_module, MAEPretraining)
        model = pl_module.model
        with pl_module.trainer.precision_plugin.forward_context():
            train, test = (
                model.run(embed_clips, model.encoder, clips.waveforms, self.layer, self.pooling)
                for clips in (self.train, self.test)
            )
        return self._probe(train, test)

    def _probe(self, train: np.ndarray, test: np.ndarray) -> ProbeScores:
        return probe(train, self.train.labels, test, self.test.labels)

    def act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.scores = self.measure(pl_module)
        self._log(trainer, {f"check/{key}": value for key, value in asdict(self.scores).items()})

    def _log(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        for logger in trainer.loggers:  # in the row of the last step's losses
            logger.log_metrics(values, step=max(0, trainer.global_step - 1))
