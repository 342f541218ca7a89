"""A cache of compiled programs on disk."""

import os
from pathlib import Path

DEFAULT_FOLDER = "~/.cache/t5x_lite/xla"


def use_compile_cache(folder: str | None = None) -> str | None:
    """Keeps compiled programs in ``folder``; call it before anything is compiled.

    JAX_COMPILATION_CACHE_DIR takes precedence, and JAX_ENABLE_COMPILATION_CACHE=false turns the
    cache off. Returns the folder in use, or None; also None if the folder can't be made.
    """
    import jax

    if not jax.config.jax_enable_compilation_cache:
        return None
    if jax.config.jax_compilation_cache_dir:  # from the environment
        return jax.config.jax_compilation_cache_dir
    path = Path(folder or DEFAULT_FOLDER).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    return str(path)
