# SPDX-License-Identifier: Apache-2.0
"""A QMP command: it switches all lamps."""
