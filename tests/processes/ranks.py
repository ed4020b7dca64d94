"""Real processes over gloo that run functions of the tests, each in a fresh group."""

from __future__ import annotations

import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

TIMEOUT = 4.0  # seconds, of the groups that functions get
HANG = 60.0  # after which a process that does not answer has hung: far beyond any timeout of a group


class Ranks:
    """So many processes. A call runs a function of (rank, group, *args) in each, and returns what they return.

    An exception is what that process returns. Groups are made anew for each call, so one that was left broken
    harms none after it.
    """

    def __init__(self, size: int) -> None:
        context = mp.get_context("spawn")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        self.pipes = []
        self.processes = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def __call__(self, function: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args, timeout))
        return [self.answer(rank) for rank in range(len(self.pipes))]

    def answer(self, rank: int) -> Any:
        """What a process returned; None where it died."""
        assert self.pipes[rank].poll(HANG), f"rank {rank} hangs"
        try:
            return self.pipes[rank].recv()
        except EOFError:
            return None

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    while True:
        function, args, timeout = pipe.recv()
        torch.manual_seed(0)
        group = dist.new_group(timeout=timedelta(seconds=timeout))
        try:
            result = function(rank, group, *args)
        except Exception as error:
            result = error
        pipe.send(result)
