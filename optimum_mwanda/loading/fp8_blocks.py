"""FP8 weights whose last block of rows or columns is not full, as in DeepSeek V3 (576 rows in blocks of 128).

transformers divides a weight evenly among its scales. It refuses what cannot be divided so, and gives wrong values
where it can: 192 rows with two scales are 128 and 64, and not 96 and 96.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.nn.functional import pad


@contextlib.contextmanager
def exact_blocks() -> Iterator[None]:
    """Inside the block, transformers dequantizes weights with the blocks that their config names."""
    try:
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    except ImportError:  # this transformers cannot read FP8 here, and says so when it loads the model
        yield
        return
    operation: Any = Fp8Dequantize
    original = getattr(operation, "_dequantize_one", None)
    if original is None:
        yield
        return
    operation._dequantize_one = _padded(original)
    try:
        yield
    finally:
        operation._dequantize_one = original


def _padded(dequantize: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(dequantize)
    def dequantize_padded(self: Any, quantized: Tensor, scales: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sides = getattr(self.hf_quantizer.quantization_config, "weight_block_size", None)
        missing = [0, 0]
        # The blocks of other weights in the same checkpoint, such as experts in 4 bits, follow from their scales.
        if sides is not None and scales.dim() >= 2 and quantized.is_floating_point():
            missing = [-size % side for size, side in zip(quantized.shape[-2:], sides, strict=True)]
            blocks = [-(-size // side) for size, side in zip(quantized.shape[-2:], sides, strict=True)]
            if not any(missing) or blocks != list(scales.shape[-2:]):
                missing = [0, 0]
        if not any(missing):
            return dequantize(self, quantized, scales, *args, **kwargs)
        rows, columns = quantized.shape[-2:]
        # torch cannot pad in float8, but float32 holds the same values.
        whole = pad(quantized.float(), (0, missing[1], 0, missing[0]))
        return dequantize(self, whole, scales, *args, **kwargs)[..., :rows, :columns].contiguous()

    return dequantize_padded
