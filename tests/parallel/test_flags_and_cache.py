"""Named flag sets, and the compile cache's folder."""

import jax
import pytest

from t5x_lite.errors import UserError
from t5x_lite.parallel import xla_flags
from t5x_lite.parallel.compile_cache import use_compile_cache


def test_flags_are_added_once_and_the_users_stay():
    environment = {"XLA_FLAGS": "--xla_gpu_enable_while_loop_double_buffering=false"}
    xla_flags.apply("gpu_overlap", environment=environment)
    once = environment["XLA_FLAGS"]
    xla_flags.apply("gpu_overlap", environment=environment)
    assert environment["XLA_FLAGS"] == once
    assert "double_buffering=false" in once
    assert "double_buffering=true" not in once
    assert "latency_hiding_scheduler=true" in once
    with pytest.raises(UserError, match="Did you mean"):
        xla_flags.apply("gpu_overlaps", environment=environment)


def test_training_defaults_to_what_this_jaxlib_knows(monkeypatch):
    environment = {}
    xla_flags.apply_defaults(environment)
    assert environment == {"XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type="}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.13.1")
    xla_flags.apply_defaults(newer := {})
    assert newer == {}


def test_simulated_devices_have_threads_to_wait_for_each_other():
    environment = {"XLA_FLAGS": "--a --xla_force_host_platform_device_count=4"}
    xla_flags.enlarge_thread_pool(environment)
    assert environment["PJRT_NPROC"] == "8"
    for one in ({}, {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}):
        xla_flags.enlarge_thread_pool(changed := dict(one))
        assert changed == one


@pytest.fixture
def cache_setting():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_the_environments_cache_goes_first(tmp_path, cache_setting):
    jax.config.update("jax_compilation_cache_dir", "/from/the/environment")
    assert use_compile_cache(str(tmp_path)) == "/from/the/environment"
    jax.config.update("jax_compilation_cache_dir", None)
    assert use_compile_cache(str(tmp_path / "new")) == str(tmp_path / "new")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "new")


def test_no_cache_where_none_can_be_made(tmp_path, cache_setting):
    jax.config.update("jax_compilation_cache_dir", None)
    (tmp_path / "file").write_text("")
    assert use_compile_cache(str(tmp_path / "file" / "cache")) is None
