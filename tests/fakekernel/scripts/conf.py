"""allnoconfig for the miniature tree: everything n but what KCONFIG_ALLCONFIG asks for."""

import os
import sys
from pathlib import Path

from harness.kconfig.tree import KernelConfig

os.environ["CONFIG_"] = "CONFIG_"
os.chdir(os.environ["srctree"])  # noqa: SIM112 - the kernel's own name
out = Path(os.environ.get("PWD", "."))
kconf = KernelConfig("Kconfig", warn=False)
for symbol in kconf.unique_defined_syms:
    symbol.set_value(0)
kconf.load_config(os.environ["KCONFIG_ALLCONFIG"], replace=False)
print(kconf.write_config(str(out / os.environ["KCONFIG_CONFIG"]), save_old=False))
sys.exit(0)
