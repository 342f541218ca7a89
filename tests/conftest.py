"""Eight CPU devices for every test, and compiled programs kept; set before jax is imported.

Tests compile far more than they run: XLA's backend optimises less here, and what one test (or the
other worker, or an earlier run) has compiled is read from the cache.
"""

import importlib.metadata
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("PJRT_NPROC", "16")  # see t5x_lite/parallel/xla_flags.py
cache = Path(__file__).parent.parent / ".pytest_cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
flags = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_experimental_ynn_fusion_type=",  # as `train` (parallel/xla_flags.py)
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones don't know it and abort
    flags.append("--xla_cpu_use_fusion_emitters=false")  # compiles a quarter faster at level 0
for flag in flags:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

from hypothesis import settings  # noqa: E402 - after the environment is set

# The same examples every time, so that a change is judged by what it changed. To look for more:
# HYPOTHESIS_PROFILE=explore bash launch/test.sh
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
