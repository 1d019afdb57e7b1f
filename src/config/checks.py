"""Ranges and contradictions of settings that types cannot say."""

from src.config.settings import Config
from src.errors import UserError


def check_values(config: Config) -> None:
    """Ranges and contradictions that types can't say.

    Raises:
        UserError: with key, value and what is allowed.
    """
    data, objective, optimizer, trainer = config.data, config.objective, config.optimizer, config.trainer
    _between("objective.mask_ratio", objective.mask_ratio, 0.01, 0.99)
    _between("objective.mask_group", objective.mask_group, 1, 126)
    _between("model.drop_path", config.model.drop_path, 0.0, 0.99)
    _between("data.max_bad_share", data.max_bad_share, 0.0, 1.0)
    _between("data.cache_gigabytes", data.cache_gigabytes, 0.0, float("inf"))
    _between("data.num_workers", data.num_workers, 0, 1024)
    _between("data.window_clips", data.window_clips, 1, 2**31)
    _between("optimizer.learning_rate", optimizer.learning_rate, 0.0, 10.0)
    _between("optimizer.warmup_steps", optimizer.warmup_steps, 0, 2**62)
    _between("optimizer.final_share", optimizer.final_share, 0.0, 1.0)
    for key in ("steps", "accumulate", "devices", "num_nodes", "log_every_steps", "save_every_steps"):
        _between(f"trainer.{key}", getattr(trainer, key), 1, 2**62)
    _between("trainer.skip_bad_steps", trainer.skip_bad_steps or 0, 0, 2**31)
    _between("check.every_steps", config.check.every_steps, 1, 2**62)
    if len(optimizer.betas) != 2:
        raise UserError(f"optimizer.betas={optimizer.betas} has {len(optimizer.betas)} numbers; AdamW takes two")
    if data.crop_seconds > 10.08:
        raise UserError(
            f"data.crop_seconds={data.crop_seconds} is longer than the encoder's 10.08 s; set it to 10.08 or less"
        )
    _between("data.crop_seconds", data.crop_seconds, 0.05, 10.08)
    if (data.batch_size is None) == (data.batch_seconds is None):
        found = "neither is set" if data.batch_size is None else "both are set"
        raise UserError(f"set data.batch_size (clips) or data.batch_seconds (seconds), one of them: {found}")
    _between("data.batch_size", data.batch_size or 1, 1, 2**31)
    if (classify := config.classify) is not None:
        for key, value in (("strategy", "fsdp"), ("compile", True)):
            if getattr(trainer, key) == value:
                raise UserError(f"trainer.{key}={value} is for pretraining; a classifier does without, leave it out")
        _between("classify.epochs", classify.epochs, 1, 10**6)
        for key in ("lora_rank", "folds"):
            if (value := getattr(classify, key)) is not None:
                _between(f"classify.{key}", value, {"lora_rank": 1, "folds": 3}[key], 10**4)
        if classify.lora_rank and classify.method == "linear":
            raise UserError(
                "classify.lora_rank is set, but method linear trains no encoder; set classify.method=finetune"
            )
        _between("classify.layer_decay", classify.layer_decay, 0.01, 1.0)
        _between("classify.label_smoothing", classify.label_smoothing, 0.0, 0.99)
        for key in ("gain_db", "shift_seconds", "mixup", "mask_bands", "mask_frames"):
            _between(f"classify.augment.{key}", getattr(classify.augment, key), 0, 1000)
    if not data.sources:
        raise UserError(
            "data.sources is empty; add a data fragment, for example --config configs/data/folder.yaml data.path=FOLDER"
        )


def _between(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{key}={value} is out of range; it goes from {low} to {high}")
