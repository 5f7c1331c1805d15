"""Small valid traces of every format, as the bytes of their files."""

# ruff: noqa: E501 - a line of a log is a line

from __future__ import annotations

import gzip
import io
import json
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq

CSV = b"""\
timestamp_s,adapter_id,input_tokens,output_tokens,adapter_bytes,session_id,region
10.5,mail,410,64,1000,s1,eu
10.5,sql,120,210,2000,s2,us
11.25,mail,388,71,1000,s1,eu
13.0,"legal, draft",930,402,500,,eu
"""
AZURE_LLM = b"""\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224671,879,0
"""
# As published in 2024: other digits, and a time zone.
AZURE_LLM_2024 = b"""\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:01+00:00,2399,6
"""
MOONCAKE_ROWS = (
    (27482, 6955, 52, [*range(46, 58), 2353, 2354]),
    (30535, 6472, 26, [46, *range(2355, 2367)]),
    (30535, 1, 1, []),
)
MOONCAKE_JSONL = "".join(
    json.dumps({"timestamp": t, "input_length": i, "output_length": o, "hash_ids": h}) + "\n"
    for t, i, o, h in MOONCAKE_ROWS
).encode()
MOONCAKE_CSV = b"timestamp,input_length,output_length,n_hash_ids\n" + b"".join(
    f"{t},{i},{o},{len(h)}\n".encode() for t, i, o, h in MOONCAKE_ROWS
)
BURSTGPT = b"""\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,a,1.5,ChatGPT,472,18,490,Conversation log
45,a,2.0,ChatGPT,1087,230,1317,Conversation log
118,,0.1,GPT-4,417,0,417,API log
120,,0.1,GPT-4,417,276,693,API log
"""
BURSTGPT_OLD = b"""\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
"""
WINDOWS = b"""\
client_id,timestamp_s,rate_rps,cv,pattern,shape,scale
0,0,0.5,1.5,Weibull,0.7,1.6
4,0,0.02,1.42,Gamma,0.4957,12.03
0,600,0.4,1.5,Weibull,0.6,1.6
7,600,0.1,,,,
0,1800,0.25,1.5,Gamma,2,2
"""
LENGTHS = b"""\
pool,client,requests,input_tokens_mean,input_tokens_p50,input_tokens_p90,input_tokens_p99,output_tokens_mean,\
output_tokens_p50,output_tokens_p90,output_tokens_p99
m,0,100,322.1,269,331,1218,108.4,70,174,704
m,4,50,351.8,339,400,459,81.6,70,130,187
other,9,50,1,1,1,1,1,1,1,1
"""
FUNCTIONS = (
    "HashOwner,HashApp,HashFunction,Trigger,"
    + ",".join(map(str, range(1, 1441)))
    + "\n"
    + "o1,a1,f1,http,"
    + ",".join(["3", "0", "1"] + ["0"] * 1437)
    + "\n"
    + "o1,a1,f2,timer,"
    + ",".join(["0", "7"] + ["0"] * 1437 + ["2"])
    + "\n"
).encode()
FUNCTIONS_2021 = b"""\
app,func,end_timestamp,duration
a1,f1,5160.5,0.5
a2,f1,5161.25,42.25
a1,f2,5162.0,0.0
"""

LOG = b"""\
ts,model,prompt_tokens,completion_tokens,status
2025-03-04T09:00:02.500Z,sql,120,210,200
2025-03-04T09:00:01Z,mail,410,64,200
2025-03-04T09:00:02Z,mail,388,0,429
2025-03-04T10:00:04.250+01:00,legal,930,402,200
"""
# nginx: the combined format, and fields with names behind it. The line is written when the request ends.
NGINX = b"""\
10.0.0.7 - - [04/Mar/2025:10:00:03 +0100] "POST /lora/mail/v1/chat/completions HTTP/1.1" 200 512 "-" "py/1" rt=2.000 in=410 out=64
10.0.0.7 - - [04/Mar/2025:09:00:04 +0000] "GET /health HTTP/1.1" 200 2 "-" "kube-probe/1.3" rt=0.001 in=- out=-
10.0.0.8 - - [04/Mar/2025:10:00:04 +0100] "POST /lora/sql/v1/completions HTTP/1.1" 200 900 "-" "py/1" rt=1.500 in=120 out=210
10.0.0.8 - - [04/Mar/2025:10:00:05 +0100] "POST /lora/sql/v1/completions HTTP/1.1" 503 20 "-" "py/1" rt=0.010 in=- out=-
10.0.0.8 - - [04/Mar/2025:10:00:09 +0100] "POST /lora/legal/v1/completions HTTP/1.1" 200 900 "-" "py/1" rt=4.750 in=930 out=402
"""
ENVOY = b"""\
[2025-03-04T09:00:01.000Z] "POST /v1/completions HTTP/1.1" 200 - via_upstream - "-" 99 812 2000 "py/1" model=mail in=410 out=64
[2025-03-04T09:00:02.500Z] "POST /v1/completions HTTP/1.1" 200 - via_upstream - "-" 99 1612 1500 "py/1" model=sql in=120 out=210
[2025-03-04T09:00:04.250Z] "POST /v1/completions HTTP/1.1" 200 - via_upstream - "-" 99 1612 1500 "py/1" model=legal in=930 out=402
"""
VLLM = b"""\
(APIServer pid=7) INFO 03-04 09:00:00 [api_server.py:1971] Starting vLLM API server on http://0.0.0.0:8000
(APIServer pid=7) DEBUG 03-04 09:00:01 [logger.py:40] Request cmpl-1 details: prompt: 'Dear, [all]', prompt_token_ids: [1, 2, 3], prompt_embeds shape: None.
(APIServer pid=7) INFO 03-04 09:00:01 [logger.py:48] Received request cmpl-1: params: SamplingParams(n=1, temperature=0.0, stop=[]), lora_request: LoRARequest(lora_name='mail', lora_int_id=1, lora_path='/a/mail').
(APIServer pid=7) DEBUG 03-04 09:00:02 [logger.py:40] Request cmpl-2 details: prompt: 'x', prompt_token_ids: [1], prompt_embeds shape: None.
(APIServer pid=7) INFO 03-04 09:00:02 [logger.py:48] Received request cmpl-2: params: SamplingParams(n=1, temperature=0.0, stop=[]), lora_request: None.
(APIServer pid=7) INFO 03-04 09:00:03 [logger.py:76] Generated response cmpl-1: output: 'Hi', output_token_ids: [5, 6], finish_reason: stop
(APIServer pid=7) INFO:     10.0.0.7:49152 - "POST /v1/completions HTTP/1.1" 200 OK
(APIServer pid=7) INFO 03-04 09:00:04 [logger.py:76] Generated response cmpl-2: output: 'a', output_token_ids: [7], finish_reason: length
"""
LITELLM_ROWS = (
    ("2025-03-04T09:00:02.500000Z", "sql", 120, 210, "success"),
    ("2025-03-04T09:00:01Z", "mail", 410, 64, "success"),
    ("2025-03-04T09:00:03Z", "mail", 0, 0, "failure"),
    ("2025-03-04T09:00:04.250Z", "legal", 930, 402, "success"),
)
LITELLM = json.dumps(
    [
        {
            "request_id": f"chatcmpl-{number}",
            "call_type": "acompletion",
            "startTime": time,
            "endTime": "2025-03-04T09:01:00Z",
            "model": model,
            "prompt_tokens": prompt,
            "completion_tokens": output,
            "total_tokens": prompt + output,
            "status": status,
            "metadata": {"user_api_key_alias": "team-a"},
        }
        for number, (time, model, prompt, output, status) in enumerate(LITELLM_ROWS)
    ],
    indent=2,
).encode()


def _span(nanoseconds: int, model: str, prompt: int, output: int) -> dict[str, object]:
    values = {"gen_ai.request.model": {"stringValue": model}, "gen_ai.operation.name": {"stringValue": "chat"}}
    usage = {"input_tokens": prompt, "output_tokens": output}
    values |= {f"gen_ai.usage.{name}": {"intValue": str(count)} for name, count in usage.items()}
    return {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "name": f"chat {model}",
        "startTimeUnixNano": str(nanoseconds),
        "endTimeUnixNano": str(nanoseconds + 10**9),
        "attributes": [{"key": key, "value": value} for key, value in values.items()],
    }


def _export(*spans: dict[str, object]) -> str:
    return json.dumps({"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": spans}]}]})


_NINE = 1_741_078_800 * 10**9
# As the collector's file exporter writes them: one export a line. The span of the web framework is no request.
OTEL = "\n".join(
    (
        _export(_span(_NINE + 2_500_000_000, "sql", 120, 210), {"name": "POST", "attributes": []}),
        _export(_span(_NINE + 1_000_000_000, "mail", 410, 64)),
        _export(_span(_NINE + 4_250_000_000, "legal", 930, 402)),
    )
).encode()
LANGFUSE_ROWS = (
    ("GENERATION", "2025-03-04T09:00:02.500Z", "sql", 120, 210),
    ("SPAN", "2025-03-04T09:00:02.100Z", None, 0, 0),
    ("GENERATION", "2025-03-04T09:00:01.000Z", "mail", 410, 64),
    ("GENERATION", "2025-03-04T09:00:04.250Z", "legal", 930, 402),
)
LANGFUSE = b"".join(
    json.dumps(
        {
            "id": f"o{number}",
            "traceId": "t1",
            "type": kind,
            "startTime": time,
            "endTime": None,
            "providedModelName": model,
            "usageDetails": {"input": prompt, "output": output, "total": prompt + output},
        }
    ).encode()
    + b"\n"
    for number, (kind, time, model, prompt, output) in enumerate(LANGFUSE_ROWS)
)
_NAMES, *_ROWS = (line.split(",") for line in LOG.decode().splitlines())
_WRITTEN = [dict(zip(_NAMES, row, strict=True)) for row in _ROWS]
_LINES = ["INFO: ready", *map(json.dumps, _WRITTEN)]
_LATER = 1_741_078_809
"""All that some collectors know of the time of a line: when they got it."""


def _tags(row: dict[str, str]) -> list[dict[str, str]]:
    names = ("gen_ai.request.model", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    return [{"key": name, "value": row[of]} for name, of in zip(names, _NAMES[1:4], strict=True)]


def _microseconds(row: dict[str, str]) -> int:
    return int(datetime.fromisoformat(row["ts"]).timestamp() * 1e6)


_SPANS = [{"startTime": _microseconds(row), "tags": _tags(row)} for row in _WRITTEN] + [{"startTime": 1, "tags": []}]
_PAGES = {
    "loki": {
        "data": {
            "resultType": "streams",
            "result": [{"stream": {"app": "a"}, "values": [[f"{_LATER}000000000", each] for each in _LINES]}],
        }
    },
    "cloudwatch": {"events": [{"timestamp": _LATER * 1000, "message": each, "ingestionTime": 1} for each in _LINES]},
    "opensearch": {"took": 3, "hits": {"total": 4, "hits": [{"_id": "a", "_source": row} for row in _WRITTEN]}},
    "jaeger": {"data": [{"traceID": "t", "spans": _SPANS}]},
}
_BEHIND = {
    "docker": [json.dumps({"log": each + "\n", "stream": "stdout", "time": _LATER}) for each in _LINES],
    "kubernetes": [f"2025-03-04T09:00:09Z stdout F {each}" for each in _LINES],
    "compose": [f"gateway-1  | {each}" for each in _LINES],
    "logfmt": [" ".join(f'{key}="{value}"' for key, value in {**row, "msg": "is done"}.items()) for row in _WRITTEN],
}
COLLECTED = {name: json.dumps(page, indent=1).encode() for name, page in _PAGES.items()}
COLLECTED |= {name: "\n".join(lines).encode() for name, lines in _BEHIND.items()}
"""The same rows as in ``LOG``, as collectors of logs and traces hand them out."""


def parquet() -> bytes:
    """Return the plain CSV as Parquet, with numbers as numbers and a null session."""
    table = pa.table(
        {
            "timestamp_s": [10.5, 10.5, 11.25, 13.0],
            "adapter_id": ["mail", "sql", "mail", "legal, draft"],
            "input_tokens": pa.array([410, 120, 388, 930], pa.int32()),
            "output_tokens": pa.array([64, 210, 71, 402], pa.int64()),
            "adapter_bytes": [1000, 2000, 1000, 500],
            "session_id": ["s1", "s2", "s1", None],
            "region": ["eu", "us", "eu", "eu"],
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


SAMPLES = {
    "csv": CSV,
    "csv.gz": gzip.compress(CSV, mtime=0),
    "parquet": parquet(),
    "azure-llm-2023": AZURE_LLM,
    "mooncake.jsonl": MOONCAKE_JSONL,
    "mooncake": MOONCAKE_CSV,
    "burstgpt": BURSTGPT,
    "servegen-windows": WINDOWS,
    "azure-functions": FUNCTIONS,
    "azure-functions-2021": FUNCTIONS_2021,
    "log": LOG,
    "log.litellm": LITELLM,
    "log.otel": OTEL,
    "log.langfuse": LANGFUSE,
}
LOGS = {
    "nginx": NGINX,
    "envoy": ENVOY,
    "vllm": VLLM,
    "csv": LOG,
    "litellm": LITELLM,
    "otel": OTEL,
    "langfuse": LANGFUSE,
    **COLLECTED,
}
"""Logs by what writes them."""
LOG_SETTINGS: dict[str, dict[str, object]] = {
    "nginx": {
        "columns": {"adapter": "path", "input": "in", "output": "out", "duration": "rt"},
        "adapter_from": "/lora/([^/]+)/",
    },
    "envoy": {"columns": {"input": "in", "output": "out"}},
    "docker": {"columns": {"time": "log.ts"}},
    "loki": {"columns": {"time": "line.ts"}},
    "cloudwatch": {"columns": {"time": "message.ts"}},
}
"""What samples of logs need that their columns' names don't say."""

"""Files by format; what follows a dot is another way to write the same format."""
