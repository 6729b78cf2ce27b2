"""Train with DistributedDataParallel on the backend ``commlib``, then on gloo: the same losses, to the last bit.

Run: python examples/10_ddp_training.py
(Under torchrun: init_process_group("commlib") is all that changes in a program for CPUs.)
"""

from commlib import launch

RANKS = 2  # two numbers have one sum: with more ranks each backend would round it in an order of its own
STEPS = 5


def train(rank: int, group: object) -> list[float]:
    """A small classifier on this rank's part of the data; the loss of each step, over all ranks."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    parallel = DistributedDataParallel(model, process_group=group, bucket_cap_mb=1)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.5)
    data = torch.Generator().manual_seed(rank)
    inputs = torch.randn(128, 64, generator=data)
    labels = inputs[:, :10].argmax(dim=1)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(parallel(inputs), labels)
        loss.backward()
        optimizer.step()
        total = loss.detach()
        dist.all_reduce(total, group=group)
        losses.append(total.item() / RANKS)
    return losses


def work(rank: int) -> dict[str, list]:
    """What each process does: train on both, and see in the flight record what commlib ran."""
    import torch.distributed as dist

    from commlib.torch_backend import flight_record

    ours = dist.new_group(backend="commlib")
    found = {"commlib": train(rank, ours), "gloo": train(rank, dist.new_group(backend="gloo"))}
    calls = [call for call in flight_record(ours).calls if call.collective == "allreduce"]
    runs = sorted({(call.what, call.algorithm) for call in calls})
    dist.destroy_process_group(ours)
    return {**found, "runs": [f"{what}: {algorithm}" for what, algorithm in runs]}


def main() -> None:
    """Print the losses of both, and the algorithms that the sizes of gradients got."""
    found = launch(work, RANKS)[0]
    print("losses:", ", ".join(f"{loss:.4f}" for loss in found["commlib"]))
    print("the same on gloo:", found["commlib"] == found["gloo"])
    print("allreduces:", *found["runs"], sep="\n  ")


if __name__ == "__main__":
    main()
