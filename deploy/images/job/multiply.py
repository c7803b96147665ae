"""Multiply two matrices of small whole numbers, exactly, and check every element: ``multiply.py cuda|cpu [N]``. Prints one JSON line.

``cuda`` uses the CUDA driver through cuda-bindings and the kernels in ``matmul.ptx``, which lies beside this file. Exit 1: a wrong result.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np


def on_cpu(left, right):
    return "the processor", left @ right


def on_gpu(left, right):
    from cuda.bindings import driver as cu

    def call(function, *arguments):
        code, *values = function(*arguments)
        if code != cu.CUresult.CUDA_SUCCESS:
            raise SystemExit(f"{function.__name__}: {code.name}")
        return values[0] if values else None

    n = len(left)
    call(cu.cuInit, 0)
    device = call(cu.cuDeviceGet, 0)
    call(cu.cuCtxSetCurrent, call(cu.cuDevicePrimaryCtxRetain, device))
    module = call(cu.cuModuleLoadData, Path(__file__).with_name("matmul.ptx").read_bytes() + b"\0")
    kernel = call(cu.cuModuleGetFunction, module, b"multiply_fp32")
    places = [call(cu.cuMemAlloc, left.nbytes) for _ in range(3)]
    for place, matrix in zip(places, (left, right), strict=False):
        call(cu.cuMemcpyHtoD, place, np.ascontiguousarray(matrix).ctypes.data, matrix.nbytes)
    values = [np.array([int(place)], np.uint64) for place in places] + [np.array([n], np.uint32)]
    pointers = np.array([value.ctypes.data for value in values], np.uint64)
    call(cu.cuLaunchKernel, kernel, (n // 128) ** 2, 1, 1, 256, 1, 1, 0, 0, pointers.ctypes.data, 0)
    call(cu.cuCtxSynchronize)
    product = np.empty_like(left)
    call(cu.cuMemcpyDtoH, product.ctypes.data, places[2], product.nbytes)
    return call(cu.cuDeviceGetName, 96, device).split(b"\0")[0].decode(), product


if __name__ == "__main__":
    where, size = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1024
    numbers = np.random.default_rng(7)
    one, two = (numbers.integers(-3, 4, (size, size)).astype(np.float32) for _ in range(2))
    started = time.perf_counter()
    name, made = (on_gpu if where == "cuda" else on_cpu)(one, two)
    wrong = int((made != (one.astype(np.float64) @ two.astype(np.float64))).sum())
    sys.stdout.write(json.dumps({"device": name, "n": size, "wrong": wrong, "seconds": round(time.perf_counter() - started, 3)}) + "\n")
    raise SystemExit(1 if wrong else 0)
