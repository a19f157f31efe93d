"""Guardrails: policies, a first stage that judges every text, a second in which the model judges, and their figures."""

from cierzo.guard.guard import Guard, Verdict
from cierzo.guard.policy import Policy

__all__ = ["Guard", "Policy", "Verdict"]
