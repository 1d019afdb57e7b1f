"""All settings: a dataclass per section, with the help text of `--help` under each field.

Heavy packages are not imported here, so that `--help` and mistakes in keys are fast. Loading: files.py.
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass
class ModelConfig:
    size: Literal["tiny", "small", "base", "0.6b", "1.2b"] = "tiny"
    """Encoder and decoder widths and depths (src/models/sizes.py)."""
    init_from: str | None = None
    """Checkpoint, export, release name or hf://owner/name to load weights from; null starts from random weights."""
    drop_path: float = 0.0
    """Stochastic depth rate of the last encoder block, increasing linearly from 0 in the first; 0 to 0.99."""
    layer_scale: float | None = None
    """Initial value of LayerScale in the encoder blocks; null uses no LayerScale. 0.1 keeps more of what the patches
    say."""
    dct_patches: bool = False
    """The patch projection is a cosine transform, as in MFCC, or that of init_from; neither it nor scale and shift of
    the input's batch norm are trained. false trains them, as the paper does."""
    gradient_checkpointing: bool | None = None
    """Recompute activations of each block in the backward pass: less memory, about a third more time. null does so in
    pretraining if they do not fit otherwise (--plan)."""


@dataclass
class ObjectiveConfig:
    mask_ratio: float = 0.75
    """Fraction of each clip's tokens hidden from the encoder; 0.01 to 0.99."""
    mask_group: int = 2
    """Number of adjacent tokens masked together; 1 to 126."""


@dataclass
class OptimizerConfig:
    name: Literal["adamw", "muon"] = "adamw"
    """muon updates the matrices of the blocks by orthogonalized momentum, and all other parameters as adamw."""
    lr: float = 3e-4
    """Peak learning rate for an effective batch of 256 clips; scaled linearly with the effective batch."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; norms, biases, positions and the mask token have none."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """AdamW's decay rates of the first and second moment."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up to the peak learning rate."""
    final_share: float = 0.1
    """Learning rate at the end of the cosine, as a fraction of the peak; 0 to 1."""


@dataclass
class SourceConfig:
    kind: Literal["huggingface", "folder", "shards"] = "folder"
    """A Hugging Face dataset, a folder of audio files, or WebDataset-style tar shards."""
    path: str = "???"
    """Local dataset or hf://owner/name on the hub; folder; or a shard file, glob or brace pattern."""
    split: str = "train"
    """Hugging Face: split."""
    config_name: str | None = None
    """Hugging Face: configuration of a dataset that has several; null is the default one."""
    audio_column: str = "audio"
    """Hugging Face: column of the audio."""
    label_column: str | None = None
    """Hugging Face: column of the class, of a list of classes, or of 0 or 1 for each class; null reads no labels."""
    label_separator: str | None = None
    """Hugging Face: separator of several classes in one string of the label column; null expects one class."""
    fold_column: str | None = None
    """Hugging Face: column of the folds for cross-validation, numbers or names; null reads none."""
    group_column: str | None = None
    """Hugging Face: column of the group (speaker, recording) whose clips must be in the same split; null for none."""
    streaming: bool = False
    """Hugging Face: read the dataset in its own order, without downloading it first."""
    weight: float = 1.0
    """Sampling weight relative to the other sources."""


@dataclass
class DataConfig:
    path: str | None = None
    """Location of the audio, used as `${data.path}` by the fragments in configs/data; null if they are not used."""
    sources: list[SourceConfig] = field(default_factory=list)
    """Training data; several sources are mixed by weight."""
    validation: SourceConfig | None = None
    """Validation data; null skips validation in pretraining and splits it off the training data for a classifier."""
    test: SourceConfig | None = None
    """Data of `test` and `predict`; null for none, or split off the training data for a classifier's test."""
    crop_seconds: float = 10.0
    """Maximum length of a crop in seconds; 0.05 to 10.08. In pretraining longer clips give several crops per epoch."""
    pad_to_crop: bool = False
    """Pad every clip with zeros to crop_seconds and treat the padding as audio, as in the paper."""
    batch_size: int | None = None
    """Clips per batch and process; set either this or batch_seconds, the other is null."""
    batch_seconds: float | None = None
    """Seconds of padded audio per batch and process; set either this or batch_size, the other is null."""
    window_clips: int = 4096
    """Crops that are shuffled and grouped by length together."""
    resample: bool = False
    """Draw clips with replacement, as the official code does; false takes each clip once per epoch."""
    gain_db: float | None = None
    """Random gain per crop, up to plus or minus this many dB; null applies none."""
    num_workers: int = 0
    """Decoding worker processes per training process; 0 decodes in the training process."""
    prefetch_factor: int | None = None
    """Batches prefetched by each worker; null means 2. Requires num_workers of 1 or more."""
    pin_memory: bool | None = None
    """Put batches in pinned memory for faster copies to a GPU; null does so if there is a GPU."""
    persistent_workers: bool = True
    """Keep workers alive between epochs."""
    cache_gigabytes: float = 4.0
    """Maximum size in GB of the 16-bit cache of decoded audio, used if the data fit; 0 disables it."""
    max_bad_share: float = 0.1
    """Stop if more than this fraction of clips, or of shards, is unreadable; 0 to 1."""


@dataclass
class TrainerConfig:
    """Arguments of `lightning.Trainer` by name; the last three are our own."""

    max_steps: int = -1
    """Optimizer steps of the run; -1 for no limit (set max_epochs)."""
    max_epochs: int | None = None
    """Epochs of the run; null for no limit (set max_steps)."""
    max_time: str | None = None
    """Save and stop after this time, DD:HH:MM:SS; null for no limit."""
    accumulate_grad_batches: int = 1
    """Batches per process and optimizer step."""
    gradient_clip_val: float | None = None
    """Maximum gradient norm; null disables clipping."""
    log_every_n_steps: int = 10
    """Optimizer steps between rows of metrics.csv."""
    val_check_interval: int | float | None = None
    """Batches between validations, or a fraction of an epoch; null validates after each epoch. In pretraining, probes
    and pictures run at the same interval and at the end."""
    check_val_every_n_epoch: int = 1
    """Epochs between validations of a classifier."""
    limit_train_batches: int | float | None = None
    """Training batches per epoch, or a fraction of them; null uses all."""
    limit_val_batches: int | float | None = None
    """Batches per validation, or a fraction of them; null uses all."""
    fast_dev_run: bool | int = False
    """Run one batch (or this number) of training, validation and test without keeping files."""
    overfit_batches: int | float = 0
    """Train repeatedly on the first batches only: a number or a fraction of an epoch; 0 disables it."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Lightning's profiler, which writes to the run folder; null for none."""
    detect_anomaly: bool = False
    """Raise an error at the operation whose gradient is NaN (slow)."""
    deterministic: bool | str = False
    """Use deterministic algorithms only; warn instead warns where there is none."""
    benchmark: bool | None = None
    """Let cuDNN choose its algorithms by measuring; null is torch's default."""
    devices: int | str = 1
    """Processes (GPUs, or CPU processes) per node; auto uses all GPUs, or one CPU process."""
    num_nodes: int = 1
    """Number of nodes."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """ddp replicates the model, fsdp shards it over the processes (pretraining only); auto is ddp for several."""
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    """Hardware; auto uses a GPU if there is one."""
    precision: str = "auto"
    """32-true, bf16-mixed or 16-mixed; auto is bf16-mixed on a GPU that supports it, else 32-true."""
    compile: bool | None = None
    """torch.compile each block: a minute of compilation at the start, faster steps; null does so on a GPU."""
    threads: int | None = None
    """CPU threads per process; null is torch's default."""
    skip_bad_steps: int | None = 10
    """Skip steps with a NaN or a jump of the loss; stop after more than this many in a row. null skips none."""


@dataclass
class CheckpointConfig:
    """Arguments of Lightning's `ModelCheckpoint` by name."""

    every_n_train_steps: int = 500
    """Optimizer steps between saves of checkpoints/last.ckpt."""
    train_time_interval: str | None = None
    """Also save last.ckpt after this time, DD:HH:MM:SS; null saves by steps only."""
    save_last: bool = True
    """Keep last.ckpt. Without it a killed run cannot be resumed; SIGTERM, SIGUSR1 and Ctrl-C still save it."""
    save_top_k: int = 2
    """Number of best checkpoints to keep; -1 keeps all, 0 none."""
    monitor: str = "val/loss"
    """Logged metric that decides which checkpoints are best."""
    mode: Literal["min", "max"] = "min"
    """Whether the minimum or the maximum of `monitor` is best."""


@dataclass
class CheckConfig:
    train: SourceConfig | None = None
    """Labeled clips to fit the probes on; null disables the probes."""
    test: SourceConfig | None = None
    """Labeled clips to score the probes on; null disables the probes."""
    layer: str | None = None
    """Encoder block to read (1 is the first, 0 the patch embedding), or several side by side, such as 0,6,last; null
    reads the normalized output, which is the last."""
    pooling: Literal["mean", "max", "mean_std", "mean_max"] = "mean"
    """Pooling of a clip's tokens into one embedding."""
    max_clips: int = 2000
    """Maximum number of clips per split; at least 2."""


@dataclass
class AugmentConfig:
    gain_db: float = 6.0
    """Random gain per clip, up to plus or minus this many dB; 0 disables it."""
    shift_seconds: float = 0.5
    """Random circular shift in time, up to plus or minus this many seconds; 0 disables it. Unused with level=frame."""
    noise_db: float | None = None
    """Minimum SNR of added white noise in dB; the SNR is drawn from this to 30 dB more. null adds none."""
    mixup: float = 0.0
    """Mix clips and their labels in pairs with weights from Beta(mixup, mixup); 0 disables it."""
    mask_bands: int = 12
    """SpecAugment: maximum width of the frequency mask in mel bands, filled with the band's mean; 0 disables it."""
    mask_frames: int = 20
    """SpecAugment: maximum width of the time mask in frames of 10 ms, filled with the bands' means; 0 disables it."""


@dataclass
class ClassifyConfig:
    method: Literal["linear", "finetune", "probe_then_finetune"] = "linear"
    """linear trains the head on a frozen encoder, finetune trains both, probe_then_finetune fits the head by logistic
    regression and then trains both."""
    level: Literal["clip", "frame"] = "clip"
    """Classify whole clips, or every 40 ms frame, trained on events (onset and offset in labels.csv)."""
    task: Literal["auto", "single", "multi"] = "auto"
    """One class per clip, or several (multi-label); auto is multi if any clip has several."""
    layer: str | None = None
    """Encoder block to read (1 is the first, 0 the patch embedding), or several side by side, such as 0,6,last; no
    block above is kept. null reads the normalized output, which is the last."""
    pooling: Literal["mean", "max", "mean_std", "mean_max"] = "mean"
    """Pooling of a clip's tokens into one embedding."""
    layer_decay: float = 0.75
    """Learning rate of each block relative to the block above, counted from the block that is read; 0.01 to 1, 1 trains
    all at the same rate."""
    label_smoothing: float = 0.0
    """Label smoothing in training, 0 to 0.99: targets move toward 1 / classes, or 0.5 if a clip may have several."""
    balanced: Literal["weights", "sampling"] | None = None
    """Balance the classes by loss weights or by sampling; null does not balance."""
    lora_rank: int | None = None
    """Fine-tune LoRA adapters of this rank instead of the encoder's weights; null trains all weights. Writes
    adapters.safetensors."""
    test_fold: str | None = None
    """Fold to test on, as the set calls it, such as 0, 1 or a; null takes the first."""
    folds: int | None = None
    """Cross-validate: test each fold once. A set without folds is split into this many, 3 or more. null does not."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class TrackingConfig:
    wandb: Literal["offline", "online"] | None = None
    """Weights & Biases mode; offline needs no account, null disables it. metrics.csv is always written."""
    tensorboard: bool = False
    """Log to RUN_FOLDER/tensorboard too; needs `pip install 'audio-encoder[tensorboard]'`."""
    project: str = "audio-encoder"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null is your default."""
    group: str | None = None
    """W&B group; null is none, and the run folder for the folds of a cross-validation."""
    name: str | None = None
    """W&B run name; null is the name of the run folder."""
    tags: list[str] = field(default_factory=list)
    """W&B tags."""
    notes: str | None = None
    """W&B description of the run; null for none."""
    job_type: str | None = None
    """W&B job type; null is pretrain or classify."""
    log_model: bool = False
    """Upload the last and the best checkpoint, and the splits of a classifier, as W&B artifacts when training is
    complete."""


@dataclass
class CallbackConfig:
    class_path: str = "???"
    """Your own Lightning callback, my.module.Class."""
    init_args: dict[str, Any] = field(default_factory=dict)
    """Constructor arguments."""


@dataclass
class Config:
    name: str = "pretrain"
    """Name of the run folder in runs_folder; an existing one is not overwritten, but -2, -3, ... is appended."""
    runs_folder: str = "runs"
    """Folder of all runs."""
    seed: int = 0
    """Random seed of initial weights, order of clips, crops and masks."""
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    check: CheckConfig = field(default_factory=CheckConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    callbacks: list[CallbackConfig] = field(default_factory=list)
    """Your own callbacks, as in LightningCLI: [{class_path: my.module.Class, init_args: {...}}]."""
    classify: ClassifyConfig | None = None
    """Train a classifier on the labels of the sources; null pretrains."""
