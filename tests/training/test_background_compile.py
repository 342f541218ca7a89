"""The step that is compiled while a run is set up."""

import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest

from t5x_lite.training.background_compile import BackgroundCompile, return_free_memory


def test_what_was_compiled_ahead_is_the_function_and_donates_as_it_does():
    step = jax.jit(lambda state, x: (state + x, x.sum()), donate_argnums=0)
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    compiled = BackgroundCompile(step, shape, shape).result()
    state = jnp.arange(3.0)
    new, total = compiled(state, jnp.ones(3))
    assert new.tolist() == [1, 2, 3] and float(total) == 3
    assert state.is_deleted()
    with pytest.raises(TypeError):
        compiled(jnp.ones(4), jnp.ones(4))  # nothing is compiled anew


def test_an_error_of_tracing_comes_at_once():
    with pytest.raises(TypeError):
        BackgroundCompile(jax.jit(lambda x: x @ x), jax.ShapeDtypeStruct((2, 3), jnp.float32))


def test_an_error_of_compiling_comes_with_the_result():
    class Lowered:
        def compile(self):
            raise RuntimeError("RESOURCE_EXHAUSTED")

    jitted = jax.jit(jnp.sin)
    broken = type("Broken", (), {"lower": lambda self, *arguments: Lowered()})()
    assert BackgroundCompile(jitted, 1.0).result()(1.0) == jnp.sin(1.0)
    with pytest.raises(RuntimeError, match="EXHAUSTED"):
        BackgroundCompile(broken).result()


@pytest.mark.parametrize("system, calls", [("linux", [0]), ("darwin", [])])
def test_free_memory_is_returned_where_the_c_library_can(system, calls, monkeypatch):
    trimmed = []
    monkeypatch.setattr("sys.platform", system)
    library = types.SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    return_free_memory()
    assert trimmed == calls
    monkeypatch.setattr("ctypes.CDLL", lambda name: types.SimpleNamespace())  # musl
    return_free_memory()
    assert trimmed == calls


def test_after_an_error_the_command_does_not_wait_for_the_compiler():
    """As Python would, for a thread that isn't finished."""
    code = """
import sys, threading, time
from t5x_lite import cli
threading.Thread(target=time.sleep, args=(60,), name=cli.BACKGROUND + "_0").start()
sys.argv = ["t5x_lite", "nonsense"]
sys.exit(cli.main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "nonsense" in done.stderr
