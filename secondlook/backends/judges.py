"""Who guides a run: verifier, critic, comparer and selector, by their names or as objects."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from secondlook.backends.base import Backend
from secondlook.backends.identity import code_of, settings_of
from secondlook.calls import bind, parse_call
from secondlook.engine.climb import refuse_flat
from secondlook.engine.rig import Rig
from secondlook.errors import ConfigError
from secondlook.registry import CRITICS, resolve
from secondlook.settings import Settings, make_named, needs_of

RESERVED = ("judge", "checker", "oracle")  # names under which the log keeps the word of the built-in ones
COVERED = ("learned", "judge")  # verifiers whose weights a backend's own digests hold
ROLES = ("verifier", "critic", "comparer", "select")  # what may be an object in Python
KINDS = {"select": "selector"}


@dataclass(frozen=True)
class Judges:
    """Who guides a run, as objects; None where nobody was named."""

    verifier: Any = None
    critic: Any = None
    comparer: Any = None
    select: Any = None

    @staticmethod
    def of(s: Settings, backend: Backend, objects: Mapping[str, Any]) -> Judges:
        """Made from their names, or the objects that were given."""
        found = {}
        for role in ROLES:
            text = getattr(s, role)
            if role in objects:
                found[role] = objects[role]
            elif text is not None and text.startswith("object:"):
                raise ConfigError(
                    f'This run has the Python object "{text[7:]}" as its {role}; give it again: {role}=..., to go on.'
                )
            elif text is not None:
                # A backend may have comparers of its own, as it has verifiers; one that has none need not say so.
                offers = getattr(backend, role, None) if role in ("verifier", "comparer") else None
                own = offers(text) if offers else None
                if role in ("critic", "comparer"):
                    refuse_elsewhere(role, text, backend)
                found[role] = own or make_named(KINDS.get(role, role), text)
        refuse_reserved(found["verifier"])
        return Judges(**found)

    def join(self, rig: Rig) -> None:
        """Critic and comparer become the rig's, and those that choose their device are told where the generator works."""
        rig.critic, rig.comparer = self.critic, self.comparer
        for judge in (self.verifier, self.critic, self.comparer):
            tell = getattr(judge, "beside", None)
            if callable(tell):
                tell(rig.device)

    @property
    def told_by_oracle(self) -> bool:
        """Whether the critic says what the exact checker sees, or the verifier or selector reads what the result is measured with:
        those that ship and do, and what has an attribute ``oracle``."""
        return any(getattr(judge, "oracle", False) for judge in (self.critic, self.verifier, self.select))

    def digests(self, objects: Iterable[str] = ()) -> dict[str, str]:
        """What tells judges apart that have one name: the code of those from elsewhere, and what those of the roles in
        ``objects``, which were given as objects, were made with."""
        found = {}
        for role in ROLES:
            thing = getattr(self, role)
            code = None if thing is None else code_of(thing)
            if code is not None:
                found[f"{role}'s code"] = code
            # Weights beside the backend's own, which its digests cover: of critics, comparers, and its other verifiers.
            other = role == "verifier" and hasattr(thing, "network") and thing.name not in COVERED
            apart = _ships(thing) and (role in ("critic", "comparer") or other)
            if role in objects or apart:
                found[f"{role}'s settings"] = settings_of(thing)
        return found


def of_a_judge(name: str) -> bool:
    """Whether a digest of this name is a judge's, not that of weights."""
    return name.endswith(("'s code", "'s settings"))


def refuse_reserved(verifier: Any) -> None:
    """ConfigError for a verifier from elsewhere that goes by the name of a built-in judge: its word would stand for theirs."""
    name = getattr(verifier, "name", None)
    if name in RESERVED and not _ships(verifier):
        raise ConfigError(f'The name "{name}" belongs to the built-in judges; give your verifier another.')


def _ships(judge: Any) -> bool:
    return type(judge).__module__.split(".")[0] == "secondlook"


def refuse_elsewhere(role: str, text: str, backend: Backend) -> None:
    """ConfigError for a critic or comparer of the Scenes world elsewhere."""
    name = parse_call(text, role).name
    if name in (CRITICS if role == "critic" else ("learned",)) and backend.name != "scenes":
        other = (
            "write package.module:attribute of your own"
            if role == "critic"
            else "take by_score, or package.module:attribute of your own"
        )
        raise ConfigError(f'The {role} "{name}" speaks of the pictures of the world scenes only; {other}.')


def refuse_unmet(s: Settings, rig: Rig) -> None:
    """ConfigError for a plan whose needs (settings.needs_of) this run does not meet, before a folder is made."""
    needs = needs_of(s.plan)
    if "comparer" in needs and rig.comparer is None:
        raise ConfigError(
            f"{s.plan} compares pictures, and the run has no comparer; name one with --comparer, such as by_score(verifier='sharpness')."
        )
    if "context" in needs and not getattr(rig.encode, "reads_context", False):
        raise ConfigError(f'{s.plan} shows a model its earlier tries, and this one does not read them. Give one that does (in the world scenes: '
                          "--model scenes-edit), or take another plan; reflect draws afresh each time with answer='redraw'.")  # fmt: skip
    if "gradient" in needs:
        refuse_flat(rig)


def named(role: str, thing: Any) -> tuple[str, Any]:
    """A judge's call-string as it is, or the name under which a run records an object."""
    kind = KINDS.get(role, role)
    if isinstance(thing, str):
        if not thing.startswith("object:"):
            call = parse_call(thing, kind)
            bind(call, resolve(kind, call.name))  # a slip shows before a pipeline is loaded
        return thing, None
    name = getattr(thing, "name", None)
    if inspect.isclass(thing) or not callable(thing) or not isinstance(name, str):
        raise ConfigError(f"A {kind} is a call-string, or an object with a name that can be called "
                          f"(docs/extending.md); got {thing if inspect.isclass(thing) else type(thing).__name__}.")  # fmt: skip
    return f"object:{name}", thing
