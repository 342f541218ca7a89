"""`t5x_lite serve`: a trained model over HTTP, with OpenAI's shape of requests and answers."""

import argparse
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from t5x_lite import config
from t5x_lite.errors import UserError
from t5x_lite.inference.slots import Slots, for_slots
from t5x_lite.inference.weights import compress
from t5x_lite.parallel.compile_cache import use_compile_cache
from t5x_lite.parallel.mesh import MeshConfig
from t5x_lite.parallel.rules import use_mesh
from t5x_lite.programs.embed import embedder
from t5x_lite.programs.eval import checkpoint_paths
from t5x_lite.programs.weights import open_weights
from t5x_lite.serve import page
from t5x_lite.serve.engine import Engine
from t5x_lite.serve.service import Texts, Vectors
from t5x_lite.serve.settings import ServeConfig
from t5x_lite.training.setup import Setup, set_up

KEY = "T5X_LITE_API_KEY"
_LOCAL = ("127.0.0.1", "localhost", "::1")


def main(args: argparse.Namespace) -> int:
    try:
        from t5x_lite.serve import app, server
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name or 'another package'}: pip install 't5x_lite[serve]'."
        ) from None
    use_compile_cache()
    config.require("infer")
    settings: ServeConfig = config.call("ServeConfig")
    key, local = args.api_key or os.environ.get(KEY), args.host in _LOCAL
    if not local and not key:
        print(f"warning: anybody who reaches {args.host} can use this model: set {KEY}, or keep "
              "to --host=127.0.0.1", file=sys.stderr)  # fmt: skip
    # Taken before the model is read: who comes too early waits, who has the port is found now.
    with contextlib.closing(server.bind(args.host, args.port)) as listening:
        name, service = build(args.checkpoint, settings)
        texts = service if isinstance(service, Texts) else None
        shown = page.render(
            name,
            embeds=texts is None,
            has_encoder=texts is not None and texts.has_encoder,
            max_tokens=texts.max_tokens if texts else 0,
            key=bool(key),
        )
        served = app.App(service, settings, name=name, page=shown, api_key=key, local=local)
        service.warm_up()
        address = f"[{args.host}]" if ":" in args.host else args.host
        where = f"http://{address}:{listening.getsockname()[1]}"
        print(f"serving {name} at {where}/ and {where}/v1 (Ctrl-C ends it)", file=sys.stderr)
        server.run(served, listening)
        service.close()
    return 0


def build(checkpoint: str, settings: ServeConfig) -> tuple[str, Texts | Vectors]:
    """The name of the model that the config gives to `infer`, and what serves it."""
    given = {name: _given(name) for name in ("model_dir", "model", "task", "lengths")}
    setup = _set_up(given, settings)
    [path] = checkpoint_paths(given["model_dir"], checkpoint)
    accept = bool(_given("accept_other_vocabulary", False))
    setup, params = open_weights(setup, path, accept_other_vocabulary=accept)
    found = Path(path).name
    name = Path(given["model_dir"]).name if found.isdigit() else found
    if setup.model.encoder_only:
        return name, Vectors(
            embedder(setup, params, _given("pooling", "mean")), setup.task.vocabulary, settings
        )
    return name, _texts(setup, params, settings)


def _texts(setup: Setup, params: Any, settings: ServeConfig) -> Texts:
    lengths = setup.lengths
    max_tokens = settings.max_tokens or lengths["targets"]
    max_prompt = settings.max_prompt_tokens or lengths.get("inputs", lengths["targets"])
    model_config = setup.model.config
    columns = 1 + max_tokens + (0 if model_config.has_encoder else max_prompt)
    rows = max(columns, max_prompt)
    if model_config.positions == "learned" and rows > model_config.max_positions:
        raise UserError(
            f"{rows} tokens of prompt and answer, but TransformerConfig.max_positions = "
            f"{model_config.max_positions}: lower ServeConfig.max_prompt_tokens or .max_tokens."
        )

    @contextlib.contextmanager
    def around() -> Iterator[None]:
        with use_mesh(setup.mesh, setup.rules):
            yield

    with around():
        merged, params = setup.model.merged(params)
        params = compress(params, _given("weights", "float32"))
        model, params = for_slots(merged, params, settings.slots)
    vocabulary, reading = setup.task.vocabulary, setup.reading
    if reading.template is None:
        reading = dataclasses.replace(reading, template=config.call("ChatTemplate"))
    slots = Slots(model, settings.slots, columns, vocabulary.eos_ids, reading.bidirectional)
    engine = Engine(
        slots,
        params,
        max_waiting=settings.max_waiting,
        slice_tokens=settings.slice_tokens,
        around=around,
    )
    engine.start()
    return Texts(
        engine,
        vocabulary,
        settings,
        reading=reading,
        max_prompt=max_prompt,
        max_tokens=max_tokens,
    )


def _set_up(given: dict[str, Any], settings: ServeConfig) -> Setup:
    """On as many devices as a model is split over: rows aren't, they come and go one by one."""
    mesh = _given("mesh", None) or MeshConfig()
    mesh = dataclasses.replace(mesh, data=1, fsdp=1, context=1, expert=1, fsdp_split=None)
    devices = jax.devices()
    if mesh.tensor < 1 or mesh.tensor > len(devices):
        raise UserError(
            f"MeshConfig.tensor = {mesh.tensor}, expected 1 to {len(devices)}, the devices here."
        )
    return set_up(
        given["model"],
        given["task"],
        given["lengths"],
        settings.slots,
        mesh,
        rules=_given("rules", None),
        pack=False,
        devices=devices[: mesh.tensor],
    )


def _given(name: str, *default: Any) -> Any:
    """What the config binds to a parameter of `infer`."""
    try:
        value = config.evaluate(f"infer.{name}")
    except UserError:
        if not default:
            raise
        return default[0]
    return value() if isinstance(value, type) else value
