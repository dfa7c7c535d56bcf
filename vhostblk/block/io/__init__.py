# SPDX-License-Identifier: Apache-2.0
"""How requests get from a user to a node: buffers, completions, shaping, tracking."""
