"""Several processes: who starts them, what each holds, how they save."""
