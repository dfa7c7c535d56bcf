# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to change what it was created with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class AmendsImage(ABC):
    """A node whose image can be amended."""

    @abstractmethod
    async def amend(self, options: Any) -> None:
        """Change what `options`, of the driver's `amend_options`, say; raises BlockError."""
