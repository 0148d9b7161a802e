"""How the tests' processes compile: fast, for the programs are tiny and compiling is what takes the time."""

import importlib.metadata
import os

FLAGS = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib") < "0.11":  # which has no such flag any more
    FLAGS += " --xla_cpu_use_fusion_emitters=false"  # 40% less CPU time for a test that compiles much


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Returns this process's environment for another one, which is to see so many fake devices."""
    flags = f"{FLAGS} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, **more}
