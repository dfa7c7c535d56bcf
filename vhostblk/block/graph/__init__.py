# SPDX-License-Identifier: Apache-2.0
"""The block graph: nodes, the edges between them, and changes of the graph."""
