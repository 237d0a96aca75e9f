"""What all tests share; read before any of them imports PyTorch."""

from __future__ import annotations

import os

# Test processes run side by side. PyTorch threads that wait for each other on busy cores take a hundred times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
