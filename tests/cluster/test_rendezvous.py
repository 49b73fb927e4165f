"""Where ranks meet: nobody else reaches those of one machine, and nothing that others write is unpickled."""

import base64
import contextlib
import ipaddress
import os
import pickle
import re
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import warm
from conftest import Started, processes_in

from gpt import distributed
from gpt.distributed import World, process_group
from gpt.errors import LostRank
from gpt.tracker.logs import read_metrics


def listening(process: int) -> list[tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]]:
    """The addresses and ports at which a process takes connections."""
    own = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed meanwhile
            own.update(re.findall(r"socket:\[(\d+)\]", os.readlink(descriptor)))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in own:  # TCP_LISTEN, <net/tcp_states.h>
                host, port = local.split(":")
                words = bytes.fromhex(host)  # of 32 bits, in this machine's order
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.append((ipaddress.ip_address(address), int(port, 16)))
    return found


def interface_of_a_network() -> str | None:
    """An interface that other machines may reach, if there is one."""
    return next((name for _, name in socket.if_nameindex() if name.startswith(("eth", "en"))), None)


def wait_for(condition, process: Started, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_of_one_machine_listen_to_nobody_else(small, tmp_path, monkeypatch):
    if network := interface_of_a_network():
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", network)  # as a cluster's profile may
    cluster = ["cluster=ddp", "cluster.nproc=2", "trainer.max_steps=100_000", "hydra.run.dir=run"]
    run = Started(*small, *cluster, cwd=tmp_path)
    run_dir = tmp_path / "run"
    wait_for(lambda: (run_dir / "metrics.jsonl").exists() and read_metrics(run_dir), run)
    ports = {process: listening(process) for process in processes_in(tmp_path)}
    run.send_signal(signal.SIGTERM)
    assert run.communicate(timeout=60) and run.returncode == 75
    assert run.pid in ports and ports.pop(run.pid) == []
    ports = [port for of_one in ports.values() for port in of_one]
    assert len(ports) == 2, "gloo's, one of each rank, and no store"
    assert all(address.is_loopback for address, _ in ports), ports


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.slow
def test_what_a_stranger_leaves_at_the_meeting_place_is_not_unpickled(small, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    meeting = ["cluster=multinode", "cluster.nproc=1", f"cluster.rdzv_endpoint=127.0.0.1:{port}", "cluster.timeout=60"]
    machine_0 = Started(*small, *meeting, "cluster.node_rank=0", cwd=tmp_path)
    wait_for(lambda: port in [number for _, number in listening(machine_0.pid)], machine_0)
    stranger = dist.TCPStore("127.0.0.1", port, wait_for_workers=False)
    state = base64.b64encode(pickle.dumps(Payload(tmp_path / "owned")))
    for key in {"torch.rendezvous.gptlab", *stranger.list_keys()}:
        stranger.set(key, state)
    machine_1 = Started(*small, *meeting, "cluster.node_rank=1", cwd=tmp_path)
    said = [machine.communicate() for machine in (machine_0, machine_1)]
    assert not (tmp_path / "owned").exists()
    assert (machine_0.returncode, machine_1.returncode) == (0, 0), said


def gather_from_a_stranger(directory: Path) -> None:
    """Rank 0, which asks the other for its value."""
    world = World(0, 0, 2, store=directory / "store")
    with process_group(world, torch.device("cpu"), 30):
        try:
            answer = world.gather("mine")
        except ValueError as error:
            answer = error
    (directory / "answer").write_text(repr(answer))


def send_a_pickle(directory: Path) -> None:
    """Rank 1, with bytes of its own making."""
    with process_group(World(1, 1, 2, store=directory / "store"), torch.device("cpu"), 30):
        content = torch.frombuffer(bytearray(pickle.dumps(Payload(directory / "owned"))), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
        dist.all_gather(lengths, torch.tensor([len(content)]))
        padded = [torch.zeros(int(max(lengths)), dtype=torch.uint8) for _ in range(3)]
        padded[2][: len(content)] = content
        dist.all_gather(padded[:2], padded[2])


def test_what_ranks_tell_one_another_is_not_unpickled(tmp_path):
    ranks = [warm.process(target, tmp_path) for target in (gather_from_a_stranger, send_a_pickle)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert not (tmp_path / "owned").exists()
    assert "JSON" in (tmp_path / "answer").read_text() or "utf-8" in (tmp_path / "answer").read_text()


@pytest.mark.slow
def test_a_rank_that_does_not_join_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0)
    alone = process_group(World(0, 0, 2, store=tmp_path / "store"), torch.device("cpu"), 1)
    with pytest.raises(LostRank, match=r"not all ranks joined within cluster.timeout=1 s"), alone:
        pass
