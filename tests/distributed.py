"""Run a function in several gloo processes on this machine, and give back what each returned.

def _mean(value):                   # at the top level of a test module, so that children can import it
    return runtime.all_reduce_mean(torch.tensor(value))

first, second = run_processes(_mean, 2, 1.0)
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PRELOADED = ["torch", "torch.distributed", "numpy", "pytest", "mi_ml_gen.encoders.training"]
"""Imported once, in a server that the processes are forked from; it computes nothing, so no threads are lost."""


def run_processes(function: Callable, n_processes: int, *arguments: Any, limit_s: float = 240) -> list:
    """`function(*arguments)` in each of `n_processes` ranks of one group; the results in rank order.

    Results are what torch saves and loads as plain data: tensors, numbers, text, lists, dicts. An exception
    in any rank, or `limit_s` gone by, raises here. The ranks meet through a file, so no port can be taken.
    """
    with tempfile.TemporaryDirectory() as folder:
        shared = (function, n_processes, folder, arguments)
        multiprocessing.set_forkserver_preload(PRELOADED)
        context = mp.start_processes(_process, shared, n_processes, join=False, start_method="forkserver")
        deadline_s = time.monotonic() + limit_s
        while not context.join(timeout=1):
            if time.monotonic() > deadline_s:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__}: not done after {limit_s} s; do the ranks differ?")
        results = [_result(folder, rank) for rank in range(n_processes)]
        return [torch.load(result, weights_only=True) for result in results]


def _process(rank: int, function: Callable, n_processes: int, folder: str, arguments: tuple) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=n_processes)
    try:
        torch.save(function(*arguments), _result(folder, rank))
    finally:
        dist.destroy_process_group()


def _result(folder: str, rank: int) -> Path:
    return Path(folder) / f"result_{rank}.pt"
