"""Time to read the statistics of all parameters, as a multiple of one ``torch.std`` over the same tensors.

    python benchmarks/parameter_statistics.py           # 100 million entries, on one thread
    python benchmarks/parameter_statistics.py --tiny    # checks in a second that it runs

Both are timed alternately, and the median of the ratios is printed. The statistics are those that ``parameter_rms``,
``parameter_mean``, ``parameter_outlier`` and baselines read: six sums and two extremes in float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pytest_trainability.init.statistics import statistics_of


def tensors(entries: int, dtype: torch.dtype) -> list[Tensor]:
    """Return weights as a transformer has them: most entries in large matrices, most tensors small."""
    side = int((entries / 4) ** 0.5)
    large = [torch.randn(side, side).to(dtype) for _ in range(4)]
    return [*large, *(torch.randn(768).to(dtype) for _ in range(200))]


def seconds(read: Callable[[Tensor], object], weights: Sequence[Tensor]) -> float:
    began = time.perf_counter()
    for weight in weights:
        read(weight)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="few entries, once: checks that the benchmark runs")
    tiny = parser.parse_args().tiny
    torch.set_num_threads(1)
    for dtype in (torch.float32, torch.bfloat16):
        weights = tensors(10**4 if tiny else 10**8, dtype)
        ratios = [seconds(statistics_of, weights) / seconds(torch.std, weights) for _ in range(1 if tiny else 7)]
        print(f"{str(dtype).removeprefix('torch.')}: {statistics.median(ratios):.2f} times one torch.std")


if __name__ == "__main__":
    main()
