"""Compile the simulator's hot modules with mypyc while a wheel is built.

This is off by default, so that ``make demo`` and ``pip install .`` need no C compiler. To switch it on::

    HATCH_BUILD_HOOK_ENABLE_CUSTOM=true pip wheel --no-deps .

Without a compiler the wheel is then pure Python; with ``LORAPLAN_COMPILE=require`` as well, the build fails instead.

A compiled wheel contains the Python sources of the compiled modules too. ``sim.studies.study_identity.code_version``
hashes these, so an interpreted build resumes the sweep of a compiled one, and the other way round.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HOT = (
    "sim/policies",
    "sim/world",
    "sim/rng.py",
    "sim/traffic/request.py",
    "sim/results/recording/recorder.py",
    "sim/studies/fidelity/step_replay.py",  # these derive classes from some in sim/policies: interpreted ones can't
    "sim/studies/fidelity/transfer_replay.py",
)
"""What is compiled: files, and folders with everything in them."""
INTERPRETED = (
    # Their objects go to worker processes, and mypyc's frozen dataclasses with slots can't be unpickled.
    "sim/world/world.py",
    "sim/world/rollouts/rollout_plan.py",
    # They run before or after the simulation, or once for each reading of an autoscaler: a seventh of the C code.
    "sim/policies/autoscaling.py",
    "sim/policies/replica_memory.py",
    "sim/world/build.py",
    "sim/world/memory/gpu_memory.py",
    "sim/world/memory/replica_caches.py",
    "sim/world/pools/full_model_layout.py",
    "sim/world/replica_assembly.py",
    "sim/world/world_notes.py",
)
"""Modules in these folders that stay interpreted."""
OPT_LEVEL = "1"
"""Of the C compiler. With 3, compiling takes twice as long, and simulations, mostly in Python's own C code, no less."""
C_FLAGS = [
    "-Wno-misleading-indentation",  # gcc takes minutes to look for it in files this deeply indented
    "-fno-tree-pta",  # without these four gcc takes a sixth less time, and simulations no more
    "-fno-tree-dominator-opts",
    "-fno-ipa-pure-const",
    "-fno-tree-fre",
]
"""On Linux and macOS."""
BUILD = "build/mypyc"
"""C files and objects. A C file that did not change is not compiled again."""


class CompileHook(BuildHookInterface[Any]):
    """Put extension modules into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, except for an editable install or without a compiler."""
        if version == "editable":
            return
        problem = compiler_problem()
        if problem and os.environ.get("LORAPLAN_COMPILE") == "require":
            raise SystemExit(f"no C compiler: {problem}")
        if problem:
            self.app.display_warning(f"no C compiler, so this wheel is pure Python: {problem}")
            return
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update(compile_modules(Path(self.root)))


def compiler_problem() -> str | None:
    """Return why this machine can't compile an extension module; None if it can."""
    from setuptools import Distribution, Extension
    from setuptools.errors import BaseError, CCompilerError

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "trial.c"
        source.write_text("#include <Python.h>\n")
        command = Distribution({"ext_modules": [Extension("trial", [str(source)])]}).get_command_obj("build_ext")
        command.build_temp = command.build_lib = folder
        try:
            command.ensure_finalized()
            command.run()
        except (BaseError, CCompilerError, OSError) as error:
            return str(error)
    return None


def hot_modules(root: Path) -> list[str]:
    """Return the paths of the modules to compile, relative to the project."""
    files = [file for hot in HOT for file in (sorted((root / hot).rglob("*.py")) or [root / hot])]
    paths = [file.relative_to(root).as_posix() for file in files if file.name != "__init__.py"]
    return [path for path in paths if path not in INTERPRETED]


def compile_modules(root: Path) -> dict[str, str]:
    """Compile the hot modules into one library.

    :returns: each extension module, and its path within the wheel.
    """
    from mypyc.build import mypycify
    from setuptools import Distribution

    with contextlib.chdir(root):
        options = ["--config-file", "pyproject.toml", *hot_modules(root)]
        extensions = mypycify(options, opt_level=OPT_LEVEL, debug_level="0", target_dir=BUILD, group_name="loraplan")
        gc.freeze()  # or Python looks for garbage in all of mypy's trees when it exits
        if os.name == "posix":
            for extension in extensions:
                extension.extra_compile_args += C_FLAGS
        command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        command.build_temp, command.build_lib = f"{BUILD}/objects", f"{BUILD}/lib"
        command.ensure_finalized()
        command.run()
        places = [command.get_ext_filename(extension.name) for extension in extensions]
        return {str(root / BUILD / "lib" / place): place for place in places}


if __name__ == "__main__":  # can this machine compile?
    found = compiler_problem()
    sys.exit(f"no C compiler: {found}" if found else 0)
