"""ResNet-50 on photographs in folders: a set of any size is streamed, and memory is bounded by the batch."""

import warnings

# torch's own, at the first use of its forward mode: nothing that a reader could do about it
warnings.filterwarnings("ignore", message=".*torch.jit.script. is deprecated", category=FutureWarning)
