"""VTC's paper (OSDI 2024): who waits how long when tenants share S-LoRA, with every request of every run.

``--rows`` takes a folder with a file a run, and ``vtc_runs.csv`` in it or beside it; or one of these files. ``python -m
validation.gallery.vtc`` fits ``FITTED`` again.
"""

from __future__ import annotations

import csv
import gzip
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
from scipy.optimize import least_squares

from calibrate.kernels.base_models import base_model_of
from calibrate.kernels.cards import card_of
from calibrate.kernels.kernel_tables import Deployment
from calibrate.kernels.profile_from_kernels import build_profile
from sim.arrays import Floats, Ints
from sim.errors import InputError
from sim.spec.profile import LoadCost, LoraCost, Profile, StepCost
from sim.spec.scenario import Scenario
from sim.studies.fidelity.measured_runs import RunCells, TableOfRuns, read_table
from sim.studies.fidelity.step_terms import anchored_step
from sim.world.build import build_world
from sim.world.replication import simulate
from validation.gallery.entry import Bar, Entry, Row, Source

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "papers" / "vtc"
"""Where the published runs are looked for unless ``--rows`` names them."""
TABLE = "vtc_runs.csv"
RUN_COLUMNS = ("run", "model", "gpu", "scheduling", "kv_pool_tokens", "mode", "tenant_rates_per_s", "requests_per_s")
REQUEST_COLUMNS = ("arrival_s", "tenant", "prompt_tokens", "output_tokens", "first_token_s", "latency_s")
OF_TENANT = "ttft_mean_s/"
SMALL, LARGE = "vtc", "vtc-13b"
DEPLOYMENTS = {
    ("Llama-7B", "A10G"): (SMALL, "a10g", "llama-2-7b"),
    ("Llama-13B", "A100-80GB"): (LARGE, "a100-80gb", "llama-2-13b"),
}
"""Entries and what their costs are built for; Llama 1 and 2 have the same shapes."""
SCHEDULINGS = {"fcfs": "fcfs", "vtc": "vtc", "vtc weighted": "vtc", "lcf": "lcf"}
TOKENIZED = 2
"""Tokens of a prompt besides its words (``fair_bench/trace.py``): one that begins it, and the space that ends ``"Hello
" * words``. Prompts of real traffic are counted with theirs."""
RANK = 8
"""Of the tenants' adapters, which S-LoRA counts in the KV pool although ``--no-lora`` never loads them."""
SEQUENCE_S = 9.8e-5
"""What S-LoRA's host takes for a sequence of a step, in place of vLLM's: from spans of another lab's steps without
LoRA's part (docs/validation.md)."""
FITTED = {SMALL: (0.9729, 0.805, 0.0454), LARGE: (0.9409, 1.197, 0.02662)}
"""The numbers that ``fit`` finds in the anchors: factors on decoding and on prompts, and seconds of a prefill step."""
ANCHORS = {SMALL: "fcfs_overload-multi", LARGE: "13b-a100-80-35000-vtc-256_overload-s4"}
TOGETHER_S = 0.012
"""First tokens that are no further apart come from one prefill."""
LONG = 30
"""Tokens of an answer from which a request tells how long steps take."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One published run, and its requests in the order of arrival.

    :ivar scheduling: of ``fleet.scheduling``; ``weighted``: whether tenants have weights 1, 2, 3, …
    """

    name: str
    entry: str
    scheduling: str
    weighted: bool
    kv_tokens: int
    requests_per_s: float
    arrival_s: Floats
    tenant: Ints
    prompt_tokens: Ints
    output_tokens: Ints
    ttft_s: Floats
    latency_s: Floats

    def scenario(self, profile: str, trace: str) -> Scenario:
        tenants = np.unique(self.tenant).tolist()
        fleet = {"profile": profile, "engine": "s-lora", "front_end": "s-lora", "max_num_seqs": 1000}
        return Scenario.model_validate(
            {
                "schema_version": 1,
                "name": "vtc-paper",
                "workload": {"trace": {"file": trace}},
                "adapters": {"count": len(tenants), "dtype": "fp16", "rank": RANK, "targets": ["q", "k", "v", "o"]},
                "fleet": {**fleet, "scheduling": self.scheduling, "kv_tokens": self.kv_tokens},
                "tenants": [
                    {"name": f"t{each}", "match": [f"t{each}"], "weight": each + 1 if self.weighted else 1}
                    for each in tenants
                ],
                "run": {"replications": 1, "warmup": 0},
            }
        )

    def simulated(self, profile: Profile) -> tuple[Floats, Floats]:
        """Return when each request gets its first token and when it ends, on the clock of ``arrival_s``."""
        columns = (self.arrival_s, self.tenant, self.prompt_tokens, self.output_tokens)
        rows = [f"{at},t{tenant},{prompt},{output}\n" for at, tenant, prompt, output in zip(*columns, strict=True)]
        with tempfile.TemporaryDirectory(prefix="loraplan-") as folder:
            costs, trace = Path(folder) / "profile.json", Path(folder) / "trace.csv"
            costs.write_text(profile.model_dump_json(), encoding="utf-8")
            trace.write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n" + "".join(rows), encoding="utf-8")
            requests = simulate(build_world(self.scenario(str(costs), str(trace))), 0, 1).requests
        first_s, end_s = (requests[name].astype(np.float64) for name in ("first_token_s", "finished_s"))
        return first_s + self.arrival_s[0], end_s + self.arrival_s[0]

    def measures(self, first_s: Floats, end_s: Floats, requests_per_s: float) -> dict[str, float]:
        """Return what is compared: of the run, and the mean TTFT of every tenant."""
        ttft_s = first_s - self.arrival_s
        found = {
            "requests_per_s": requests_per_s,
            "ttft_mean_s": float(ttft_s.mean()),
            "latency_mean_s": float((end_s - self.arrival_s).mean()),
        }
        for tenant in np.unique(self.tenant).tolist():
            found[f"{OF_TENANT}{tenant}"] = float(ttft_s[self.tenant == tenant].mean())
        return found

    def row(self, profile: Profile) -> Row:
        first_s, end_s = self.simulated(profile)
        published = self.measures(self.arrival_s + self.ttft_s, self.arrival_s + self.latency_s, self.requests_per_s)
        predicted = self.measures(first_s, end_s, len(end_s) / float(end_s.max()))
        return Row(self.entry, self.name, published, predicted, anchor=self.name in ANCHORS.values())


@cache
def sheet_profile(entry: str) -> Profile:
    """Return the costs by data sheet, with S-LoRA's own time for a sequence, and without LoRA and loads."""
    gpu, model = next((gpu, model) for name, gpu, model in DEPLOYMENTS.values() if name == entry)
    profile = build_profile(Deployment(card_of(gpu), base_model_of(model, None)), "").profile
    own = {"lora": LoraCost(), "per_passed_s": 0.0, "per_sequence_s": SEQUENCE_S, "host_per_sequence_s": 0.0}
    free = profile.load.host.model_copy(
        update={"open_s": 0.0, "per_tensor_s": 0.0, "per_padded_tensor_s": 0.0, "bandwidth_bytes_per_s": 1e18}
    )
    load = LoadCost(storage=free, host=free)
    return profile.model_copy(update={"step": profile.step.model_copy(update=own), "load": load, "draws": ()})


def anchored(step: StepCost, decode: float, prompt: float, prefill_step_s: float) -> StepCost:
    """Return step costs with the numbers of ``FITTED``."""
    return anchored_step(step, decode, prompt, lora=False).model_copy(update={"prefill_step_s": prefill_step_s})


def fit(run: Run) -> tuple[float, float, float]:
    """Return the three numbers with which the batches that a run really had take as long as they did.

    Between the first and the last token of a request lie its decode steps, and the prefills of all who joined then. So
    nothing is simulated: who joins when is the run's own.
    """
    step = sheet_profile(run.entry).step
    first_s, end_s = run.arrival_s + run.ttft_s, run.arrival_s + run.latency_s
    order = np.argsort(first_s)
    groups = np.split(order, np.flatnonzero(np.diff(first_s[order]) > TOGETHER_S) + 1)
    at_s = np.array([first_s[group].max() for group in groups])
    prompts = [run.prompt_tokens[group] for group in groups]
    long = np.flatnonzero(run.output_tokens >= LONG)
    decodes, token_s = run.output_tokens - 1, (end_s - first_s) / np.maximum(run.output_tokens - 1, 1)
    stalls = (at_s > first_s[long, None] + TOGETHER_S) & (at_s < end_s[long, None])
    batch, held = np.zeros(len(long)), np.zeros(len(long))
    for place, request in enumerate(long):  # means over the time in which it decodes
        times = np.linspace(first_s[request], end_s[request], 50)[:, None]
        there = (first_s <= times) & (end_s > times)
        tokens = run.prompt_tokens + (times - first_s) / token_s
        batch[place], held[place] = there.sum(axis=1).mean(), (there * tokens).sum(axis=1).mean()

    def off(numbers: Floats) -> Floats:
        trial = anchored(step, *numbers.tolist())
        of_tokens = zip(*trial.tokens, strict=True)
        at, seconds = (np.asarray(axis) for axis in of_tokens)
        every = trial.fixed_s + trial.host_s
        decode_s = every + trial.decode_step_s + trial.per_sequence_s * batch + trial.per_kv_token_s * held
        decode_s += np.interp(batch, at, seconds)
        prefill_s = [
            every
            + trial.prefill_step_s
            + np.interp(each.sum(), at, seconds)
            + trial.per_sequence_s * len(each)
            + trial.per_attended_token_s * float((each * (each + 1) / 2).sum())
            for each in prompts
        ]
        took_s: Floats = decode_s * decodes[long] + stalls @ np.array(prefill_s)
        return took_s / (end_s - first_s)[long] - 1

    decode, prompt, prefill_step_s = least_squares(off, [1.0, 1.0, 0.01], bounds=([0.1, 0.1, 0.0], [10, 10, 1])).x
    return float(decode), float(prompt), float(prefill_step_s)


def read_runs(path: Path) -> list[Run]:
    """Read the runs of a folder, or of one file of them.

    :raises InputError: naming what is missing, or the file, line and value that can't be used.
    """
    folder = path if path.is_dir() else path.parent
    tables = [place / TABLE for place in (folder, folder.parent) if (place / TABLE).exists()]
    if not tables:
        raise InputError("there is no table of the runs", file=str(path), allowed=f"{TABLE} in this folder or above it")
    table = read_table(tables[0])
    table.require(RUN_COLUMNS)
    runs = []
    for cells in table.rows:
        name = cells.row["run"]
        files = [place / f"{name}{end}" for place in (folder, folder / "vtc") for end in (".csv.gz", ".csv")]
        file = next((each for each in files if each.exists() and path in (folder, each)), None)
        if file is not None:
            runs.append(_run(cells, file))
    if not runs:
        raise InputError("no run of the table has its file here", file=str(path), allowed="RUN.csv or RUN.csv.gz")
    return runs


def _run(cells: RunCells, file: Path) -> Run:
    deployment = cells.row["model"], cells.row["gpu"]
    if deployment not in DEPLOYMENTS:
        known = ", ".join(" on ".join(each) for each in DEPLOYMENTS)
        raise cells.error("costs are not known for this model on this GPU", "gpu", " on ".join(deployment), known)
    scheduling = cells.parsed("scheduling", SCHEDULINGS.__getitem__, ", ".join(SCHEDULINGS))
    table = _requests(file)
    table.require(REQUEST_COLUMNS)
    counts = ("prompt_tokens", "output_tokens")
    read = {
        name: np.array([row.count(name) if name in counts else row.number(name) for row in table.rows])
        for name in REQUEST_COLUMNS
    }
    order = np.argsort(read["arrival_s"], kind="stable")
    arrival_s, tenant, prompt_tokens, output_tokens, ttft_s, latency_s = (read[name][order] for name in REQUEST_COLUMNS)
    return Run(
        name=cells.row["run"],
        entry=DEPLOYMENTS[deployment][0],
        scheduling=scheduling,
        weighted="weighted" in cells.row["scheduling"],
        kv_tokens=cells.count("kv_pool_tokens"),
        requests_per_s=cells.number("requests_per_s"),
        arrival_s=arrival_s,
        tenant=tenant.astype(np.int64),
        prompt_tokens=prompt_tokens + (0 if cells.row["mode"] == "real" else TOKENIZED),
        output_tokens=output_tokens,
        ttft_s=ttft_s,
        latency_s=latency_s,
    )


def _requests(file: Path) -> TableOfRuns:
    if file.suffix != ".gz":
        return read_table(file)
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines)
            columns = tuple(reader.fieldnames or ())
            return TableOfRuns(str(file), columns, [RunCells(row, str(file), reader.line_num) for row in reader])
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise InputError("the run can't be read", file=str(file), got=str(error)) from None


def predict(path: Path | None) -> list[Row]:
    """Predict published runs, on each card with the numbers of its anchor."""
    if path is None and not DATA.exists():
        raise InputError("the published runs are not here", file=str(DATA), hint="give them: --rows FOLDER")
    runs = read_runs(path or DATA)
    profiles = {}
    for entry in {run.entry for run in runs}:
        sheet = sheet_profile(entry)
        profiles[entry] = sheet.model_copy(update={"step": anchored(sheet.step, *FITTED[entry])})
    return [run.row(profiles[run.entry]) for run in runs]


def errors(rows: Sequence[Row], prefix: str) -> list[list[float]]:
    """Return by row how far the quantities off are whose name begins so."""
    return [
        [abs(row.predicted[name] / value - 1) for name, value in row.published.items() if name.startswith(prefix)]
        for row in rows
    ]


def bars(rows: Sequence[Row]) -> list[Bar]:
    """Return the bars of either entry. A run is overloaded if the source says so in its name."""
    overloaded = errors([row for row in rows if "overload" in row.name], OF_TENANT)
    tenants, runs, rates = (errors(rows, name) for name in (OF_TENANT, "ttft_mean_s", "requests_per_s"))
    return [
        Bar("mean TTFT of every tenant in overloaded runs", max(map(max, overloaded), default=0.0), 0.05),
        Bar("mean TTFT of the worst tenant of a run, median", median(map(max, tenants)) if rows else 0.0, 0.15),
        Bar("mean TTFT of a run, at worst", max((each[0] for each in runs), default=0.0), 0.40),
        Bar("requests/s of a run, at worst", max((each[0] for each in rates), default=0.0), 0.05),
    ]


_FITTED = (
    "three numbers, to how long the batches of the anchor took (`python -m validation.gallery.vtc`), not to its "
    "throughput or TTFT: decoding takes {:.2f} and prompts {:.2f} times what the data sheet says, and a prefill step "
    "{:.0f} ms more"
)
_FITTED_TOO = "the same three numbers: {:.2f} and {:.2f} times, and {:.0f} ms more"


def _entry(name: str, title: str, about: str) -> Entry:
    decode, prompt, prefill_step_s = FITTED[name]
    return Entry(
        name,
        title,
        "Ying1123/VTC-artifact, fair_bench (Sheng et al., OSDI 2024, arXiv 2401.00588)",
        "S-LoRA with `--no-lora`, the KV pool of the run, and every request at its time; prompts are two tokens "
        "longer than their words (`fair_bench/trace.py`). Tenants are served by FCFS, VTC, VTC with weights 1 to 4 "
        "(`REVISION.md`), or LCF",
        (_FITTED if name == SMALL else _FITTED_TOO).format(decode, prompt, prefill_step_s * 1000),
        bars,
        about,
    )


SOURCE = Source(
    (
        _entry(
            SMALL,
            "VTC: Llama-7B on an A10G, 2 to 27 tenants",
            "The miss is the tenant of `vtc_on_off_overload` that sends half of the time. The server itself varied: "
            "the same cycle of batches took 10.98 to 11.35 s in five runs, and near capacity such 3 % are up to 10 % "
            "of TTFT. Single tenants that hardly wait are off by more: in `lcf_real` 8 of 27 by more than 40 %, one "
            "of them predicted at 4.9 s instead of 2 s. S-LoRA's 98 µs for a sequence and 30 ms for a request in "
            "its front end are from another lab's runs. All this was chosen with the bundled runs in view.",
        ),
        _entry(
            LARGE,
            "VTC: Llama-13B on an A100 with 80 GB, two KV pools",
            "The misses are those of the pool of 65,000 tokens with prompts of 256. A step of up to 60 sequences took "
            "43 ms there and 33 to 40 ms with the other pool, perhaps on another host.",
        ),
    ),
    predict,
)


if __name__ == "__main__":
    for one in read_runs(DATA):
        if one.name in ANCHORS.values():
            print(one.entry, one.name, *(f"{number:.4g}" for number in fit(one)))
