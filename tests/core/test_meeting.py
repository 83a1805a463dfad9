"""Processes that torchrun has started again find one another, and not those of the attempt before."""

import datetime
import os
import subprocess
import sys
import threading
import time

import pytest
import torch.distributed as dist

from mi_ml_gen.core import meeting
from mi_ml_gen.core.errors import EnvironmentFault

MEMBER = """
import os, sys, time
import torch
import torch.distributed as dist
from mi_ml_gen.core import runtime
time.sleep(float(sys.argv[2]))
runtime.setup_distributed(torch.device("cpu"), timeout_s=60)
mean = float(runtime.all_reduce_mean(torch.tensor(float(runtime.rank()))))
store = dist.distributed_c10d._get_default_store()
if runtime.is_main():
    time.sleep(0.5)  # its partner asks before it writes, and must wait
    store.set("attempt", sys.argv[1])
print(mean, store.get("attempt").decode(), flush=True)
runtime.barrier()
os._exit(0)  # as one that is killed: nobody is told
"""


@pytest.fixture
def agents_store(monkeypatch):
    """A store as torchrun's agent serves it, and its place in the environment."""
    limit = datetime.timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)
    for name, value in {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "WORLD_SIZE": "2",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return store


def start(rank, attempt, late_s=0.0):
    environment = os.environ | {"RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", MEMBER, str(attempt), str(late_s)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_second_attempt_does_not_call_the_dead_of_the_first(agents_store):
    for attempt, late_s in enumerate((0.0, 2.0)):  # the second time, process 0 is there first and finds what is left
        members = [start(0, attempt), start(1, attempt, late_s)]
        said = [member.communicate(timeout=120) for member in members]
        assert [out for out, _ in said] == [f"0.5 {attempt}\n"] * 2, said[0][1] + said[1][1]


def test_what_asked_and_died_is_no_member(agents_store, monkeypatch):
    agents_store.set("mi_ml_gen/asks/1", "of a process that is dead")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(EnvironmentFault, match=r"^cannot join the other processes: rank 1 did not come within 0.3 s$"):
        meeting.store_of_attempt(0.3)


def test_each_attempt_has_keys_of_its_own(agents_store, monkeypatch):
    """Process 0 and process 1 of three attempts: what one writes, its partner reads, and no other attempt."""

    def attempt(number):
        stores = {}

        def join(rank):
            name = meeting._name_for_all(agents_store, 2, 30.0) if rank == 0 else meeting._name_from_first(client, rank)
            stores[rank] = dist.PrefixStore(name, agents_store)

        client = dist.TCPStore("127.0.0.1", agents_store.port, is_master=False, wait_for_workers=False)
        threads = [threading.Thread(target=join, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
            time.sleep(0.1 * number)
        for thread in threads:
            thread.join(60)
        assert not stores[0].check(["who"])
        stores[0].set("who", str(number))
        assert stores[1].get("who").decode() == str(number)

    for number in range(3):
        attempt(number)
