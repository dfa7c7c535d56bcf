# SPDX-License-Identifier: Apache-2.0
"""The capability of an image to change its creation options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any


class AmendsImage(ABC):
    """A node whose image can be amended."""

    @abstractmethod
    async def amend(self, options: Any) -> None:
        """Apply `options`, a struct of the driver's `amend_options`; raises BlockError."""
