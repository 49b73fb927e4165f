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


class Rendezvous(RendezvousHandler):
    """Of a fixed number of machines, which know their numbers: a store on machine 0, or alone, one in memory.

    torch's own rendezvous unpickles its state from the store, which has no password, listens on all interfaces and
    tells the names of its keys, so that no secret name would help.
    """

    def __init__(self, parameters: RendezvousParameters):
        self.run_id, self.nnodes = parameters.run_id, parameters.max_nodes
        self.node_rank, self.address = parameters.get("node_rank"), parameters.get("address")
        self.timeout = parameters.get("timeout")

    @property
    def use_agent_store(self) -> bool:
        """Whether the ranks too use the store on machine 0."""
        return self.nnodes > 1

    def next_rendezvous(self) -> RendezvousInfo:
        """Return once all machines are there. Raises RendezvousTimeoutError, or DistError where the store is gone."""
        if self.nnodes == 1:
            return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))
        timeout = timedelta(seconds=self.timeout)
        store = TCPStore(*self.address, is_master=self.node_rank == 0, timeout=timeout, wait_for_workers=False)
        store = PrefixStore(self.run_id, store)
        store.set(f"machine_{self.node_rank}", "")
        deadline = time.monotonic() + self.timeout
        while not store.check([f"machine_{number}" for number in range(self.nnodes)]):
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError
            time.sleep(POLL)  # here and not in the store, where no signal would be heard
        return RendezvousInfo(store, self.node_rank, self.nnodes, RendezvousStoreInfo(*self.address))

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
