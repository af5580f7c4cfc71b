"""Model cards, and pushing to the Hub."""

from __future__ import annotations

from .card import TaskResult, make_card, write_card
from .messages import HubError
from .push import Push, PushedFile, push_to_hub

__all__ = ["HubError", "Push", "PushedFile", "TaskResult", "make_card", "push_to_hub", "write_card"]
