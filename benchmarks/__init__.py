"""Benchmarks: a folder for each question, run as modules from the root of the repository. README.md lists them."""
