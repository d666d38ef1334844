"""``act-profile`` in a process of its own, forked from one that has imported what it needs: as a user types it, sooner."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

_FORKS = multiprocessing.get_context("forkserver")
# The commands import what they need when they run; a fork finds it there.
_FORKS.set_forkserver_preload(
    [
        *("act.cli", "act.profiling.measure", "act.ranking.rank", "act.editing.folders", "act.evaluation.evaluate"),
        *("act.recipes.recipe", "act.report.build", "act.profiling.forward_speed", "act.editing.tune", "act.lab.demo"),
        *("transformers.models.llama.modeling_llama", "transformers.generation"),
    ]
)


class Running:
    """One command at work."""

    def __init__(self, *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
        self._command = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._places = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self.process = _FORKS.Process(
            target=_run, args=(self._command, self._places, str(cwd or Path.cwd()), {**os.environ, **(env or {})})
        )
        self.process.start()

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end; what it printed and its exit code, as ``subprocess.run`` gives them."""
        with self._folder:
            self.process.join()
            stdout, stderr = (
                place.read_text(errors="surrogateescape") if place.exists() else "" for place in self._places
            )
        code = self.process.exitcode or 0
        return subprocess.CompletedProcess(["act-profile", *self._command], code, stdout, stderr)


def act_profile(
    *arguments: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run one command to its end."""
    return Running(*arguments, cwd=cwd, env=env).ended()


def succeed(*arguments: object) -> dict[str, Any]:
    """What one command prints with ``--json``; it must end well."""
    result = act_profile(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def _run(command: list[str], places: list[Path], cwd: str, environment: dict[str, str]) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for tests run in the background
    for descriptor, place in enumerate(places, 1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT), descriptor)
    for number, stream in enumerate(("stdout", "stderr"), 1):
        setattr(sys, stream, open(number, "w", encoding="utf-8", buffering=1, closefd=False))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if threads := environment.get("OMP_NUM_THREADS"):  # read when torch was imported, before the fork
        torch.set_num_threads(int(threads))
    sys.argv = ["act-profile", *command]
    from act.cli import main

    main()
    sys.stdout.flush()
