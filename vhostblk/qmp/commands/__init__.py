# SPDX-License-Identifier: Apache-2.0
"""QMP commands, one module an area; importing a module registers its commands."""
