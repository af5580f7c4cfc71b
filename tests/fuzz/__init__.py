"""Checkpoints that somebody else wrote, or that a disk has damaged: what they may end in, and what they may not."""
