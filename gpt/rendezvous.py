"""How the agents of a run's machines find each other, where nothing that a stranger writes is unpickled."""

import time
from datetime import timedelta

from torch.distributed import HashStore, PrefixStore, TCPStore
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    RendezvousTimeoutError,
)

POLL = 0.1  # seconds


def parse_endpoint(endpoint: str) -> tuple[str, int]:
    """The host and the port of HOST:PORT, where an IPv6 address stands in brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


class Rendezvous(RendezvousHandler):
    """Of a fixed number of machines, which know their numbers: a store on machine 0, or alone, one in memory.

    torch's own rendezvous unpickles its state from the store, which has no password, listens on all interfaces and
    tells the names of its keys, so that no secret name would help.
    """

    def __init__(self, parameters: RendezvousParameters):
        self.endpoint, self.run_id, self.nnodes = parameters.endpoint, parameters.run_id, parameters.max_nodes
        self.node_rank, self.timeout = parameters.get("node_rank"), parameters.get("timeout")

    @property
    def use_agent_store(self) -> bool:
        """Whether the ranks too use the store on machine 0."""
        return self.nnodes > 1

    def next_rendezvous(self) -> RendezvousInfo:
        """Return once all machines are there. Raises RendezvousTimeoutError, or DistError where the store is gone."""
        if self.nnodes == 1:
            return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))
        host, port = parse_endpoint(self.endpoint)
        timeout = timedelta(seconds=self.timeout)
        store = TCPStore(host, port, is_master=self.node_rank == 0, timeout=timeout, wait_for_workers=False)
        store = PrefixStore(self.run_id, store)
        store.set(f"machine_{self.node_rank}", "")
        deadline = time.monotonic() + self.timeout
        while not store.check([f"machine_{number}" for number in range(self.nnodes)]):
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError
            time.sleep(POLL)  # here and not in the store, where no signal would be heard
        return RendezvousInfo(store, self.node_rank, self.nnodes, RendezvousStoreInfo(host, port))

    def get_backend(self) -> str:
        return "gptlab"

    def get_run_id(self) -> str:
        return self.run_id

    def num_nodes_waiting(self) -> int:
        return 0  # none comes later

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def shutdown(self) -> bool:
        return True
