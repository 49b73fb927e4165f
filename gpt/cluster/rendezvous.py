"""The rendezvous of the elastic agents of a run's machines. Nothing that arrives over the network is unpickled."""

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
    """A rendezvous of a fixed number of machines that know their numbers, by a store on machine 0.

    A machine alone has a store in memory. torch's own rendezvous unpickles its state from the store, which has no
    password, listens on all interfaces and tells the names of its keys, so that no secret name would help.
    """

    def __init__(self, parameters: RendezvousParameters):
        self.run_id = parameters.run_id
        self.nnodes = parameters.max_nodes
        self.node_rank = parameters.get("node_rank")
        self.address = parameters.get("address")
        self.timeout = parameters.get("timeout")

    @property
    def use_agent_store(self) -> bool:
        """True if the ranks too use the store on machine 0."""
        return self.nnodes > 1

    def next_rendezvous(self) -> RendezvousInfo:
        """Return once all machines are there.

        Raises RendezvousTimeoutError, or DistError where the store is gone.
        """
        if self.nnodes == 1:
            return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("localhost", 0))
        host, port = self.address
        timeout = timedelta(seconds=self.timeout)
        server = TCPStore(host, port, is_master=self.node_rank == 0, timeout=timeout, wait_for_workers=False)
        store = PrefixStore(self.run_id, server)

        # Every machine signs in, and waits for the others. Waiting in the store would block signals.
        store.set(f"machine_{self.node_rank}", "")
        everyone = [f"machine_{number}" for number in range(self.nnodes)]
        deadline = time.monotonic() + self.timeout
        while not store.check(everyone):
            if time.monotonic() > deadline:
                raise RendezvousTimeoutError
            time.sleep(POLL)
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
