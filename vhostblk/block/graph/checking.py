# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to be checked and repaired."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass
class CheckResult:
    """What a check of an image has found, in QEMU's terms (`ImageCheck`)."""

    #: What contradicts itself: in qcow2, refcounts lower than references, or wrong flags.
    corruptions: int = 0
    #: Space that nothing refers to.
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0


class ChecksImage(ABC):
    """A node whose image has structures to check."""

    @abstractmethod
    async def check_image(self, *, repair: bool) -> CheckResult:
        """Check the image's structures, and put them right if asked to; raises OSError."""
