# SPDX-License-Identifier: Apache-2.0
"""The path of requests from a user to a node: buffers, completions, shaping, tracking."""
