"""Where processes that torchrun has started meet: a part of its store that belongs to one attempt alone.

`torchrun --max-restarts` keeps one key-value store for all attempts (torch 2.4 to 2.15 at least, by default). Processes
that were started again find there what those of the attempt before have left: gloo's addresses, NCCL's id. Whoever
reads before its partner has written anew then connects to a process that is dead. Here, process 0 chooses a name that
was never used, and hands it to each of the others under a name that is as new. All keys of the attempt stand below it.

The number of restarts (TORCHELASTIC_RESTART_COUNT) would not do: agents of several machines count differently.
"""

from __future__ import annotations

import datetime
import os
import time
import uuid

import torch.distributed as dist

from mi_ml_gen.core.errors import EnvironmentFault

POLL_S = 0.02


def is_shared() -> bool:
    """Whether torchrun's agent serves a store that outlives its processes."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def store_of_attempt(timeout_s: float) -> dist.Store:
    """The part of torchrun's store that the processes of this attempt share, for `init_process_group(store=...)`.

    Raises EnvironmentFault if a process does not come within `timeout_s`, and torch's RuntimeError where the store
    cannot be reached.
    """
    rank, n_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = datetime.timedelta(seconds=timeout_s)
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = dist.TCPStore(*place, is_master=False, timeout=limit, wait_for_workers=False)
    name = _name_for_all(store, n_ranks, timeout_s) if rank == 0 else _name_from_first(store, rank)
    return dist.PrefixStore(f"mi_ml_gen/{name}", store)


def _name_for_all(store: dist.Store, n_ranks: int, timeout_s: float) -> str:
    """A new name, once all others have heard it. What asks may be dead: it is answered, and whoever asks next, too."""
    name, answered = uuid.uuid4().hex, set()
    silent = set(range(1, n_ranks))
    deadline_s = time.monotonic() + timeout_s
    while silent:
        for rank in sorted(silent):
            if store.check([f"mi_ml_gen/heard/{name}/{rank}"]):
                silent.discard(rank)
            elif store.check([f"mi_ml_gen/asks/{rank}"]):
                question = store.get(f"mi_ml_gen/asks/{rank}").decode()
                if question not in answered:
                    store.set(f"mi_ml_gen/answer/{question}", name)
                    answered.add(question)
        if time.monotonic() > deadline_s:
            missing = f"rank {min(silent)} did not come within {timeout_s:g} s"
            raise EnvironmentFault(f"cannot join the other processes: {missing}")
        time.sleep(POLL_S if silent else 0)
    return name


def _name_from_first(store: dist.Store, rank: int) -> str:
    question = uuid.uuid4().hex  # nobody before can have asked, or answered, this
    store.set(f"mi_ml_gen/asks/{rank}", question)
    name = store.get(f"mi_ml_gen/answer/{question}").decode()  # waits
    store.set(f"mi_ml_gen/heard/{name}/{rank}", "yes")
    return name
