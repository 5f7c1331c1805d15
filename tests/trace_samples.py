"""Small valid traces of every format, as the bytes of their files."""

from __future__ import annotations

import gzip
import io
import json

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
}
"""Files by format; what follows a dot is another way to write the same format."""
