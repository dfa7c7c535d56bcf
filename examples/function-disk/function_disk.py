# SPDX-License-Identifier: Apache-2.0
"""A disk without storage: a function computes each sector. A guest can boot from it."""

from vhostblk import plugin

# 16-bit code that sends the text behind it to the first serial port.
BOOT = bytes.fromhex("fc31c08ed8be167cbaf803ac84c07403eeebf8f4ebfd")


class FunctionOptions(plugin.Options, tag="function", frozen=True):
    size: plugin.Size = 1 << 30
    message: str = "Hello from thirty lines of Python"


class FunctionDriver(plugin.Driver[FunctionOptions]):
    options_type = FunctionOptions

    def size(self) -> int:
        return self.options.size

    async def read(self, offset: int, length: int) -> bytes:
        return b"".join(map(self.sector, range(offset // 512, (offset + length) // 512)))

    def sector(self, number: int) -> bytes:
        if number == 0:
            return (BOOT + self.options.message.encode()[:480]).ljust(510, b"\0") + b"\x55\xaa"
        return (b"sector %d\n" % number).ljust(512, b".")
