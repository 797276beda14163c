"""Verifiers that ship with the package, by the names of registry.VERIFIERS."""

from __future__ import annotations

from secondlook.models.checkpoint import shipped
from secondlook.types import Verifier
from secondlook.verify.learned import load_verifier
from secondlook.worlds.scenes.world import Checker


def learned() -> Verifier:
    """The network that guides."""
    return load_verifier(shipped("scenes-verifier.safetensors"))


def detector() -> Verifier:
    """A network's detections, held against the prompt by the world's rules."""
    return load_verifier(shipped("scenes-detector.safetensors"), "detector")


def weak() -> Verifier:
    """An early checkpoint of ``learned``, which a search can fool: for studies of verifier hacking."""
    return load_verifier(shipped("scenes-weak.safetensors"), "weak")


def judge() -> Verifier:
    """The network that only judges: another architecture, trained on other renders and other samples."""
    return load_verifier(shipped("scenes-judge.safetensors"), "judge")


def oracle() -> Verifier:
    """The exact checker as a guide: never a method. It bounds plans that choose among finished pictures, not those that look at half-made ones."""
    return Checker("oracle")
