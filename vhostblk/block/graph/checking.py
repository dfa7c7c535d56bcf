# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to be checked and repaired."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass
class CheckResult:
    """The result of a check, in QEMU's terms (`ImageCheck`)."""

    #: Inconsistencies: in qcow2, refcounts lower than the number of references, or wrong flags.
    corruptions: int = 0
    #: Space that is allocated but not referenced.
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0


class ChecksImage(ABC):
    """A node whose image has structures to check."""

    @abstractmethod
    async def check_image(self, *, repair: bool) -> CheckResult:
        """Check the image's structures, and repair them if requested; raises OSError."""
