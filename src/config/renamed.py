"""Keys that a YAML can't use: renamed ones (to be deleted after 0.3), and arguments of Lightning's Trainer that the
project sets itself. Each is refused with the key to use instead."""

RENAMED = {
    "trainer.steps": "trainer.max_steps",
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "trainer.log_every_steps": "trainer.log_every_n_steps",
    "trainer.save_every_steps": "checkpoint.every_n_train_steps",
    "trainer.save_best": "checkpoint.save_top_k",
    "optimizer.learning_rate": "optimizer.lr",
    "optimizer.gradient_clip": "trainer.gradient_clip_val",
    "check.every_steps": "trainer.val_check_interval (in batches)",
    "classify.epochs": "trainer.max_epochs",
}

NOT_OFFERED = {  # argument of lightning.Trainer: what to do instead
    "logger": "set tracking.wandb; metrics.csv is always written",
    "callbacks": "write them under the top-level key callbacks",
    "min_epochs": "training ends at trainer.max_epochs, max_steps or max_time",
    "min_steps": "training ends at trainer.max_epochs, max_steps or max_time",
    "limit_test_batches": "test measures the whole of data.test; name a smaller one",
    "limit_predict_batches": "predict takes the whole of data.test; name a smaller one",
    "num_sanity_val_steps": "try the validation with trainer.fast_dev_run=true",
    "enable_checkpointing": "set checkpoint.save_last and checkpoint.save_top_k",
    "enable_progress_bar": "progress is a bar on a terminal and a line now and then elsewhere",
    "enable_model_summary": "--plan prints what the model costs",
    "gradient_clip_algorithm": "gradients are clipped by their norm",
    "inference_mode": "evaluation runs without gradients",
    "use_distributed_sampler": "the data modules deal the clips out to the processes",
    "barebones": "set trainer.log_every_n_steps higher",
    "plugins": "set trainer.precision and trainer.strategy",
    "sync_batchnorm": "the batch norm's statistics are always those of all processes",
    "reload_dataloaders_every_n_epochs": "the order of clips is drawn anew for each epoch",
    "default_root_dir": "set runs_folder",
    "enable_autolog_hparams": "a run's settings are always logged",
    "model_registry": "set tracking.log_model",
}


def refusal(key: str) -> str | None:
    """Why `key` can't be used and what to write instead; None for any other key."""
    if key in RENAMED:
        return f"{key} is now {RENAMED[key]}"
    section, _, name = key.partition(".")
    if section == "trainer" and name in NOT_OFFERED:
        return f"trainer.{name} is not offered: {NOT_OFFERED[name]}"
    return None
