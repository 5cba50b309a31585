# SPDX-License-Identifier: Apache-2.0
"""Prints the highest FAISS_OPT_LEVEL that this processor runs."""

import pathlib

NEEDS = {
    "avx512": {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw", "avx2", "fma", "f16c", "popcnt"},
    "avx2": {"avx2", "fma", "f16c", "popcnt"},
}


def level() -> str:
    """The level by the kernel's list of processor flags; generic where there is none."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return next((name for name, needed in NEEDS.items() if needed <= flags), "generic")


if __name__ == "__main__":
    print(level())
