"""A verifier's first word: one small question before anything is paid or a folder is made."""

from __future__ import annotations

import threading
from typing import Any

import torch

from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError, SecondlookError
from secondlook.types import Condition
from secondlook.verify.answers import BadAnswer, scores

PATIENCE = 600.0  # seconds, as for an answer within a run
OWN = "secondlook."  # verifiers that ship are tested with the library, and known to answer


def ask_first(verifier: Any, rig: Rig, condition: Condition, patience: float | None = None) -> None:
    """Show a verifier the picture that an empty latent decodes to. ConfigError where it fails or its answer cannot be read; NaN is an
    answer, and one that takes longer than ``patience`` seconds is left to the run. Nothing is charged or recorded."""
    if verifier is None or type(verifier).__module__.startswith(OWN):
        return
    try:
        with torch.no_grad():
            picture = rig.pictures(torch.zeros((1, *rig.shape), device=rig.device))
    except Exception:  # the decoder's trouble is the run's to tell, of real rows
        return
    answer = _within(lambda: scores(verifier(picture, [condition]), 1), patience or PATIENCE)
    if answer is None:
        return
    name = getattr(verifier, "name", "verifier")
    if isinstance(answer, BadAnswer):
        said = f"gave no score that can be read: {answer}"
    else:
        said = f"failed ({type(answer).__name__}: {answer})"
    raise ConfigError(
        f'The verifier "{name}" {said}. It was shown an empty picture before anything was drawn; mend it, then draw.'
    )


def _within(ask: Any, patience: float) -> Exception | None:
    """The error that a call ends in, if any. A sentence of this library's own is raised as it is; what means to end the program waits
    for the run, which keeps what it has."""
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            ask()
        except BaseException as error:
            ended.append(error)
        else:
            ended.append(None)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience)
    error = ended[0] if ended else None
    if isinstance(error, SecondlookError):
        raise error
    return error if isinstance(error, Exception) else None
