"""GPT-2 of 124 million parameters in bf16: tokens a second and MFU, as nanoGPT measures them.

python -m benchmarks.gpt2                      # for a GPU of 40 GiB or more
python -m benchmarks.gpt2 --layers 2 --width 64 --heads 2 --time 64 --vocabulary 512    # for any

MFU, model FLOPs utilisation (Chowdhery et al. 2022, appendix B, arXiv:2204.02311), is

    tokens a second * (6 n + 12 l d t) / peak

with n the parameters that are factors of products, l the layers, d the width and t the tokens of a
sequence: attention is counted in full, although half of it is masked. The peak is the data sheet's,
of dense products in bf16.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax

from benchmarks.harness import apart, compare, emit, import_torch, matmul_peak, run
from benchmarks.transformer import (
    Precision,
    Setting,
    jaxdl_steps,
    torch_steps,
    train_step_flops,
)
from jaxdl.malloc import keep_memory

# TFLOP/s of dense products in bf16, by the name by which JAX knows a device. Of A100 all are alike;
# H100 and H200 are slower as PCIe and NVL.
PEAKS = {"NVIDIA A100.*": 312.0, "NVIDIA H100 80GB HBM3": 989.0, "NVIDIA H200": 989.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Setting):
    """Options of this benchmark."""

    rounds: int = 9
    warmup: int = 2
    time: int = 1024
    width: int = 768
    layers: int = 12
    heads: int = 12
    vocabulary: int = 50_304  # GPT-2's 50,257 made up to a multiple of 128, as nanoGPT does
    precision: Precision = "bf16"
    peak_tflops: float | None = None
    """The data sheet's peak of dense products in bf16 [default: known for A100, H100 and H200]."""


def datasheet_peak(options: Options) -> float | None:
    """Returns TFLOP/s of the device in bf16; None where nobody knows, or float32 is measured."""
    if options.precision != "bf16":
        return None
    kind = jax.devices()[0].device_kind
    known = (peak for name, peak in PEAKS.items() if re.fullmatch(name, kind))
    return options.peak_tflops or next(known, None)


def rates(options: Options, seconds: float) -> dict[str, float | None]:
    """Returns tokens a second, and MFU where the peak is known, of steps that took so long."""
    tokens = options.steps * options.batch_size * options.time
    flops, peak = options.steps * train_step_flops(options), datasheet_peak(options)
    return {
        "tokens_per_second": tokens / seconds,
        "mfu": flops / seconds / (peak * 1e12) if peak else None,
    }


def main(options: Options) -> None:
    """Prints one line of JSON for each way in which PyTorch runs: on a GPU also torch.compile."""
    kept, torch = keep_memory(), import_torch()
    on_gpu = jax.default_backend() != "cpu"
    peak = matmul_peak("bfloat16" if options.precision == "bf16" else "float32")
    about: dict[str, Any] = dataclasses.asdict(options) | {"peak_tflops": datasheet_peak(options)}
    about |= {"torch_threads": torch.get_num_threads(), "memory_kept": kept, "peak": peak}
    for compiled in (False, True) if on_gpu else (False,):
        sides = jaxdl_steps(options, "gpt2"), apart(torch_steps, options, "gpt2", compiled=compiled)
        line = compare("gpt2 train step", *sides, **about)
        for side in line["a"], line["b"]:
            side |= rates(options, side["seconds"])
        emit(line)


if __name__ == "__main__":
    run(main, Options, __doc__)
