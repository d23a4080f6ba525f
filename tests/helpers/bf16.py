"""Whether this processor multiplies bf16. On its own, since it loads torch."""

import pytest
import torch

from tuneloop.core.device import default_dtype

# Elsewhere bf16 is multiplied some hundred times slower and no one computes in it.
NATIVE_BF16 = default_dtype() is torch.bfloat16
needs_bf16 = pytest.mark.skipif(not NATIVE_BF16, reason="this processor does not multiply bf16: models are fp32 here")
