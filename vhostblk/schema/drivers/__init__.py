# SPDX-License-Identifier: Apache-2.0
"""Options of the drivers, in modules named as those of `block.drivers`."""
