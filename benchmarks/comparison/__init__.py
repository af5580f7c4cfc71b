"""Tables of many kinds and sizes in the same model, judged by the same tasks: an experiment is a file."""
