"""Builds the native core where there is a C compiler; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("commlib/native")
FLAGS = ["-std=gnu11", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=off", "-fvisibility=hidden"]

setup(
    ext_modules=[
        Extension(
            "commlib.native._core",
            sources=sorted(str(path) for path in NATIVE.glob("*.c")),
            depends=sorted(str(path) for path in NATIVE.glob("*.h")),
            extra_compile_args=FLAGS,
            optional=True,  # no compiler: the package installs, and runs in Python
        )
    ]
)
