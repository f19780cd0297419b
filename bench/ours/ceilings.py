"""What this machine can do at most: bytes copied, products of matrices, convolutions a second."""

import time

import numpy as np
import torch

from bench.clock import asked, tell

given = asked()
COPIED = 256 << 20
SIDE = 1536
CHANNELS, EDGE = 32, 48


def best(work, times: int = 5) -> float:
    """The least seconds of `work` after one to warm up."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken[1:])


if given["threads"]:
    torch.set_num_threads(given["threads"])
source = torch.ones(COPIED // 4)
target = torch.empty_like(source)
copied = best(lambda: target.copy_(source))
a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
c = torch.empty(SIDE, SIDE)
product = best(lambda: torch.mm(a, b, out=c))
form = torch.channels_last_3d
image = torch.randn(2, CHANNELS, EDGE, EDGE, EDGE).contiguous(memory_format=form)
net = torch.nn.Conv3d(CHANNELS, CHANNELS, 3, padding=1).to(memory_format=form)
with torch.inference_mode():
    convolved = best(lambda: net(image))
tell(
    wall_s=copied + product + convolved, cpu_s=0.0, peak_bytes=0, threads=torch.get_num_threads(),
    copy_gb_s=2 * COPIED / copied / 1e9, product_gflops=2 * SIDE**3 / product / 1e9,
    convolution_gflops=2 * image.numel() * CHANNELS * 27 / convolved / 1e9,
    numpy=np.__version__,
)  # fmt: skip
