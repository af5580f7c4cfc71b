"""Fine-tuning on tasks: their rows, metrics and Trainers, which `evaluate()` and the scripts in examples/ share."""
