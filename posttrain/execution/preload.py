"""Imported once by the server process that stages are forked from, so that no stage imports heavy libraries again.

Nothing here may start threads of torch: a fork does not inherit them.
"""

# ruff: noqa: F401 - imported for the children that are forked later, not for this module

import gc
import importlib
import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # see posttrain.system.gpus
# torch keeps a compiled kernel for each shape of a product, up to a thousand: half a gigabyte in a process that sees
# many lengths. A few dozen are as fast (measured).
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")

# What stages import within functions, if at all.
import scipy.stats
import torch._dynamo
import transformers.generation.utils
import transformers.integrations
import transformers.models.llama.modeling_llama

import posttrain.engines.reward_scorer
import posttrain.engines.shared_prefix
from posttrain.stages.registry import STAGES

for _stage in STAGES:
    importlib.import_module(f"posttrain.stages.{_stage}")

# What is imported stays: a collection in a child need not walk it (0.3 s each), nor copy its pages by doing so.
gc.collect()
gc.freeze()
