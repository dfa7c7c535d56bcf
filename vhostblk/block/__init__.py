# SPDX-License-Identifier: Apache-2.0
"""The block layer: nodes, edges, graph, drivers."""
