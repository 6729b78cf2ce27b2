"""torchrun on several hosts: shared memory inside each, gloo between them. Here both hosts are this machine.

Run: python examples/12_several_hosts.py
(In earnest, on host k: torchrun --nnodes 2 --node-rank k --master-addr HOST0 --nproc-per-node 2 PROGRAM, without
COMMLIB_HOST; GLOO_SOCKET_IFNAME names the network between the hosts, where it has several.)
"""

import os
import socket
import subprocess
import sys

HOSTS, RANKS = ("left", "right"), 2


def work() -> None:
    """What each process does: nothing in it knows of hosts."""
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("commlib")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    total = torch.full((100_000,), float(rank))
    dist.all_reduce(total)
    if rank == 0:
        dist.send(total[:1] + 1, ranks - 1)
    elif rank == ranks - 1:
        dist.recv(total[:1], 0)
    line = f"rank {rank} of {ranks} on host {os.environ['COMMLIB_HOST']}: {total[0]:g} {total[1]:g}\n"
    print(line, end="", flush=True)  # in one piece: ranks share the pipe
    dist.destroy_process_group()


def start(node: int, port: int) -> "subprocess.Popen[str]":
    """The torchrun of one host."""
    place = ["--nnodes", str(len(HOSTS)), "--node-rank", str(node), "--nproc-per-node", str(RANKS)]
    store = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    command = [sys.executable, "-m", "torch.distributed.run", *place, *store, __file__]
    here = {"COMMLIB_HOST": HOSTS[node], "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "COMMLIB_DEBUG": "INFO"}
    return subprocess.Popen(
        command, env={**os.environ, **here}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def main() -> None:
    """Start both, print what their ranks say and what rank 0 tells of its choice, and leave nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nodes = [start(node, port) for node in range(len(HOSTS))]
    try:
        said = [node.communicate(timeout=50) for node in nodes]
    finally:
        for node in nodes:
            if node.poll() is None:
                node.terminate()  # torchrun ends its processes, then itself
                node.communicate()
    if any(node.returncode for node in nodes):
        sys.exit("".join(error for _, error in said))
    for line in sorted("".join(out for out, _ in said).splitlines()):
        print(line)
    for line in said[0][1].splitlines():
        if line.startswith("commlib INFO allreduce"):
            print(line)


if __name__ == "__main__":
    if "LOCAL_RANK" in os.environ:
        work()
    else:
        main()
