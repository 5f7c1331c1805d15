"""Scenarios and profiles from strangers: no code, no other files, no bombs, no escapes for the terminal."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import NoReturn

import pytest
from command_line import CommandLine

from sim.errors import InputError
from sim.spec.files.yaml_tree import MAX_TEXT
from sim.spec.profile import load_profile
from sim.spec.scenario_file import load_scenario

BASE = """\
schema_version: 1
name: mine
workload:
  requests: 20
  arrivals: {process: poisson, rate: 5/s}
adapters: {count: 20, size: 50 MB}
cache: {gpu: {slots: 8}}
"""
TRACED = BASE.replace("arrivals: {process: poisson, rate: 5/s}", "trace: {file: FILE}").replace("count: 20, ", "")
ROLLOUT = "rollouts: [{adapters: hottest, at: 1 s, strategy: new-name, weights: FILE}]\n"


def write(folder: Path, text: str, name: str = "s.yaml") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_the_scenario_itself_is_fine(tmp_path: Path) -> None:
    assert load_scenario(str(write(tmp_path, BASE)), confined=True).scenario.name == "mine"


@pytest.mark.promise("No code is run.", "YAML tags create no objects.")
@pytest.mark.parametrize(
    "tagged",
    [
        '!!python/object/apply:os.system ["touch MARK"]',
        "!!python/name:os.system x",
        "!mine {a: 1}",
        "!mine [1]",
        "!!python/object/new:subprocess.Popen {args: touch MARK}",
    ],
)
def test_tags_make_no_objects(tmp_path: Path, tagged: str) -> None:
    file = write(tmp_path, f"{BASE}description: {tagged.replace('MARK', str(tmp_path / 'mark'))}\n")
    with pytest.raises(InputError, match=r"s\.yaml:8: YAML tags are not supported"):
        load_scenario(str(file))
    assert not (tmp_path / "mark").exists()


def bombs() -> dict[str, tuple[str, str]]:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))
    return {
        "aliases of lists": (laughs, "too many values"),
        "aliases of one long text": (f"x: &x {'y' * 100_000}\nz: [{','.join(['*x'] * 50)}]\n", "too much text"),
        "an alias of itself": ("x: &x [*x]\n", "nested too deeply"),
        "deep lists": (f"x: {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
        "a million values": (f"x: [{'1,' * 450_000}1]\n", "too many values"),
        "a number of 80,000 bits": (f"run: {{seed: 0x{'f' * 20_000}}}\n", "too large a number"),
        "more than 1 MB": ("#" * 1_000_001, "too large for a scenario"),
    }


@pytest.mark.promise(
    "scenario: 1 MB",
    "scenario: 100,000 values and 4 million characters with aliases written out",
    "scenario: 50 levels",
)
@pytest.mark.parametrize("name", bombs())
def test_what_would_blow_up_is_refused(tmp_path: Path, name: str) -> None:
    text, problem = bombs()[name]
    with pytest.raises(InputError, match=problem):
        load_scenario(str(write(tmp_path, BASE + text)))


def test_a_text_below_the_bound_is_no_bomb(tmp_path: Path) -> None:
    text = "y" * (MAX_TEXT // 100)
    assert load_scenario(str(write(tmp_path, f"{BASE}description: {text}\n"))).scenario.description == text


@pytest.mark.parametrize("name", ['"./a\\0b.json"', '"~nobody-of-this-name/p.json"', "./loop.json"])
def test_what_is_no_path_is_refused_where_it_stands(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
    file = write(tmp_path, f"{BASE}fleet: {{profile: {name}}}\n")
    with pytest.raises(InputError, match=r"s\.yaml:8: fleet\.profile: |fleet\.profile: no such profile"):
        load_profile(load_scenario(str(file)).scenario.fleet.profile)


@pytest.mark.promise(
    "Nothing outside is read, written or removed.",
    "it may name only files below its own folder, links followed, and bundled ones",
)
@pytest.mark.parametrize(
    "text",
    [
        "extends: FILE\n" + BASE,
        TRACED,
        BASE + "fleet: {profile: FILE}\n",
        BASE + ROLLOUT,
        TRACED.replace("{file: FILE}", "{file: own.csv, lengths_file: FILE}"),
        BASE + "sweep: {fleet.profile: [FILE]}\n",
        BASE + "sweep: {workload.trace: [{file: FILE}]}\n",
        BASE + "plan: {minimize: fleet.replicas, fleets: [{name: a, price: 1, set: {fleet.profile: FILE}}]}\n",
        BASE.replace("  requests: 20", "  requests: 20\n  popularity: {law: weights, file: FILE}"),
        BASE.replace(
            "  requests: 20", "  requests: 20\n  tokens: {prompt: {law: empirical, column: a, file: FILE}, output: 5}"
        ),
    ],
)
@pytest.mark.parametrize("path", ["../secret.json", "/etc/hosts.json", "link.json", "sub/../../secret.json"])
def test_confined_scenarios_name_no_file_outside_their_folder(tmp_path: Path, text: str, path: str) -> None:
    write(tmp_path, "root:x:0:0\n", "secret.json")
    file = write(tmp_path / "theirs", text.replace("FILE", path))
    (tmp_path / "theirs" / "link.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(InputError, match="this file lies outside the scenario's folder") as caught:
        load_scenario(str(file), confined=True)
    assert "root:x" not in str(caught.value)


@pytest.mark.promise("values of sweeps and plans")
def test_values_of_a_plan_are_confined_too(tmp_path: Path) -> None:
    loaded = load_scenario(str(write(tmp_path / "theirs", BASE)), confined=True)
    with pytest.raises(InputError, match="outside the scenario's folder"):
        loaded.with_values({"fleet.profile": str(tmp_path / "p.json")})


@pytest.mark.promise("and bundled ones", "What you name yourself with `--set` is not refused.")
def test_confined_scenarios_have_their_own_files_bundled_ones_and_what_the_user_sets(tmp_path: Path) -> None:
    write(tmp_path / "theirs", "timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,1,1\n", "t.csv")
    write(tmp_path, "timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,1,1\n", "mine.csv")
    own = load_scenario(str(write(tmp_path / "theirs", TRACED.replace("FILE", "t.csv"))), confined=True)
    assert own.data["workload"]["trace"]["file"] == str(tmp_path / "theirs" / "t.csv")
    assert load_scenario(str(write(tmp_path / "theirs", "extends: quickstart\n", "b.yaml")), confined=True).confines
    mine = [f"workload.trace.file={tmp_path / 'mine.csv'}"]
    assert load_scenario(own.source, mine, confined=True).scenario.workload.trace is not None


@pytest.mark.promise("With `--confined`, behind any command")
def test_the_command_line_confines(loraplan: CommandLine, tmp_path: Path) -> None:
    write(tmp_path, "timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,1,1\n1,b,1,1\n", "t.csv")
    file = write(tmp_path / "theirs", TRACED.replace("FILE", "../t.csv"))
    loraplan.succeeds("check", str(file))
    assert "with --confined only files below" in loraplan.refused("check", str(file), "--confined")


@pytest.mark.promise("scenario: 20 files that extend each other")
def test_a_chain_of_scenarios_ends(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, f"extends: {number + 1}.yaml\n", f"{number}.yaml")
    write(tmp_path, BASE, "30.yaml")
    with pytest.raises(InputError, match="too many scenarios extend each other"):
        load_scenario(str(tmp_path / "0.yaml"))


@pytest.mark.promise("Only regular files are opened: no pipes, no devices.")
@pytest.mark.timeout(10)
def test_pipes_and_devices_are_no_profiles(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.json")
    for name in (str(tmp_path / "p.json"), "/dev/zero", "/dev/stdin"):
        with pytest.raises(InputError, match=r"it is not a file|no such profile"):
            load_profile(name)


def test_a_profile_is_a_bundled_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a", "{}", "b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such profile"):
        load_profile("a/b")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[" + "[]," * 500_000 + "1]", "1" * 5000, "NaN", json.dumps({"a": "\ud800"})]
)
def test_profiles_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"fleet\.profile: "):
        load_profile(str(write(tmp_path, text, "p.json")))


@pytest.mark.promise("text with more brackets than 1 in 8 bytes is refused before it is parsed")
def test_a_profile_of_lists_is_not_even_parsed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too many brackets"):
        load_profile(str(write(tmp_path, "[" + "[]," * 5000 + "1]", "p.json")))


@pytest.mark.promise("Whatever is printed on a terminal has control characters as escapes")
def test_messages_hold_no_escapes_for_the_terminal(loraplan: CommandLine, tmp_path: Path) -> None:
    file = write(tmp_path, BASE.replace("count: 20", 'count: "\\e]0;mine\\a"') + '"\\e[31mred": 1\n')
    err = loraplan("check", str(file)).err
    assert "\\x1b[31mred" in err
    assert "\x1b" not in err
    assert "\x07" not in err


@pytest.mark.promise("Nothing is fetched.", "is treated as a missing file")
@pytest.mark.parametrize("address", ["https://example.com/t.csv", "s3://bucket/t.parquet", "hdfs://h/t", "file:///t"])
@pytest.mark.parametrize("text", [TRACED, "extends: FILE\n" + BASE, BASE + "fleet: {profile: FILE}\n"])
def test_an_address_is_a_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, text: str
) -> None:
    def refuse(*_: object) -> NoReturn:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from sim.world.build import build_world

    with pytest.raises(InputError, match="no such"):
        build_world(load_scenario(str(write(tmp_path, text.replace("FILE", address)))).scenario)
