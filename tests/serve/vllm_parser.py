"""Runs on vLLM's Python: reads command lines as JSON from stdin and prints what vLLM's own parser makes of each.

Standard output has one JSON list: for each command line the options that we set, or the parser's error. With the
argument ``options`` it has all of vLLM's options instead, by group, each with its names.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys

from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

READ = (
    "model_tag",
    "enable_lora",
    "max_loras",
    "max_lora_rank",
    "max_cpu_loras",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "gpu_memory_utilization",
    "num_gpu_blocks_override",
    "block_size",
    "enable_prefix_caching",
    "tensor_parallel_size",
    "fully_sharded_loras",
    "speculative_config",
)


def main() -> None:
    """Parse every command line after ``vllm serve``, or list the options."""
    if sys.argv[1:] == ["options"]:
        groups = make_arg_parser(FlexibleArgumentParser())._action_groups
        names = {group.title: [option.option_strings for option in group._group_actions] for group in groups}
        sys.stdout.write(json.dumps(names))
        return
    found: list[dict[str, object]] = []
    for words in json.load(sys.stdin):
        parser = make_arg_parser(FlexibleArgumentParser())
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                args = parser.parse_args(words)
                validate_parsed_serve_args(args)
        except (SystemExit, Exception) as error:
            found.append({"error": said.getvalue() or str(error)})
            continue
        modules = [[each.name, each.path] for each in args.lora_modules or ()]
        found.append({**{name: getattr(args, name) for name in READ}, "lora_modules": modules})
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
