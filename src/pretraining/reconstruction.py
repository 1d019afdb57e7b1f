"""Plot target, masked and predicted log-mel of a few fixed clips."""

from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure  # not pyplot: no display, no global state
from matplotlib.image import imread

from src.models.mae import MaskedAutoencoder
from src.pretraining.module import MAEPretraining
from src.training.callbacks.steps import Periodic


class Reconstruction(Periodic):
    """Draws `pictures/step=N.png` every `every_n_batches` and at the end.

    Args:
        waveforms: clips to draw, (T,) each.
    """

    def __init__(self, folder: Path, every_n_batches: int | None, waveforms: list[np.ndarray]) -> None:
        super().__init__(every_n_batches)
        self.folder, self.waveforms = folder, waveforms

    @property
    def latest(self) -> Path | None:
        pictures = sorted(self.folder.glob("step=*.png"), key=lambda path: int(path.stem.partition("=")[2]))
        return pictures[-1] if pictures else None

    def act(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, MAEPretraining)
        with trainer.precision_plugin.forward_context():
            panels = [reconstruct(pl_module.model, waveform, seed) for seed, waveform in enumerate(self.waveforms)]
        if trainer.is_global_zero:
            path = self.folder / f"step={trainer.global_step}.png"
            draw(panels, pl_module.model.encoder.hop_seconds / 4, path)
            log_picture(trainer, path, pl_module.model.encoder.hop_seconds)


def log_picture(trainer: L.Trainer, path: Path, hop_seconds: float) -> None:
    step = trainer.global_step
    caption = (
        f"step {step}; log-mel target, what the encoder sees, and prediction of {1000 * hop_seconds:.0f} ms tokens"
    )
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image("reconstruction", [str(path)], step=step, caption=[caption])
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("reconstruction", imread(path)[..., :3], step, dataformats="HWC")


@torch.no_grad()
def reconstruct(model: MaskedAutoencoder, waveform: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Target, masked and predicted log-mel of one clip, (64, F) in dB each; masked patches are NaN in the second.

    The model predicts normalized 40 ms patches; mean and deviation in dB are taken from the target.
    """
    was_training = model.training
    model.eval()
    device = model.encoder.time_pos_embed.device
    samples = torch.from_numpy(waveform)[None, : round(10.08 * model.encoder.sample_rate)].to(device)
    output = model(samples, seeds=torch.tensor([seed], device=device))
    target = model.run(model.encoder.tokenize, samples, None)[1][0].clone()  # (N, P) in dB
    model.train(was_training)
    mask = output.mask[0]
    masked, predicted = target.clone(), target.clone()
    masked[mask] = torch.nan
    predicted[mask] = output.prediction * output.deviation + output.mean
    n_mels = model.encoder.log_mel.n_mels
    return tuple(
        patches.unflatten(1, (n_mels, -1)).transpose(0, 1).flatten(1).cpu().numpy()
        for patches in (target, masked, predicted)
    )


def draw(panels: list[tuple[np.ndarray, ...]], frame_seconds: float, path: Path) -> None:
    """A column per clip with one dB scale; rows target, masked, prediction; axes in seconds and Hz."""
    figure = Figure(figsize=(4.5 * len(panels), 7))
    margins = {"left": 0.07, "right": 0.97, "top": 0.95, "bottom": 0.08}
    axes = figure.subplots(3, len(panels), squeeze=False, sharex="col", sharey=True, gridspec_kw=margins)
    for column, rows in zip(axes.T, panels, strict=True):
        low, high = np.percentile(rows[0], 2), rows[0].max()
        for axis, values, title in zip(column, rows, ("target", "masked", "prediction"), strict=True):
            extent = (0, values.shape[1] * frame_seconds, 0, len(values))
            image = axis.imshow(values, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high)
            axis.set_title(title)
            axis.set_facecolor("0.85")
            axis.set_yticks(*_hz_ticks(len(values)))
        column[-1].set_xlabel("seconds")
        figure.colorbar(image, ax=list(column), label="dB", shrink=0.6)
    for axis in axes[:, 0]:
        axis.set_ylabel("Hz")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _hz_ticks(n_mels: int) -> tuple[list[float], list[str]]:
    """Positions and labels of round frequencies on an axis of HTK mel bands from 0 to 8000 Hz."""
    hertz = (250, 1000, 2000, 4000, 8000)
    return [n_mels * np.log10(1 + h / 700) / np.log10(1 + 8000 / 700) for h in hertz], [str(h) for h in hertz]
