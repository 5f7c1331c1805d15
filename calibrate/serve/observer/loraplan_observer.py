"""Log what a vLLM engine does with its adapters; runs inside the server's processes, not in ours.

Loaded as a plugin of vLLM (entry point ``vllm.general_plugins``), which calls ``observe`` in every process. The
scheduler's process writes a JSON line for each step, a worker's one for each load, eviction and file read, to the file
named by LORAPLAN_OBSERVED. Times are those of the monotonic clock, in seconds: the same in all processes.
Only the standard library and vLLM may be imported here.
"""

import json
import os
import time


def observe():
    """Patch the scheduler and the adapter manager; where a version has other names, report it and change nothing."""
    target = os.environ.get("LORAPLAN_OBSERVED")
    if not target:
        return
    write = _writer(target)
    try:
        from vllm.lora import model_manager, worker_manager
        from vllm.v1.core.sched.scheduler import Scheduler

        manager = model_manager.LRUCacheLoRAModelManager
        worker = worker_manager.LRUCacheWorkerLoRAManager
        methods = (Scheduler.schedule, manager.activate_adapter, manager._deactivate_adapter, worker._load_adapter)
    except (ImportError, AttributeError) as error:
        write({"unable": str(error)})
        return
    if not getattr(Scheduler, "_loraplan_observed", False):
        Scheduler._loraplan_observed = True
        _patch(Scheduler, manager, worker, methods, write)


def _writer(target):
    opened = {}  # by process: a forked one must not share what its parent opened

    def write(row):
        file = opened.get(os.getpid())
        if file is None:
            file = opened[os.getpid()] = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(file, json.dumps(row, separators=(",", ":")).encode() + b"\n")

    return write


def _patch(scheduler, manager, worker, methods, write):
    schedule, activate, deactivate, read = methods

    def observed_schedule(self, *args, **keywords):
        began = time.monotonic()
        out = schedule(self, *args, **keywords)
        if out.total_num_scheduled_tokens:
            fresh = [r.lora_request.lora_int_id for r in out.scheduled_new_reqs if r.lora_request]
            write(
                {
                    "step": began,
                    "tokens": out.total_num_scheduled_tokens,
                    "sequences": len(out.num_scheduled_tokens),
                    "new": fresh,
                    "preempted": len(out.preempted_req_ids or ()),
                }
            )
        return out

    def observed_activate(self, lora_id, *args, **keywords):
        fresh, began = lora_id not in self._active_adapters, time.monotonic()
        result = activate(self, lora_id, *args, **keywords)
        if fresh:
            write({"load": began, "adapter": lora_id, "seconds": round(time.monotonic() - began, 6)})
        return result

    def observed_deactivate(self, lora_id, *args, **keywords):
        write({"eviction": time.monotonic(), "adapter": lora_id})
        return deactivate(self, lora_id, *args, **keywords)

    def observed_read(self, request, *args, **keywords):
        began = time.monotonic()
        result = read(self, request, *args, **keywords)
        write({"read": began, "adapter": request.lora_int_id, "seconds": round(time.monotonic() - began, 6)})
        return result

    scheduler.schedule = observed_schedule
    manager.activate_adapter, manager._deactivate_adapter = observed_activate, observed_deactivate
    worker._load_adapter = observed_read
