"""What prompts have in common: system prompts, conversations, and traces that say so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traffic_samples import traffic

from sim.errors import InputError, ScenarioError, TraceError
from sim.spec.sections.trace_source import Trace
from sim.traffic import generate
from sim.traffic.generate import Chunk, Traffic
from sim.traffic.shared_text import UNSHARED, SharedText, one_run_each, repeated_tokens
from sim.traffic.traces.data import TraceData
from sim.traffic.traces.export import write_plain
from sim.traffic.traces.read import read_trace

SESSIONS = {"requests": 4, "gap_median": "5 s", "gap_sigma": 1, "gap_max": "1 min"}
PREFIX = {"shared_by": "adapter", "tokens": {"law": "uniform", "low": 10, "high": 500}}


def whole(made: Traffic) -> Chunk:
    (chunk,) = made.chunks(0)
    return chunk


def text_of(chunk: Chunk) -> SharedText:
    assert chunk.text is not None
    return chunk.text


def read(folder: Path, content: str, **options: Any) -> TraceData:
    (folder / "t.csv").write_text(content)
    return read_trace(Trace(file=str(folder / "t.csv"), **options))


def refusal(folder: Path, content: str, **options: Any) -> str:
    with pytest.raises(TraceError) as error:
        read(folder, content, **options)
    return str(error.value).replace(f"{folder}/", "")


def runs(text: SharedText | None) -> list[tuple[tuple[int, int], ...]]:
    return [found for found, _ in text.of_requests()]


# System prompts -------------------------------------------------------------------------------------------------------


def test_requests_share_nothing_unless_the_workload_says_so() -> None:
    made = traffic(100, sessions=SESSIONS)
    assert not made.shares_text
    assert whole(made).text is None


@pytest.mark.parametrize("shared_by", ["adapter", "all"])
@pytest.mark.parametrize("texts", [1, 4])
def test_a_system_prompt_comes_before_each_prompt_and_changes_no_other_draw(shared_by: str, texts: int) -> None:
    plain = whole(traffic(3000))
    chunk = whole(traffic(3000, prefix={**PREFIX, "shared_by": shared_by, "texts": texts}))
    text = text_of(chunk)
    for name in ("arrival_s", "adapter", "output_tokens", "load_uniform"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(chunk, name))
    np.testing.assert_array_equal(plain.prompt_tokens + text.ends, chunk.prompt_tokens)
    np.testing.assert_array_equal(text.rest, UNSHARED)
    # One length for each text, and as many texts as the scenario says.
    assert len(set(zip(text.keys.tolist(), text.ends.tolist(), strict=True))) == len(set(text.keys.tolist()))
    pairs = set(zip(chunk.adapter.tolist(), text.keys.tolist(), strict=True))
    if shared_by == "all":
        assert len(set(text.keys.tolist())) == texts
    else:
        assert len({key for _, key in pairs}) == len(pairs) == texts * len(set(chunk.adapter.tolist()))
    assert len(set(text.ends.tolist())) > 1 or (shared_by, texts) == ("all", 1)


def test_texts_are_equally_likely_and_a_session_keeps_its_own() -> None:
    chunk = whole(traffic(20_000, 1, prefix={**PREFIX, "texts": 4}))
    shares = np.bincount(text_of(chunk).keys, minlength=4)[:4] / 20_000
    np.testing.assert_allclose(shares, 0.25, atol=4 * np.sqrt(0.25 * 0.75 / 20_000))
    chunk = whole(traffic(20_000, 1, sessions=SESSIONS, prefix={**PREFIX, "texts": 4}))
    assert chunk.session is not None
    pairs = np.unique(np.stack((chunk.session, text_of(chunk).keys)), axis=1)
    assert pairs.shape[1] == len(np.unique(chunk.session))


# Conversations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [None, PREFIX])
def test_a_prompt_is_the_last_prompt_its_answer_and_new_tokens(
    prefix: dict[str, Any] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted request by request, over several chunks, for the sessions that begin in the run."""
    monkeypatch.setattr(generate, "BLOCK", 1000)
    most = 6000
    given = {} if prefix is None else {"prefix": prefix}
    plain = list(traffic(6000, sessions=SESSIONS, **given).chunks(0))
    made = traffic(6000, sessions={**SESSIONS, "history": True, "max_context": most}, **given)
    found = list(made.chunks(0))
    under_way = len(made._source.turns_before(0))  # type: ignore[union-attr]
    assert len(found) == 6
    history: dict[int, tuple[int, int]] = {}  # tokens and key, by session
    keys, starts_over = set(), 0
    for before, chunk in zip(plain, found, strict=True):
        np.testing.assert_array_equal(before.arrival_s, chunk.arrival_s)
        np.testing.assert_array_equal(before.output_tokens, chunk.output_tokens)
        rows = zip(
            chunk.session.tolist(),
            before.prompt_tokens.tolist(),
            [0] * len(chunk) if prefix is None else text_of(before).ends.tolist(),
            chunk.prompt_tokens.tolist(),
            chunk.output_tokens.tolist(),
            text_of(chunk).rest.tolist(),
            strict=True,
        )
        for session, fresh, begin, prompt, output, key in rows:
            if session < under_way and session not in history:
                assert prompt >= fresh
            elif session in history and history[session][0] + fresh - begin + output <= most:
                assert (prompt, key) == (history[session][0] + fresh - begin, history[session][1])
            else:
                starts_over += session in history
                assert prompt == fresh
                assert key not in keys, "another conversation"
            history[session] = prompt + output, key
            keys.add(key)
    assert starts_over > 100
    if prefix is not None:
        assert keys.isdisjoint(text_of(found[0]).keys.tolist())


def test_sessions_under_way_at_the_start_have_a_history() -> None:
    """So prompts are as long at the beginning of a run as later; without their history they would be far shorter."""
    made = traffic(
        40_000,
        arrivals={"process": "poisson", "rate": "50/s"},
        sessions={**SESSIONS, "history": True, "max_context": 1_000_000},
        tokens={"prompt": {"law": "geometric", "mean": 100}, "output": {"law": "geometric", "mean": 50}},
    )
    prompts = whole(made).prompt_tokens.astype(np.float64)
    begin, later = prompts[:2000], prompts[20_000:]
    # Requests of a session are correlated: about a quarter of them are independent.
    error = np.sqrt(4 * (begin.var() / len(begin) + later.var() / len(later)))
    assert begin.mean() == pytest.approx(later.mean(), abs=4 * error)
    assert later.mean() > 100 + 10 * error


def test_conversations_depend_on_nothing_but_the_seed() -> None:
    law = {**SESSIONS, "history": True}
    one, other, shorter = (whole(traffic(count, sessions=law)) for count in (3000, 3000, 1000))
    np.testing.assert_array_equal(one.prompt_tokens, other.prompt_tokens)
    np.testing.assert_array_equal(one.prompt_tokens[:1000], shorter.prompt_tokens)
    np.testing.assert_array_equal(text_of(one).rest[:1000], text_of(shorter).rest)


# Traces ---------------------------------------------------------------------------------------------------------------

PREFIXES = """\
timestamp_s,adapter_id,input_tokens,output_tokens,prefix_id,prefix_tokens
0,a,500,10,help,400
1,b,600,10,,
2,a,450,10,help,450
3,a,700,10,code,64
4,b,700,10,help,0
"""


def test_prefixes_of_a_trace_are_texts(tmp_path: Path) -> None:
    data = read(tmp_path, PREFIXES)
    assert runs(data.text) == [((400, 0),), (), ((450, 0),), ((64, 1),), ()]
    assert set(data.text.rest.tolist()) == {UNSHARED}
    assert data.notes == ()
    twice = read(tmp_path, PREFIXES, population_scale=2)
    assert len(twice) == 10
    assert sorted(runs(twice.text)) == sorted(2 * runs(data.text)), "new users of the same system prompts"


def test_prefixes_of_a_log_are_texts_in_the_order_of_its_times(tmp_path: Path) -> None:
    head, *rows = PREFIXES.splitlines(keepends=True)
    data = read(tmp_path, "".join((head, *reversed(rows))), columns={"adapter": "none"})
    assert data.adapter is None
    assert runs(data.text) == [((400, 1),), (), ((450, 1),), ((64, 0),), ()]
    assert not any("prefix_id" in note for note in data.notes)
    alone = read(tmp_path, PREFIXES.replace("prefix_id", "id"), columns={"adapter": "none"})
    assert alone.text is None
    assert any("columns ignored: adapter_id, id, prefix_tokens" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "help,400",
            "help,501",
            "t.csv:2: prefix_tokens: the prefix is longer than the prompt (got 501, allowed: up to",
        ),
        ("help,400", "help,-1", "t.csv:2: prefix_tokens: not a token count (got -1"),
        ("code,64", "code,6.5", "t.csv:5: prefix_tokens: not a token count (got 6.5"),
        ("code,64", "code,", "t.csv:5: prefix_tokens: the cell is empty"),
        ("prefix_tokens", "tokens", "t.csv:1: column prefix_tokens is missing; prefix_id needs it"),
        ("prefix_id", "prefix", "t.csv:1: column prefix_id is missing; prefix_tokens needs it"),
        ("prefix_id,", "hash_ids,", "t.csv:1: either hashes or prefixes say what requests share (got prefix_tokens, h"),
    ],
)
def test_prefixes_that_can_not_be_used_say_where(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert refusal(tmp_path, PREFIXES.replace(old, new)).startswith(says)


def test_a_bad_prefix_can_be_left_out_with_its_row(tmp_path: Path) -> None:
    data = read(tmp_path, PREFIXES.replace("help,400", "help,501"), skip_bad=True)
    assert runs(data.text) == [(), ((450, 0),), ((64, 1),), ()]


HASHES = """\
timestamp,input_length,output_length,hash_ids
0,1100,5,"[7, 8, 11]"
1000,1024,5,[7 8]
2000,700,5,7
2500,40,5,
3000,1500,5,"[7, 9, 12]"
"""


def test_block_hashes_are_texts_of_a_block_each(tmp_path: Path) -> None:
    data = read(tmp_path, HASHES)
    assert runs(data.text) == [
        ((512, 0), (1024, 1), (1100, 2)),
        ((512, 0), (1024, 1)),
        ((512, 0),),  # the incomplete last block may be left out
        (),
        ((512, 0), (1024, 3), (1500, 4)),
    ]
    json_lines = "".join(
        f'{{"timestamp": {row}, "input_length": 600, "output_length": 5, "hash_ids": [3, {row}]}}\n' for row in range(3)
    )
    assert runs(read(tmp_path, json_lines).text) == [((512, 0), (600, key)) for key in (1, 2, 3)]
    small = read(tmp_path, "timestamp,input_length,output_length,hash_ids\n0,40,1,4 5 6\n", hash_block=16)
    assert runs(small.text) == [((16, 0), (32, 1), (40, 2))]


def test_copies_of_a_trace_are_other_users_with_other_blocks(tmp_path: Path) -> None:
    one, twice = read(tmp_path, HASHES), read(tmp_path, HASHES, population_scale=2)
    assert len(twice.text.keys) == 2 * len(one.text.keys)
    assert len(set(twice.text.keys.tolist())) == 2 * len(set(one.text.keys.tolist()))


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            '"[7, 8, 11]"',
            "7 8",
            None,
        ),
        (
            '"[7, 8, 11]"',
            "7",
            "t.csv:2: hash_ids: the hashes contradict the length of the prompt (got 7, allowed: one for every 512 "
            "tokens (hash_block), with or without an incomplete last block); 1 hashes stand for 1,100 tokens; skip_bad",
        ),
        ("[7 8]", "[7 8 9]", "t.csv:3: hash_ids: the hashes contradict the length of the prompt (got [7 8 9], allowed"),
        ("[7 8]", "[7 x]", "t.csv:3: hash_ids: not a list of hashes (got [7 x], allowed: whole numbers, such as"),
        ("[7 8]", "[7 8", "t.csv:3: hash_ids: not a list of hashes (got [7 8, allowed"),
        ("[7 8]", f"[7 {10**30}]", "t.csv:3: hash_ids: not a list of hashes"),
        ("[7 8]", "", "t.csv:3: hash_ids: the hashes contradict the length of the prompt (got '', allowed"),
        ("1024,5", "x,5", "t.csv:3: input_length: not a usable number (got x"),
    ],
)
def test_hashes_that_contradict_the_length_say_where(tmp_path: Path, old: str, new: str, says: str | None) -> None:
    content = HASHES.replace(old, new)
    if says is None:
        read(tmp_path, content)
    else:
        assert refusal(tmp_path, content).startswith(says)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("hashed", [False, True])
def test_a_converted_trace_shares_the_same_text(tmp_path: Path, suffix: str, hashed: bool) -> None:
    content = PREFIXES
    if hashed:
        rows = ["timestamp_s,adapter_id,input_tokens,output_tokens,hash_ids"]
        content = "\n".join([*rows, "0,a,1100,5,7 8 11", "1,b,40,5,", "2,a,1024,5,7 9"])
    data = read(tmp_path, content)
    with (tmp_path / f"out{suffix}").open("wb") as out:
        write_plain(data, out, suffix)
    again = read_trace(Trace(file=str(tmp_path / f"out{suffix}")))
    assert runs(again.text) == runs(data.text)
    assert again.text_by_user == hashed


def test_a_trace_shares_text_in_pieces_and_a_prefix_on_top_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "BLOCK", 2)
    (tmp_path / "t.csv").write_text(PREFIXES)
    given: dict[str, Any] = {"arrivals": None, "trace": {"file": str(tmp_path / "t.csv")}}
    made = traffic(None, 2, **given)
    assert made.shares_text
    pieces = [runs(chunk.text) for chunk in made.chunks(0)]
    assert [len(piece) for piece in pieces] == [2, 2, 1]
    assert [each for piece in pieces for each in piece] == runs(read(tmp_path, PREFIXES).text)
    with pytest.raises(ScenarioError, match="the trace says itself which tokens requests share"):
        traffic(None, 2, prefix=PREFIX, **given)


def test_recorded_prompts_begin_with_the_prefix_or_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("timestamp_s,adapter_id,input_tokens,output_tokens\n0,a,500,9\n1,b,300,9\n")
    given: dict[str, Any] = {"arrivals": None, "trace": {"file": str(tmp_path / "t.csv")}}
    chunk = whole(traffic(None, 2, prefix={"tokens": {"law": "fixed", "value": 300}}, **given))
    assert chunk.prompt_tokens.tolist() == [500, 300]
    assert runs(chunk.text) == [((300, 0),), ((300, 1),)]
    with pytest.raises(InputError) as error:
        traffic(None, 2, prefix={"tokens": {"law": "fixed", "value": 301}}, **given)
    assert str(error.value) == (
        "workload.prefix.tokens: the prefix is longer than a recorded prompt, which should begin with it (got 301 "
        "tokens, request 2 of the trace has 300); give a shorter prefix"
    )


def test_parts_and_picks_of_texts_are_those_of_their_requests() -> None:
    text = SharedText(
        np.array([0, 2, 2, 3, 5]), np.array([4, 9, 3, 5, 6]), np.array([10, 11, 12, 10, 13]), np.array([-1, 7, -1, 8])
    )
    whole_text = list(text.of_requests())
    assert whole_text == [(((4, 10), (9, 11)), -1), ((), 7), (((3, 12),), -1), (((5, 10), (6, 13)), 8)]
    assert list(text.part(1, 4).of_requests()) == whole_text[1:]
    assert list(text.pick(np.array([3, 0, 0, 1])).of_requests()) == [whole_text[place] for place in (3, 0, 0, 1)]
    assert list(text.pick(np.array([], dtype=np.int64)).of_requests()) == []
    single = one_run_each(np.array([4, 5]), np.array([1, 2]), np.array([-1, 3]))
    assert list(single.of_requests()) == [(((4, 1),), -1), (((5, 2),), 3)]


def test_repeated_tokens_are_those_that_an_unlimited_cache_would_find() -> None:
    first, ends, keys = [0, 2, 3, 5, 6, 7], [10, 30, 8, 10, 40, 50, 50], [0, 1, 0, 0, 2, 0, 0]
    text = SharedText(np.array(first), np.array(ends), np.array(keys), np.full(5, UNSHARED))
    # The third has 8 tokens of text 0 that the second, and 10 that the first had; of text 2 it is the first.
    assert repeated_tokens(text, None) == 0 + 8 + 10 + 10 + 50
    assert repeated_tokens(text, np.array([0, 0, 1, 0, 1])) == 0 + 8 + 0 + 10 + 10
    assert repeated_tokens(text, np.array([0, 1, 2, 3, 4])) == 0
