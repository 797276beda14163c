"""Which backend a model or a world means: the one place that decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from secondlook.backends import pipelines
from secondlook.backends.base import Backend, is_backend, refuse_foreign
from secondlook.backends.foreign import refuse_foreign_weights
from secondlook.disk.given import as_path
from secondlook.errors import ConfigError, nearest
from secondlook.models.checkpoint import read_config
from secondlook.models.find import weights_file, world_of
from secondlook.models.official import is_own
from secondlook.registry import MODELS, WORLDS, resolve
from secondlook.settings import Settings, flag

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")


def find(model: Any, s: Settings) -> Backend:
    """The backend for ``model`` (a name, a path, or an object that a pipeline is) under settings as they were given.
    ConfigError where there is none, or where an option means nothing to it."""
    given = s.given()
    if is_backend(model):
        if s.world not in (None, model.name):
            raise ConfigError(f'The world "{s.world}" is not the backend\'s, "{model.name}"; leave world out.')
        refuse_foreign(model, list(given), f'the backend "{model.name}"')
        return model
    if outside(model, s):
        if s.world not in (None, pipelines.NAME):
            raise ConfigError(
                f'The world "{s.world}" has models of its own; leave --world out to draw with a pipeline.'
            )
        refuse_foreign(pipelines.Pipeline, [n for n in given if n != "bf16"], "pipelines")  # type: ignore[arg-type]
        return pipelines.hold(model, s)
    if s.vae is not None:
        return _latents(model, s, given)
    name = None if model is None else str(model)
    _refuse_no_pipeline(name, s)
    backend = _own(name, s.world)
    refuse_foreign(backend, list(given), f'the world "{backend.name}"')
    return backend


def outside(model: Any, s: Settings) -> bool:
    """Whether a model means a pipeline: an object, a folder of one, or a hub id."""
    if model is None or (isinstance(model, str) and model in MODELS):
        return False
    if not isinstance(model, (str, Path)):
        return True
    path = as_path(model, "--model")
    if s.vae is not None:
        return False
    if path.is_dir() and not _weights_folder(path):
        return True
    return "/" in str(model) and not path.exists() and path.suffix not in SUFFIXES


def _latents(model: Any, s: Settings, given: dict[str, Any]) -> Backend:
    """Weights of latents with their autoencoder."""
    from secondlook.backends.latents import Latents

    if model is None or (isinstance(model, str) and model in MODELS) or s.world not in (None, Latents.name):
        raise ConfigError(f'--vae belongs to SiT or DiT weights; "{model or s.world or "scenes"}" decodes its own pictures. Give --model FILE, or leave '
                          "--vae out.")  # fmt: skip
    if (Path(str(model)) / "model_index.json").exists():
        raise ConfigError("--vae belongs to SiT weights; a pipeline brings its own autoencoder.")
    refuse_foreign(Latents, list(given), "SiT weights")  # type: ignore[arg-type]
    return Latents(str(model), str(s.vae), s.device, s.dtype)


def _weights_folder(path: Path) -> bool:
    """Whether a folder is one that training or import wrote, and not a pipeline's."""
    return not (path / "model_index.json").exists() and any(path.glob("*.safetensors"))


def _refuse_no_pipeline(model: str | None, s: Settings) -> None:
    """ConfigError for what is asked of a pipeline where ``model`` means none."""
    given = [n for n in s.given() if n in pipelines.LOADING and n != "device"]
    if given:
        raise ConfigError(f'{flag(given[0])} belongs to pipelines; "{model or s.world or "scenes"}" is not one. Give --model FOLDER or a '
                          "hub id (SiT weights: with --vae).")  # fmt: skip
    if s.world == pipelines.NAME:
        raise ConfigError("Which pipeline? Give --model FOLDER or a hub id; --world is then not needed.")
    if s.world is not None and s.world not in WORLDS:
        raise ConfigError(f'There is no world "{s.world}" to draw in; {nearest(s.world, WORLDS)}')
    if model is None or model in MODELS or model in WORLDS or Path(model).is_dir():
        return
    if Path(model).is_file():
        refuse_foreign_weights(Path(model))
        return
    raise ConfigError(f'There is no model "{model}": it is neither a file nor a shipped model, nor the folder or hub id (OWNER/NAME) '
                      f"of a pipeline; {nearest(model, MODELS)}")  # fmt: skip


def world_meant(s: Settings) -> str | None:
    """The world that settings mean, by its name or the model's; None for generators from outside and weights that name none."""
    if s.world is not None:
        return s.world
    if s.model is None:
        return "scenes"
    if outside(s.model, s) or s.vae is not None:
        return None
    return s.model if s.model in WORLDS else world_of(weights_file(s.model))


def _own(model: str | None, world: str | None) -> Backend:
    """A world's backend, by its name, by the model's, or by what the model's file says."""
    if world is None and model is not None:
        world = model if model in WORLDS else world_of(weights_file(model))
        if world is None:
            return _unnamed(model)
    if world == "weights" and model is not None:
        return _unnamed(model)
    made: Backend = resolve("world", world or "scenes")(model)
    return made


def _unnamed(model: str) -> Backend:
    """Weights that name no world: class-conditional ones of pixels can be drawn with all the same."""
    from secondlook.backends.classes import Weights

    file = weights_file(model)
    if not is_own(file):
        if file.suffix == ".safetensors":
            read_config(file)  # says what is wrong with a damaged file
        raise ConfigError(f'"{file}" samples latents: give the autoencoder that decodes them, --vae FOLDER_OR_ID.')
    return Weights(model)


def found_again(s: Settings, model: Any = None, device: str | None = None) -> Backend:
    """The backend of a recorded run. ConfigError where it is one of the user's own and not given again, or another."""
    if is_backend(model):
        if model.name != s.world:
            raise ConfigError(
                f'This run was drawn with "{s.world}", and the backend given is "{model.name}"; give the one it began with.'
            )
        return model
    if s.world == pipelines.NAME:
        return pipelines.again(s, model, device)
    if s.world == "latents":
        from secondlook.backends.latents import Latents

        return Latents(str(s.model), str(s.vae), device or s.device, s.dtype)
    if s.world not in (None, "weights", *WORLDS):
        raise ConfigError(
            f'This run was drawn with a backend of its own, "{s.world}"; give it again: model=..., in Python.'
        )
    return _own(s.model, s.world)
