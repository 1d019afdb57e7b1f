"""What a YAML may say: one dataclass a section, a sentence under each field.

Nothing heavy is imported here, so that `--help` and a wrong key answer at once. Files: config_files.py.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelConfig:
    size: Literal["tiny", "base", "0.6b", "1.2b"] = "tiny"
    """Encoder and decoder widths and depths (src/models/sizes.py)."""
    init_from: str | None = None
    """Checkpoint, export or release name whose weights training starts from; null starts from random weights."""
    drop_path: float = 0.0
    """Share of residual branches dropped in the last encoder block, rising linearly from 0 in the first; 0 to 1."""
    layer_scale: float | None = None
    """Initial value of LayerScale in the encoder blocks; null leaves LayerScale out."""
    gradient_checkpointing: bool = False
    """Recompute each block's activations in the backward pass: less memory, a third more time."""


@dataclass
class ObjectiveConfig:
    mask_ratio: float = 0.75
    """Share of each clip's tokens that the encoder does not see; above 0, below 1."""
    mask_group: int = 2
    """Neighbouring tokens that are masked together."""


@dataclass
class OptimizerConfig:
    lr: float = 3e-4
    """Peak learning rate for 256 clips a step; scaled in proportion to the effective batch."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; norms, biases, positions and the mask token have none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's decay rates of the two moments."""
    warmup_steps: int = 0
    """Optimiser steps from 0 to the peak learning rate."""
    final_share: float = 0.1
    """The cosine ends at this share of the peak."""


@dataclass
class SourceConfig:
    kind: Literal["huggingface", "folder", "shards"] = "folder"
    """A Hugging Face dataset, a folder of audio files, or WebDataset-style tar shards."""
    path: str = "???"
    """Hub id or local dataset; folder; or a shard file, glob or brace pattern."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    config_name: str | None = None
    """Configuration of a Hugging Face dataset that has several."""
    audio_column: str = "audio"
    """Column of a Hugging Face dataset that holds the audio."""
    label_column: str | None = None
    """Column of a Hugging Face dataset that holds the class or a list of classes; null reads no labels."""
    label_separator: str | None = None
    """What stands between several classes in one string of the label column; null takes a string as one class."""
    fold_column: str | None = None
    """Column of a Hugging Face dataset that holds the fold, a number, for cross-validation."""
    group_column: str | None = None
    """Column of a Hugging Face dataset whose clips stay together when a set is split: speaker, recording."""
    streaming: bool = False
    """Read a Hugging Face dataset in its own order, without downloading it first."""
    weight: float = 1.0
    """Share of the clips drawn from this source, relative to the other sources."""


@dataclass
class DataConfig:
    path: str | None = None
    """Where the audio lies, for fragments that say `${data.path}` (configs/data)."""
    sources: list[SourceConfig] = field(default_factory=list)
    """What is trained on; several are mixed by their weights."""
    validation: SourceConfig | None = None
    """Held-out audio for the validation loss; null skips validation."""
    test: SourceConfig | None = None
    """Audio for `test` and `predict`."""
    crop_seconds: float = 10.0
    """Longest piece of a clip in a batch; 0.05 to 10.08. A longer clip gives several crops an epoch."""
    pad_to_crop: bool = False
    """Pad every clip with zeros to crop_seconds and treat them as sound, as the paper does."""
    batch_size: int | None = None
    """Clips a batch and process; set this or batch_seconds."""
    batch_seconds: float | None = None
    """Seconds of padded audio a batch and process; set this or batch_size."""
    window_clips: int = 4096
    """Crops that are shuffled and sorted into length buckets together."""
    resample: bool = False
    """Draw clips with replacement, as the official code does; false takes each once an epoch."""
    gain_db: float | None = None
    """Each crop is made louder or softer by up to this many dB; null leaves the level alone."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    prefetch_factor: int | None = None
    """Batches that each worker prepares in advance; null is 2. Needs num_workers."""
    pin_memory: bool | None = None
    """Batches in page-locked memory, which a GPU copies faster; null: where there is a GPU."""
    persistent_workers: bool = True
    """Keep the workers between epochs."""
    cache_gigabytes: float = 4.0
    """A set that fits is decoded once into a 16-bit cache of at most this size; 0 turns the cache off."""
    max_bad_share: float = 0.1
    """Largest share of unreadable clips, and of shards, before the run stops; 0 to 1."""


@dataclass
class TrainerConfig:
    """Arguments of `lightning.Trainer`, with its names and meaning; the last three are ours."""

    max_steps: int = -1
    """Optimizer steps; -1: max_epochs says how many."""
    max_epochs: int | None = None
    """Passes over the training clips; null: max_steps says how long."""
    max_time: str | None = None
    """Stop and save after this time, DD:HH:MM:SS; null has no limit."""
    accumulate_grad_batches: int = 1
    """Batches a process puts into one optimizer step."""
    gradient_clip_val: float | None = None
    """Largest norm of the gradient; null does not clip."""
    log_every_n_steps: int = 10
    """Steps between two rows of metrics.csv."""
    val_check_interval: int | float | None = None
    """Batches between two validations, or a fraction of an epoch; null: after each epoch. Probes and pictures of
    pretraining come with it, and once more at the end."""
    check_val_every_n_epoch: int = 1
    """Classification: epochs between two validations."""
    limit_train_batches: int | float | None = None
    """Batches of an epoch, or a fraction of them; null takes all."""
    limit_val_batches: int | float | None = None
    """Batches of a validation, or a fraction of them; null takes all."""
    fast_dev_run: bool | int = False
    """Try out one batch (or this many) of training, validation and test, and write nothing."""
    overfit_batches: int | float = 0
    """Train on the first batches only, again and again: a number or a fraction; 0 is off."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Lightning's profiler; it writes into the run's folder."""
    detect_anomaly: bool = False
    """Stop where a gradient becomes NaN (slow)."""
    deterministic: bool | str = False
    """Deterministic algorithms only; warn says where there is none."""
    benchmark: bool | None = None
    """cuDNN chooses its algorithms by measuring."""
    devices: int | str = 1
    """Processes (GPUs, or CPU processes) on each node; auto: all GPUs, or one CPU process."""
    num_nodes: int = 1
    """Nodes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp: a copy of the model on each process; fsdp: a shard of it; auto: ddp for more than one process."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Hardware."""
    precision: str = "auto"
    """32-true, bf16-mixed or 16-mixed; auto: bf16-mixed where the GPU computes in it, else 32-true."""
    compile: bool = False
    """torch.compile each block: minutes at the start, faster steps on a GPU."""
    threads: int | None = None
    """CPU threads a process; null leaves torch's choice."""
    skip_bad_steps: int | None = 10
    """Leave out steps with a NaN or a jump of the loss; more than this many in a row stop the run. null: none."""


@dataclass
class CheckpointConfig:
    """Arguments of Lightning's `ModelCheckpoint`, with its names and meaning."""

    every_n_train_steps: int = 500
    """Optimizer steps between two saves of checkpoints/last.ckpt."""
    train_time_interval: str | None = None
    """Save last.ckpt also after this time, DD:HH:MM:SS; null goes by steps alone."""
    save_last: bool = True
    """Keep last.ckpt; without it a run that is killed cannot be resumed (a signal still saves it)."""
    save_top_k: int = 2
    """Checkpoints kept for the best values of `monitor`; -1 keeps all, 0 none."""
    monitor: str = "val/loss"
    """The logged value that says which is best."""
    mode: Literal["min", "max"] = "min"
    """Whether the best value is the smallest or the largest."""


@dataclass
class CheckConfig:
    train: SourceConfig | None = None
    """Labelled clips the probes learn from; null leaves the probes out."""
    test: SourceConfig | None = None
    """Labelled clips the probes are scored on."""
    layer: int | None = None
    """Block whose output is read (1 is the first, 0 the patch embedding); null reads the encoder's normed output."""
    pooling: Literal["mean", "max", "mean_std", "mean_max"] = "mean"
    """How the tokens of a clip become one embedding."""
    max_clips: int = 2000
    """Clips of each labelled split that are used."""


@dataclass
class AugmentConfig:
    gain_db: float = 6.0
    """Each clip is made louder or softer by up to this many dB; 0 leaves the level alone."""
    shift_seconds: float = 0.5
    """Each clip is turned in time by up to this much; 0 leaves it. Not where frames are classified."""
    noise_db: float | None = None
    """White noise is added this many dB under the clip's level, up to 30 dB less; null adds none."""
    mixup: float = 0.0
    """Clips are mixed with one another, labels too, by shares from Beta(mixup, mixup); 0 does not mix."""
    mask_bands: int = 12
    """SpecAugment: mel bands that are hidden together, at most; 0 hides none."""
    mask_frames: int = 20
    """SpecAugment: frames (10 ms) that are hidden together, at most; 0 hides none."""


@dataclass
class ClassifyConfig:
    method: Literal["linear", "finetune", "probe_then_finetune"] = "linear"
    """Train the head on a frozen encoder; all of it; or the head first, by logistic regression, and then all of it."""
    level: Literal["clip", "frame"] = "clip"
    """One answer a clip; or one each 40 ms, learnt from events (onset and offset in labels.csv)."""
    task: Literal["auto", "single", "multi"] = "auto"
    """One class a clip, or several; auto looks whether any clip has several."""
    layer: int | None = None
    """Block whose output is read (1 is the first, 0 the patch embedding); null reads the encoder's normed output."""
    pooling: Literal["mean", "max", "mean_std", "mean_max"] = "mean"
    """How the tokens of a clip become one embedding."""
    layer_decay: float = 0.75
    """Each block learns this much slower than the one above it; 1 treats all alike."""
    label_smoothing: float = 0.0
    """Share of a label that is spread over all classes; 0 to 1, for one class a clip."""
    balanced: Literal["weights", "sampling"] | None = None
    """Let each class count the same, however many clips it has: weights of the loss, or how often clips are drawn."""
    lora_rank: int | None = None
    """Fine-tune by low-rank adapters of this rank (LoRA) in place of the encoder's own weights; null trains all."""
    test_fold: int | None = None
    """Of a set with folds: the one that is tested on; null takes the first."""
    folds: int | None = None
    """Cross-validation: each fold is tested once; of a set without folds this many are made. null tests once."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrackingConfig:
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases: offline needs no account; null is off. metrics.csv is always written."""
    project: str = "audio-encoder"
    """Project in Weights & Biases."""
    entity: str | None = None
    """User or team that owns the project; null is your default."""
    group: str | None = None
    """Group of the run."""
    name: str | None = None
    """Name of the run there; null takes the run folder's."""
    tags: list[str] = field(default_factory=list)
    """Tags of the run."""
    notes: str | None = None
    """A description of the run."""
    job_type: str | None = None
    """Kind of the run."""
    log_model: bool = False
    """Upload the last and the best checkpoints at the end as artifacts."""


@dataclass
class CallbackConfig:
    class_path: str = "???"
    """A Lightning callback of your own, my.module.Class."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of its constructor."""


@dataclass
class Config:
    name: str = "pretrain"
    """The run's folder under runs_folder."""
    runs_folder: str = "runs"
    """Where runs are written."""
    seed: int = 0
    """Fixes initial weights, order of clips, crops and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    callbacks: list[CallbackConfig] = field(default_factory=list)
    """Callbacks of your own, as in LightningCLI: [{class_path: my.module.Class, init_args: {...}}]."""
    classify: ClassifyConfig | None = None
    """Train a classifier of the sources' labels; null pretrains."""
