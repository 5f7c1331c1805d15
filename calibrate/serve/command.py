"""``loraplan calibrate serve``: a real server under a scenario's traffic, and the prediction for it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sim.cli.options import JsonOption, QuietOption, ScenarioArgument, SeedOption, SetOption, session_of, takes
from sim.cli.output import finish, make_folder, message, progress_bar
from sim.errors import InputError

KEYS = ("LORAPLAN_API_KEY", "OPENAI_API_KEY")
MOST_RUNS = 20
_LEFT = (
    "requests.parquet",
    "comparison.json",
    "report.html",
    "ladder.json",
    "profile.json",
    "server.log",
    "observed.jsonl",
)


@dataclass(frozen=True)
class ServeOptions:
    """What ``calibrate serve`` takes."""

    context: typer.Context
    scenario: ScenarioArgument
    launch: Annotated[str | None, typer.Option(help="Start a server here: vllm.")] = None
    url: Annotated[str | None, typer.Option(help="Drive the OpenAI-compatible server at this address.")] = None
    adapters: Annotated[
        str | None,
        typer.Option(help="With --url: adapter names there, {} being the number. Default: as the server lists them."),
    ] = None
    fit: Annotated[bool, typer.Option("--fit", help="Measure costs over the API first, and predict from them.")] = False
    profile: Annotated[str | None, typer.Option(help="Predict from this profile. Default: the scenario's.")] = None
    repeat: Annotated[int, typer.Option(help="Identical runs; their differences show the noise.", min=1)] = 2
    stall: Annotated[float, typer.Option(help="Give up after so many seconds without a token.", hidden=True)] = 60.0
    server_python: Annotated[
        Path | None, typer.Option(help="With --launch: Python with vLLM. Default: that of .vllm-venv.", hidden=True)
    ] = None
    set_: SetOption = None
    seed: SeedOption = None
    out: Annotated[Path | None, typer.Option(help="Folder for results. Default: runs/serve-NAME.")] = None
    json: JsonOption = False
    quiet: QuietOption = False

    @property
    def key(self) -> str | None:
        """The server's key, from the environment."""
        return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)

    def check(self) -> None:
        """Refuse options that don't go together.

        :raises InputError: naming the option.
        """
        if (self.launch is None) == (self.url is None):
            raise InputError(
                "give one server",
                key="--launch",
                got="both --launch and --url" if self.url else None,
                allowed="--launch vllm to start one, or --url http://host:8000",
            )
        if self.launch is not None and self.launch != "vllm":
            raise InputError(
                "can't start this", key="--launch", got=self.launch, allowed="vllm", hint="others: by --url"
            )
        pairs = (("--adapters", self.adapters, self.launch), ("--server-python", self.server_python, self.url))
        for key, value, other in pairs:
            if value is not None and other is not None:
                raise InputError(f"goes with {'--url' if self.launch else '--launch'}", key=key, got=str(value))
        if self.fit and self.profile is not None:
            hint = "leave out --fit"
            raise InputError("either fit a profile or give one", key="--profile", got=self.profile, hint=hint)
        if not 1 <= self.repeat <= MOST_RUNS:
            raise InputError("so many runs make no sense", key="--repeat", got=self.repeat, allowed=f"1 to {MOST_RUNS}")
        if not 1 <= self.stall < 1e5:
            raise InputError("no time to wait", key="--stall", got=self.stall, allowed="1 to 100,000 seconds")


@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve a scenario's traffic for real, simulate the same requests, and compare (docs/calibrate.md).

    Example: loraplan calibrate serve serve-tiny --launch vllm
    """
    from calibrate.serve.connection import without_credentials
    from calibrate.serve.serve_study import serve
    from sim.spec.scenario_file import load_scenario

    options.check()
    session, quiet = session_of(options.context), options.quiet
    loaded = load_scenario(
        options.scenario, options.set_ or [], options.seed, confined=session.confined, check_points=False
    )
    folder = options.out or Path("runs") / f"serve-{loaded.scenario.name}"
    command = shlex.join(["loraplan", *map(without_credentials, sys.argv[1:])])
    begin, say = partial(_begin, folder, fit=options.fit), lambda text: message(text, quiet)
    try:
        with progress_bar(quiet, "serving") as progress:
            report = serve(loaded, options, folder, begin, command, say, progress)
    except KeyboardInterrupt:
        kept = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in folder.glob("requests-*.jsonl"))
        session.kept = f"{kept:,} finished requests are kept in {folder}"
        raise
    except InputError as error:
        raise error if (error.key or "").startswith("--") else loaded.locate(error) from None
    finish(report, folder, as_json=options.json, quiet=quiet)


def _begin(folder: Path, profile: Path, *, fit: bool) -> None:
    """Make the folder for results, and move aside what an earlier study left there.

    :param profile: read by this study, so that it stays where it is.
    :param fit: it will be overwritten: what moves aside is a copy.
    """
    make_folder(folder)
    earlier = [*folder.glob("requests-*.jsonl"), *(folder / name for name in _LEFT if (folder / name).exists())]
    read = [file for file in earlier if profile.is_file() and file.samefile(profile)]
    earlier = [file for file in earlier if fit or file not in read]
    if earlier:  # they must neither pass for this study's nor be lost
        number = next(n for n in range(1, 10**6) if not (folder / f"earlier-{n}").exists())
        aside = folder / f"earlier-{number}"
        aside.mkdir()
        for file in earlier:
            if file in read:
                shutil.copy2(file, aside / file.name)
            else:
                file.rename(aside / file.name)
